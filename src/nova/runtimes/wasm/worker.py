"""The WebAssembly worker: loads one module and answers its calls, as many at a time as the function says.

Every call runs in a thread and a store of its own. The threads take turns in reading the host's lines: whoever has none to
serve reads. While all of them are busy a watch looks for cancellations, and lets the engine's epoch advance, at which each
running module is asked whether it is to go on.
"""

import json
import os
import select
import tempfile
import threading
import time
from collections import deque
from typing import Any, Final, NoReturn

from wasmtime import Engine, WasmtimeError

from nova.runtimes.wasm.calls import Bounds, Call, Failed, Function, NotLoadable, Slot, first_line
from nova.runtimes.wasm.engine import load_module, make_engine
from nova.runtimes.wasm.output import OUTPUT_LIMIT, Pieces, Prints, Result, document

INPUT_FD: Final = 3
RESULT_FD: Final = 4
TICK_S: Final = 0.02
"""How often running modules are asked, and so how long one runs on after its time at most."""
MOST: Final = 32
"""Calls at a time: each has a thread."""
_READ: Final = 1 << 16
_CONTEXT: Final = b', "context": '
_REQUEST_ID: Final = b'{"request_id": "'
_DEADLINE: Final = b'"deadline_ms": '
_SEARCH_PATHS: Final = ("PATH", "PYTHONPATH", "NODE_PATH", "LD_LIBRARY_PATH", "NOVA_API_URL", "NOVA_API_TOKEN")
"""Of the environment: what means nothing to a module, or opens a door that it cannot use."""
_DESCRIPTORS: Final = ("NOVA_INPUT_FD", "NOVA_RESULT_FD")
_MIB: Final = 1 << 20


def main(engine_version: str, fuel: int) -> NoReturn:
    """Serve the host's lines until it goes away. ``fuel``: of one call, 0: not counted."""
    engine = make_engine(fuel=fuel > 0, slots=MOST)
    buffer = bytearray()
    while b"\n" not in buffer:
        data = os.read(INPUT_FD, _READ)
        if not data:
            os._exit(0)
        buffer += data
    line, _, rest = buffer.partition(b"\n")
    init: dict[str, Any] = json.loads(line)["init"]
    began = time.monotonic_ns()
    try:
        function = load(engine, init, engine_version, fuel)
    except (NotLoadable, WasmtimeError, OSError) as error:
        _write(_error(b"", "Nova.InitError", first_line(error)))
        os._exit(1)
    import_us = (time.monotonic_ns() - began) // 1000
    server = Server(engine, function, bytes(rest))
    count = server.start(min(init["concurrency"], MOST))
    _write(b'{"ready": {"concurrency": %d, "multiplex": true, "import_us": %d}}\n' % (count, import_us))
    server.run()


def load(engine: Engine, init: dict[str, Any], engine_version: str, fuel: int) -> Function:
    """The function of an init line. Raises NotLoadable, WasmtimeError, OSError."""
    code_dir: str = init["code_dir"]
    entry = os.path.relpath(init["entry"], code_dir)
    env = {name: value for name, value in init["env"].items() if name not in (*_SEARCH_PATHS, *_DESCRIPTORS)}
    scratch = os.path.join(tempfile.gettempdir(), "module")
    os.makedirs(scratch, exist_ok=True)
    return Function(
        engine,
        load_module(engine, code_dir, entry, engine_version, fuel=fuel > 0),
        init["handler"].rpartition(".")[2],
        bounds=Bounds(int(env["NOVA_MEMORY_LIMIT_MB"]) * _MIB, fuel),
        env=env,
        code_dir=code_dir,
        scratch=scratch,
    )


class Running:
    """One call in flight."""

    def __init__(self, line: bytes, server: "Server") -> None:
        middle = line.rindex(_CONTEXT)
        context = line[middle + len(_CONTEXT) : line.rindex(b"}")]
        start = len(_REQUEST_ID)
        self.id = context[start : context.index(b'"', start)].decode()
        self.tag = b'"request_id": "%b", ' % self.id.encode()
        self.payload = line[len(b'{"input": ') : middle]
        self._deadline_ms = _number(context, _DEADLINE)
        self.cancelled = False
        self.prints = Prints(self.id, "stdout", _write)
        self.errors = Prints(self.id, "stderr", _write)
        self.pieces: Pieces | None = None
        self.result: Result | None = None
        if b', "streaming": true' in context:
            members = json.loads(context)
            credit = members.get("stream_credit")
            self.pieces = Pieces(self.tag, credit, _write, lambda event: server.wait(self, event))
        elif server.function.is_command:
            self.result = Result(self.prints)

    @property
    def overdue(self) -> bool:
        return time.time() * 1000 > self._deadline_ms

    def interrupted(self) -> bool:
        return self.cancelled or self.overdue

    def answer(self, slot: Slot) -> bytes:
        """Run it; the line of its answer."""
        if self.interrupted():  # before it began
            return self._failed(Failed("Nova.Cancelled", ""))
        stdout = self.pieces or self.result or self.prints
        call = Call(self.payload, stdout.add, self.errors.add, self.interrupted, {"NOVA_REQUEST_ID": self.id})
        try:
            answer = slot.run(call)
        except Failed as failed:
            if self.result is not None:
                self.result.all_are_prints()
            return self._failed(failed)
        if self.cancelled:
            return _error(self.tag, "Nova.Cancelled", "the call was cancelled")
        if self.pieces is not None:
            self.pieces.end()
        data = self.result.document() if self.result is not None else document(answer or b"")
        if data is None or len(data) > OUTPUT_LIMIT:
            return _error(self.tag, "Nova.OutputTooLarge", f"the result is larger than {OUTPUT_LIMIT} bytes")
        return b'{%b"output": %b}\n' % (self.tag, data)

    def _failed(self, failed: Failed) -> bytes:
        if self.cancelled:
            return _error(self.tag, "Nova.Cancelled", "the call was cancelled")
        if self.overdue:
            return _error(self.tag, "Nova.Timeout", "the call took longer than its time", failed.stack)
        kind, message = failed.kind, str(failed)
        if kind == "Nova.ExitError" and (said := self.errors.tail.decode("utf-8", "replace").strip()):
            kind, message = _own_error(said) or (kind, said)
        return _error(self.tag, kind, message, failed.stack)

    def end(self) -> None:
        """Send what it printed, before its answer."""
        self.prints.end()
        self.errors.end()


