"""The guest API: what code inside may ask of the platform, over HTTP on the instance's own loopback.

The agent only carries: it checks the instance's token, turns a request into a frame and the host's frame into an answer.
Who asks, whether the call it names is in flight, and what it may do are the host's to know.
"""

import base64
import hashlib
import hmac
import json
import os
import socket
from typing import Any, Final

from nova.agent import frames
from nova.agent.control import Control, Poller
from nova.agent.environment import GUEST_HOST
from nova.agent.frames import Frame, FrameError
from nova.agent.guest_server import Exchange, Server, listen
from nova.agent.messages import GuestAnswerHead

LAMBDA_PREFIX: Final = "/2018-06-01/"
LAMBDA_SOCKET: Final = b"\0nova-lambda-runtime"
"""Where the worker of a Lambda runtime takes over connections that speak its API; a name in the instance's network."""
_STATE: Final = "/v1/state/"
_INVOKE: Final = "/v1/invoke/"
_DURABLE: Final = "/2025-12-01/durable-executions/"
"""The public Lambda durable-execution protocol. Its libraries sign for another service: what proves the asker is the token
that a run was given."""
_TOPICS: Final = "/v1/topics/"
_TYPES: Final = {"request": "invoke", "event": "invoke_async"}


class _Refused(Exception):
    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class GuestApi:
    """Questions under way, by the id of their frame."""

    def __init__(self, control: Control, poller: Poller, port: int, digest: str = "") -> None:
        """``port`` 0: there is none. ``digest``: of the token, if the host has chosen it and says it later."""
        self._control = control
        self._port = port
        self._server = Server(poller, self._serve, _to_lambda)
        self._asked: dict[int, Exchange] = {}
        self.token = "" if digest else os.urandom(24).hex()
        """what processes of this instance show in ``Authorization: Bearer``"""
        self._digest = digest or _digest(self.token)

    def renew(self) -> None:
        """Another token. Questions under way were asked of a host that has gone."""
        self.token = os.urandom(24).hex()
        self._digest = _digest(self.token)
        self._asked.clear()

    def open(self, listener: socket.socket | None = None) -> None:
        """``listener``: if it stands already. Raises OSError when something else listens there, which nothing can before the
        code is loaded."""
        if self._port:
            self._server.open(listener or listen((GUEST_HOST, self._port)))

    def answered(self, frame: Frame) -> None:
        exchange = self._asked.pop(frame.id, None)
        if exchange is not None:  # else its client has left meanwhile
            head = GuestAnswerHead.of(frame.head)
            exchange.answer(head.status, frame.payload, head.headers)

    def _serve(self, exchange: Exchange) -> None:
        try:
            if exchange.request.path.startswith(_DURABLE):
                kind, head, payload = _durable(exchange)
            else:
                self._admit(exchange)
                kind, head, payload = _question(exchange)
            number = self._control.ask(kind, head, payload)
        except _Refused as refused:
            exchange.refuse(refused.status, refused.code, str(refused))
        except FrameError as error:
            exchange.refuse(413, "payload_too_large", str(error))
        else:
            self._asked[number] = exchange
            exchange.gone = lambda: self._give_up(number)

    def _admit(self, exchange: Exchange) -> None:
        given = exchange.request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(_digest(given), self._digest):
            raise _Refused(401, "unauthenticated", "send NOVA_API_TOKEN as Authorization: Bearer")

    def _give_up(self, number: int) -> None:
        if self._asked.pop(number, None) is not None:
            self._control.tell(frames.CANCEL, {"target": number, "reason": "client"})


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _question(exchange: Exchange) -> tuple[int, dict[str, Any], bytes]:
    """The frame that a request becomes: type, head, payload."""
    request = exchange.request
    method, path, query = request.method, request.path, request.query
    head: dict[str, Any] = {"request_id": request.headers.get("x-nova-request-id", "")}
    if path == "/v1/context":
        _only(method, "GET")
        return frames.CALL, head | {"op": "context"}, b""
    if path.startswith(_INVOKE):
        _only(method, "POST")
        _known(query, "qualifier", "type")
        op = _TYPES.get(query.get("type", "request"))
        if op is None:
            raise _Refused(400, "validation_failed", f"type: one of {', '.join(_TYPES)}")
        head |= {"op": op, "name": path[len(_INVOKE) :]}
        if "qualifier" in query:
            head["qualifier"] = query["qualifier"]
        if "idempotency-key" in request.headers:
            head["idempotency_key"] = request.headers["idempotency-key"]
        return frames.CALL, head, request.body
    if path.startswith(_TOPICS):
        _only(method, "POST")
        _known(query, "ordering_key", "dedup_id", "delay_s", "headers")
        return frames.CALL, head | {"op": "publish", "topic": path[len(_TOPICS) :], **query}, request.body
    if path == _STATE[:-1]:
        _only(method, "GET")
        _known(query, "prefix", "limit", "after")
        head["prefix"] = query.get("prefix", "")
        if "limit" in query:
            head["limit"] = _number("limit", query["limit"])
        if "after" in query:
            head["after"] = query["after"]
        return frames.STATE_LIST, head, b""
    if path.startswith(_STATE):
        return _state(exchange, head | {"key": path[len(_STATE) :]})
    raise _Refused(404, "route_not_found", f"there is nothing at {path[:128]}")


