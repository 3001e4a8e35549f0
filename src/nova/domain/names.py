"""What names may look like, in one place: the API, the store and the gateway all ask here."""

import re
from functools import lru_cache

NAME = r"^[A-Za-z0-9_-]{1,64}$"
SCOPE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ALIAS = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
ENV_VAR = r"^[A-Za-z_][A-Za-z0-9_]*$"

_name = re.compile(NAME[:-1] + r"\Z")
_scope = re.compile(SCOPE[:-1] + r"\Z")
_alias = re.compile(ALIAS[:-1] + r"\Z")

LIVE = "live"
"""The built-in alias that unqualified calls follow."""
LATEST = "$LATEST"
"""The newest built version."""


@lru_cache(4096)
def is_name(text: str) -> bool:
    return _name.match(text) is not None


def is_scope(text: str) -> bool:
    return _scope.match(text) is not None


def is_alias(text: str) -> bool:
    return _alias.match(text) is not None


def is_qualifier(text: str) -> bool:
    """A version number, an alias, ``live`` or ``$LATEST``."""
    return text == LATEST or (text.isascii() and text.isdigit() and 0 < int(text) < 2**31) or is_alias(text)
