"""The Lambda Runtime API: a worker that stands between the host's lines and a program that asks for its calls over HTTP.

``AWS_LAMBDA_RUNTIME_API`` says where; the first worker of an instance is reached through the agent's own port, which hands
it the connections that speak this API, further ones on loopback addresses of their own. Nothing here asks for a token: who
reaches it is inside this instance.
"""

import base64
import errno
import json
import os
import re
import socket
from collections import deque
from typing import Any, Final, NoReturn

from nova.agent.control import Poller
from nova.agent.guest import LAMBDA_PREFIX, LAMBDA_SOCKET
from nova.agent.guest_http import MAX_HEAD, BadRequest, Request, TakeChunk
from nova.agent.guest_server import Exchange, Server, listen
from nova.agent.lines import LineReader
from nova.agent.messages import GuestError
from nova.agent.process import end_like, start_program
from nova.agent.script import is_json
from nova.agent.serving import INPUT_FD, READ, Lines, load, ready
from nova.agent.worker import error_line, output_line, split_call

REGION: Final = "local"
_RUNTIME: Final = f"{LAMBDA_PREFIX}runtime/"
_NEXT: Final = f"{_RUNTIME}invocation/next"
_INIT_ERROR: Final = f"{_RUNTIME}init/error"
_ABOUT = re.compile(re.escape(_RUNTIME) + r"invocation/([0-9A-Za-z-]{1,64})/(response|error)")
_TRACE = re.compile(r"00-([0-9a-f]{8})([0-9a-f]{24})-([0-9a-f]{16})-([0-9a-f]{2})")
_HTTP_RESPONSE: Final = "application/vnd.awslambda.http-integration-response"
_PRELUDE_END: Final = b"\0" * 8
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")
_WORKERS: Final = 250


def main(port: int, argv: tuple[str, ...]) -> NoReturn:
    """Start the program and serve it until one of them ends. ``port`` is the guest API's."""
    lines = Lines()
    loaded, command = load(lines, argv)
    poller = Poller()
    runtime = Runtime(lines, loaded.env)
    server = Server(poller, runtime.serve)
    server.refused, server.streams = runtime.refused, runtime.streams
    address = _open(poller, server, port)
    standard = os.open(os.devnull, os.O_RDONLY)
    env = loaded.env | {"AWS_LAMBDA_RUNTIME_API": address}
    pid = start_program(command, env, loaded.code_dir, {0: standard, 1: 1, 2: 2})
    os.close(standard)
    pidfd = os.pidfd_open(pid)
    poller.watch(INPUT_FD, runtime.read_host)
    poller.watch(pidfd, lambda: _ended(pid))
    while True:
        poller.turn(None)


def _open(poller: Poller, server: Server, port: int) -> str:
    """Where this worker's API is reached."""
    way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        way.bind(LAMBDA_SOCKET)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        way.close()
    else:
        way.listen(64)
        way.setblocking(False)
        poller.watch(way.fileno(), lambda: _adopt(way, server))
        return f"127.0.0.1:{port}"
    for number in range(2, _WORKERS):
        try:
            server.open(listen((f"127.0.0.{number}", port)))
        except OSError:
            continue
        return f"127.0.0.{number}:{port}"
    raise OSError(errno.EADDRINUSE, "no address is left for another worker")


def _adopt(way: socket.socket, server: Server) -> None:
    """A connection that the agent hands over. What any other process sends here is dropped."""
    try:
        given, _ = way.accept()
        with given:
            given.settimeout(1)
            _, fds, _, _ = socket.recv_fds(given, 1, 1)
            for fd in fds:
                server.adopt(socket.socket(fileno=fd))
    except OSError:
        return


def _ended(pid: int) -> NoReturn:
    _, status = os.waitpid(pid, 0)
    end_like(status)


