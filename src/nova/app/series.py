"""What is answered from time series and spans, which any process with the database can."""

from nova.app.core import Stores
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.observability.series import SeriesHandlers
from nova.observability.spans import SpanWriter
from nova.observability.traces import TraceHandlers
from nova.store.series import SeriesStore
from nova.store.spans import SpanStore


def series_handlers(settings: Settings, stores: Stores, spans: SpanWriter) -> list[object]:
    return [
        SeriesHandlers(SeriesStore(stores.db), settings.retention, SYSTEM_CLOCK),
        TraceHandlers(SpanStore(stores.db), spans.settle),
    ]
