"""Plain scripts: each call runs a program on a file with the input, and takes one JSON document from its output.

In a call that streams, all that it writes to stdout are pieces.
"""

import base64
import json
import os
import pathlib
from typing import Any, Final, NoReturn

from nova.agent.frames import MAX_MESSAGE
from nova.agent.lines import whole_characters
from nova.agent.messages import GuestError
from nova.agent.process import exit_error, kill_children, start_program
from nova.agent.serving import Lines, Loaded, Pump, call_env, load, ready, write_all
from nova.agent.worker import chunk_line, error_line, output_line, split_call

ERROR_TAIL: Final = 4096
"""Bytes of stderr that become the message of a failed run."""


def main(argv: tuple[str, ...]) -> NoReturn:
    """Serve calls until the host goes away. ``{input}`` in ``argv`` becomes the path of the input file."""
    lines = Lines()
    loaded, command = load(lines, argv)
    ready(lines)
    while (line := lines.read()) is not None:
        payload, context = split_call(line)
        members = json.loads(context)
        stdout = Streamed(lines) if members.get("streaming") else Output()
        lines.write(_run(loaded, command, payload, members, stdout))
    os._exit(0)


def _run(
    loaded: Loaded, command: tuple[str, ...], payload: bytes, context: dict[str, Any], stdout: "Output | Streamed"
) -> bytes:
    """One call; the answer's line. Nothing of the program is alive afterwards."""
    folder = pathlib.Path(loaded.env["TMPDIR"])
    if loaded.concurrency > 1:
        folder /= str(context["request_id"])
        folder.mkdir(exist_ok=True)
    input_file = folder / "input.json"
    input_file.write_bytes(payload)
    tail, document = Tail(), bytearray()
    try:
        status = _pump(
            [str(input_file) if word == "{input}" else word for word in command],
            call_env(loaded.env, context),
            loaded.code_dir,
            payload,
            stdout,
            tail,
            document,
        )
    finally:
        kill_children()
        input_file.unlink(missing_ok=True)
        if loaded.concurrency > 1 and not any(folder.iterdir()):
            folder.rmdir()
    if status != 0:
        stdout.all_are_prints()
        error = exit_error(status)
        return error_line(GuestError(error.type, tail.text() or error.message))
    if document.strip():
        stdout.all_are_prints()
        return output_line(bytes(document).strip())
    return stdout.result()


def _pump(
    argv: list[str],
    env: dict[str, str],
    cwd: str,
    payload: bytes,
    stdout: "Output | Streamed",
    tail: "Tail",
    document: bytearray,
) -> int:
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    result_read, result_write = os.pipe()
    pid = start_program(argv, env, cwd, {0: stdin_read, 1: stdout_write, 2: stderr_write, 4: result_write})
    for fd in (stdin_read, stdout_write, stderr_write, result_write):
        os.close(fd)
    pump = Pump()
    pump.write(stdin_write, payload)
    pump.read(stdout_read, stdout.add)
    pump.read(stderr_read, tail.add)
    pump.read(result_read, lambda data: document.extend(data[: MAX_MESSAGE - len(document)]))
    return pump.until_exit(pid)


class Tail:
    """Passes stderr on as prints and remembers its end."""

    def __init__(self) -> None:
        self._end = b""

    def add(self, data: bytes) -> None:
        write_all(2, data)
        self._end = (self._end + data)[-ERROR_TAIL:]

    def text(self) -> str:
        return self._end.decode("utf-8", "replace").strip()


class Output:
    """stdout of a script, of which the last document is the result and what comes before it prints.

    At most :data:`MAX_MESSAGE` bytes are held: beyond that all but the last line become prints at once.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._lost = False

    def add(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > MAX_MESSAGE:
            cut = self._held.rfind(b"\n", 0, len(self._held) - 1) + 1
            self._lost = cut == 0 or self._lost
            write_all(1, self._held[:cut] if cut else self._held)
            del self._held[: cut or None]

    def all_are_prints(self) -> None:
        write_all(1, self._held)

    def result(self) -> bytes:
        text = bytes(self._held).strip()
        if self._lost:
            return error_line(GuestError("Nova.OutputTooLarge", f"the output is larger than {MAX_MESSAGE} bytes"))
        if is_json(text):
            return output_line(text)
        prints, found, last = text.rpartition(b"\n")
        if found and is_json(last):
            write_all(1, prints + b"\n")
            return output_line(last)
        return output_line(json.dumps(text.decode("utf-8", "replace")).encode())


class Streamed:
    """stdout of a script whose caller takes it as it comes: text where it is UTF-8, else bytes."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._rest = b""

    def add(self, data: bytes) -> None:
        data = self._rest + data
        whole = whole_characters(data)
        self._rest = data[len(whole) :]
        if whole:
            self._send(whole)

    def _send(self, data: bytes) -> None:
        try:
            line = chunk_line("text", json.dumps(data.decode()).encode())
        except UnicodeDecodeError:
            line = chunk_line("b64", b'"%b"' % base64.b64encode(data))
        self._lines.write(line)

    def all_are_prints(self) -> None:
        """They were pieces, and have gone."""
        if self._rest:
            self._send(self._rest)

    def result(self) -> bytes:
        self.all_are_prints()
        return output_line(b"null")


def is_json(text: bytes) -> bool:
    """One document, without NaN and Infinity."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