def _durable(exchange: Exchange) -> tuple[int, dict[str, Any], bytes]:
    request = exchange.request
    arn, _, action = request.path[len(_DURABLE) :].rpartition("/")
    if action == "checkpoint":
        _only(request.method, "POST")
        request_id = request.headers.get("x-nova-request-id") or _run_of(_member(request.body, "CheckpointToken"))
        return frames.CALL, {"request_id": request_id, "op": "checkpoint", "arn": arn}, request.body
    if action == "state":
        _only(request.method, "GET")
        query = request.query
        token = query.get("CheckpointToken", "")
        head = {"request_id": _run_of(token), "op": "operations", "arn": arn, "token": token}
        return frames.CALL, head | {"marker": query.get("Marker", ""), "max_items": query.get("MaxItems", "")}, b""
    raise _Refused(404, "route_not_found", f"there is nothing at {request.path[:128]}")


def _member(body: bytes, name: str) -> str:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    return str(found.get(name, "")) if isinstance(found, dict) else ""


def _run_of(token: str) -> str:
    """The call that a token was given to. Whether that is so, the host knows."""
    try:
        return base64.b64decode(token).decode("ascii").partition(".")[0]
    except ValueError:
        return ""


def _state(exchange: Exchange, head: dict[str, Any]) -> tuple[int, dict[str, Any], bytes]:
    request = exchange.request
    _only(request.method, "GET", "PUT", "POST", "DELETE")
    if "if-match" in request.headers:
        head["expected_version"] = _number("If-Match", request.headers["if-match"].strip('"'))
    if "x-nova-ttl" in request.headers:
        head["ttl_s"] = _number("X-Nova-TTL", request.headers["x-nova-ttl"])
    if request.method == "GET":
        return frames.STATE_GET, head, b""
    if request.method == "DELETE":
        return frames.STATE_DELETE, head, b""
    if request.method == "POST":
        _known(request.query, "by")
        return frames.STATE_PUT, head | {"by": _number("by", request.query.get("by", "1"))}, b""
    if not request.body:
        raise _Refused(400, "bad_payload", "the body is the value, as JSON")
    return frames.STATE_PUT, head, request.body


def _only(method: str, *methods: str) -> None:
    if method not in methods:
        raise _Refused(405, "method_not_allowed", f"one of {', '.join(methods)}")


def _known(query: Any, *names: str) -> None:
    for name in query:
        if name not in names:
            raise _Refused(400, "unknown_field", f"{name[:64]}: there is no such parameter")


def _number(name: str, text: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise _Refused(400, "validation_failed", f"{name}: a whole number")
    return int(text)


def _to_lambda(sock: socket.socket, first: bytes) -> bool:
    """Give a connection that begins to speak the Lambda Runtime API to the worker that serves it, if there is one."""
    _, _, target = first.partition(b" ")
    if not target.startswith(LAMBDA_PREFIX.encode()):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
        try:
            way.connect(LAMBDA_SOCKET)
            socket.send_fds(way, [b"+"], [sock.fileno()])
        except OSError:
            return False
    return True
