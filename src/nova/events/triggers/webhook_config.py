"""Webhooks, in: how a sender proves who it is. The gateway serves them (:mod:`.webhook`); nobody runs them."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from standardwebhooks import Webhook, WebhookVerificationError
from standardwebhooks.webhooks import EmptyWebhookSecretError

from nova.api.table import Model
from nova.errors import NovaError
from nova.events.triggers.base import Context, SecretText, Sink

Scheme = Literal["standard", "github", "stripe", "slack", "hmac", "basic", "none"]
_STANDARD_S = 300
"""The tolerance that the library of Standard Webhooks has."""
_HEX = re.compile(r"[0-9a-f]{64}")
HeaderName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$"), AfterValidator(lambda name: name.lower())
]


class Config(Model):
    """``scheme`` says how the sender proves itself; ``none`` must be spelled out, and takes anything from anybody.

    ``secret``: of ``standard`` as its libraries have it (``whsec_…``), of ``basic`` ``name:password``. ``header`` is where
    ``hmac`` has the SHA-256 of the body, in hexadecimal. ``tolerance_s``: how old a signed time may be, of schemes that have
    one. ``response``: ``202`` answers when the request is stored, ``sync`` with what the function returned.
    """

    scheme: Scheme = "standard"
    secret: SecretText | None = None
    header: HeaderName = "x-signature-256"
    tolerance_s: int = Field(300, ge=1, le=3600)
    response: Literal["202", "sync"] = "202"

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.scheme == "none":
            if self.secret is not None:
                raise ValueError("scheme none takes no secret")
        elif self.secret is None:
            raise ValueError(f"scheme {self.scheme} needs a secret; without one, spell out scheme none")
        if "header" in self.model_fields_set and self.scheme != "hmac":
            raise ValueError(f"header is for scheme hmac, not for {self.scheme}")
        if "tolerance_s" in self.model_fields_set and self.scheme not in ("standard", "stripe", "slack"):
            raise ValueError(f"scheme {self.scheme} signs no time, so it has no tolerance_s")
        if self.scheme == "standard" and self.tolerance_s > _STANDARD_S:
            raise ValueError(f"tolerance_s is at most {_STANDARD_S} with scheme standard")
        if self.scheme == "standard" and self.secret is not None:
            _standard(self.secret)
        if self.scheme == "basic" and ":" not in (self.secret or ""):
            raise ValueError("the secret of scheme basic is name:password")
        return self


@dataclass(frozen=True, slots=True)
class Proven:
    """A request that comes from whom it says. ``delivery``: the sender's name for it, the same when it is sent again; None:
    it has none. A sender that signs neither a name nor a time has the signature for one."""

    delivery: str | None


def _standard(secret: str) -> Webhook:
    try:
        return Webhook(secret)
    except (ValueError, EmptyWebhookSecretError):
        raise ValueError("the secret of scheme standard is base64, with or without whsec_ before it") from None


def verify(config: Config, headers: Mapping[str, str], body: bytes, now: float) -> Proven:
    """``now`` in seconds since 1970. Raises ``unauthenticated``, with the same text for every wrong signature."""
    secret = config.secret or ""
    match config.scheme:
        case "standard":
            return _verify_standard(config, headers, body, now)
        case "github":
            signature = _hex(headers.get("x-hub-signature-256"), "sha256=")
            _same(_mac(secret, body), signature)
            return Proven(signature)
        case "stripe":
            return _verify_stripe(config, headers, body, now)
        case "slack":
            stamp = headers.get("x-slack-request-timestamp", "")
            _recent(stamp, config.tolerance_s, now)
            signature = _hex(headers.get("x-slack-signature"), "v0=")
            _same(_mac(secret, b"v0:%s:%s" % (stamp.encode(), body)), signature)
            return Proven(_member(body, "event_id") or signature)
        case "hmac":
            signature = _hex(headers.get(config.header), "sha256=")
            _same(_mac(secret, body), signature)
            return Proven(signature)
        case "basic":
            _same_text(_basic(headers.get("authorization", "")), secret)
    return Proven(None)


def _verify_standard(config: Config, headers: Mapping[str, str], body: bytes, now: float) -> Proven:
    _recent(headers.get("webhook-timestamp", ""), config.tolerance_s, now)
    try:
        _standard(config.secret or "").verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError):
        raise _refused() from None
    return Proven(headers["webhook-id"])


def _verify_stripe(config: Config, headers: Mapping[str, str], body: bytes, now: float) -> Proven:
    parts = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")]
    stamp = next((value for name, _, value in parts if name == "t"), "")
    _recent(stamp, config.tolerance_s, now)
    expected = _mac(config.secret or "", b"%s.%s" % (stamp.encode(), body))
    given = [value for name, _, value in parts if name == "v1"]
    if not any(hmac.compare_digest(expected.encode(), one.encode("utf-8", "replace")) for one in given):
        raise _refused()
    return Proven(_member(body, "id") or expected)


def _mac(secret: str, data: bytes) -> str:
    return hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def _hex(value: str | None, prefix: str) -> str:
    signature = (value or "").strip().removeprefix(prefix).lower()
    if not _HEX.fullmatch(signature):
        raise _refused()
    return signature


def _same(expected: str, given: str) -> None:
    if not hmac.compare_digest(expected, given):
        raise _refused()


def _same_text(given: str, expected: str) -> None:
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise _refused()


def _basic(header: str) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        raise _refused()
    try:
        return base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise _refused() from None


def _recent(stamp: str, tolerance_s: int, now: float) -> None:
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12) or abs(now - int(stamp)) > tolerance_s:
        raise _refused()


def _member(body: bytes, name: str) -> str | None:
    """A text member of the body, if it is an object that has one."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, str) and 0 < len(value) <= 256 else None


def _refused() -> NovaError:
    return NovaError("unauthenticated", "the request is not signed as this webhook wants it, or too old")


class Webhooks:
    """There is nothing to connect to."""

    async def check(self) -> None:
        return None

    async def run(self, sink: Sink) -> None:
        sink.connected()
        await asyncio.Event().wait()

    async def lag(self) -> int | None:
        return None


def make(config: Config, context: Context) -> Webhooks:
    return Webhooks()
