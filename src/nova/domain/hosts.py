"""Host names in rules: one name, or ``*.`` and a domain for every name below it."""

import re
from urllib.parse import urlsplit

import idna

NAME_MOST = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def host_pattern(text: str) -> str:
    """``text`` in the form that questions are compared with: lower case, ASCII (IDNA 2008), no final dot.

    Raises ValueError for what is no host name: also for one whose last label is a number, which programs take for an
    address, and for ``*.`` before a single label, which would be every name of a top-level domain.
    """
    name = text.strip().removesuffix(".")
    wild = name.startswith("*.")
    labels = [_label(label) for label in name.removeprefix("*.").split(".")]
    pattern = ("*." if wild else "") + ".".join(labels)
    if len(pattern) > NAME_MOST:
        raise ValueError(f"a host name has at most {NAME_MOST} characters")
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        raise ValueError("an IP address, a CIDR, a host name, or *.example.com")
    if wild and len(labels) < 2:
        raise ValueError("*. stands before a domain of at least two parts, such as *.example.com")
    return pattern


def is_webhook_url(text: str) -> bool:
    """http or https, with a host and without credentials: those would show in logs. Where it leads is checked later."""
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and not (url.username or url.password)
    except ValueError:
        return False


def _label(label: str) -> str:
    plain = label.lower()
    if not plain.isascii():
        try:
            plain = idna.encode(plain, uts46=True).decode()
        except idna.IDNAError:
            plain = ""
    if not _LABEL.fullmatch(plain):
        raise ValueError("an IP address, a CIDR, a host name, or *.example.com")
    return plain
