"""The arithmetic of a chaos run: what was accepted, against the effects that functions have had. No I/O."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Identity = tuple[str, str]
"""What was asked for: a key and a step of it. Of a message: its ordering key and its number; of a run: its id and a node."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One execution that got as far as to act. ``token`` is its own; a line that was sent twice has the same one."""

    source: str
    key: str
    step: str
    level: int = 0
    """steps of one key happen in the order of their levels; those of the same level in any"""
    token: str = ""
    saw: Mapping[str, str] = field(default_factory=dict)
    """the tokens that it was given as the outcomes of former steps"""

    @property
    def identity(self) -> Identity:
        return self.key, self.step


@dataclass
class Account:
    """What the platform owes for one source."""

    source: str
    accepted: set[Identity] = field(default_factory=set)
    ordered: bool = False
    """levels are promised"""
    most: Mapping[Identity, int] = field(default_factory=dict)
    """executions that are on the books: a further effect was nobody's attempt"""
    ends: Counter[str] = field(default_factory=Counter)
    """how many ends were written, by whatever names what ended: a second one is a stored outcome too many"""
    wrong: list[str] = field(default_factory=list)
    """what ended in another way than the contract says, or not at all"""
    effects_counted: bool = True
    """False: nobody writes effects of this source, only its ends count"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``redelivered``: effects beyond the first of each identity; at least once allows them."""

    source: str
    accepted: int
    effects: int
    redelivered: int
    lost: Sequence[Identity]
    inversions: Sequence[str]
    twice: Sequence[str]
    wrong: Sequence[str]

    @property
    def sound(self) -> bool:
        return not (self.lost or self.inversions or self.twice or self.wrong)


def judge(account: Account, effects: Iterable[Effect]) -> Row:
    """``effects`` of every source, in the order in which the ledger got them."""
    own: list[Effect] = []
    tokens: set[str] = set()
    for effect in effects:
        if effect.source == account.source and not (effect.token and effect.token in tokens):
            tokens.add(effect.token)
            own.append(effect)
    times = Counter(effect.identity for effect in own)
    lost = sorted(account.accepted - set(times)) if account.effects_counted else []
    twice = [f"{name} ended {count} times" for name, count in account.ends.items() if count > 1]
    twice += _two_outcomes(own)
    twice += [
        f"{key} {step}: {times[key, step]} executions, {most} attempts"
        for (key, step), most in account.most.items()
        if times[key, step] > most
    ]
    inversions = _inversions(own) if account.ordered else []
    return Row(
        account.source,
        len(account.accepted),
        len(own),
        len(own) - len(times),
        lost,
        inversions,
        twice,
        list(account.wrong),
    )


def _inversions(effects: Sequence[Effect]) -> list[str]:
    """Effects that came after one of a higher level of their key. A crash may repeat the last, and nothing before it."""
    highest: dict[str, int] = {}
    found = []
    for effect in effects:
        reached = highest.setdefault(effect.key, effect.level)
        if effect.level < reached:
            found.append(f"{effect.key}: {effect.step} ({effect.level}) after {reached}")
        highest[effect.key] = max(reached, effect.level)
    return found


def _two_outcomes(effects: Sequence[Effect]) -> list[str]:
    """Steps whose outcome was one thing for one of their followers and another for the next."""
    told: defaultdict[Identity, set[str]] = defaultdict(set)
    made: defaultdict[Identity, set[str]] = defaultdict(set)
    for effect in effects:
        made[effect.identity].add(effect.token)
        for step, token in effect.saw.items():
            told[effect.key, step].add(token)
    found = [
        f"{key} {step}: followers were told {len(some)} outcomes" for (key, step), some in told.items() if len(some) > 1
    ]
    found += [
        f"{key} {step}: its followers were told an outcome that no execution had"
        for (key, step), some in told.items()
        if some - made[key, step]
    ]
    return found
