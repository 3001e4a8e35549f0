"""What is answered from time series and spans, which any process with the database can."""

from collections.abc import Awaitable, Callable

from nova.app.core import Stores
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.observability.series import SeriesHandlers
from nova.observability.spans import SpanWriter
from nova.observability.traces import TraceHandlers
from nova.store.series import SeriesStore
from nova.store.spans import SpanStore


def series_handlers(
    settings: Settings, stores: Stores, spans: SpanWriter, settle: Callable[[], Awaitable[None]] | None = None
) -> list[object]:
    """``settle`` makes the spans of every process readable that may have some; unset: those of ``spans``."""
    return [
        SeriesHandlers(SeriesStore(stores.db), settings.retention, SYSTEM_CLOCK),
        TraceHandlers(SpanStore(stores.db), settle or spans.settle),
    ]
