"""What nobody who means well sends to a comet or through zenith. Nothing of it harms anybody else's calls."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest

from nova.rpc import nova_pb2 as pb
from nova.rpc.transport import EXECUTION, MAX_MESSAGE_MB
from nova.store.embedded import EmbeddedPostgres
from tests.e2e.misuse import Platform, until
from tests.e2e.planes import SixPlanes
from tests.e2e.test_planes_killed import function
from tests.e2e.wire import request, talk

CALL_S = 10
STUCK = 30
MOST_EACH_MB = 2
ANSWER_MB = 9
CRLF = b"%0d%0aX-Injected:%20yes%0d%0a%0d%0aGET%20/"


@pytest.fixture(autouse=True)
def _unharmed(planes: SixPlanes, platform: Platform) -> Iterator[None]:
    """Every plane is the same process before and after, and a warm instance is still warm."""
    pids = {name: plane.pid for name, plane in planes.planes.items()}
    with function(platform, "steady") as instance:
        yield
        assert platform.call("steady") == instance
    assert all(plane.alive for plane in planes.planes.values())
    assert {name: plane.pid for name, plane in planes.planes.items()} == pids


@pytest.fixture
def bearer(planes: SixPlanes) -> str:
    """The service token, as only the operator of the database can read it."""
    with psycopg.connect(EmbeddedPostgres(planes.data_dir).dsn) as conn:
        row = conn.execute("SELECT value FROM platform_secrets WHERE name = 'service_token'").fetchone()
    assert row is not None
    return f"Bearer {row[0].decode()}"


@pytest.fixture
def comet(planes: SixPlanes) -> Iterator[grpc.Channel]:
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{planes.ports['comet']}", options=options) as channel:
        yield channel


def refused(channel: grpc.Channel, method: str, data: bytes, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """How an RPC of one message each way ends that must not succeed."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(data, metadata=metadata, timeout=CALL_S)
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert "Traceback" not in error.details()
    return error.code()


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer " + "x" * 43),), (("authorization", "x"),)])
def test_without_the_service_token_only_health_is_answered(
    comet: grpc.Channel, metadata: tuple[tuple[str, str], ...]
) -> None:
    call = pb.InvokeRequest(function="steady").SerializeToString()
    for method in ("Invoke", "InvokeAsync", "Scale", "EvictPool", "NoSuchMethod"):
        assert refused(comet, f"/{EXECUTION}/{method}", call, *metadata) is grpc.StatusCode.UNAUTHENTICATED
    for streaming in ("Calls", "ProxyHTTP"):
        stream = comet.stream_stream(f"/{EXECUTION}/{streaming}")(iter([call]), metadata=metadata, timeout=CALL_S)
        with pytest.raises(grpc.RpcError):
            next(stream)
        assert stream.code() is grpc.StatusCode.UNAUTHENTICATED
    assert comet.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=CALL_S)


def test_a_method_that_does_not_exist_is_said_to_be_none(comet: grpc.Channel, bearer: str) -> None:
    for method in (f"/{EXECUTION}/Nonsense", "/nova.v2.Execution/Invoke", "/x"):
        assert refused(comet, method, b"", ("authorization", bearer)) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("identity", ["", "x.y.z", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJvcGVyYXRvciJ9."])
def test_the_token_alone_acts_for_nobody(comet: grpc.Channel, bearer: str, identity: str) -> None:
    """Whom a call acts for must be signed; a signature of nothing is none."""
    metadata = (("authorization", bearer), ("x-nova-identity", identity))
    call = pb.InvokeRequest(function="steady").SerializeToString()
    assert refused(comet, f"/{EXECUTION}/Invoke", call, *metadata) is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", os.urandom(1000)])
def test_a_message_that_is_none_is_the_senders_fault(comet: grpc.Channel, bearer: str, data: bytes) -> None:
    for method in ("Invoke", "InvokeAsync", "Scale"):
        code = refused(comet, f"/{EXECUTION}/{method}", data, ("authorization", bearer))
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED), method
    for streaming in ("Calls", "ProxyHTTP"):
        metadata = (("authorization", bearer),)
        stream = comet.stream_stream(f"/{EXECUTION}/{streaming}")(iter([data]), metadata=metadata, timeout=CALL_S)
        with pytest.raises(grpc.RpcError):
            list(stream)
        assert stream.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED), streaming


def test_a_message_over_the_limit_is_not_read(planes: SixPlanes, comet: grpc.Channel, bearer: str) -> None:
    data = pb.InvokeRequest(function="steady", payload=bytes((MAX_MESSAGE_MB << 20) + 1)).SerializeToString()
    before = memory_mb(planes.planes["comet"].pid)
    for _ in range(5):
        code = refused(comet, f"/{EXECUTION}/Invoke", data, ("authorization", bearer))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert memory_mb(planes.planes["comet"].pid) < before + 4 * MAX_MESSAGE_MB


@pytest.mark.parametrize(
    "path",
    [
        b"/functions/steady%s",
        b"/functions/steady%s/logs",
        b"/functions/steady/versions/1%s",
        b"/invocations/%s",
        b"/metrics/heatmap?range=%s",
        b"/schedules/%s/runs",
        b"/async-invocations/%s",
        b"/fn/nobody/%s",
        b"/%s",
    ],
    ids=lambda path: path.decode(),
)
def test_an_encoded_line_break_stays_encoded_whichever_plane_answers(platform: Platform, path: bytes) -> None:
    reply = talk(platform.address, request("GET", path % CRLF, b"", b"x-request-id: a%0d%0aX-Injected: yes"))
    assert reply is not None
    assert 400 <= reply.status < 500, reply
    assert "x-injected" not in reply.headers
    assert reply.problem["code"]


@pytest.mark.parametrize("path", ["/functions/loud/logs?tail=500", "/functions/big/code"], ids=["comet", "nova"])
def test_answers_that_nobody_reads_do_not_pile_up_in_zenith(planes: SixPlanes, platform: Platform, path: str) -> None:
    """Held back at the plane that they come from, over gRPC as over HTTP; whoever reads is served meanwhile."""
    code = "def handler(event):\n    for _ in range(60):\n        print('x' * 1000)\n"
    with (
        function(platform, "loud", code),
        function(platform, "big", f"# {'x' * (ANSWER_MB << 20)}\ndef handler():\n    pass"),
    ):
        calls = ANSWER_MB * 1024 // 60
        for _ in range(calls):
            platform.call("loud")
        until(lambda: len(platform.http.get(path).content) > ANSWER_MB * 900_000, "the answer is long")
        before = memory_mb(planes.planes["zenith"].pid)
        stuck = []
        try:
            for _ in range(STUCK):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(platform.address)
                sock.sendall(request("GET", path.encode()))
                assert sock.recv(12) == b"HTTP/1.1 200"
                stuck.append(sock)
            assert len(platform.http.get(path).content) > ANSWER_MB * 900_000, "somebody who reads gets all of it"
            assert platform.call("steady"), "and calls are answered"
            grown = memory_mb(planes.planes["zenith"].pid) - before
            assert grown < STUCK * MOST_EACH_MB, f"zenith grew by {grown:.0f} MB"
        finally:
            for sock in stuck:
                sock.close()


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
