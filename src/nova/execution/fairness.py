"""Who gives an instance up for whom on a node that is full, when none is idle.

Instances are shared evenly between the tenants that want some, and within a tenant between its functions: whoever has
at least two more than the one that waits gives one up when a call on it ends. No call is ended for it.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nova.execution.pool import Pool

_GAP = 2
"""With less between them the two would only change places."""


def giver(pools: Iterable["Pool"], needy: "Pool", *, own_tenant: bool = False) -> "Pool | None":
    """The pool that has to give an instance to ``needy``; None when everybody has an even share already.

    ``own_tenant``: only a pool of the same tenant helps, because its bound is what is reached.
    """
    tenant = needy.snapshot.scope.tenant
    having = {pool: _holds(pool) for pool in pools}
    tenants: Counter[str] = Counter()
    for pool, count in having.items():
        tenants[pool.snapshot.scope.tenant] += count
    richest = max(tenants, key=lambda name: tenants[name], default=tenant)
    if not own_tenant and tenants[richest] - tenants[tenant] >= _GAP:
        least = 1
    else:
        richest, least = tenant, having.get(needy, 0) + _GAP
    mine = [pool for pool in having if pool.snapshot.scope.tenant == richest and pool is not needy]
    found = max(mine, key=lambda pool: having[pool], default=None)
    return found if found is not None and having[found] >= least and found.inflight else None


def _holds(pool: "Pool") -> int:
    """Instances that it has and is not about to lose."""
    return pool.size - pool.stopping - pool.owed
