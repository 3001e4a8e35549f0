"""The Python worker: forked blank from a preloaded process, loads one function, serves its calls one at a time.

This is the warm path of the guest: one read, one parse, the handler, one encode, one write.
"""

import asyncio
import ctypes
import json
import mmap
import os
import signal
import site
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

from nova.runtimes.python import answers, durable, loading, multiplex, pieces
from nova.runtimes.python.context import Context
from nova.runtimes.python.durable_line import HostLine
from nova.runtimes.python.forking import FORKS
from nova.runtimes.python.loading import Function, become, load, rehearse_becoming, settle
from nova.runtimes.python.resumed import Resumed
from nova.runtimes.python.waiting import until_readable

INPUT_FD: Final = 3
RESULT_FD: Final = 4
_READ: Final = 1 << 16  # larger buffers are mapped and unmapped by malloc at every read
_INPUT: Final = '{"input": '
_CALL: Final = _INPUT.encode()
_CONTEXT: Final = ', "context": '
_REQUEST_ID: Final = '{"request_id": "'
_REHEARSAL: Final = "nova_rehearsal"
_PR_SET_CHILD_SUBREAPER: Final = 36
_WAITING, _RUNNING, _WRITING, _DONE = range(4)
_VARIABLE: Final = b"NOVA_REQUEST_ID"
_ID_BYTES: Final = 36
_ENTRY: Final = ctypes.create_string_buffer(_VARIABLE + b"=" + bytes(_ID_BYTES))
"""The environment's entry for the call: given to it once, then written over. ``setenv`` never gives its memory back, so
setting the variable for each call would cost a long-lived worker ever more memory, and time to search it."""
_ENTRY_ID: Final = memoryview(_ENTRY).cast("B")[len(_VARIABLE) + 1 : -1]
_putenv = ctypes.CDLL(None).putenv
_until_asked: Final = until_readable(INPUT_FD)
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


_have: Callable[[], None] | None = None


def replace_rehearsal(have: Callable[[], None] | None) -> None:
    """Workers that are forked from this process call ``have``, which copies the memory that they will write to, in place of
    rehearsing; None: they rehearse."""
    global _have
    _have = have


def preload() -> None:
    """Import what handlers commonly use, once for all workers."""
    import collections.abc  # noqa: F401
    import concurrent.futures  # noqa: F401
    import csv  # noqa: F401
    import datetime  # noqa: F401
    import decimal  # noqa: F401
    import email.message  # noqa: F401
    import encodings.idna  # noqa: F401
    import hashlib  # noqa: F401
    import http.client  # noqa: F401
    import linecache  # noqa: F401
    import pathlib  # noqa: F401
    import random  # noqa: F401
    import subprocess  # noqa: F401
    import traceback  # noqa: F401
    import typing  # noqa: F401
    import urllib.request  # noqa: F401
    import uuid  # noqa: F401

    site.setquit()
    site.sethelper()


def rehearse() -> None:
    """Load and call a dummy function in this process, so that workers start with warm code; leaves no trace."""
    for _ in range(20):
        _rehearse_once()


def prepare() -> None:
    """Be what every worker is, whatever its function."""
    loading.prepare()


def _rehearse_once() -> None:
    folder = tempfile.mkdtemp(prefix="rehearsal-", dir="/tmp")
    file = f"{folder}/{_REHEARSAL}.py"
    sys.path.insert(0, folder)
    try:
        with open(file, "w") as source:
            source.write("def handler(event, context):\n    return [event, context.request_id]\n")
        worker = Worker(load(f"{_REHEARSAL}.handler", lambda: Context('{"request_id": ""}')), folder)
        line = f'{_INPUT}{{"a": [1, 2.5, "x"]}}{_CONTEXT}{{"request_id": "{"0" * _ID_BYTES}", "tenant": "default"}}}}\n'
        worker.answer(line.encode())
        answers.of_exception(ValueError("x"), folder)
    finally:
        os.unlink(file)
        os.rmdir(folder)
        sys.path.remove(folder)
        sys.path_importer_cache.pop(folder, None)
        sys.modules.pop(_REHEARSAL, None)
        os.environ.pop(_VARIABLE.decode(), None)


