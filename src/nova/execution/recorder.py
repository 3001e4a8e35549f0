"""What happens after a call's result is known: it is counted, and its record goes to the batcher."""

from time import perf_counter_ns

from nova.domain.call import SAMPLED, CallRequest, CallResult
from nova.domain.function import FunctionSnapshot
from nova.execution.logs import LogBatcher
from nova.execution.metrics import Metrics


class CallRecorder:
    def __init__(self, metrics: Metrics, logs: LogBatcher) -> None:
        self._metrics = metrics
        self._logs = logs
        self._recorded = 0

    def record(self, call: CallRequest, snapshot: FunctionSnapshot, result: CallResult) -> None:
        """Once for each call that reached an instance. Never blocks, never raises; a few microseconds."""
        self._recorded += 1
        if self._recorded % SAMPLED != 1:
            self._metrics.record(call, snapshot, result)
            self._logs.record(call, snapshot, result)
            return
        began = perf_counter_ns()
        self._metrics.record(call, snapshot, result)
        self._logs.record(call, snapshot, result)
        self._metrics.overhead("record", (perf_counter_ns() - began) / 1000)
        if not result.cold_start:
            self._metrics.overhead("acquire", result.phases.queue_us)
