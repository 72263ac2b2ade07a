"""Content types of files, from a table of our own, so that they are the same on every host and for every face.

The name decides if the table knows its extension. If it does not, or if the name says text and the bytes are not, the
bytes decide: text is valid UTF-8 without NULs. So the type never contradicts whether the content can be sent as text.
Types are those registered with IANA, or the usual ones where IANA has none.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: What is looked at of a file whose size may be anything.
HEAD_BYTES: Final = 8192
PLAIN: Final = "text/plain"
BINARY: Final = "application/octet-stream"

#: A type in each line, and the endings of names that have it.
_TABLE: Final = """
text/plain                 txt text log conf cfg ini cnf properties env lock diff patch rst adoc org out err srt
text/css                   css
text/csv                   csv
text/html                  html htm
text/calendar              ics
text/javascript            js mjs cjs
text/jsx                   jsx
text/less                  less
text/markdown              md markdown mdown mdx
text/tab-separated-values  tsv tab
text/tsx                   tsx
text/typescript            ts mts cts
text/vcard                 vcf
text/vnd.graphviz          dot gv
text/vtt                   vtt
text/x-c                   c h
text/x-c++                 cc cpp cxx hh hpp hxx
text/x-clojure             clj cljs edn
text/x-csharp              cs
text/x-dart                dart
text/x-elixir              ex exs
text/x-erlang              erl hrl
text/x-fsharp              fs fsx
text/x-go                  go mod sum
text/x-groovy              groovy gradle
text/x-haskell             hs
text/x-java                java
text/x-julia               jl
text/x-kotlin              kt kts
text/x-lisp                lisp el scm rkt
text/x-lua                 lua
text/x-makefile            mk mak cmake
text/x-nim                 nim
text/x-ocaml               ml mli
text/x-perl                pl pm
text/x-php                 php
text/x-powershell          ps1 psm1
text/x-protobuf            proto
text/x-python              py pyi pyw pyx
text/x-r                   r rmd
text/x-ruby                rb rake gemspec
text/x-rust                rs
text/x-sass                sass
text/x-scala               scala sc
text/x-scss                scss
text/x-swift               swift
text/x-terraform           tf tfvars hcl
text/x-vue                 vue
text/x-svelte              svelte
text/x-astro               astro
text/x-zig                 zig
text/x-asm                 asm s
text/x-bibtex              bib
text/x-tex                 tex sty cls
application/ecmascript     es
application/geo+json       geojson
application/graphql        graphql gql
application/json           json map json5 jsonc webmanifest har
application/ld+json        jsonld
application/manifest+json  manifest
application/sql            sql
application/toml           toml
application/x-ipynb+json   ipynb
application/x-ndjson       ndjson jsonl
application/x-sh           sh bash zsh fish ksh
application/x-bat          bat cmd
application/xml            xml xsd xsl xslt plist csproj
application/rss+xml        rss
application/atom+xml       atom
application/xhtml+xml      xhtml
application/yaml           yaml yml
image/svg+xml              svg
application/pem-certificate-chain pem crt
application/gzip           gz tgz svgz
application/x-bzip2        bz2 tbz tbz2
application/x-xz           xz txz
application/zstd           zst tzst
application/x-lzma         lzma
application/x-lz4          lz4
application/x-brotli       br
application/x-tar          tar
application/zip            zip
application/x-7z-compressed 7z
application/vnd.rar        rar
application/java-archive   jar war
application/vnd.android.package-archive apk
application/vnd.debian.binary-package deb
application/x-rpm          rpm
application/x-python-wheel whl egg
application/x-iso9660-image iso
application/wasm           wasm
application/pdf            pdf
application/postscript     ps eps ai
application/epub+zip       epub
application/rtf            rtf
application/msword         doc
application/vnd.ms-excel   xls
application/vnd.ms-powerpoint ppt
application/vnd.openxmlformats-officedocument.wordprocessingml.document docx
application/vnd.openxmlformats-officedocument.spreadsheetml.sheet xlsx
application/vnd.openxmlformats-officedocument.presentationml.presentation pptx
application/vnd.oasis.opendocument.text odt
application/vnd.oasis.opendocument.spreadsheet ods
application/vnd.oasis.opendocument.presentation odp
application/vnd.apache.parquet parquet
application/vnd.apache.arrow.file arrow feather
application/vnd.apache.avro avro
application/vnd.apache.orc orc
application/vnd.sqlite3    sqlite sqlite3 db
application/x-hdf5         h5 hdf5
application/x-npy          npy
application/x-npz          npz
application/x-pickle       pkl pickle
application/x-safetensors  safetensors
application/x-gguf         gguf
application/x-onnx         onnx
application/x-pytorch      pt pth
image/apng                 apng
image/avif                 avif
image/bmp                  bmp
image/gif                  gif
image/heic                 heic
image/heif                 heif
image/jpeg                 jpg jpeg jpe jfif
image/jxl                  jxl
image/png                  png
image/tiff                 tif tiff
image/vnd.adobe.photoshop  psd
image/vnd.microsoft.icon   ico
image/webp                 webp
audio/aac                  aac
audio/flac                 flac
audio/midi                 mid midi
audio/mp4                  m4a
audio/mpeg                 mp3
audio/ogg                  ogg oga opus
audio/wav                  wav
audio/webm                 weba
video/mp4                  mp4 m4v
video/mpeg                 mpg mpeg
video/ogg                  ogv
video/quicktime            mov
video/webm                 webm
video/x-matroska           mkv
video/x-msvideo            avi
font/otf                   otf
font/ttf                   ttf
font/woff                  woff
font/woff2                 woff2
font/collection            ttc
model/gltf+json            gltf
model/gltf-binary          glb
"""
_ROWS: Final = [line.split() for line in _TABLE.strip().splitlines()]
_TYPES: Final = {ending: name for name, *endings in _ROWS for ending in endings}
#: Endings that mean something else where the content is no text.
_BINARY_TWINS: Final = {
    **{"ts": "video/mp2t", "mts": "video/mp2t"},
    **{"plist": "application/x-plist", "crt": "application/pkix-cert"},
}
_TEXT_TYPES: Final = frozenset(
    f"application/{name}"
    for name in (
        *("ecmascript", "graphql", "json", "pem-certificate-chain", "sql", "toml", "x-bat", "x-ndjson", "x-sh", "xml"),
        *("yaml", "rtf", "postscript"),
    )
)


class Kind(NamedTuple):
    """A file's content type, and whether the content is binary."""

    type: str
    is_binary: bool


