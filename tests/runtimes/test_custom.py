"""Programs of the custom runtime, and plain scripts of any runtime."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nova.errors import FunctionError
from nova.execution.backends.base import InitFailed
from nova.runtimes.registry import Runtimes
from tests.agent.harness import guest
from tests.execution.sinks import Reader

pytestmark = pytest.mark.anyio

SHELL = """#!/bin/sh
count=0
while IFS= read -r call; do
  count=$((count + 1))
  echo "print $count"
  echo "err $count" >&2
  echo "{\\"output\\": [$$, $count]}"
done
"""


def custom(bootstrap: str, folder: Path, **changes: Any) -> Any:
    return guest("custom", {"bootstrap": bootstrap}, folder, **changes)


async def test_a_shell_program_serves_many_calls(tmp_path: Path) -> None:
    """AG1, AG4, AG6: one process, lines in, lines out; other lines are prints of their call."""
    async with custom(SHELL, tmp_path) as instance:
        await instance.init()
        results = [await instance.call({"n": n}) for n in range(1, 101)]
    values = [json.loads(result.output or b"") for result in results]
    assert [count for _, count in values] == list(range(1, 101))
    assert len({pid for pid, _ in values}) == 1
    assert [result.stdout for result in results] == [f"print {n}\n" for n in range(1, 101)]
    assert [result.stderr for result in results] == [f"err {n}\n" for n in range(1, 101)]


async def test_the_template_runs_as_it_is(tmp_path: Path) -> None:
    template = Runtimes().get("custom").manifest.template.lstrip("\n")
    async with custom(template, tmp_path) as instance:
        await instance.init()
        assert await instance.value({}) == {"message": "Hello from a shell"}


async def test_a_program_may_speak_on_descriptors_3_and_4(tmp_path: Path) -> None:
    """AG6: then all of its stdout is prints, even lines that look like answers."""
    code = """#!/bin/sh
while IFS= read -r call <&3; do
  echo '{"output": "print"}'
  echo '{"output": "real"}' >&4
done
"""
    async with custom(code, tmp_path) as instance:
        await instance.init()
        first = await instance.call(1)
        second = await instance.call(2)
    assert second.output == b'"real"'
    assert second.stdout == '{"output": "print"}\n'
    assert first.output in (b'"real"', b'"print"')


async def test_a_ready_line_on_4_chooses_before_the_first_call(tmp_path: Path) -> None:
    code = """#!/bin/sh
echo '{"ready": {"concurrency": 1}}' >&4
while IFS= read -r call <&3; do
  echo '{"output": "print"}'
  echo '{"output": "real"}' >&4
done
"""
    async with custom(code, tmp_path) as instance:
        await instance.init()
        result = await instance.call(1)
    assert (result.output, result.stdout) == (b'"real"', '{"output": "print"}\n')


async def test_big_payloads_pass_a_program_that_reads_one_side_only(tmp_path: Path) -> None:
    """AG9."""
    code = f"""#!{Runtimes().resolve("python").toolchain.program}
import json, sys
for line in sys.stdin:
    text = json.loads(line)["input"]
    print(json.dumps({{"output": text}}), flush=True)
"""
    payload = b'"' + b"x" * ((6 << 20) - 2) + b'"'
    async with custom(code, tmp_path) as instance:
        await instance.init()
        for _ in range(3):
            assert (await instance.call(raw=payload)).output == payload


async def test_errors_of_a_program(tmp_path: Path) -> None:
    """AG21: an error object, a bare string, garbage, the end of the process."""
    code = """#!/bin/sh
while IFS= read -r call; do
  case "$call" in
    *object*) echo '{"error": {"type": "Bad", "message": "no", "stack": []}}' ;;
    *string*) echo '{"error": "just text"}' ;;
    *exit*) echo "last words" >&2; exit 3 ;;
    *garbage*) echo '{"output": nope}' ;;
  esac
