"""What a refusal says about trying again, for whoever calls functions that nobody waits for."""

from nova.errors import NovaError

HOPELESS = frozenset({400, 404, 413, 422, 424, 508})
"""Statuses of refusals that would be the same at the next attempt."""
NOT_YET = frozenset({403, 429, 503})
"""Statuses of refusals that say nothing about what was sent: its target is halted or busy, or the platform is away."""


def never_began(refusal: NovaError) -> bool:
    """The call certainly reached no instance, so it was no attempt."""
    return getattr(refusal, "delivered", "no") == "no"
