"""How many instances the workers of one server have together: counts in memory that they share, so that a bound is kept exactly
while nobody asks anybody.

A row per tenant that has instances, and one for the node; in each a place for every worker, who alone writes there. Whoever
begins a boot looks and counts under one lock, which takes microseconds. What a worker that died had counted is cleared
by its supervisor.
"""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Literal

Bound = Literal["node", "tenant"]
ROWS = 8192
"""Tenants that can have instances at the same time; what further ones have counts for the node only."""
_NODE = 0


class Ledger:
    """Made by the supervisor before it forks; :meth:`of` gives a worker its own view."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._width = 1 + 2 * count  # a tenant's digest, then counts, then wishes
        self._file = os.memfd_create("nova-ledger")
        size = 8 * self._width * (ROWS + 1)
        os.ftruncate(self._file, size)
        self._cells = memoryview(mmap.mmap(self._file, size)).cast("Q")
        self.own = 0

    def of(self, worker: int) -> "Ledger":
        """This ledger as one worker writes it, after the fork."""
        self.own = worker
        return self

    def clear(self, worker: int) -> None:
        """This worker has no instances any more, and wants none."""
        with self._lock():
            for row in range(ROWS + 1):
                start = row * self._width + 1
                self._cells[start + worker] = self._cells[start + self._count + worker] = 0

    def claim(self, tenant: str, node_most: int, tenant_most: int) -> Bound | None:
        """Count one more instance of a tenant, unless that would be too many: then say of what. 0: no bound."""
        with self._lock():
            row = self._row(tenant, make=True)
            if tenant_most and row is not None and self._total(row) >= tenant_most:
                return "tenant"
            if node_most and self._total(_NODE) >= node_most:
                return "node"
            for each in (_NODE, row):
                if each is not None:
                    self._cells[self._at(each)] += 1
            return None

    def release(self, tenant: str) -> None:
        """Count one less."""
        with self._lock():
            for row in (_NODE, self._row(tenant, make=False)):
                if row is not None and self._cells[self._at(row)]:
                    self._cells[self._at(row)] -= 1

    def want(self, tenant: str, bound: Bound, instances: int) -> None:
        """Say how many instances calls wait for here; 0 takes it back."""
        with self._lock():
            row = _NODE if bound == "node" else self._row(tenant, make=True)
            if row is not None:
                self._cells[self._at(row) + self._count] = instances

    def wanted(self, tenant: str | None = None) -> int:
        """How many instances others wait for, of a tenant that is at its bound, or of the node."""
        row = _NODE if tenant is None else self._row(tenant, make=False)
        if row is None:
            return 0
        start = row * self._width + 1 + self._count
        return sum(self._cells[start + worker] for worker in range(self._count) if worker != self.own)

    def total(self, tenant: str | None = None) -> int:
        """Instances of all workers."""
        row = _NODE if tenant is None else self._row(tenant, make=False)
        return 0 if row is None else self._total(row)

    def _at(self, row: int) -> int:
        return row * self._width + 1 + self.own

    def _total(self, row: int) -> int:
        start = row * self._width + 1
        return sum(self._cells[start : start + self._count])

    def _row(self, tenant: str, *, make: bool) -> int | None:
        """The row of a tenant; rows in which nobody counts anything are given to others."""
        digest = int.from_bytes(blake2b(tenant.encode(), digest_size=8).digest(), "big") | 1
        free: int | None = None
        for step in range(ROWS):
            row = 1 + (digest + step) % ROWS
            found = self._cells[row * self._width]
            if found == digest:
                return row
            start = row * self._width + 1
            if free is None and not any(self._cells[start : start + 2 * self._count]):
                free = row
            if not found:
                break
        if make and free is not None:
            self._cells[free * self._width] = digest
            return free
        return None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
