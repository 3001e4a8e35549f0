"""What a worker writes back: a value as an output line, an exception as an error line."""

import base64
import importlib
import json
import os
from typing import Any, Final

OUTPUT_LIMIT: Final = 6 << 20
"""Bytes of an encoded result."""
_NOT_THE_USERS: Final = (os.path.dirname(__file__), "<frozen importlib", importlib.__file__)


class InitError(Exception):
    """The function cannot be loaded, for a reason that is not an exception of its own code."""


class NotJson(TypeError):
    """A result, or a piece of one, that cannot be written as JSON."""


def _encode_other(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": base64.b64encode(value).decode()}
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


_seen: dict[int, object] = {}
_pieces = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    _seen, _encode_other, json.encoder.encode_basestring, None, ": ", ", ", False, False, False
)
"""An encoder of standard JSON: ``JSONEncoder.encode`` makes one of these for each value."""


def _encode(value: Any) -> str:
    try:
        return "".join(_pieces(value, 0))
    except BaseException:
        _seen.clear()
        raise


def of_value(value: Any, tag: bytes = b"") -> bytes:
    """The line for a handler's result. ``tag`` is the ``"request_id": …`` member of a multiplexed call."""
    try:
        data = document(value, "the result")
    except NotJson as error:
        return _error("Nova.InvalidOutput", str(error), [], tag)
    if len(data) > OUTPUT_LIMIT:
        text = f"the result has {len(data)} bytes; the limit is {OUTPUT_LIMIT}"
        return _error("Nova.OutputTooLarge", text, [], tag)
    return b'{%b"output": %b}\n' % (tag, data)


def document(value: Any, what: str) -> bytes:
    """JSON on one line. Raises :class:`NotJson`, whose message begins with ``what``."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:
        raise NotJson(f"{what} is not JSON: it has half a surrogate pair") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJson(f"{what} is not JSON: {error}") from None


def of_exception(error: BaseException, code_dir: str, tag: bytes = b"") -> bytes:
    """The line for whatever a handler raised, or its module while it was imported."""
    stack = _stack(error, code_dir)
    if isinstance(error, InitError):
        return _error("Nova.InitError", str(error), [], tag)
    if isinstance(error, NotJson):
        return _error("Nova.InvalidOutput", str(error), stack, tag)
    if isinstance(error, SystemExit):
        return _error("Nova.ExitError", f"the function exited with code {_exit_code(error)}", stack, tag)
    try:
        message = str(error)
    except Exception as broken:
        message = f"(the message of this error cannot be had: {type(broken).__name__})"
    return _error(type(error).__name__, message, stack, tag)


def of_platform(kind: str, message: str, tag: bytes = b"") -> bytes:
    return _error(f"Nova.{kind}", message, [], tag)


def _error(kind: str, message: str, stack: list[str], tag: bytes) -> bytes:
    document = json.dumps({"type": kind, "message": message[:8192], "stack": stack})
    return b'{%b"error": %b}\n' % (tag, document.encode())


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


def _stack(error: BaseException, code_dir: str) -> list[str]:
    """``main.py:12 in handler`` for the innermost 64 frames, outermost first, without the bootstrap's and importlib's."""
    lines = []
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        path = code.co_filename
        if not path.startswith(_NOT_THE_USERS):
            lines.append(f"{_relative(path, code_dir)}:{frame.tb_lineno} in {code.co_name}"[:512])
        frame = frame.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        lines.append(f"{_relative(error.filename, code_dir)}:{error.lineno} in <module>"[:512])
    return lines[-64:]


def _relative(path: str, code_dir: str) -> str:
    prefix = code_dir + "/"
    return path[len(prefix) :] if path.startswith(prefix) else path
