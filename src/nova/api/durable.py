"""Durable executions: functions whose steps are written down, and which go on after a crash."""

from nova.api.table import Route

ROUTES: tuple[Route, ...] = ()
