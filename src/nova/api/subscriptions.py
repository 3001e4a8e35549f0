"""Subscriptions: who gets a topic's messages, and what became of each delivery."""

from nova.api.table import Route

ROUTES: tuple[Route, ...] = ()
