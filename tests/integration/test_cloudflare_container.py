"""The container's API, driven by the real npm client @cloudflare/sandbox in Node, over TCP with a bearer token."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from typing import Any

import pytest

from sandboxd import Sandbox
from tests.support.cloudflare_client import TOKEN, ClientError, Driver
from tests.support.daemon import Daemon
from tests.support.templates import is_template_child, load_template, pid_of

pytestmark = pytest.mark.real


def refused(cf: Driver, on: str, *args: Any, **more: Any) -> ClientError:
    """Call a method that fails and return its error, which has no stack trace in it."""
    with pytest.raises(ClientError) as caught:
        cf.call(on, *args, **more)
    assert not {"stack", "stackTrace"} & set(caught.value.context)
    assert "Traceback" not in caught.value.message
    return caught.value


# --- who, and what it says of itself ---


def test_ping_version_and_commands(cf: Driver) -> None:
    assert cf.call("utils.ping") == "pong"
    assert cf.call("utils.getVersion") == "0.12.10"
    assert {"sh", "python3", "node"} <= set(cf.call("utils.getCommands"))


def test_a_sandbox_comes_to_be_at_its_first_use_under_the_callers_id(cf: Driver, served: tuple[Daemon, str]) -> None:
    assert cf.call("commands.execute", "hostname", None, sandbox="an-agents-box-7")["success"]
    with served[0].client() as client:
        names = {one.name for one in Sandbox.list(client=client)}
    assert "an-agents-box-7" in names


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x"])
def test_without_the_token_every_route_is_401(cf: Driver, token: str) -> None:
    error = refused(cf, "utils.ping", token=token)
    assert (error.code, error.status) == ("UNAUTHORIZED", 401)


@pytest.mark.parametrize("name", ["www", "api", "-a", "a" * 64, "UPPER"])
def test_an_id_that_may_not_be_is_refused(cf: Driver, name: str) -> None:
    assert refused(cf, "utils.ping", sandbox=name).code == "VALIDATION_FAILED"


def test_a_route_that_is_none_and_a_body_that_is_no_json(served: tuple[Daemon, str]) -> None:
    def post(path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"{served[1]}/cloudflare/sandboxes/cloudflare-container{path}",
            body,
            {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as answer:
            return answer.code, json.load(answer)

    status, shown = post("/api/nothing", b"{}")
    assert (status, shown["code"]) == (404, "UNKNOWN_ERROR")
    status, shown = post("/api/execute", b"{nonsense")
    assert (status, shown["code"], shown["operation"]) == (400, "VALIDATION_FAILED", "command.execute")
    status, shown = post("/api/execute", b'{"command": 3}')
    assert (status, shown["code"], shown["context"]) == (400, "VALIDATION_FAILED", {"field": "command"})


def test_over_the_unix_socket_the_peers_credentials_stand_in(served: tuple[Daemon, str]) -> None:
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=str(served[0].socket))) as client:
        shown = client.get("http://local/cloudflare/sandboxes/cloudflare-container/api/ping").json()
    assert shown["success"]


# --- commands ---


def test_execute(cf: Driver) -> None:
    found = cf.call("commands.execute", "echo $A; pwd; printf e >&2; exit 3", None, {"env": {"A": "1"}, "cwd": "/tmp"})
    assert (found["success"], found["exitCode"]) == (False, 3)
    assert (found["stdout"], found["stderr"]) == ("1\n/tmp\n", "e")
    assert found["command"].startswith("echo $A")
    assert found["timestamp"].endswith("Z")


def test_execute_speaks_bash(cf: Driver) -> None:
    assert cf.call("commands.execute", 'a=(x y); [[ ${a[1]} == y ]] && echo "${#a[@]}"', None)["stdout"] == "2\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 7", 7), ("true", 0), ("", 0), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("'", 2), ("no-such", 127)],
)
def test_every_end_is_an_exit_code(cf: Driver, command: str, code: int) -> None:
    assert cf.call("commands.execute", command, None)["exitCode"] == code
    assert cf.stream("commands.executeStream", command, None)[-1]["exitCode"] == code


def test_a_timeout_kills_the_tree(cf: Driver) -> None:
    found = cf.call("commands.execute", "sleep 300.77 & sleep 300.77", None, {"timeoutMs": 300})
    assert (found["exitCode"], found["stderr"]) == (124, "Command timeout after 300ms\n")
    assert cf.ms < 30_000
    assert cf.call("commands.execute", "pgrep -f 'sleep 300[.]77' || echo gone", None)["stdout"] == "gone\n"
    last = cf.stream("commands.executeStream", "sleep 300", None, {"timeoutMs": 300})[-1]
    assert (last["type"], last["exitCode"]) == ("complete", 124)


def test_a_child_that_keeps_stdout_open_hangs_nothing(cf: Driver) -> None:
    found = cf.call("commands.execute", "sleep 55.25 & echo on", None)
    assert found["stdout"] == "on\n"
    assert cf.ms < 30_000
    assert cf.call("commands.execute", "pkill -f 'sleep 55[.]25' && echo it went on", None)["stdout"] == "it went on\n"


def test_output_is_whole_and_exact(cf: Driver) -> None:
    found = cf.call("commands.execute", r"printf 'a\0b\377\n\n'; head -c 10000000 /dev/zero | tr '\0' x", None)
    assert found["stdout"][:6] == "a\0b\ufffd\n\n"
    assert len(found["stdout"]) == 6 + 10_000_000


def test_a_working_folder_that_is_none(cf: Driver) -> None:
    found = cf.call("commands.execute", "pwd", None, {"cwd": "/nope"})
    assert (found["exitCode"], found["stderr"]) == (1, "Failed to change directory to '/nope'\n")


def test_what_may_not_be_a_command(cf: Driver) -> None:
    assert refused(cf, "commands.execute", "a\0b", None).code == "VALIDATION_FAILED"
    assert refused(cf, "commands.execute", "x" * 8193, None).code == "VALIDATION_FAILED"
    assert refused(cf, "commands.execute", "true", None, {"timeoutMs": -1}).code == "VALIDATION_FAILED"
    error = refused(cf, "commands.execute", "true", None, {"env": {"A B": "x"}})
    assert (error.name, error.status, error.operation) == ("ValidationFailedError", 400, "command.execute")


def test_a_stream_tells_output_as_it_comes(cf: Driver) -> None:
    command = "echo a; while [ ! -e /tmp/go ]; do sleep 0.02; done; printf é >&2; exit 2"
    go = {"op": "call", "on": "commands.execute", "args": ["touch /tmp/go", None]}
    told = cf.stream("commands.executeStream", command, None, then={"stdout": go})
    assert [one["type"] for one in told] == ["start", "stdout", "stderr", "complete"]
    assert [one.get("data") for one in told[1:3]] == ["a\n", "é"]
    assert told[3]["exitCode"] == 2


def test_who_leaves_a_stream_ends_its_command(cf: Driver) -> None:
    cf.stream("commands.executeStream", "echo $$; sleep 300.66", None, until="stdout")
    wait = "for i in $(seq 1000); do pgrep -f 'sleep 300[.]66' >/dev/null || { echo gone; exit; }; sleep 0.05; done"
    assert cf.call("commands.execute", wait, None)["stdout"] == "gone\n"


# --- processes ---


def test_a_process_its_log_and_its_end(cf: Driver) -> None:
    command = "echo one; while [ ! -e /tmp/seen ]; do sleep 0.02; done; echo two >&2; exit 4"
    started = cf.call("processes.startProcess", command, None, {"processId": "p1"})
    assert (started["processId"], started["command"]) == ("p1", command)
    assert started["pid"] > 1
    shown = cf.call("processes.getProcess", "p1")["process"]
    assert (shown["status"], shown["pid"], shown["command"]) == ("running", started["pid"], command)
    cf.call("commands.execute", "touch /tmp/seen", None)
    events = cf.stream("processes.streamProcessLogs", "p1")
    assert [one["type"] for one in events] == ["process_info", "stdout", "stderr", "exit"]
    assert [one["processId"] for one in events] == ["p1"] * 4
    assert events[3]["exitCode"] == 4
    shown = cf.call("processes.getProcess", "p1")["process"]
    assert (shown["status"], shown["exitCode"]) == ("failed", 4)
    assert shown["startTime"] < shown["endTime"]
    logs = cf.call("processes.getProcessLogs", "p1")
    assert (logs["stdout"], logs["stderr"]) == ("one\n", "two\n")
    assert refused(cf, "processes.killProcess", "p1").code == "PROCESS_NOT_FOUND"


def test_an_id_is_taken_once(cf: Driver) -> None:
    cf.call("processes.startProcess", "sleep 300", None, {"processId": "twice"})
    assert refused(cf, "processes.startProcess", "true", None, {"processId": "twice"}).status == 409
    assert cf.call("processes.getProcess", "twice")["process"]["status"] == "running"
    assert cf.call("processes.killProcess", "twice")["success"]


def test_kill_ends_the_tree_and_is_told(cf: Driver) -> None:
    cf.call("processes.startProcess", "trap '' TERM; sleep 300.55 & wait; wait", None, {"processId": "stubborn"})
    cf.call("processes.startProcess", "sleep 300.44", None, {"processId": "plain"})
    cf.call("processes.killProcess", "plain")
    shown = cf.call("processes.getProcess", "plain")["process"]
    assert (shown["status"], shown["exitCode"]) == ("killed", 143)
    cf.call("processes.killProcess", "stubborn")
    assert cf.call("processes.getProcess", "stubborn")["process"]["status"] == "killed"
    left = cf.call("commands.execute", "pgrep -f 'sleep 300[.][45]' || echo none", None)["stdout"]
    assert left == "none\n"


def test_a_kill_heeds_its_signal(cf: Driver, served: tuple[Daemon, str]) -> None:
    cf.call("processes.startProcess", "trap 'echo hup; exit 5' HUP; echo up; while :; do sleep 0.05; done", None,
            {"processId": "hup"})  # fmt: skip
    cf.stream("processes.streamProcessLogs", "hup", until="stdout")
    url = f"{served[1]}/cloudflare/sandboxes/cloudflare-container/api/process/hup?signal=SIGHUP"
    request = urllib.request.Request(url, method="DELETE", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["success"]
    assert cf.stream("processes.streamProcessLogs", "hup")[-1]["exitCode"] == 5


def test_list_and_kill_all(cf: Driver) -> None:
    cf.call("processes.killAllProcesses")
    for number in range(3):
        cf.call("processes.startProcess", "sleep 300", None, {"processId": f"many-{number}"})
    listed = cf.call("processes.listProcesses")["processes"]
    running = {one["id"] for one in listed if one["status"] == "running"}
    assert running == {"many-0", "many-1", "many-2"}
    assert cf.call("processes.killAllProcesses")["cleanedCount"] == 3
    assert not [one for one in cf.call("processes.listProcesses")["processes"] if one["status"] == "running"]


def test_processes_that_are_none(cf: Driver) -> None:
    for method in ("getProcess", "killProcess", "getProcessLogs"):
        error = refused(cf, f"processes.{method}", "nobody")
        assert (error.name, error.status, error.context["processId"]) == ("ProcessNotFoundError", 404, "nobody")
        assert error.suggestion
    with pytest.raises(ClientError, match="PROCESS_NOT_FOUND"):
        cf.stream("processes.streamProcessLogs", "nobody")
    assert refused(cf, "processes.startProcess", "true", None, {"processId": "a b"}).code == "VALIDATION_FAILED"


def test_a_process_has_its_time(cf: Driver) -> None:
    cf.call("processes.startProcess", "sleep 300", None, {"processId": "timed", "timeoutMs": 200})
    assert cf.stream("processes.streamProcessLogs", "timed")[-1]["exitCode"] == 124
    assert cf.call("processes.getProcess", "timed")["process"]["status"] == "killed"


# --- files ---


def test_write_and_read(cf: Driver) -> None:
    cf.call("files.writeFile", "/workspace/new/deep/x.txt", "hello é", None)
    found = cf.call("files.readFile", "/workspace/new/deep/x.txt", None)
    del found["timestamp"]
    assert found == {
        "success": True,
        "path": "/workspace/new/deep/x.txt",
        "content": "hello é",
        "encoding": "utf-8",
        "isBinary": False,
        "mimeType": "text/plain",
        "size": 8,
    }
    assert cf.call("files.readFile", "new/deep/../deep/x.txt", None)["content"] == "hello é"
    assert cf.call("files.readFile", "new/deep/x.txt", None, {"encoding": "base64"})["content"] == "aGVsbG8gw6k="


def test_binary_files(cf: Driver) -> None:
    data = bytes(range(256)) * 400
    cf.call("files.writeFile", "data.png", base64.b64encode(data).decode(), None, {"encoding": "base64"})
    found = cf.call("files.readFile", "data.png", None)
    assert (found["isBinary"], found["encoding"], found["mimeType"]) == (True, "base64", "image/png")
    assert base64.b64decode(found["content"]) == data
    events = cf.stream("files.readFileStream", "data.png", None)
    assert [events[0]["type"], events[-1]["type"], events[-1]["bytesRead"]] == ["metadata", "complete", len(data)]
    assert base64.b64decode("".join(one["data"] for one in events[1:-1])) == data


def test_a_text_is_streamed_at_character_ends(cf: Driver) -> None:
    text = "aé€😀" * 30_000
    cf.call("files.writeFile", "long.txt", text, None)
    events = cf.stream("files.readFileStream", "long.txt", None)
    assert "".join(one["data"] for one in events[1:-1]) == text
    assert events[0]["size"] == len(text.encode())


def test_files_that_are_none_or_too_large(cf: Driver) -> None:
    error = refused(cf, "files.readFile", "/nope", None)
    assert (error.name, error.status, error.context["path"]) == ("FileNotFoundError", 404, "/nope")
    assert "/nope" in (error.suggestion or "")
    with pytest.raises(ClientError, match="FILE_NOT_FOUND"):
        cf.stream("files.readFileStream", "/nope", None)
    assert refused(cf, "files.readFile", "/workspace", None).code == "IS_DIRECTORY"
    cf.call("commands.execute", "truncate -s 40M /workspace/large", None)
    error = refused(cf, "files.readFile", "large", None)
    assert (error.name, error.status) == ("FileTooLargeError", 413)
    assert (error.context["actualSize"], error.context["maxSize"]) == (40 << 20, 32 << 20)
    assert refused(cf, "files.writeFile", "x", "%%%", None, {"encoding": "base64"}).code == "VALIDATION_FAILED"
    assert refused(cf, "files.writeFile", "", "x", None).code == "VALIDATION_FAILED"
    assert refused(cf, "files.writeFile", "a\0b", "x", None).code == "VALIDATION_FAILED"
    assert refused(cf, "files.writeFile", "/" + "a" * 4096, "x", None).code == "VALIDATION_FAILED"
    assert refused(cf, "files.readFile", "/dev/zero", None).status in (400, 500)
    assert refused(cf, "files.readFile", "x", None, {"encoding": "latin-1"}).code == "VALIDATION_FAILED"


def test_a_large_file_is_written_in_one_piece(cf: Driver) -> None:
    text = base64.b64encode(os.urandom(9_000_000)).decode()
    cf.call("files.writeFile", "twelve.txt", text, None)
    assert cf.call("files.readFile", "twelve.txt", None)["content"] == text
    cf.call("files.writeFile", "/workspace/forty", text * 3 + "x" * 6_000_000, None)
    assert cf.call("commands.execute", "wc -c < forty", None)["stdout"].strip() == "42000000"


def test_folders(cf: Driver) -> None:
    cf.call("commands.execute", "rm -rf /workspace/f", None)
    cf.call("files.mkdir", "/workspace/f", None)
    assert refused(cf, "files.mkdir", "/workspace/f", None).code == "FILE_EXISTS"
    assert refused(cf, "files.mkdir", "/workspace/f/a/b", None).code == "FILE_NOT_FOUND"
    assert cf.call("files.mkdir", "/workspace/f/a/b", None, {"recursive": True})["recursive"] is True
    assert cf.call("files.mkdir", "/workspace/f/a/b", None, {"recursive": True})["success"]
    cf.call(
        "commands.execute", "cd /workspace/f; echo hi > run.sh; chmod 750 run.sh; ln -s run.sh l; touch .h a/c", None
    )
    found = cf.call("files.listFiles", "/workspace/f", None)
    assert [(one["name"], one["type"]) for one in found["files"]] == [
        ("a", "directory"),
        ("l", "symlink"),
        ("run.sh", "file"),
    ]
    assert found["count"] == 3
    shown = found["files"][2]
    assert (shown["mode"], shown["size"], shown["relativePath"]) == ("rwxr-x---", 3, "run.sh")
    assert shown["permissions"] == {"readable": True, "writable": True, "executable": True}
    assert shown["modifiedAt"].endswith("Z")
    every = cf.call("files.listFiles", "/workspace/f", None, {"recursive": True, "includeHidden": True})
    assert [one["relativePath"] for one in every["files"]] == [".h", "a", "a/b", "a/c", "l", "run.sh"]
    assert refused(cf, "files.listFiles", "/workspace/f/run.sh", None).code == "NOT_DIRECTORY"
    assert refused(cf, "files.listFiles", "/workspace/none", None).code == "FILE_NOT_FOUND"


def test_a_long_folder_is_listed_whole(cf: Driver) -> None:
    cf.call("commands.execute", "mkdir -p /workspace/many; cd /workspace/many; seq 2500 | xargs touch", None)
    assert cf.call("files.listFiles", "/workspace/many", None)["count"] == 2500


def test_rename_move_delete_exists(cf: Driver) -> None:
    cf.call("files.writeFile", "/workspace/m/one", "1", None)
    cf.call("files.renameFile", "/workspace/m/one", "/workspace/m/two", None)
    cf.call("files.mkdir", "/workspace/m/into", None)
    moved = cf.call("files.moveFile", "/workspace/m/two", "/workspace/m/into", None)
    assert (moved["path"], moved["newPath"]) == ("/workspace/m/two", "/workspace/m/into")
    assert cf.call("files.exists", "/workspace/m/into/two", None)["exists"] is True
    assert cf.call("files.exists", "/workspace/m/two", None)["exists"] is False
    assert refused(cf, "files.deleteFile", "/workspace/m/into", None).code == "IS_DIRECTORY"
    assert cf.call("files.deleteFile", "/workspace/m/into/two", None)["success"]
    for method in ("deleteFile", "renameFile", "moveFile"):
        given = ("/workspace/m/none",) if method == "deleteFile" else ("/workspace/m/none", "/workspace/m/x")
        assert refused(cf, f"files.{method}", *given, None).code == "FILE_NOT_FOUND"


# --- code ---


@pytest.fixture(scope="module")
def context(cf: Driver) -> str:
    """A context with a directory and a variable of its own."""
    asked = {"language": "python", "cwd": "/tmp", "envVars": {"QUESTION": "42"}}
    made = cf.call("interpreter.createCodeContext", asked)
    assert (made["language"], made["cwd"]) == ("python", "/tmp")
    assert made["id"] in {one["id"] for one in cf.call("interpreter.listCodeContexts")}
    identity: str = made["id"]
    return identity


def test_a_contexts_folder_and_variables_are_heeded(cf: Driver, context: str) -> None:
    found = cf.code("import os; print(os.environ['QUESTION'], os.getcwd())", context=context)
    assert found["logs"]["stdout"] == ["42 /tmp\n"]


def test_a_run_streams_while_it_runs(cf: Driver, context: str) -> None:
    found = cf.code("import time\nprint('é', flush=True)\ntime.sleep(0.5)\nprint('b')\n6*7", context=context)
    kinds = [(one["kind"], one["value"].get("text")) for one in found["seen"]]
    assert kinds == [("stdout", "é\n"), ("stdout", "b\n"), ("result", "42")]
    assert found["seen"][0]["ms"] + 300 < found["seen"][1]["ms"]


def test_runs_are_counted(cf: Driver, context: str) -> None:
    counts = [cf.stream("interpreter.streamCode", context, "1", "python")[-1] for _ in range(2)]
    assert [one["type"] for one in counts] == ["execution_complete"] * 2
    assert counts[0]["execution_count"] + 1 == counts[1]["execution_count"]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        *[("1 +", "SyntaxError"), ("1/0", "ZeroDivisionError"), ("input()", "EOFError"), ("nope", "NameError")],
        *[("raise ExceptionGroup('g', [ValueError('a')])", "ExceptionGroup"), ("%nosuchmagic", "UsageError")],
    ],
)
def test_errors_are_errors(cf: Driver, context: str, code: str, name: str) -> None:
    error = cf.code(code, context=context)["error"]
    assert error["name"] == name
    assert error["traceback"]


def test_a_run_has_its_time_and_the_state_stays(cf: Driver, context: str) -> None:
    cf.code("kept = 7", context=context)
    found = cf.code("while True: pass", context=context, options={"timeout": 300})
    assert found["error"]["name"] == "TimeoutError"
    assert cf.code("kept", context=context)["results"][0]["text"] == "7"


def test_descriptors_and_exits_corrupt_nothing(cf: Driver, context: str) -> None:
    code = "import os; os.write(1, b'raw\\n'); os.system('echo child'); {'a': float('nan')}"
    found = cf.code(code, context=context)
    assert "".join(found["logs"]["stdout"]) == "raw\nchild\n"
    assert found["results"][0]["text"] == "{'a': nan}"
    assert cf.code("os._exit(3)", context=context)["error"]["name"] == "ContextExited"
    assert cf.code("1 + 1", context=context)["results"][0]["text"] == "2"


def test_a_default_context_that_died_begins_anew_and_says_so(cf: Driver) -> None:
    assert cf.stream("interpreter.streamCode", None, "import os; os._exit(3)", "python")[-1]["status"] == "exited"
    ends = [cf.stream("interpreter.streamCode", None, "1 + 1", "python")[-1] for _ in range(2)]
    assert [(one["status"], one.get("restarted")) for one in ends] == [("ok", True), ("ok", None)]


@pytest.fixture(scope="module", params=[{}, {"PYTHONSAFE": "1"}], ids=["template", "plain"])
def python(cf: Driver, served: tuple[Daemon, str], request: pytest.FixtureRequest) -> str:
    """A Python context: a child of the template, or one whose variables want an interpreter of its own."""
    load_template(served[0])
    identity: str = cf.call("interpreter.createCodeContext", {"language": "python", "envVars": request.param})["id"]
    with served[0].client() as client:
        sandbox = Sandbox.connect("cloudflare-container", client=client)
        (context,) = [one for one in sandbox.list_code_contexts() if one.id == identity]
        assert is_template_child(pid_of(served[0], sandbox, context)) is not bool(request.param)
    return identity


def test_a_dict_or_list_is_json_and_text(cf: Driver, python: str) -> None:
    found = cf.code('{"a": [1, 2], "é": None}', context=python)
    assert [(one["json"], one["text"]) for one in found["results"]] == [
        ({"a": [1, 2], "é": None}, "{'a': [1, 2], 'é': None}")
    ]
    assert set(found["formats"][0]) == {"text", "json"}
    for code, value in (("[]", []), ("{}", {}), ("[[1.5, True]]", [[1.5, True]]), ("[0] * 5000", [0] * 5000)):
        (result,) = cf.code(code, context=python)["results"]
        assert result["json"] == value
    # Only the value of the last expression, and what has JSON of its own keeps it.
    code = "from IPython.display import JSON, display\ndisplay({'a': 1})\nJSON({'b': 2})"
    shown = cf.code(code, context=python)["results"]
    assert [one.get("json") for one in shown] == [None, {"b": 2}]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("{'a': float('nan')}", "{'a': nan}"),
        ("{'a': object}", "{'a': object}"),
        ("{(1, 2): 3}", "{(1, 2): 3}"),
        ("x = [1]; x.append(x); x", "[1, [...]]"),
        ("class D(dict):\n  def items(self): 1/0\nD(a=1)", "{'a': 1}"),
        ("class D(dict):\n  def items(self):\n    while True: pass\nD(a=1)", "{'a': 1}"),
        ("class L(list):\n  __repr__ = lambda self: 'L'\n  def __iter__(self): 1/0\nL([1])", "L"),
        ("(1, 2)", "(1, 2)"),
    ],
)
def test_what_is_no_json_is_text_and_no_error(cf: Driver, python: str, code: str, text: str) -> None:
    found = cf.code(code, context=python)
    assert "error" not in found
    assert [(one["text"], one.get("json")) for one in found["results"]] == [(text, None)]


def test_a_list_that_is_too_large_for_json_is_text(cf: Driver, python: str) -> None:
    (result,) = cf.code("list(range(2_000_000))", context=python)["results"]
    assert result["text"].startswith("[0,\n 1,")
    assert "json" not in result


def test_the_native_api_tells_a_dict_as_text(cf: Driver, served: tuple[Daemon, str], python: str) -> None:
    assert cf.code("{'a': 1}", context=python)["results"][0]["json"] == {"a": 1}
    with served[0].client() as client:
        sandbox = Sandbox.connect("cloudflare-container", client=client)
        (context,) = [one for one in sandbox.list_code_contexts() if one.id == python]
        (result,) = sandbox.run_code("{'a': 1}", context=context).results
    assert (result.text, result.json) == ("{'a': 1}", None)


def test_a_figure_has_its_chart_in_their_shape(cf: Driver) -> None:
    code = "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [3, 4])\nplt.title('T')\nplt.show()"
    (result,) = cf.code(code)["results"]
    assert base64.b64decode(result["png"])[:4] == b"\x89PNG"
    chart = result["chart"]
    assert (chart["type"], chart["title"], chart["library"]) == ("bar", "T", "matplotlib")
    assert (chart["data"][0]["x"], chart["data"][0]["y"]) == (["a", "b"], [3, 4])


@pytest.mark.parametrize(
    ("language", "code"), [("javascript", "const y = 40; y + 2"), ("typescript", "const z: number = 42; z")]
)
def test_javascript_and_typescript(cf: Driver, language: str, code: str) -> None:
    assert cf.code(code, options={"language": language})["results"][0]["text"] == "42"


def test_contexts_that_are_none(cf: Driver) -> None:
    with pytest.raises(ClientError) as caught:
        cf.code("1", context="nope")
    assert (caught.value.name, caught.value.status) == ("ContextNotFoundError", 404)
    assert refused(cf, "interpreter.deleteCodeContext", "nope").code == "CONTEXT_NOT_FOUND"
    assert refused(cf, "interpreter.createCodeContext", {"language": "cobol"}).code == "VALIDATION_FAILED"
    assert refused(cf, "interpreter.createCodeContext", {"cwd": "/nope"}).code == "VALIDATION_FAILED"


def test_a_context_is_of_one_language_and_can_be_deleted(cf: Driver) -> None:
    made = cf.call("interpreter.createCodeContext", {"language": "javascript"})
    with pytest.raises(ClientError, match="VALIDATION_FAILED"):
        cf.code("1", context=made["id"], options={"language": "python"})
    cf.call("interpreter.deleteCodeContext", made["id"])
    assert made["id"] not in {one["id"] for one in cf.call("interpreter.listCodeContexts")}


# --- watches, versions, backups ---


def test_a_watch_tells_changes_in_their_words(cf: Driver) -> None:
    cf.call("files.mkdir", "/workspace/w/node_modules", None, {"recursive": True})
    line = "cd /workspace/w; echo > node_modules/x; echo 1 > a; mv a b; mkdir d; chmod 700 b; rm b; echo > end"
    change = {"op": "call", "on": "commands.execute", "args": [line, None]}
    events = cf.stream("watch.watch", {"path": "/workspace/w"}, limit=9, then={"watching": change})
    assert events[0]["type"] == "watching"
    told = [(one["eventType"], one["path"].removeprefix("/workspace/w/"), one["isDirectory"]) for one in events[1:]]
    assert told == [
        ("create", "a", False),
        ("modify", "a", False),
        ("move_from", "a", False),
        ("move_to", "b", False),
        ("create", "d", True),
        ("attrib", "b", False),
        ("delete", "b", False),
        ("create", "end", False),
    ]


def test_a_watch_ends_with_its_folder(cf: Driver) -> None:
    cf.call("files.mkdir", "/workspace/gone", None)
    remove = {"op": "call", "on": "commands.execute", "args": ["rmdir /workspace/gone", None]}
    events = cf.stream("watch.watch", {"path": "/workspace/gone"}, then={"watching": remove})
    assert events[-1]["type"] == "stopped"


@pytest.mark.parametrize("method", ["watch", "checkChanges"])
def test_what_may_not_be_watched(cf: Driver, method: str) -> None:
    def code(**asked: Any) -> str | None:
        return refused(cf, f"watch.{method}", {"path": "/workspace", **asked}).code

    assert code(path="/etc") == code(path="/workspace/../etc") == "PERMISSION_DENIED"
    assert code(path="/workspace/nothing") == "FILE_NOT_FOUND"
    assert code(include=["a"], exclude=["b"]) == "VALIDATION_FAILED"
    assert code(include=["[ab]"]) == "VALIDATION_FAILED"


def test_check_changes(cf: Driver) -> None:
    cf.call("files.writeFile", "/workspace/v/a", "1", None)

    def check(**asked: Any) -> tuple[str, str]:
        found = cf.call("watch.checkChanges", {"path": "/workspace/v", **asked})
        assert found["success"]
        return found["status"], found["version"]

    _, version = check()
    assert check(since=version) == ("unchanged", version)
    cf.call("files.writeFile", "/workspace/v/node_modules/x", "1", None)
    assert check(since=version) == ("unchanged", version)
    cf.call("files.writeFile", "/workspace/v/a", "2", None)
    status, after = check(since=version)
    assert (status, after != version) == ("changed", True)
    assert check(since=after) == ("unchanged", after)
    assert check(since="of-long-ago")[0] == "resync"


def test_backups(cf: Driver) -> None:
    cf.call("files.writeFile", "/workspace/kept/a", "1", None)
    cf.call("files.writeFile", "/workspace/kept/skip/b", "1", None)
    made = cf.call("backup.createArchive", "/workspace/kept", "/var/backups/1.sqsh", None, {"excludes": ["skip"]})
    assert made["archivePath"] == "/var/backups/1.sqsh"
    assert made["sizeBytes"] > 0
    cf.call("files.writeFile", "/workspace/kept/a", "2", None)
    cf.call("files.writeFile", "/workspace/kept/more", "2", None)
    assert cf.call("backup.restoreArchive", "/workspace/kept", "/var/backups/1.sqsh", None)["dir"] == "/workspace/kept"
    assert [one["name"] for one in cf.call("files.listFiles", "/workspace/kept", None)["files"]] == ["a"]
    assert cf.call("files.readFile", "/workspace/kept/a", None)["content"] == "1"
    error = refused(cf, "backup.restoreArchive", "/workspace/kept", "/var/backups/2.sqsh", None)
    assert (error.name, error.status) == ("BackupNotFoundError", 404)
    error = refused(cf, "backup.restoreArchive", "/workspace/kept", "/etc/passwd", None)
    assert (error.name, error.status) == ("BackupRestoreError", 500)
    assert refused(cf, "backup.createArchive", "/etc", "/var/backups/3.sqsh", None).name == "InvalidBackupConfigError"
    assert refused(cf, "backup.createArchive", "/workspace/none", "/x", None).name == "BackupCreateError"
    assert refused(cf, "backup.uploadParts", {"archivePath": "/x", "parts": []}).code == "INVALID_BACKUP_CONFIG"
