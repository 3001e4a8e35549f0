"""Topics of the event bus: what is published, and what is kept of it."""

from nova.api.table import Route

ROUTES: tuple[Route, ...] = ()
