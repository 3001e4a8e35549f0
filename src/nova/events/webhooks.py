"""Webhooks, out: an event posted with the headers of Standard Webhooks."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx
from standardwebhooks import Webhook

from nova.clock import Clock
from nova.security.egress import EgressRefused

MAX_REDIRECTS = 5
TIMEOUT_S = 30.0
"""For one attempt with all its redirects."""
MAX_RETRY_AFTER_S = 86_400.0
_REDIRECTS = frozenset({301, 302, 307, 308})
"""The event is posted again to where these point. A 303 says that it is done and asks to look elsewhere: that is success."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of an attempt. ``error`` None: it was delivered. ``final``: another attempt is of no use."""

    error: str | None = None
    final: bool = False
    retry_after_s: float | None = None


class WebhookSender:
    """``client`` comes from :func:`nova.security.egress.client`."""

    def __init__(self, client: httpx.AsyncClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        """Give up what is being sent; the client is closed with it."""
        await self._client.aclose()

    async def send(self, url: str, event_id: str, event: bytes, secret: str) -> Sent:
        """Post one event; never raises for what the other side does."""
        now = self._clock.now()
        headers = {
            "content-type": "application/cloudevents+json",
            "user-agent": "nova-webhooks",
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(event_id, now, event.decode()),
        }
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._post(httpx.URL(url), headers, event)
        except EgressRefused as refusal:
            return Sent(refusal.detail, final=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            return Sent(f"the address is not valid: {error}", final=True)
        except TimeoutError:
            return Sent(f"no answer within {TIMEOUT_S:g} s")
        except httpx.HTTPError as error:
            return Sent(str(error) or type(error).__name__)

    async def _post(self, url: httpx.URL, headers: dict[str, str], event: bytes) -> Sent:
        for _ in range(MAX_REDIRECTS + 1):
            if url.scheme not in ("http", "https"):
                return Sent(f"redirected to a {url.scheme!r} address", final=True)
            async with self._client.stream("POST", url, headers=headers, content=event) as answer:
                if answer.status_code in _REDIRECTS and "location" in answer.headers:
                    url = url.join(answer.headers["location"])
                    continue
                return self._judge(answer)
        return Sent(f"more than {MAX_REDIRECTS} redirects")

    def _judge(self, answer: httpx.Response) -> Sent:
        status = answer.status_code
        if 200 <= status < 300 or status == 303:
            return Sent()
        if status == 410:
            return Sent("the receiver answered 410: it wants no more", final=True)
        return Sent(f"the receiver answered {status}", retry_after_s=self._retry_after(answer))

    def _retry_after(self, answer: httpx.Response) -> float | None:
        text = answer.headers.get("retry-after", "").strip()
        if not text:
            return None
        try:
            seconds = float(text) if text.isdigit() else (_date(text) - self._clock.now()).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
        return min(MAX_RETRY_AFTER_S, max(0.0, seconds))


def _date(text: str) -> datetime:
    return parsedate_to_datetime(text)
