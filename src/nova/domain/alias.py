"""Aliases: names that lead to one version, or to several by weight."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nova.domain.call import CallRequest
from nova.domain.routing import Source, carried

WHOLE = 10_000
"""All of the traffic: weights are kept in hundredths of a percent, so that they add up exactly."""
MAX_ALIASES = 32
"""Aliases of one function."""
MAX_ARMS = 10
"""Versions that one alias may spread its calls over."""
MAX_RULES = 20
"""Match rules of one alias."""

Split = tuple[tuple[int, int], ...]
"""``(version, weight)`` by ascending version; the weights add up to :data:`WHOLE`."""


@dataclass(frozen=True, slots=True)
class Sticky:
    """What keeps a caller on one version: the value that calls carry there. ``name`` is empty for ``ip`` and ``identity``."""

    by: Source | Literal["none"] = "none"
    name: str = ""

    def key(self, call: CallRequest) -> str | None:
        """The caller's own key (``X-Nova-Sticky-Key``) always comes first; None when there is nothing to hold on to."""
        if call.sticky_key is not None:
            return call.sticky_key
        return None if self.by == "none" else carried(call, self.by, self.name)


NOT_STICKY = Sticky()


@dataclass(frozen=True, slots=True)
class Match:
    """Calls that carry exactly ``value`` run ``version``, whatever the weights say."""

    by: Literal["header", "query"]
    name: str
    value: str
    version: int


@dataclass(frozen=True, slots=True)
class Alias:
    name: str
    split: Split
    description: str = ""
    sticky: Sticky = NOT_STICKY
    match: tuple[Match, ...] = ()

    @property
    def versions(self) -> frozenset[int]:
        return frozenset(version for version, _ in self.split) | {rule.version for rule in self.match}

    def matched(self, call: CallRequest) -> int | None:
        """The version of the first rule that the call fits."""
        for rule in self.match:
            if carried(call, rule.by, rule.name) == rule.value:
                return rule.version
        return None


def split_of(weights: Mapping[int, int]) -> Split:
    """The canonical form of a split. Raises ValueError with a sentence for the user."""
    if not weights:
        raise ValueError("name at least one version")
    if len(weights) > MAX_ARMS:
        raise ValueError(f"at most {MAX_ARMS} versions")
    if any(weight <= 0 for weight in weights.values()):
        raise ValueError("every weight must be above 0")
    if sum(weights.values()) != WHOLE:
        raise ValueError(f"the weights must add up to 100, not {sum(weights.values()) / 100:g}")
    return tuple(sorted(weights.items()))


def choose(split: Split, key: str) -> int:
    """The version that one call runs.

    The key's place on the line 0…9999 is fixed and the arms lie on that line by ascending version, so a caller on the newer
    of two arms stays there while its weight grows. Callers put the function and the alias into the key, so that one user's
    luck differs between functions.
    """
    if len(split) == 1:
        return split[0][0]
    place = _place(key)
    for version, weight in split:
        if place < weight:
            return version
        place -= weight
    return split[-1][0]


def sampled(weight: int, key: str) -> bool:
    """Does ``key`` lie in the first ``weight`` hundredths of a percent of all keys?"""
    return _place(key) < weight


def _place(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big") % WHOLE
