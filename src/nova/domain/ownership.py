"""Which worker of ``nova up`` has a function: every function has one owner, and one that is too hot for it is spread.

The owner is found by rendezvous hashing, so each worker knows it without asking. It never moves while the number of workers
stays: calls for a worker that has just died wait for its successor, and no limit is ever kept in two places at once.
"""

from hashlib import blake2b

from nova.domain.call import CallRequest

Function = tuple[str, str, str]
"""tenant, namespace, function: all versions of a function have the same owner, so that a rollout is one process's matter"""
_REMEMBERED = 20_000


def function_of(call: CallRequest) -> Function:
    return call.scope.tenant, call.scope.namespace, call.function


class Ownership:
    """What worker ``own`` of ``count`` knows. ``spread`` are the functions that run in every worker, as far as it was told."""

    def __init__(self, own: int, count: int) -> None:
        self.own = own
        self.count = count
        self.spread: set[Function] = set()
        self._owners: dict[Function, int] = {}

    def owner(self, function: Function) -> int:
        """The number of the worker that owns a function."""
        found = self._owners.get(function)
        if found is None:
            if len(self._owners) >= _REMEMBERED:
                self._owners.clear()
            name = "/".join(function)
            found = max(range(self.count), key=lambda worker: blake2b(f"{worker}/{name}".encode()).digest())
            self._owners[function] = found
        return found

    def here(self, function: Function) -> bool:
        """Are calls of this function to be run in this worker?"""
        owner = self._owners.get(function)
        return (self.owner(function) if owner is None else owner) == self.own or function in self.spread

    def part(self, function: Function, total: int) -> int:
        """This worker's part of ``total`` instances of a function; 0 (no limit) stays 0.

        Of a function that is spread everybody has an equal part, the owner and those after it one more of what is left over.
        """
        if not total or function not in self.spread:
            return total
        each, over = divmod(total, self.count)
        return each + ((self.own - self.owner(function)) % self.count < over)

    def may_spread(self, total: int) -> bool:
        """Is there an instance for everybody?"""
        return self.count > 1 and (not total or total >= self.count)
