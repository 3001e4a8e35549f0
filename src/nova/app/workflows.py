"""Workflows: definitions, and the engine that runs them."""

from nova.app.core import Stores
from nova.app.workshop import Workshop
from nova.config import Settings
from nova.work.runner import Kind


def handlers(settings: Settings, stores: Stores) -> list[object]:
    """Of the routes that people use; in every process that answers for the control plane."""
    return []


async def work(shop: Workshop) -> dict[str, Kind]:
    """Start what runs in the background; the kinds of work that nebula's runner is to claim for it."""
    return {}