done
"""
    async with custom(code, tmp_path) as instance:
        await instance.init()
        assert await instance.failure("object") == FunctionError("Bad", "no")
        assert await instance.failure("string") == FunctionError("Error", "just text")
        result = await instance.call("exit")
        assert result.error == FunctionError("Nova.ExitError", "the process exited with code 3")
        assert result.stderr == "last words\n"
        assert not instance.channel.usable
    async with custom(code, tmp_path) as instance:
        await instance.init()
        assert (await instance.failure("garbage")).type == "Nova.InvalidOutput"
        assert not instance.channel.usable


async def test_a_program_that_is_missing_or_cannot_run_is_named(tmp_path: Path) -> None:
    """AG20."""
    async with guest("custom", {"other": ""}, tmp_path) as instance:
        with pytest.raises(InitFailed) as caught:
            await instance.init()
        assert caught.value.error == FunctionError("Nova.InitError", "bootstrap does not exist in the code")
    (tmp_path / "bootstrap").write_text(SHELL)
    (tmp_path / "bootstrap").chmod(0o644)
    async with guest("custom", {}, tmp_path) as instance:
        with pytest.raises(InitFailed) as caught:
            await instance.init()
        assert caught.value.error == FunctionError("Nova.InitError", "bootstrap is not executable")


async def test_process_mode_runs_the_program_per_call(tmp_path: Path) -> None:
    """The input file is argv[1], its bytes are on stdin, the answer is on stdout; nothing survives the call."""
    code = """#!/bin/sh
echo "$NOVA_REQUEST_ID" >&2
sleep 1000 &
cat "$1" > /dev/null
printf '{"pid": %s, "file": %s, "stdin": %s}' $$ "$(cat "$1")" "$(cat)"
"""
    async with custom(code, tmp_path, mode="process") as instance:
        await instance.init()
        results = [await instance.call({"n": n}, request_id=f"0199-{n}") for n in range(3)]
        assert instance.channel.usable
    values = [json.loads(result.output or b"") for result in results]
    assert [(value["file"], value["stdin"]) for value in values] == [({"n": n}, {"n": n}) for n in range(3)]
    assert len({value["pid"] for value in values}) == 3
    assert [result.stderr for result in results] == [f"0199-{n}\n" for n in range(3)]


@pytest.mark.parametrize(
    ("body", "output", "prints"),
    [
        ("echo '{\"a\": 1}'", {"a": 1}, ""),
        ("echo '{'; echo '\"a\": 1}'", {"a": 1}, ""),
        ("echo working; echo '[1]'", [1], "working\n"),
        ("echo one; echo two", "one\ntwo", ""),
        ("echo NaN", "NaN", ""),
        ("true", "", ""),
        ("echo print; echo '{\"b\": 2}' >&4; echo '{\"a\": 1}'", {"b": 2}, 'print\n{"a": 1}\n'),
    ],
)
async def test_the_result_of_a_script(body: str, output: Any, prints: str, tmp_path: Path) -> None:
    """All of stdout if it is one document, else its last line, else its text; descriptor 4 wins."""
    async with custom(f"#!/bin/sh\n{body}\n", tmp_path, mode="process") as instance:
        await instance.init()
        result = await instance.call()
    assert result.error is None
    assert json.loads(result.output or b"") == output
    assert result.stdout == prints


async def test_a_failing_script_says_so_with_the_tail_of_stderr(tmp_path: Path) -> None:
    """AG21."""
    code = "#!/bin/sh\nread call\ncase $call in *kill*) kill -9 $$;; *quiet*) exit 5;; esac\necho out; echo bad >&2; exit 4\n"
    async with custom(code, tmp_path, mode="process") as instance:
        await instance.init()
        result = await instance.call("loud")
        assert result.error == FunctionError("Nova.ExitError", "bad")
        assert (result.stdout, result.stderr) == ("out\n", "bad\n")
        assert await instance.failure("quiet") == FunctionError("Nova.ExitError", "the process exited with code 5")
        assert await instance.failure("kill") == FunctionError("Nova.Signal", "the process was ended by SIGKILL")
        assert instance.channel.usable


@pytest.mark.parametrize(
    ("runtime", "entry", "code"),
    [
        (
            "python",
            "main.py",
            "import json, os, sys\nprint('work')\nprint(json.dumps([json.load(open(sys.argv[1])), os.getcwd()]))\n",
        ),
        (
            "node",
            "index.js",
            "const input = require('fs').readFileSync(process.argv[2], 'utf8');\n"
            "console.log('work');\nconsole.log(JSON.stringify([JSON.parse(input), process.cwd()]));\n",
        ),
    ],
)
async def test_scripts_of_languages(runtime: str, entry: str, code: str, tmp_path: Path) -> None:
    """A file without a handler is run as a whole, once for each call."""
    async with guest(runtime, {entry: code}, tmp_path, entry_kind="script", mode="process") as instance:
        await instance.init()
        for n in range(2):
            result = await instance.call({"n": n})
            assert json.loads(result.output or b"") == [{"n": n}, str(tmp_path)]
            assert result.stdout == "work\n"


async def test_a_script_that_prints_without_end_is_bounded(tmp_path: Path) -> None:
    """AG8, AG9: prints above the limit are passed on as they come; a document that is too large is refused."""
    code = "#!/bin/sh\nhead -c 100000000 /dev/zero | tr '\\0' 'x' | fold -w 1000\necho\necho '\"done\"'\n"
    async with custom(code, tmp_path, mode="process") as instance:
        await instance.init()
        result = await instance.call(timeout_s=60)
        assert result.output == b'"done"'
        assert " bytes cut]" in result.stdout
    code = "#!/bin/sh\nhead -c 20000000 /dev/zero | tr '\\0' 'x'\n"
    async with custom(code, tmp_path, mode="process") as instance:
        await instance.init()
        assert (await instance.failure(timeout_s=60)).type == "Nova.OutputTooLarge"
        assert instance.channel.usable


async def test_scripts_at_once_have_a_file_each(tmp_path: Path) -> None:
    """AG5."""
    code = '#!/bin/sh\nprintf \'{"file": "%s", "event": %s}\' "$1" "$(cat "$1")"\n'
    async with custom(code, tmp_path, mode="process", concurrency=4) as instance:
        assert (await instance.init()).concurrency == 4
        results = await asyncio.gather(*[instance.begin(n, request_id=f"0199-{n}") for n in range(12)])
    values = [json.loads(result.output or b"") for result in results]
    assert [value["event"] for value in values] == list(range(12))
    assert [value["file"] for value in values] == [f"/tmp/0199-{n}/input.json" for n in range(12)]


async def test_a_script_streams_what_it_writes(tmp_path: Path) -> None:
    """AG14: as it is written, cut at characters; bytes that are no text travel as bytes, and a failure is one."""
    code = """#!/bin/sh