def type_of(path: str) -> str | None:
    """Return the type for a name's last extension, ignoring case; None if it is unknown."""
    stem, dot, ending = path.rpartition("/")[2].rpartition(".")
    return _TYPES.get(ending.lower()) if dot and stem else None


def kind_of(path: str, head: bytes, *, is_whole: bool) -> Kind:
    """Return a file's kind from its name and its first `HEAD_BYTES` or more; `is_whole`: that is all of it."""
    return kind_by(path, is_binary=not is_text(head, is_whole=is_whole))


def kind_by(path: str, *, is_binary: bool) -> Kind:
    """Return the kind of a file from its name and from whether its content is binary."""
    known = type_of(path)
    if known is not None and not is_text_type(known):
        return Kind(known, True)
    if not is_binary:
        return Kind(known or PLAIN, False)
    return Kind(_BINARY_TWINS.get(path.rpartition(".")[2].lower(), BINARY) if known else BINARY, True)


def is_text_type(name: str) -> bool:
    """Return whether content of this type is text."""
    return name.startswith("text/") or name.endswith(("+json", "+xml")) or name in _TEXT_TYPES


def is_text(head: bytes, *, is_whole: bool) -> bool:
    """Return whether bytes are text: UTF-8 without NULs. Unless `is_whole`, the end may cut a character."""
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return not is_whole and error.start >= len(head) - 3
    return True
