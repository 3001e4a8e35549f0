"""Topics and messages for tests of the bus."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from nova.api.topics import ROUTES
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.domain.identity import Scope
from nova.domain.message import NewMessage
from nova.events.bus.browse import Arrivals, BrowseHandlers
from nova.events.bus.publish import TopicPublisher
from nova.events.bus.publishing import PublishHandlers
from nova.events.bus.topics import TopicHandlers
from nova.ids import new_id
from nova.service import ServiceGroup
from nova.store.bus_outbox import BusOutboxStore
from nova.store.db import Database
from nova.store.listen import Listener
from nova.store.topics import TopicSettings, TopicStore
from nova.work.notices import Notices
from tests.http.harness import Api, management

SETTINGS = TopicSettings("", 168, None, 600)


async def topic(db: Database, name: str = "orders", *, scope: Scope = Scope(), **settings: object) -> str:
    """A topic; its id."""
    topic_id = new_id()
    made = TopicSettings(**{**asdict(SETTINGS), **settings})
    async with db.transaction() as conn:
        await TopicStore(db).insert(conn, topic_id, scope, name, made, "key:test")
    return topic_id


def message(payload: bytes = b"{}", **given: object) -> NewMessage:
    return NewMessage(payload, **given)  # type: ignore[arg-type]


@dataclass
class Bus:
    """The routes of topics behind the real door, with notifications; ``client`` speaks as the local operator."""

    api: Api
    db: Database
    notices: Notices
    listener: Listener

    @property
    def client(self) -> httpx.AsyncClient:
        return self.api.client

    async def topic(self, name: str = "orders", **members: Any) -> dict[str, Any]:
        answer = await self.client.post("/topics", json={"name": name, **members})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def publish(self, payload: Any, name: str = "orders", **members: Any) -> dict[str, Any]:
        """What is said of the message."""
        answer = await self.client.post(f"/topics/{name}/publish", json={"payload": payload, **members})
        assert answer.status_code in (200, 201, 202), answer.text
        told: dict[str, Any] = answer.json()["message"]
        return told

    async def get(self, path: str, status: int = 200) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def payloads(self, name: str = "orders") -> list[Any]:
        return [item["payload"] for item in (await self.get(f"/topics/{name}/messages"))["items"]]


@asynccontextmanager
async def bus(db: Database) -> AsyncIterator[Bus]:
    async with ServiceGroup() as services:
        listener = await services.start(Listener(db.dsn))
        db.on_commit = listener.deliver
        notices = await services.start(Notices(db))
        publisher = await services.start(TopicPublisher(db, notices))
        topics = TopicStore(db)
        owners = [
            TopicHandlers(db, topics),
            PublishHandlers(db, publisher, topics, BusOutboxStore(db), Settings().limits, SYSTEM_CLOCK),
            BrowseHandlers(db, topics, Arrivals(listener)),
        ]
        async with management(db, owners, ROUTES) as served:
            yield Bus(served, db, notices, listener)
