"""What sections of settings are made of: durations, networks, and the marks of hot and secret keys."""

import ipaddress
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def seconds(value: Any) -> float:
    """``1.5``, ``"60s"``, ``"500ms"`` → seconds."""
    if isinstance(value, bool):
        raise ValueError("a duration such as 500ms, 60s or 10m")
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError("a duration such as 500ms, 60s or 10m")


def network(text: str) -> str:
    """An IP address or a network such as ``10.0.0.0/8``."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address or a network such as 10.0.0.0/8") from None
    return text


def ipv4_network(text: str) -> str:
    """As :func:`network`, IPv4 only."""
    if ipaddress.ip_network(network(text), strict=False).version != 4:
        raise ValueError(f"{text!r} is not an IPv4 address or network")
    return text


Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0)]
HOT: JsonDict = {"hot": True}
SECRET: JsonDict = {"secret": True}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)