class Runtime:
    """The calls of one worker. A program that asks for the next one before it answered the last is refused."""

    def __init__(self, lines: Lines, env: dict[str, str]) -> None:
        self._lines = lines
        self._env = env
        self._reader = LineReader()
        self._calls: deque[tuple[bytes, dict[str, Any]]] = deque()
        self._waiting: Exchange | None = None
        self._current: str | None = None
        self._streaming = False
        self._pieces: _Pieces | None = None
        self._loaded = False

    def read_host(self) -> None:
        data = os.read(INPUT_FD, READ)
        if not data:
            os._exit(0)
        for line in self._reader.feed(data):
            if line is not None:
                payload, context = split_call(line)
                self._calls.append((payload, json.loads(context)))
        self._give()

    def serve(self, exchange: Exchange) -> None:
        request = exchange.request
        about = _ABOUT.fullmatch(request.path)
        if request.path == _NEXT and request.method == "GET":
            self._next(exchange)
        elif about is not None and request.method == "POST":
            self._answered(exchange, about[1], failed=about[2] == "error")
        elif request.path == _INIT_ERROR and request.method == "POST":
            self._lines.write(error_line(_error(request)))
            _accepted(exchange)
        else:
            _refuse(exchange, 404, "NotFound", f"there is no {request.method} {request.path[:128]} here")

    def streams(self, request: Request) -> TakeChunk | None:
        """A result that comes in chunks goes on piece by piece where the caller wants it so."""
        about = _ABOUT.fullmatch(request.path)
        mode = request.headers.get("lambda-runtime-function-response-mode", "").lower()
        if about is None or about[1] != self._current or about[2] != "response":
            return None
        if not self._streaming or mode != "streaming":
            return None
        self._pieces = _Pieces(self._lines, request)
        return self._pieces.take

    def refused(self, bad: BadRequest) -> None:
        """A request that could not be taken; if it was too large it was the result."""
        if bad.status == 413 and self._current is not None:
            self._end(error_line(GuestError("Nova.OutputTooLarge", f"the result: {bad}")))

    def _next(self, exchange: Exchange) -> None:
        if self._current is not None or self._waiting is not None:
            _refuse(exchange, 403, "InvalidStateTransition", "the last invocation has not been answered")
            return
        if not self._loaded:
            self._loaded = True
            ready(self._lines)
        self._waiting = exchange
        exchange.gone = self._left
        self._give()

    def _left(self) -> None:
        self._waiting = None

    def _give(self) -> None:
        if self._waiting is None or not self._calls:
            return
        exchange, self._waiting = self._waiting, None
        payload, context = self._calls.popleft()
        self._current, self._streaming = str(context["request_id"]), bool(context.get("streaming"))
        exchange.answer(200, payload, self._headers(context))

    def _headers(self, context: dict[str, Any]) -> dict[str, str]:
        name, version = context["function_name"], context["function_version"]
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": str(context["request_id"]),
            "Lambda-Runtime-Deadline-Ms": str(context["deadline_ms"]),
            "Lambda-Runtime-Invoked-Function-Arn": (
                f"arn:nova:lambda:{REGION}:{context['tenant']}:function:{name}:{version}"
            ),
        }
        trace = _TRACE.fullmatch(str(context.get("traceparent") or ""))
        if trace is not None:
            sampled = int(trace[4], 16) & 1
            headers["Lambda-Runtime-Trace-Id"] = f"Root=1-{trace[1]}-{trace[2]};Parent={trace[3]};Sampled={sampled}"
        return headers

    def _answered(self, exchange: Exchange, request_id: str, *, failed: bool) -> None:
        if request_id != self._current:
            _refuse(exchange, 400, "InvalidRequestID", "this is not the invocation that is under way")
            return
        request, pieces = exchange.request, self._pieces
        if pieces is not None and not failed:
            pieces.end()
            self._end(output_line(b"null"))
        else:
            self._end(error_line(_error(request)) if failed else output_line(_output(request)))
        _accepted(exchange)

    def _end(self, line: bytes) -> None:
        self._current = self._pieces = None
        self._lines.write(line)


class _Pieces:
    """A streamed result on its way: status and headers first, when it is an HTTP response, then text or bytes."""

    def __init__(self, lines: Lines, request: Request) -> None:
        self._lines = lines
        self._prelude: bytearray | None = bytearray() if _is_http(request) else None

    def take(self, data: bytes) -> None:
        if self._prelude is None:
            self._write(data)
            return
        self._prelude += data
        head, found, rest = bytes(self._prelude).partition(_PRELUDE_END)
        if found and is_json(head):
            self._prelude = None
            self._lines.write(b'{"chunk": {"enc": "json", "data": %b}}\n' % head.translate(_ONE_LINE))
            self._write(rest)
        elif found or len(self._prelude) > MAX_HEAD:
            self.end()

    def end(self) -> None:
        """What had looked like the beginning of a response and was none is data."""
        held, self._prelude = self._prelude, None
        self._write(bytes(held or b""))

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), READ):
            piece = data[start : start + READ]
            try:
                kind, text = b"text", piece.decode()
            except UnicodeDecodeError:
                kind, text = b"b64", base64.b64encode(piece).decode()
            self._lines.write(b'{"chunk": {"enc": "%b", "data": %b}}\n' % (kind, json.dumps(text).encode()))


def _is_http(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith(_HTTP_RESPONSE)


def _output(request: Request) -> bytes:
    """The result as JSON: as it was sent, or as a text when it is none; a streamed HTTP response as its parts."""
    body = request.body
    if _is_http(request) and _PRELUDE_END in body:
        prelude, _, rest = body.partition(_PRELUDE_END)
        if is_json(prelude):
            parts = json.loads(prelude)
            return json.dumps({**parts, "body": rest.decode("utf-8", "replace")}).encode()
    if not body.strip():
        return b"null"
    return body if is_json(body) else json.dumps(body.decode("utf-8", "replace")).encode()


def _error(request: Request) -> GuestError:
    kind = request.headers.get("lambda-runtime-function-error-type", "Error")
    try:
        said = json.loads(request.body or b"{}")
    except ValueError:
        said = request.body.decode("utf-8", "replace")
    if not isinstance(said, dict):
        return GuestError.of({"type": kind, "message": str(said)})
    stack = said.get("stackTrace")
    return GuestError.of(
        {
            "type": said.get("errorType") or kind,
            "message": said.get("errorMessage", ""),
            "stack": [str(line).strip() for line in stack] if isinstance(stack, list) else [],
        }
    )


def _accepted(exchange: Exchange) -> None:
    exchange.answer(202, b'{"status": "OK"}', {"Content-Type": "application/json"})


def _refuse(exchange: Exchange, status: int, kind: str, message: str) -> None:
    body = json.dumps({"errorType": kind, "errorMessage": message}).encode()
    exchange.answer(status, body, {"Content-Type": "application/json"})
