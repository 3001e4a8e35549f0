"""What the webhooks of a function are signed with: one secret for each function, made when it is first needed."""

import base64
import secrets
from dataclasses import dataclass
from datetime import datetime

from nova.domain.identity import Scope
from nova.store.db import Database
from nova.store.outbox import OutboxStore

_BYTES = 32
_PREFIX = "whsec_"


@dataclass(frozen=True, slots=True)
class Secret:
    """``text`` is what Standard Webhooks libraries take."""

    text: str
    created_at: datetime


class WebhookSecrets:
    def __init__(self, db: Database) -> None:
        self._store = OutboxStore(db)

    async def of_function(self, scope: Scope, function: str) -> Secret | None:
        """None: there is no such function."""
        row = await self._store.webhook_secret(scope, secrets.token_bytes(_BYTES), function=function)
        return None if row is None else _secret(row.secret, row.created_at)

    async def of_id(self, scope: Scope, function_id: str) -> Secret | None:
        """None: the function is gone."""
        row = await self._store.webhook_secret(scope, secrets.token_bytes(_BYTES), function_id=function_id)
        return None if row is None else _secret(row.secret, row.created_at)


def _secret(value: bytes, created_at: datetime) -> Secret:
    return Secret(_PREFIX + base64.b64encode(value).decode(), created_at)
