"""A page that is looked at again and again: an event whenever it has changed."""

import hashlib
from dataclasses import dataclass
from typing import Annotated

import httpx
import msgspec
from pydantic import AfterValidator, Field, StringConstraints

from nova import payload
from nova.api.table import Model
from nova.events.triggers.base import Context, SecretText, SecretUrl, Sink, SourceError, SourceEvent, body
from nova.security.egress import EgressRefused

MAX_BODY = 512 << 10
"""Bytes of a page; a larger one is an error, not cut."""
MAX_REDIRECTS = 5
_TIMEOUT_S = 30.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TELLING = ("content-type", "etag", "last-modified")
PLACE = ("url",)


def _url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("an http or https URL")
    return text


HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")]
HeaderValue = Annotated[SecretText, StringConstraints(pattern=r"^[ -~]*$")]


class Config(Model):
    """``headers`` are sent along, and shown as passwords are; to another host that the page redirects to they are not sent."""

    url: Annotated[SecretUrl, AfterValidator(_url)]
    headers: dict[HeaderName, HeaderValue] = Field(default={}, max_length=32)
    interval_s: int = Field(60, ge=1, le=86_400)


class Seen(msgspec.Struct):
    """What the page was when its last event had been taken."""

    number: int = 0
    digest: str = ""
    etag: str = ""
    modified: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What the page answered."""

    status: int
    headers: httpx.Headers
    content: bytes


def make(config: Config, context: Context) -> "HttpPoll":
    return HttpPoll(config, context)


class HttpPoll:
    def __init__(self, config: Config, context: Context) -> None:
        self._config = config
        self._context = context

    async def check(self) -> None:
        async with self._context.http(_TIMEOUT_S) as client:
            await self._get(client, Seen(), read=False)

    async def lag(self) -> int | None:
        return None

    async def run(self, sink: Sink) -> None:
        kept = await sink.position()
        seen = Seen() if kept is None else msgspec.json.decode(kept, type=Seen)
        async with self._context.http(_TIMEOUT_S) as client:
            while True:
                answer = await self._get(client, seen)
                sink.connected()
                if answer is not None:
                    seen = await self._compare(answer, seen, sink)
                await self._context.clock.sleep(self._config.interval_s)

    async def _compare(self, answer: Look, seen: Seen, sink: Sink) -> Seen:
        headers = answer.headers
        digest = hashlib.sha256(answer.content).hexdigest()
        found = Seen(seen.number, digest, headers.get("etag", ""), headers.get("last-modified", ""))
        if digest != seen.digest:
            found.number += 1
            await sink.deliver(self._event(answer, found))
        if found != seen:
            await sink.save(msgspec.json.encode(found))
        return found

    def _event(self, answer: Look, found: Seen) -> SourceEvent:
        url = str(httpx.URL(self._config.url).copy_with(username=None, password=None))
        told = {name: answer.headers[name] for name in _TELLING if name in answer.headers}
        data = {"url": url, "status": answer.status, "headers": told, "body": body(answer.content)}
        return SourceEvent(
            id=f"{found.number}-{found.digest[:32]}",
            type="nova.trigger.http_poll",
            source=self._context.source,
            data=payload.encode(data),
            subject=url,
        )

    async def _get(self, client: httpx.AsyncClient, seen: Seen, *, read: bool = True) -> Look | None:
        """None: as it was. Raises :class:`SourceError`."""
        url = httpx.URL(self._config.url)
        host = url.host
        conditions = {"if-none-match": seen.etag, "if-modified-since": "" if seen.etag else seen.modified}
        headers = {name: value for name, value in conditions.items() if value}
        try:
            for _ in range(MAX_REDIRECTS + 1):
                own = self._config.headers if url.host == host else {}
                sent = {"user-agent": "nova-http-poll", **own, **headers}
                async with client.stream("GET", url, headers=sent) as answer:
                    if answer.status_code in _REDIRECTS and "location" in answer.headers:
                        url = url.join(answer.headers["location"])
                        continue
                    if answer.status_code == 304:
                        return None
                    if not 200 <= answer.status_code < 300:
                        raise self._error(f"the page answered {answer.status_code}")
                    content = await self._read(answer) if read else b""
                    return Look(answer.status_code, answer.headers, content)
        except EgressRefused as refusal:
            raise self._error(refusal.detail) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._error(str(error) or type(error).__name__) from None
        raise self._error(f"more than {MAX_REDIRECTS} redirects")

    async def _read(self, answer: httpx.Response) -> bytes:
        pieces = bytearray()
        async for piece in answer.aiter_bytes():
            pieces += piece
            if len(pieces) > MAX_BODY:
                raise self._error(f"the page is larger than {MAX_BODY} bytes")
        return bytes(pieces)

    def _error(self, text: str) -> SourceError:
        """The page is asked no more often than its interval says, also while it fails."""
        return SourceError(text, retry_after_s=self._config.interval_s)
