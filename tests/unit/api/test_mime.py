"""Types of files: one table, the same everywhere, and never at odds with what the content is."""

from __future__ import annotations

import ast
import mimetypes
from pathlib import Path

import pytest

import sandboxd
from sandboxd.api import mime

TEXT, DATA = b"some text\n", b"\0\1\xff data"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("x.ts", "text/typescript"), ("x.d.ts", "text/typescript"), ("x.tsx", "text/tsx"), ("x.jsx", "text/jsx"),
        ("x.js", "text/javascript"), ("x.mjs", "text/javascript"), ("x.cjs", "text/javascript"),
        ("x.min.js.map", "application/json"), ("x.json", "application/json"), ("x.ipynb", "application/x-ipynb+json"),
        ("x.md", "text/markdown"), ("x.yaml", "application/yaml"), ("x.yml", "application/yaml"),
        ("x.toml", "application/toml"), ("x.py", "text/x-python"), ("x.rs", "text/x-rust"), ("x.go", "text/x-go"),
        ("x.sh", "application/x-sh"), ("x.csv", "text/csv"), ("x.svg", "image/svg+xml"), ("x.html", "text/html"),
        ("x.wasm", "application/wasm"), ("x.parquet", "application/vnd.apache.parquet"), ("x.avif", "image/avif"),
        ("x.webp", "image/webp"), ("x.woff2", "font/woff2"), ("x.pdf", "application/pdf"), ("x.xml", "application/xml"),
        ("x.tar.gz", "application/gzip"), ("x.tgz", "application/gzip"), ("x.tar", "application/x-tar"),
        ("x.svg.gz", "application/gzip"), ("x.tar.zst", "application/zstd"), ("X.PNG", "image/png"),
        ("x.Ts", "text/typescript"), ("a.b/x", None), (".ts", None), (".gitignore", None), ("Makefile", None),
        ("x.", None), ("x.unknown", None), ("", None),
    ],
)  # fmt: skip
def test_a_name_has_its_type(name: str, wanted: str | None) -> None:
    assert mime.type_of(f"/dir.d/{name}") == wanted


@pytest.mark.parametrize("content", [TEXT, DATA, b"", "é".encode(), b"\xe9"])
def test_type_and_content_agree(content: bytes) -> None:
    for name in [*(f"x.{ending}" for ending in mime._TYPES), "x", ".env", "x.unknown", "X.TAR.GZ"]:
        kind = mime.kind_of(name, content, is_whole=True)
        assert mime.is_text_type(kind.type) is not kind.is_binary, name
        if not kind.is_binary:
            content.decode()


def test_what_no_name_tells_the_bytes_do() -> None:
    assert mime.kind_of("/a/Makefile", TEXT, is_whole=True) == ("text/plain", False)
    assert mime.kind_of("/a/core", DATA, is_whole=True) == ("application/octet-stream", True)
    assert mime.kind_of("/a/x.py", DATA, is_whole=True) == ("application/octet-stream", True)
    assert mime.kind_of("/a/film.ts", DATA, is_whole=True) == ("video/mp2t", True)
    assert mime.kind_of("/a/x.txt", "é".encode()[:1], is_whole=False).is_binary is False  # the head cuts it


def test_no_host_has_a_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mimetypes, "guess_type", lambda *_: ("text/vnd.trolltech.linguist", None))
    assert mime.type_of("x.ts") == "text/typescript"
    for path in Path(sandboxd.__file__).parent.rglob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
        names = {alias.name for node in imports for alias in node.names}
        assert "mimetypes" not in names, path
