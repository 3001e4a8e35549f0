"""What publishers send: messages as JSON, or CloudEvents 1.0 in binary, structured or batch mode.

A payload is never decoded and encoded again: the bytes between its ends are what subscribers get.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from cloudevents.core.bindings import http as binding
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from pydantic import BaseModel

from nova import payload
from nova.api.topics import Publish
from nova.domain.message import MAX_BATCH, MAX_PAYLOAD, NewMessage
from nova.errors import FieldError, NovaError, invalid
from nova.http import body as bodies

M = TypeVar("M", bound=BaseModel)
Parts = dict[str, msgspec.Raw]
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_REQUIRED = ("specversion", "id", "source", "type")
_format = JSONFormat()
_members = msgspec.json.Decoder(Parts)
_list = msgspec.json.Decoder(list[Parts])


def media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def one(raw: bytes, headers: Mapping[str, str]) -> NewMessage:
    """The message of a request. Raises ``validation_failed`` naming the attribute, ``invalid_json``, ``bad_payload`` …"""
    kind = media_type(headers)
    if kind == BATCH:
        raise NovaError("unsupported_media_type", "send batches to …/publish-batch")
    if kind == STRUCTURED:
        return _structured(_decode(_members, raw), "")
    if any(name.startswith(binding.CE_PREFIX) for name in headers):
        return _binary(raw, headers)
    bodies.require_json(headers.get("content-type"))
    body, content = plain(Publish, raw)
    return message_of(body, content, headers)


def many(model: type[M], raw: bytes, headers: Mapping[str, str]) -> list[NewMessage]:
    """The messages of a batch: a batch of CloudEvents, or ``{"messages": […]}`` as ``model`` has it."""
    if media_type(headers) == BATCH:
        events = _decode(_list, raw)
        if not 0 < len(events) <= MAX_BATCH:
            raise invalid("messages", f"from 1 to {MAX_BATCH} at once")
        return [_structured(event, f"{number}.") for number, event in enumerate(events)]
    bodies.require_json(headers.get("content-type"))
    members = _decode(_members, raw or b"{}")
    try:
        parts = _list.decode(members.get("messages", b"[]"))
    except msgspec.DecodeError:
        parts = []
    contents = [_take(message, "payload") for message in parts]
    if parts:  # else the model says what is wrong
        members["messages"] = msgspec.Raw(payload.encode(parts))
    body: Any = bodies.parse(model, _checked(payload.encode(members)))
    return [
        message_of(message, _payload(content or b"null", f"messages.{number}.payload"), headers)
        for number, (message, content) in enumerate(zip(body.messages, contents, strict=True))
    ]


def plain(model: type[M], raw: bytes) -> tuple[M, bytes]:
    """A JSON object whose ``payload`` is any document; the rest as ``model`` has it, and the payload as it was sent."""
    members = _decode(_members, raw or b"{}")
    content = _take(members, "payload")
    body = bodies.parse(model, _checked(payload.encode(members)))
    return body, _payload(content or b"null", "payload")


def message_of(body: Publish, content: bytes, headers: Mapping[str, str]) -> NewMessage:
    """The trace of the request goes on in the message."""
    return NewMessage(
        payload=content,
        headers=body.headers,
        ordering_key=body.ordering_key,
        dedup_id=body.dedup_id,
        delay_s=body.delay_s,
        traceparent=headers.get("traceparent"),
        tracestate=headers.get("tracestate"),
    )


def _take(members: Parts, name: str) -> bytes | None:
    """Take a member out, and leave null in its place; None: it is not there."""
    if name not in members:
        return None
    content = bytes(members[name])
    members[name] = msgspec.Raw(b"null")
    return content


def _checked(raw: bytes) -> bytes:
    bodies.decode(raw)
    return raw


D = TypeVar("D")


def _decode(decoder: "msgspec.json.Decoder[D]", raw: bytes) -> D:
    """Raises ``invalid_json``."""
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NovaError("invalid_json", f"the body is not what it should be: {error}") from None


def _payload(raw: bytes, field: str) -> bytes:
    try:
        return payload.check(raw, limit=MAX_PAYLOAD)
    except NovaError as error:
        if error.code == "bad_payload":
            raise NovaError(error.code, error.detail, errors=[FieldError(field, error.detail)]) from None
        raise


def _structured(members: Parts, where: str) -> NewMessage:
    """An event in CloudEvents' JSON format. ``where`` is put before the names of its attributes in errors."""
    content, encoded = _take(members, "data"), _take(members, "data_base64")
    if content is not None and encoded is not None:
        raise invalid(f"{where}data_base64", "cannot go with data")
    attributes = _attributes(_checked_object(members), where)
    if encoded is not None:
        content = _wrapped(_base64(encoded, f"{where}data_base64"))
    message = _event(attributes, where)
    return replace(message, payload=_payload(content or b"null", f"{where}data"))


