"""Triggers: brokers, files, tables and pages that call functions."""

from nova.api.table import Route

ROUTES: tuple[Route, ...] = ()
