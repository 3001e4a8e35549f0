"""The gRPC server of a plane: Execution where the plane executes, health and reflection everywhere."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from starlette.types import ASGIApp

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.identity import Scope
from nova.domain.node import NodeReport
from nova.domain.ports import Acceptor, Invoker, Scaler
from nova.errors import NovaError
from nova.rpc.failures import abort
from nova.rpc.methods import Execution, Ports
from nova.rpc.transport import AUTHORIZATION, EXECUTION, MAX_MESSAGE_MB, server_options, target
from nova.security.assertion import Assertions
from nova.security.service import ServiceToken
from nova.service import Background

log = structlog.get_logger(__name__)
Health = Callable[[], Awaitable[Mapping[str, bool]]]
CHECK_S = 1.0
_CHECK_TIMEOUT_S = 2.0
_MAX_RPCS = 8192
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class RpcServer:
    """A service. ``address`` is ``host:port``, ``:port`` (on loopback) or ``unix:/path``; a successor may share the port.

    ``healthy`` says of each part of the plane whether it works; each is a service name of grpc.health.v1, and the server as a
    whole (the empty name, and ``nova.v1.Execution``) serves while all of them do. Everything but health needs the service token.
    """

    def __init__(
        self,
        address: str,
        token: ServiceToken,
        assertions: Assertions,
        *,
        invoker: Invoker | None = None,
        acceptor: Acceptor | None = None,
        scaler: Scaler | None = None,
        evict: Callable[[Scope, str], int] | None = None,
        application: ASGIApp | None = None,
        report: Callable[[], NodeReport] | None = None,
        healthy: Health,
        drain_s: float,
        max_message_mb: int = MAX_MESSAGE_MB,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._target = target(address)
        self._token = token
        self._healthy = healthy
        self._drain_s = drain_s
        self._max_message_mb = max_message_mb
        self._clock = clock
        ports = Ports(invoker, acceptor, scaler, evict, application, report)
        self._execution = Execution(ports, assertions, clock, max_message_mb << 20)
        self._health = health.aio.HealthServicer()
        self._background = Background("rpc-server")
        self._server: grpc.aio.Server | None = None
        self._parts: dict[str, bool] = {}
        self.port = 0
        """the port that is listened on; 0 on a unix socket"""

    async def start(self) -> None:
        """Listen and serve. Raises OSError when the address cannot be listened on."""
        server = grpc.aio.server(
            interceptors=[_TokenGuard(self._token)],
            options=server_options(self._max_message_mb),
            maximum_concurrent_rpcs=_MAX_RPCS,
        )
        handlers = self._execution.handlers()
        services = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        if handlers:
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(EXECUTION, handlers),))
            services.append(EXECUTION)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(services, server)
        try:
            port = server.add_insecure_port(self._target)
        except RuntimeError as exc:
            await server.stop(None)
            raise OSError(f"cannot listen on {self._target}: {exc}") from None
        self.port = 0 if self._target.startswith("unix:") else port
        self._parts = dict.fromkeys(["", *([EXECUTION] if handlers else [])], False)
        await self._check()
        await server.start()
        self._server = server
        self._background.spawn("health", self._keep_checking())

    async def close(self) -> None:
        """Say that this server goes, take no more, answer what is in work for ``drain_s`` seconds, end the rest. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        await self._background.close()
        await self._health.enter_graceful_shutdown()
        self._execution.drain()
        await server.stop(self._drain_s)
        await self._execution.close()

    async def _keep_checking(self) -> None:
        while True:
            await self._clock.sleep(CHECK_S)
            await self._check()

    async def _check(self) -> None:
        """Ask every part how it is; one that does not answer in time is not well."""
        whole = ("", EXECUTION)
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                parts = dict(await self._healthy())
            well = all(parts.values())
        except Exception as exc:
            log.warning("health check failed", error=repr(exc))
            parts, well = dict.fromkeys(self._parts, False), False
        self._parts = {**parts, **{name: well for name in whole if name in self._parts}}
        for name, fine in self._parts.items():
            await self._health.set(name, _SERVING if fine else _NOT_SERVING)


class _TokenGuard(grpc.aio.ServerInterceptor):
    """Lets nobody in without the service token, except to ask for health."""

    def __init__(self, token: ServiceToken) -> None:
        self._token = token
        self._open = f"/{health.SERVICE_NAME}/"

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        if handler_call_details.method.startswith(self._open):
            return await continuation(handler_call_details)
        metadata: Any = handler_call_details.invocation_metadata or ()
        for key, value in metadata:
            if key == AUTHORIZATION and isinstance(value, str) and self._token.proven_by(value.encode()):
                return await continuation(handler_call_details)
        return _refuse(await continuation(handler_call_details))


def _refuse(handler: Any) -> Any:
    """A handler of the same kind as the one that was asked for, which refuses."""
    error = NovaError("unauthenticated", "this port takes RPCs from the platform's own processes only")

    async def refuse(_request: object, context: Any) -> None:
        await abort(context, error)

    if handler is None:
        return grpc.unary_unary_rpc_method_handler(refuse)
    if handler.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    else:
        make = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
    return make(refuse)
