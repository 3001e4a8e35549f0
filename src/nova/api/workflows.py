"""Workflows: their versions, their runs, and the approvals that runs wait for."""

from nova.api.table import Route

ROUTES: tuple[Route, ...] = ()