printf 'grü'
printf '\\303'
while [ ! -e "$GO" ]; do sleep 0.01; done
printf '\\237e\\n'
sleep 0.05
printf '\\377\\n'
grep -q fail "$1" && { echo "it broke" >&2; exit 3; }
exit 0
"""
    go = tmp_path / "go"
    async with custom(code, tmp_path, mode="process", env={"GO": str(go)}) as instance:
        await instance.init()
        for event, error in (("fine", None), ("fail", FunctionError("Nova.ExitError", "it broke"))):
            go.unlink(missing_ok=True)
            call = instance.begin(event, sink=(reader := Reader()))
            await reader.until_values(["grü"])
            go.touch()
            result = await call
            assert (result.error, result.stdout) == (error, "")
            whole = b"".join(value.encode() if isinstance(value, str) else value for value in reader.values)
            assert whole == "grüße\n".encode() + b"\xff\n"
        go.touch()
        assert (await instance.call("fine")).error is None


async def test_a_program_on_stdout_may_write_pieces(tmp_path: Path) -> None:
    code = """#!/bin/sh
while IFS= read -r call; do
  echo '{"chunk": {"enc": "text", "data": "piece"}}'
  echo 'a print'
  echo '{"output": null}'
done
"""
    async with custom(code, tmp_path) as instance:
        await instance.init()
        for _ in range(2):
            result = await instance.call(1, sink=(reader := Reader()))
            assert (result.output, result.stdout, reader.values) == (b"null", "a print\n", ["piece"])
        assert await instance.value(1) == "piece"