def _warm_pages() -> None:
    """Touch in this process what the first call will touch: copied now, off any caller's path, it is not copied then."""
    (_have or _rehearse_all)()


def _rehearse_all() -> None:
    _rehearse_once()
    rehearse_becoming()


def rehearse_call(code_dir: str) -> None:
    """A call of nothing, up to its answer."""
    worker = Worker(Function(lambda event, _context: event, False, sys), code_dir)
    worker.answer(f'{_INPUT}{{"a": 1}}{_CONTEXT}{{"request_id": "{"0" * _ID_BYTES}"}}}}\n'.encode())


def main() -> NoReturn:
    """Serve the host's lines until it goes away."""
    _warm_pages()
    line = _read_line()
    init: dict[str, Any] = parse_init(line)
    code_dir: str = init["code_dir"]
    current = Current()
    request_id = multiplex.request_id if init["concurrency"] > 1 else current.request_id
    try:
        become(init, request_id)
        began = time.monotonic_ns()
        if init["mode"] == "process":
            FORKS.watch()
        function = load(init["handler"], lambda: init_context(init))
        import_us = (time.monotonic_ns() - began) // 1000
    except BaseException as error:
        _flush()
        _write(answers.of_exception(error, code_dir))
        os._exit(1)
    settle()
    _flush()
    serve(function, init, current, import_us)


def parse_init(line: bytes) -> dict[str, Any]:
    """By what parses calls, too."""
    init: dict[str, Any] = _scan(line.decode(), 0)[0]["init"]
    return init


def serve(function: Function, init: dict[str, Any], current: "Current", import_us: int) -> NoReturn:
    """Tell that the function is loaded, and serve its calls."""
    code_dir: str = init["code_dir"]
    host = None
    if init["mode"] == "durable" and not durable.speaks_itself():
        host = HostLine(INPUT_FD, RESULT_FD) if init["concurrency"] == 1 else None
        function.call = durable.wrap(function.call, function.is_async, host)
    if function.is_async and init["concurrency"] > 1 and init["mode"] != "process":
        text = b'{"ready": {"concurrency": %d, "multiplex": true, "import_us": %d}}\n'
        _write(text % (init["concurrency"], import_us))
        multiplex.serve(function, code_dir)
    _write(b'{"ready": {"concurrency": 1, "import_us": %d}}\n' % import_us)
    worker = Worker(function, code_dir, current)
    if host is not None:
        worker.pieces = pieces.Writer(host.write)
    Context.sender = worker.pieces.send
    if init["mode"] == "process":
        _serve_forked(worker)
    resumed: Resumed | None = None
    while True:
        line = _read_line()
        if line.startswith(_CALL):
            answer = worker.answer(line)
        else:
            resumed = resumed or Resumed(function.module, init["env"], code_dir)
            answer = resumed.answer(line)
        _flush()
        _write(answer)


