"""Webhooks, out: an event posted with the headers of Standard Webhooks."""

import asyncio
from collections.abc import Mapping, Sequence
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
    """What came of an attempt. ``error`` None: it was delivered. ``final``: another attempt is of no use; ``gone``: nor is
    any other event."""

    error: str | None = None
    final: bool = False
    retry_after_s: float | None = None
    gone: bool = False


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

    async def send(
        self,
        url: str,
        event_id: str,
        event: bytes,
        *secrets: str,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Sent:
        """Send one event, signed with each of ``secrets``; never raises for what the other side does.

        ``headers`` go to the address itself and not to others that it redirects to. ``timeout_s`` is for all redirects; None:
        :data:`TIMEOUT_S`.
        """
        timeout_s = timeout_s or TIMEOUT_S
        now, text = self._clock.now(), event.decode()
        ours = {
            "content-type": "application/cloudevents+json",
            "user-agent": "nova-webhooks",
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(Webhook(secret).sign(event_id, now, text) for secret in secrets),
        }
        try:
            async with asyncio.timeout(timeout_s):
                return await self._post(method, httpx.URL(url), ours, headers or {}, event, timeout_s)
        except EgressRefused as refusal:
            return Sent(refusal.detail, final=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            return Sent(f"the address is not valid: {error}", final=True)
        except TimeoutError:
            return Sent(f"no answer within {timeout_s:g} s")
        except httpx.HTTPError as error:
            return Sent(str(error) or type(error).__name__)

    async def _post(
        self,
        method: str,
        url: httpx.URL,
        ours: Mapping[str, str],
        theirs: Mapping[str, str],
        event: bytes,
        timeout_s: float,
    ) -> Sent:
        first = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            if url.scheme not in ("http", "https"):
                return Sent(f"redirected to a {url.scheme!r} address", final=True)
            headers = {**theirs, **ours} if _origin(url) == first else ours
            async with self._client.stream(method, url, headers=headers, content=event, timeout=timeout_s) as answer:
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
            return Sent("the receiver answered 410: it wants no more", final=True, gone=True)
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


def _origin(url: httpx.URL) -> Sequence[object]:
    return url.scheme, url.host, url.port


def _date(text: str) -> datetime:
    return parsedate_to_datetime(text)