def _binary(raw: bytes, headers: Mapping[str, str]) -> NewMessage:
    """An event whose attributes are headers and whose data is the body."""
    named = {name: value for name, value in headers.items() if name.startswith(binding.CE_PREFIX)}
    for required in _REQUIRED:
        if binding.CE_PREFIX + required not in named:
            raise invalid(required, f"the header {binding.CE_PREFIX}{required} is missing")
    try:
        parsed = binding.from_binary(binding.HTTPMessage(named, b""), _format, CloudEvent)
    except CloudEventValidationError as error:
        raise _refused(error, "") from None
    except ValueError:
        raise invalid("time", "a time of RFC 3339") from None
    message = _message(dict(parsed.get_attributes()), "time" in _names(named))
    kind = media_type(headers)
    if kind and not kind.endswith(("/json", "+json")):
        return replace(message, payload=_payload(_wrapped(raw), "data"), headers={"content-type": kind[:256]})
    return replace(message, payload=_payload(raw or b"null", "data"))


def _names(headers: Mapping[str, str]) -> set[str]:
    return {name[len(binding.CE_PREFIX) :] for name in headers}


def _checked_object(members: Parts) -> dict[str, Any]:
    value: dict[str, Any] = bodies.decode(payload.encode(members))
    return {name: part for name, part in value.items() if part is not None and name not in ("data", "data_base64")}


def _attributes(values: Mapping[str, Any], where: str) -> dict[str, str]:
    """Attributes as the text that stands for them everywhere."""
    found = {}
    for name, value in values.items():
        if isinstance(value, bool):
            found[name] = "true" if value else "false"
        elif isinstance(value, str | int) and name not in _REQUIRED:
            found[name] = str(value)
        elif isinstance(value, str):
            found[name] = value
        else:
            raise invalid(f"{where}{name}"[:256], "attributes of CloudEvents are text, whole numbers or booleans")
    return found


def _event(attributes: dict[str, str], where: str) -> NewMessage:
    for required in _REQUIRED:
        if required not in attributes:
            raise invalid(f"{where}{required}", "CloudEvents 1.0 wants this attribute")
    text = json.dumps(attributes).encode()
    try:
        parsed = binding.from_structured(binding.HTTPMessage({}, text), _format, CloudEvent)
    except CloudEventValidationError as error:
        raise _refused(error, where) from None
    except ValueError:
        raise invalid(f"{where}time", "a time of RFC 3339") from None
    return _message(dict(parsed.get_attributes()), "time" in attributes)


def _message(values: dict[str, Any], timed: bool) -> NewMessage:
    """The message that an event is, still without its payload. ``timed``: it had a time of its own."""
    values.pop("specversion")
    values.pop("datacontenttype", None)  # a payload is JSON, whatever it was
    time = values.pop("time", None)
    subject = values.pop("subject", None)
    key = values.pop("partitionkey", None) or subject
    return NewMessage(
        payload=b"null",
        ordering_key=key,
        id=values.pop("id"),
        source=values.pop("source"),
        type=values.pop("type"),
        subject=subject,
        time=time if timed else None,
        traceparent=values.pop("traceparent", None),
        tracestate=values.pop("tracestate", None),
        extensions=values,
    )


def _refused(error: CloudEventValidationError, where: str) -> NovaError:
    fields: Sequence[FieldError] = [
        FieldError(f"{where}{name}"[:256], "; ".join(str(reason) for reason in reasons)[:512])
        for name, reasons in error.errors.items()
        if reasons
    ]
    return NovaError("validation_failed", f"not a CloudEvent: {fields[0].field}: {fields[0].message}", errors=fields)


def _wrapped(data: bytes) -> bytes:
    return payload.encode({"b64": base64.b64encode(data).decode()})


def _base64(encoded: bytes, field: str) -> bytes:
    value = bodies.decode(encoded)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise invalid(field, "not base64") from None
