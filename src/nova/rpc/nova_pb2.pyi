from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Delivery(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_UNKNOWN: _ClassVar[Delivery]
    DELIVERY_NO: _ClassVar[Delivery]
    DELIVERY_YES: _ClassVar[Delivery]
DELIVERY_UNKNOWN: Delivery
DELIVERY_NO: Delivery
DELIVERY_YES: Delivery

class InvokeRequest(_message.Message):
    __slots__ = ("request_id", "function", "qualifier", "payload", "timeout_ms", "idempotency_key", "sticky_key", "trigger", "attempt", "caller", "client_request_id", "chain", "headers", "hops")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    QUALIFIER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    STICKY_KEY_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    function: str
    qualifier: str
    payload: bytes
    timeout_ms: int
    idempotency_key: str
    sticky_key: str
    trigger: str
    attempt: int
    caller: str
    client_request_id: str
    chain: _containers.RepeatedScalarFieldContainer[str]
    headers: bytes
    hops: int
    def __init__(self, request_id: _Optional[str] = ..., function: _Optional[str] = ..., qualifier: _Optional[str] = ..., payload: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ..., idempotency_key: _Optional[str] = ..., sticky_key: _Optional[str] = ..., trigger: _Optional[str] = ..., attempt: _Optional[int] = ..., caller: _Optional[str] = ..., client_request_id: _Optional[str] = ..., chain: _Optional[_Iterable[str]] = ..., headers: _Optional[bytes] = ..., hops: _Optional[int] = ...) -> None: ...

class InvokeResponse(_message.Message):
    __slots__ = ("request_id", "version", "output", "error", "duration_us", "cold_start", "source", "instance_id", "phases", "stdout", "stderr", "deduplicated")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DURATION_US_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    version: int
    output: bytes
    error: FunctionError
    duration_us: int
    cold_start: bool
    source: str
    instance_id: str
    phases: Phases
    stdout: str
    stderr: str
    deduplicated: bool
    def __init__(self, request_id: _Optional[str] = ..., version: _Optional[int] = ..., output: _Optional[bytes] = ..., error: _Optional[_Union[FunctionError, _Mapping]] = ..., duration_us: _Optional[int] = ..., cold_start: _Optional[bool] = ..., source: _Optional[str] = ..., instance_id: _Optional[str] = ..., phases: _Optional[_Union[Phases, _Mapping]] = ..., stdout: _Optional[str] = ..., stderr: _Optional[str] = ..., deduplicated: _Optional[bool] = ...) -> None: ...

class Phases(_message.Message):
    __slots__ = ("queue_us", "instance_us", "init_us", "handler_us", "import_us", "runtime_us")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_US_FIELD_NUMBER: _ClassVar[int]
    INIT_US_FIELD_NUMBER: _ClassVar[int]
    HANDLER_US_FIELD_NUMBER: _ClassVar[int]
    IMPORT_US_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_US_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    instance_us: int
    init_us: int
    handler_us: int
    import_us: int
    runtime_us: int
    def __init__(self, queue_us: _Optional[int] = ..., instance_us: _Optional[int] = ..., init_us: _Optional[int] = ..., handler_us: _Optional[int] = ..., import_us: _Optional[int] = ..., runtime_us: _Optional[int] = ...) -> None: ...

class FunctionError(_message.Message):
    __slots__ = ("type", "message", "stack")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    stack: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., stack: _Optional[_Iterable[str]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "delivered", "retry_after_ms", "http_status", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    HTTP_STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    delivered: Delivery
    retry_after_ms: int
    http_status: int
    details: bytes
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., delivered: _Optional[_Union[Delivery, str]] = ..., retry_after_ms: _Optional[int] = ..., http_status: _Optional[int] = ..., details: _Optional[bytes] = ...) -> None: ...

class InvokeEvent(_message.Message):
    __slots__ = ("start", "log", "done", "error", "chunk", "chunks")
    START_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    start: InvokeStart
    log: LogLine
    done: InvokeResponse
    error: Failure
    chunk: InvokeChunk
    chunks: InvokeChunks
    def __init__(self, start: _Optional[_Union[InvokeStart, _Mapping]] = ..., log: _Optional[_Union[LogLine, _Mapping]] = ..., done: _Optional[_Union[InvokeResponse, _Mapping]] = ..., error: _Optional[_Union[Failure, _Mapping]] = ..., chunk: _Optional[_Union[InvokeChunk, _Mapping]] = ..., chunks: _Optional[_Union[InvokeChunks, _Mapping]] = ...) -> None: ...

class InvokeStart(_message.Message):
    __slots__ = ("request_id", "version", "cold_start")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    version: int
    cold_start: bool
    def __init__(self, request_id: _Optional[str] = ..., version: _Optional[int] = ..., cold_start: _Optional[bool] = ...) -> None: ...

class InvokeChunk(_message.Message):
    __slots__ = ("kind", "data")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    kind: str
    data: bytes
    def __init__(self, kind: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class InvokeChunks(_message.Message):
    __slots__ = ("chunks",)
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[InvokeChunk]
    def __init__(self, chunks: _Optional[_Iterable[_Union[InvokeChunk, _Mapping]]] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("stream", "text")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    stream: str
    text: str
    def __init__(self, stream: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class CallMeta(_message.Message):
    __slots__ = ("identity", "tenant", "namespace", "traceparent", "tracestate")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    identity: str
    tenant: str
    namespace: str
    traceparent: str
    tracestate: str
    def __init__(self, identity: _Optional[str] = ..., tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("seq", "meta", "request")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    seq: int
    meta: CallMeta
    request: InvokeRequest
    def __init__(self, seq: _Optional[int] = ..., meta: _Optional[_Union[CallMeta, _Mapping]] = ..., request: _Optional[_Union[InvokeRequest, _Mapping]] = ...) -> None: ...

class CallBatch(_message.Message):
    __slots__ = ("calls", "cancel")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    cancel: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., cancel: _Optional[_Iterable[int]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("seq", "ok", "failure")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    ok: InvokeResponse
    failure: Failure
    def __init__(self, seq: _Optional[int] = ..., ok: _Optional[_Union[InvokeResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class ResultBatch(_message.Message):
    __slots__ = ("results", "window", "draining")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Result]
    window: int
    draining: bool
    def __init__(self, results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., window: _Optional[int] = ..., draining: _Optional[bool] = ...) -> None: ...

class AsyncRequest(_message.Message):
    __slots__ = ("request", "options")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    request: InvokeRequest
    options: AsyncOptions
    def __init__(self, request: _Optional[_Union[InvokeRequest, _Mapping]] = ..., options: _Optional[_Union[AsyncOptions, _Mapping]] = ...) -> None: ...

class AsyncOptions(_message.Message):
    __slots__ = ("max_attempts", "backoff_base_ms", "backoff_max_ms", "max_age_s", "delay_s", "idempotency_ttl_s", "priority", "concurrency_key", "concurrency_limit", "debounce_key", "debounce_s", "debounce_max_s", "callback_url", "keep_s")
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_BASE_MS_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_MAX_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_S_FIELD_NUMBER: _ClassVar[int]
    DELAY_S_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_TTL_S_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    DEBOUNCE_KEY_FIELD_NUMBER: _ClassVar[int]
    DEBOUNCE_S_FIELD_NUMBER: _ClassVar[int]
    DEBOUNCE_MAX_S_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_URL_FIELD_NUMBER: _ClassVar[int]
    KEEP_S_FIELD_NUMBER: _ClassVar[int]
    max_attempts: int
    backoff_base_ms: int
    backoff_max_ms: int
    max_age_s: int
    delay_s: float
    idempotency_ttl_s: int
    priority: str
    concurrency_key: str
    concurrency_limit: int
    debounce_key: str
    debounce_s: float
    debounce_max_s: float
    callback_url: str
    keep_s: int
    def __init__(self, max_attempts: _Optional[int] = ..., backoff_base_ms: _Optional[int] = ..., backoff_max_ms: _Optional[int] = ..., max_age_s: _Optional[int] = ..., delay_s: _Optional[float] = ..., idempotency_ttl_s: _Optional[int] = ..., priority: _Optional[str] = ..., concurrency_key: _Optional[str] = ..., concurrency_limit: _Optional[int] = ..., debounce_key: _Optional[str] = ..., debounce_s: _Optional[float] = ..., debounce_max_s: _Optional[float] = ..., callback_url: _Optional[str] = ..., keep_s: _Optional[int] = ...) -> None: ...

class AsyncResponse(_message.Message):
    __slots__ = ("invocation_id", "status", "replayed")
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    status: str
    replayed: bool
    def __init__(self, invocation_id: _Optional[str] = ..., status: _Optional[str] = ..., replayed: _Optional[bool] = ...) -> None: ...

class HttpPart(_message.Message):
    __slots__ = ("head", "body", "end", "failure")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    head: HttpHead
    body: bytes
    end: bool
    failure: Failure
    def __init__(self, head: _Optional[_Union[HttpHead, _Mapping]] = ..., body: _Optional[bytes] = ..., end: _Optional[bool] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class HttpHead(_message.Message):
    __slots__ = ("method", "raw_path", "raw_query", "http_version", "scheme", "headers", "status")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RAW_PATH_FIELD_NUMBER: _ClassVar[int]
    RAW_QUERY_FIELD_NUMBER: _ClassVar[int]
    HTTP_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    method: str
    raw_path: bytes
    raw_query: bytes
    http_version: str
    scheme: str
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    status: int
    def __init__(self, method: _Optional[str] = ..., raw_path: _Optional[bytes] = ..., raw_query: _Optional[bytes] = ..., http_version: _Optional[str] = ..., scheme: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., status: _Optional[int] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("function",)
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    function: str
    def __init__(self, function: _Optional[str] = ...) -> None: ...

class EvictResponse(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: int
    def __init__(self, instances: _Optional[int] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("function", "replicas", "ttl_s", "qualifier", "prewarm")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    QUALIFIER_FIELD_NUMBER: _ClassVar[int]
    PREWARM_FIELD_NUMBER: _ClassVar[int]
    function: str
    replicas: int
    ttl_s: float
    qualifier: str
    prewarm: bool
    def __init__(self, function: _Optional[str] = ..., replicas: _Optional[int] = ..., ttl_s: _Optional[float] = ..., qualifier: _Optional[str] = ..., prewarm: _Optional[bool] = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ("instances", "ready")
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    instances: int
    ready: int
    def __init__(self, instances: _Optional[int] = ..., ready: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeReport(_message.Message):
    __slots__ = ("node_id", "name", "address", "state", "cpu_cores", "cpu_used", "memory_mb", "memory_used_mb", "max_instances", "instances", "inflight", "queued", "warm", "backends", "arch", "version", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    CPU_USED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_MB_FIELD_NUMBER: _ClassVar[int]
    MAX_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    address: str
    state: str
    cpu_cores: float
    cpu_used: float
    memory_mb: int
    memory_used_mb: int
    max_instances: int
    instances: int
    inflight: int
    queued: int
    warm: _containers.RepeatedCompositeFieldContainer[WarmPool]
    backends: _containers.RepeatedScalarFieldContainer[str]
    arch: str
    version: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., cpu_cores: _Optional[float] = ..., cpu_used: _Optional[float] = ..., memory_mb: _Optional[int] = ..., memory_used_mb: _Optional[int] = ..., max_instances: _Optional[int] = ..., instances: _Optional[int] = ..., inflight: _Optional[int] = ..., queued: _Optional[int] = ..., warm: _Optional[_Iterable[_Union[WarmPool, _Mapping]]] = ..., backends: _Optional[_Iterable[str]] = ..., arch: _Optional[str] = ..., version: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class WarmPool(_message.Message):
    __slots__ = ("tenant", "namespace", "function", "version", "instances", "free")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    function: str
    version: int
    instances: int
    free: int
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., function: _Optional[str] = ..., version: _Optional[int] = ..., instances: _Optional[int] = ..., free: _Optional[int] = ...) -> None: ...
