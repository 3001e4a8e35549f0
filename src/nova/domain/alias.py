"""Aliases: names that lead to one version, or to several by weight."""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WHOLE = 10_000
"""All of the traffic: weights are kept in hundredths of a percent, so that they add up exactly."""
MAX_ALIASES = 32
"""Aliases of one function."""
MAX_ARMS = 10
"""Versions that one alias may spread its calls over."""


@dataclass(frozen=True, slots=True)
class Alias:
    """``split`` is ``(version, weight)`` by ascending version; the weights add up to :data:`WHOLE`."""

    name: str
    split: tuple[tuple[int, int], ...]
    description: str = ""

    @property
    def versions(self) -> frozenset[int]:
        return frozenset(version for version, _ in self.split)


def split_of(weights: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
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


def choose(
    split: tuple[tuple[int, int], ...], key: str | None = None, *, draw: Callable[[int], int] = random.randrange
) -> int:
    """The version that one call runs.

    Without a key the arm is drawn for each call. With one, the key's place on the line 0…9999 is fixed and the arms lie on
    that line by ascending version, so a caller on the newer of two arms stays there while its weight grows. Callers put
    the function and the alias into the key, so that one user's luck differs between functions.
    """
    if len(split) == 1:
        return split[0][0]
    place = draw(WHOLE) if key is None else _place(key)
    for version, weight in split:
        if place < weight:
            return version
        place -= weight
    return split[-1][0]


def _place(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "big") % WHOLE
