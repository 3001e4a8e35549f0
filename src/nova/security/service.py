"""What the planes prove themselves to each other with: one secret that all processes of an installation share."""

import re
from dataclasses import dataclass, field
from hmac import compare_digest

from nova.errors import invalid
from nova.ids import new_token
from nova.store import platform
from nova.store.db import Database

_NAME = "service_token"
_CONFIGURED = re.compile(r"[\x21-\x7e]{16,256}")


@dataclass(frozen=True, slots=True)
class ServiceToken:
    """``value`` is visible ASCII; it never shows in a log or a repr."""

    value: bytes = field(repr=False)
    bearer: bytes = field(init=False, repr=False)
    """the value of the Authorization header"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bearer", b"Bearer " + self.value)

    def proven_by(self, authorization: bytes | None) -> bool:
        """Does this Authorization header carry the token? Takes the same time whichever byte is wrong."""
        return authorization is not None and compare_digest(authorization, self.bearer)


async def load_token(db: Database, configured: str) -> ServiceToken:
    """The configured token, or the one that the first process of this installation made.

    Raises ``validation_failed`` for a configured token that is short or cannot stand in a header.
    """
    if configured:
        if _CONFIGURED.fullmatch(configured) is None:
            raise invalid("grpc.service_token", "16 to 256 visible ASCII characters")
        return ServiceToken(configured.encode())
    return ServiceToken(await platform.secret(db, _NAME, new_token().encode()))
