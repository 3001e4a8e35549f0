"""A page that is polled: an event for each change, however the server tells of it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nova.clock import SYSTEM_CLOCK
from nova.config import EgressSettings, Settings
from nova.events.triggers import http_poll
from nova.events.triggers.base import SourceError
from nova.events.triggers.http_poll import Config
from tests.events.triggers.sources import Kept, running
from tests.events.triggers.support import context
from tests.http.harness import serve

pytestmark = pytest.mark.anyio


@dataclass
class Page:
    """A server with one page."""

    content: bytes = b'{"n": 1}'
    etag: str | None = '"1"'
    status: int = 200
    asked: list[dict[str, str]] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://name:hidden@127.0.0.1:{self.port}/page"

    async def get(self, request: Request) -> Response:
        self.asked.append(dict(request.headers))
        if request.url.path == "/moved":
            return Response(status_code=302, headers={"location": "/page"})
        if request.url.path == "/away":
            return Response(status_code=302, headers={"location": f"http://localhost:{self.port}/page"})
        status = self.status
        if self.etag is not None and request.headers.get("if-none-match") == self.etag:
            status = 304
        self.answered.append(status)
        headers = {} if self.etag is None else {"etag": self.etag}
        return Response(b"" if status == 304 else self.content, status, headers, "application/json")


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    served = Page()
    app = Starlette(routes=[Route(path, served.get) for path in ("/page", "/moved", "/away")])
    async with serve(app) as port:
        served.port = port
        yield served


class Hurry:
    """A clock whose seconds are short."""

    def now(self) -> datetime:
        return SYSTEM_CLOCK.now()

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 50)


def polling(url: str, **config: Any) -> http_poll.HttpPoll:
    return http_poll.make(Config(url=url, interval_s=1, **config), replace(context(), clock=Hurry()))


async def test_a_page_makes_an_event_when_it_has_changed(page: Page) -> None:
    """By its ETag, or by what is in it when it has none; and also when it is again what it was."""
    sink = Kept()
    async with running(lambda: polling(page.url, headers={"Authorization-Extra": "key"}), sink):
        await sink.have(1)
        await sink.until(lambda: 304 in page.answered)
        page.content, page.etag = b"plain", '"2"'
        await sink.have(2)
        page.etag = None
        looks = len(page.answered)
        await sink.until(lambda: len(page.answered) > looks + 3)
        assert len(sink.events) == 2
        page.content = b'{"n": 1}'
        await sink.have(3)
    assert [data["body"] for data in sink.data] == [{"n": 1}, {"b64": "cGxhaW4="}, {"n": 1}]
    assert sink.data[0]["headers"] == {"content-type": "application/json", "etag": '"1"'}
    assert sink.data[0]["url"] == f"http://127.0.0.1:{page.port}/page"
    assert len({event.id for event in sink.events}) == 3
    assert page.asked[0]["authorization-extra"] == "key"
    assert page.asked[0]["authorization"].startswith("Basic ")

    # after a restart it goes on where it was
    looks = len(page.answered)
    async with running(lambda: polling(page.url), sink):
        await sink.until(lambda: len(page.answered) > looks + 1)
    assert len(sink.events) == 3


async def test_errors_redirects_and_sizes(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    await polling(f"http://127.0.0.1:{page.port}/moved").check()
    await polling(f"http://127.0.0.1:{page.port}/away", headers={"X-Key": "k"}).check()
    assert [asked.get("x-key") for asked in page.asked[-2:]] == ["k", None]
    monkeypatch.setattr(http_poll, "MAX_BODY", 4)
    with pytest.raises(SourceError, match="larger than 4 bytes") as failure:
        await polling(page.url).run(Kept())
    assert failure.value.retry_after_s == 1
    page.status = 500
    with pytest.raises(SourceError, match="answered 500"):
        await polling(page.url).check()
    with pytest.raises(SourceError):
        await polling("http://127.0.0.1:1/").check()


async def test_private_addresses_are_not_asked(page: Page) -> None:
    """EV11: neither by themselves nor by a redirect."""
    source = http_poll.make(Config(url=page.url), context(Settings(egress=EgressSettings(allow=[]))))
    with pytest.raises(SourceError, match="no public address"):
        await source.check()
    assert page.asked == []
    for url in ("ftp://example.com/", "not a url", "http://"):
        with pytest.raises(ValueError, match="http or https"):
            Config(url=url)
