"""What goes into the audit trail, and that it is there before the answer is."""

from collections.abc import Mapping
from typing import Any

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from nova.domain.identity import ANONYMOUS, Scope
from nova.errors import NovaError
from nova.http.guard import Guard
from nova.security.guards import Caller, Headers
from nova.store.audit import AuditRecord, AuditStore

log = structlog.get_logger(__name__)
_MAX_RESOURCE = 512


class Trail:
    """Writes audit rows for one door."""

    def __init__(self, store: AuditStore, door: Guard) -> None:
        self._store = store
        self._door = door

    async def changed(
        self, caller: Caller, scope: Scope, action: str, resource: str, request_id: str, details: Mapping[str, Any]
    ) -> None:
        """A change was made. Raises ``dependency_unavailable`` when it cannot be recorded."""
        await self._write(
            AuditRecord(
                scope,
                caller.identity.subject,
                action,
                resource[:_MAX_RESOURCE],
                "success",
                request_id,
                caller.address,
                details,
            )
        )

    async def denied(
        self, caller: Caller, scope: Scope, op: str, resource: str, request_id: str, refusal: NovaError
    ) -> None:
        """A proven caller was refused; other refusals than 403 are not recorded."""
        if refusal.status == 403:
            await self._write_refusal(
                AuditRecord(
                    scope,
                    caller.identity.subject,
                    op,
                    resource[:_MAX_RESOURCE],
                    "denied",
                    request_id,
                    caller.address,
                    {"code": refusal.code},
                )
            )

    async def refused_login(
        self, headers: Headers, peer: str | None, op: str, request_id: str, refusal: NovaError
    ) -> None:
        """A credential was shown and refused. A request without one is not a login, and leaves nothing."""
        shown = b"x-api-key" in headers or b"authorization" in headers
        if shown and refusal.status in (401, 403):
            address = self._door.client_address(headers, peer)
            details = {"code": refusal.code, "op": op}
            await self._write_refusal(
                AuditRecord(
                    Scope(), ANONYMOUS.subject, "auth.login", "credential", "denied", request_id, address, details
                )
            )

    async def _write_refusal(self, record: AuditRecord) -> None:
        try:
            await self._write(record)
        except NovaError:
            log.warning("audit record lost", action=record.action, resource=record.resource, actor=record.actor)

    async def _write(self, record: AuditRecord) -> None:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(NovaError),
            stop=stop_after_attempt(3),
            wait=wait_exponential(multiplier=0.05, max=0.5),
            reraise=True,
        ):
            with attempt:
                await self._store.write(record)
