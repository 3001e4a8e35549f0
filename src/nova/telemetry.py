"""Operational logs: one structured event per line, as text for people or JSON for machines.

Values under the names in :data:`SECRET_KEYS` are masked wherever they appear; this is the one redaction list of the
platform (logs, error bodies, configuration output).
"""

import logging
import sys
from typing import Any, Literal

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from nova.logcontext import add_call

SECRET_KEYS = frozenset(
    {"password", "secret", "token", "authorization", "api_key", "key", "dsn", "master_key", "cookie", "env_vars"}
)
MASK = "***"

LogFormat = Literal["text", "json"]


def redact(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for name in event:
        if name in SECRET_KEYS:
            event[name] = MASK
    return event


def configure_logging(level: str = "info", fmt: LogFormat = "text", *, plane: str = "nova") -> None:
    """Route structlog and the standard library's loggers to stderr in one format. Call once, at start."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_call,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        redact,
    ]
    # traces without local variables: those hold payloads, variables and whatever else users keep to themselves
    final: structlog.typing.Processor
    if fmt == "json":
        traces = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        shared += [traces, structlog.processors.EventRenamer("msg")]
        final = structlog.processors.JSONRenderer()
    else:
        final = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.getLogger("psycopg.pool").setLevel("ERROR")  # an outage is ours to tell, once for each who meets it
    logging.getLogger("httpx").setLevel("WARNING")  # every request that goes well is no news
    set_level(level)
    structlog.contextvars.bind_contextvars(plane=plane)


def set_level(level: str) -> None:
    """Log from this level on: debug, info, warning or error. Acts at once."""
    logging.getLogger().setLevel(level.upper())