def _serve_forked(worker: "Worker") -> NoReturn:
    """A fresh process per call, which stands before its call comes. The parent speaks only when it ended without an answer."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    state = mmap.mmap(-1, 1)
    """of the child: waiting for its call, running, in the middle of a line, done"""

    def write(line: bytes) -> None:
        state[0] = _WRITING
        _write(line)
        state[0] = _RUNNING

    worker.pieces = pieces.Writer(write)
    Context.sender = worker.pieces.send
    FORKS.settle()
    while True:
        state[0] = _WAITING
        pid = FORKS.fork()
        if pid == 0:
            line = _read_line()
            state[0] = _RUNNING
            answer = worker.answer(line)
            _flush()
            state[0] = _WRITING
            _write(answer)
            state[0] = _DONE
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        _kill_children()
        if state[0] == _WAITING:  # the host has gone, or nothing can live here
            os._exit(0 if status == 0 else 1)
        if state[0] == _WRITING:
            _write(b"\n")  # it died in its line: what is there of it, mostly nothing, ends here
        if state[0] in (_WRITING, _RUNNING):
            _write(_ended(os.waitstatus_to_exitcode(status)))


def _ended(code: int) -> bytes:
    if code >= 0:
        return answers.of_platform("ExitError", f"the process exited with code {code}")
    return answers.of_platform("Signal", f"the process was ended by {signal.Signals(-code).name}")


def _kill_children() -> None:
    """End what the call left running."""
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # by far the commonest
            return
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            pids = [int(pid) for pid in children.read().split()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Current:
    """The call that runs now."""

    __slots__ = ("id",)

    def __init__(self) -> None:
        self.id = ""

    def request_id(self) -> str:
        return self.id


class Worker:
    """A loaded function that answers one line at a time."""

    def __init__(self, function: Function, code_dir: str, current: Current | None = None) -> None:
        self._call = function.call
        self._loop: asyncio.AbstractEventLoop | None = None
        self._code_dir = code_dir
        self._current = current or Current()
        self.pieces = pieces.Writer(_write)
        self._traced = False
        _putenv(_ENTRY)

    def answer(self, line: bytes) -> bytes:
        try:
            event, context = self._parse(line.decode())
            value = self._call(event, context)
            if type(value) not in pieces.PLAIN:
                value = self._resolve(value)
            answer = answers.of_value(value)
        except BaseException as error:
            answer = answers.of_exception(error, self._code_dir)
        if self.pieces.used:
            self.pieces.end()
        return answer

    def _resolve(self, value: Any) -> Any:
        """What becomes of a coroutine or a stream."""
        if hasattr(type(value), "__await__"):
            value = self._run(value)
        if pieces.is_stream(value):
            return self.pieces.each(value)
        if pieces.is_async_stream(value):
            return self._run(self.pieces.async_each(value))
        return value

    def _run(self, value: Awaitable[Any]) -> Any:
        """One event loop for all calls of this process; made in the process that uses it, never before a fork."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(value)

    def _parse(self, text: str) -> tuple[Any, Context]:
        try:
            event, end = _scan(text, len(_INPUT))
        except StopIteration:
            end = -1
        if end < 0 or not text.startswith(_CONTEXT, end):  # white space around the payload
            end = text.rindex(_CONTEXT)
            event = json.loads(text[len(_INPUT) : end])
        start = end + len(_CONTEXT)
        id_start = start + len(_REQUEST_ID)
        self._current.id = request_id = text[id_start : text.index('"', id_start)]
        self.pieces.begin(request_id)
        _set_variable(request_id.encode())
        context = Context(text[start:-2])
        traced = '"traceparent": "' in context._text
        if traced or self._traced:
            self._traced = traced
            os.environ["NOVA_TRACE_PARENT"] = os.environ["TRACEPARENT"] = context.traceparent or ""
            os.environ["TRACESTATE"] = context.tracestate or ""
        return event, context


def _set_variable(request_id: bytes) -> None:
    """NOVA_REQUEST_ID, as Python and as child processes see it."""
    if len(request_id) == _ID_BYTES:
        _ENTRY_ID[:] = request_id
    os.environ._data[_VARIABLE] = request_id  # type: ignore[attr-defined]


def init_context(init: dict[str, Any]) -> Context:
    """What an ``on_init`` hook may look at: everything but what belongs to a call."""
    env = init["env"]
    members = {
        "request_id": "",
        "function_name": env["NOVA_FUNCTION_NAME"],
        "function_id": env["NOVA_FUNCTION_ID"],
        "function_version": env["NOVA_FUNCTION_VERSION"],
        "memory_limit_mb": int(env["NOVA_MEMORY_LIMIT_MB"]),
        "timeout_s": int(env["NOVA_TIMEOUT_S"]),
        "runtime": env["NOVA_RUNTIME"],
        "mode": env["NOVA_MODE"],
        "tenant": env["NOVA_TENANT"],
        "namespace": env["NOVA_NAMESPACE"],
    }
    return Context(json.dumps(members))


def _read_line() -> bytes:
    """The next line from the host, LF included; the process ends with the host."""
    _until_asked()
    data = os.read(INPUT_FD, _READ)
    if data.endswith(b"\n"):
        return data
    pieces = bytearray(data)
    while data:
        data = os.read(INPUT_FD, _READ)
        pieces += data
        if data.endswith(b"\n"):
            return bytes(pieces)
    os._exit(0)


def _flush() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()


def _write(line: bytes) -> None:
    written = os.write(RESULT_FD, line)
    while written < len(line):
        written += os.write(RESULT_FD, line[written : written + _READ])