class Server:
    """The calls of one worker."""

    def __init__(self, engine: Engine, function: Function, rest: bytes = b"") -> None:
        self.function = function
        self._engine = engine
        self._buffer = bytearray(rest)
        self._reading = threading.Lock()
        self._calls: deque[Running] = deque()
        self._running: dict[str, Running] = {}
        self._busy = threading.Event()
        self._input = select.poll()
        self._input.register(INPUT_FD, select.POLLIN)
        self._take_lines(b"")

    def start(self, wanted: int) -> int:
        """Begin to serve in all threads but the caller's; how many calls at a time there can be. Fewer than ``wanted`` where
        the limit of processes, which counts threads, is low."""
        threading.Thread(target=self._watch, daemon=True).start()
        for number in range(1, wanted):
            try:
                threading.Thread(target=self._serve, args=(number,), daemon=True).start()
            except RuntimeError:
                return number
        return wanted

    def run(self) -> NoReturn:
        """Serve in this thread too, until the host goes away."""
        self._serve(0)
        os._exit(0)

    def _serve(self, number: int) -> None:
        slot = self.function.slot(tempfile.mkdtemp(prefix=f"input-{number}-"))
        while True:
            running = self._next()
            try:
                line = running.answer(slot)
            except Exception as error:
                line = _error(running.tag, "Nova.Internal", f"{type(error).__name__}: {error}")
            running.end()
            del self._running[running.id]
            _write(line)

    def _next(self) -> Running:
        """The next call, read by whoever comes first."""
        with self._reading:
            while not self._calls:
                self._read()
            running = self._calls.popleft()
        if not self._busy.is_set():
            self._busy.set()
        return running

    def _read(self) -> None:
        """Take in what the host says. The worker ends with the host."""
        data = os.read(INPUT_FD, _READ)
        if not data:
            os._exit(0)
        self._take_lines(data)

    def _take_lines(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if line.startswith(b'{"input": '):
                running = Running(line, self)
                self._running[running.id] = running
                self._calls.append(running)
            elif line:
                self._told(json.loads(line))

    def _told(self, message: dict[str, Any]) -> None:
        if "cancel" in message and (running := self._running.get(message["cancel"])) is not None:
            running.cancelled = True
        elif "credit" in message:
            running = self._running.get(message["credit"])
            if running is not None and running.pieces is not None:
                running.pieces.grant(message["bytes"])

    def wait(self, running: Running, event: threading.Event) -> bool:
        """A call waits for credit: read what the host says, or let whoever reads go on. False: the call is over."""
        if self._reading.acquire(blocking=False):
            try:
                if not event.is_set() and self._input.poll(TICK_S * 1000):
                    self._read()
            finally:
                self._reading.release()
        else:
            event.wait(TICK_S)
        return not running.interrupted()

    def _watch(self) -> None:
        """While calls run: hear of cancellations when nobody reads, and have the modules asked."""
        while True:
            self._busy.wait()
            time.sleep(TICK_S)
            if self._reading.acquire(blocking=False):
                try:
                    if self._input.poll(0):
                        self._read()
                finally:
                    self._reading.release()
            self._engine.increment_epoch()
            self._busy.clear()
            if self._running:
                self._busy.set()


def _number(context: bytes, name: bytes) -> float:
    at = context.find(name)
    if at < 0:
        return float("inf")
    start = at + len(name)
    end = start
    while context[end : end + 1].isdigit():
        end += 1
    return int(context[start:end])


def _own_error(said: str) -> tuple[str, str] | None:
    """Type and message, if the last line of a program that failed is ``{"type": …, "message": …}``. Types that begin with
    ``Nova.`` are the platform's."""
    try:
        last = json.loads(said.rpartition("\n")[2])
    except (ValueError, RecursionError):
        return None
    if not isinstance(last, dict):
        return None
    kind, message = last.get("type"), last.get("message")
    if not isinstance(kind, str) or not isinstance(message, str) or kind.startswith("Nova."):
        return None
    return kind, message


def _error(tag: bytes, kind: str, message: str, stack: list[str] | None = None) -> bytes:
    body = json.dumps({"type": kind, "message": message[:8192], "stack": stack or []})
    return b'{%b"error": %b}\n' % (tag, body.encode())


_writing = threading.Lock()


def _write(line: bytes) -> None:
    """Lines of several threads must not mix. The worker ends with the host."""
    try:
        with _writing:
            written = os.write(RESULT_FD, line)
            while written < len(line):
                written += os.write(RESULT_FD, line[written : written + _READ])
    except ConnectionError:
        os._exit(0)
