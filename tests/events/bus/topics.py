"""Topics and messages for tests of the bus."""

from nova.domain.identity import Scope
from nova.domain.message import NewMessage
from nova.ids import new_id
from nova.store.db import Database
from nova.store.topics import TopicSettings, TopicStore

SETTINGS = TopicSettings("", 168, None, 600)


async def topic(db: Database, name: str = "orders", *, scope: Scope = Scope(), **settings: object) -> str:
    """A topic; its id."""
    topic_id = new_id()
    made = TopicSettings(**{**{field: getattr(SETTINGS, field) for field in SETTINGS.__slots__}, **settings})  # type: ignore[attr-defined,arg-type]
    async with db.transaction() as conn:
        await TopicStore(db).insert(conn, topic_id, scope, name, made, "key:test")
    return topic_id


def message(payload: bytes = b"{}", **given: object) -> NewMessage:
    return NewMessage(payload, **given)  # type: ignore[arg-type]
