"""Requests that are wrong, or only look it: names, paths and bodies, as bytes on the wire."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.misuse import Neighbour, Platform, platform_at
from tests.e2e.server import NovaServer
from tests.e2e.wire import Reply, chunked, request, talk

MB = 1 << 20
ECHO = "echo"
INVOKE = b"/functions/echo/invoke"
ODD_NAMES = [
    b"a%20b",
    b"a+b",
    b"%0d%0a",
    b"%0d%0ax-injected:%20yes",
    b"a%0d%0a%0d%0a<html>",
    b"%2F",
    b"echo%2Finvoke",
    b"..%2F..%2Fetc%2Fpasswd",
    b"%252e%252e",
    b"%",
    b"a%",
    b"%2",
    b"%zz",
    b"%00",
    b"echo%00",
    b"%ff%fe",
    b"%c3%bc",
    b"%e2%80%ae",
    "ü".encode(),
    "函数".encode(),
    b"%F0%9F%98%80",
    b"..",
    b"*",
    b"'%20OR%201=1--",
    b"%3Cscript%3E",
    b"a" * 65,
    b"a" * 8000,
]


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        platform.deploy(ECHO, "def handler(event):\n    return event\n", idle_ttl_s=3600)
        yield platform
        platform.delete(ECHO)


@pytest.fixture(scope="module")
def neighbour(platform: Platform) -> Iterator[Neighbour]:
    yield Neighbour(platform)
    platform.delete(Neighbour.NAME)


@pytest.fixture(autouse=True)
def around(neighbour: Neighbour) -> Iterator[None]:
    with neighbour.unharmed():
        yield


def answered(platform: Platform, *pieces: bytes, hang_up: bool = False) -> Reply:
    reply = talk(platform.address, *pieces, hang_up=hang_up)
    assert reply is not None, "closed without an answer"
    assert "x-injected" not in reply.headers
    return reply


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: name[:24].decode("latin-1"))
def test_odd_names_are_4xx_in_every_place(platform: Platform, name: bytes) -> None:
    """GW1: no spelling of a name reaches another route, injects a header or is our fault."""
    there = functions(platform)
    for method, path in (
        ("GET", b"/functions/%s"),
        ("DELETE", b"/functions/%s"),
        ("PUT", b"/functions/%s"),
        ("GET", b"/functions/%s/logs"),
        ("POST", b"/functions/%s/invoke"),
        ("POST", b"/v1/functions/%s/invoke"),
        ("GET", b"/fn/%s"),
        ("GET", b"/fn/%s/path"),
        ("GET", b"/t/%s/default/fn/echo"),
        ("GET", b"/functions?no_such_filter=%s"),
    ):
        body = b'{"runtime":"python","code":"def handler(): pass"}' if method == "PUT" else b"{}"
        reply = answered(platform, request(method, path % name, body))
        assert 400 <= reply.status < 500, (method, path, reply)
        assert reply.code in {"validation_failed", "not_found", "route_not_found", "unknown_field", "scope_invalid"}
    assert functions(platform) == there, "nothing was created or deleted"


def test_a_request_line_that_is_none_is_a_400(platform: Platform) -> None:
    for line in (b"GET /functions/a b HTTP/1.1", b"NONSENSE", b"GET /functions\x00 HTTP/1.1", b"\x16\x03\x01\x02\x00"):
        assert answered(platform, line + b"\r\nhost: localhost\r\n\r\n").status == 400


def test_a_deploy_under_a_bad_name_names_the_field(platform: Platform) -> None:
    there = functions(platform)
    for name in ("a b", "ü", "a/b", "", "a" * 65, "x\r\nset-cookie: a=b", "..", "a%20b"):
        answer = platform.http.post("/functions", json={"name": name, "runtime": "python", "code": "x = 1"})
        assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed"), name
        assert [error["field"] for error in answer.json()["errors"]] == ["name"]
    assert functions(platform) == there


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"hello", "bad_payload"),
        (b'{"a": 1', "bad_payload"),
        (b"{'a': 1}", "bad_payload"),
        (b'{"a": 1}{"b": 2}', "bad_payload"),
        (b'{"a": NaN}', "bad_payload"),
        (b'"\xff"', "bad_payload"),
        (b"\xff\xfe{\x00}\x00", "bad_payload"),
        (b"\x00", "bad_payload"),
        (b"[" * 513 + b"]" * 513, "bad_payload"),
        (b"[" * 100_000, "bad_payload"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "bad_payload"),
    ],
    ids=lambda value: value[:16].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_what_is_no_payload_is_refused_before_the_call(platform: Platform, body: bytes, code: str) -> None:
    calls = records(platform)
    reply = answered(platform, request("POST", INVOKE, body))
    assert (reply.status, reply.code) == (400, code)
    assert records(platform) == calls


@pytest.mark.parametrize(
    "body",
    [
        b"hello",
        b'{"name": "half"',
        b'{"name": "a", "name": "b"}',
        b'{"name": NaN}',
        b"\xff",
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b"[" * 100_000,
    ],
    ids=lambda body: body[:16].decode("latin-1"),
)
def test_what_is_no_json_is_no_deploy(platform: Platform, body: bytes) -> None:
    reply = answered(platform, request("POST", b"/functions", body))
    assert (reply.status, reply.code) == (400, "invalid_json")


def test_the_deepest_payload_passes_unchanged(platform: Platform) -> None:
    deepest = b"[" * 512 + b"]" * 512
    reply = answered(platform, request("POST", INVOKE, deepest))
    assert reply.status == 200
    assert deepest in reply.body


def test_a_chunked_body_reaches_the_function_whole(platform: Platform) -> None:
    """EX12: however it is cut."""
    reply = answered(platform, chunked(INVOKE, b'{"te', b'xt": "', b"\xc3", b'\xbc"', b"}"), b"0\r\n\r\n")
    assert json.loads(reply.body)["output"] == {"text": "ü"}


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(chunked(INVOKE, b'{"a": 1}') + b"xyz\r\n", id="a chunk size that is none"),
        pytest.param(chunked(INVOKE) + b"-5\r\nabc", id="a negative chunk size"),
        pytest.param(chunked(INVOKE) + b"fffffffffffffffff\r\n", id="a chunk size beyond 64 bits"),
        pytest.param(request("POST", INVOKE, b"{}", b"content-length: 3"), id="two lengths"),
        pytest.param(request("POST", INVOKE, b"0\r\n\r\n", b"transfer-encoding: chunked"), id="length and chunked"),
        pytest.param(request("POST", INVOKE, b"{}", length=-1), id="a negative length"),
        pytest.param(
            b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 2x\r\n\r\n{}" % INVOKE, id="a length that is no number"
        ),
    ],
)
def test_bodies_whose_end_is_unclear_are_refused(platform: Platform, request_bytes: bytes) -> None:
    """Two readers of one request must never disagree about where it ends."""
    calls = records(platform)
    reply = answered(platform, request_bytes, hang_up=True)
    assert reply.status == 400
    assert reply.problem
    assert records(platform) == calls


@pytest.mark.parametrize("path", [INVOKE, b"/functions", b"/fn/echo"])
@pytest.mark.parametrize("form", ["counted", "chunked"])
def test_a_body_that_breaks_off_does_nothing(platform: Platform, path: bytes, form: str) -> None:
    """A truncated request is no request: no call, no function, and nobody left to answer."""
    body = b'{"name": "half", "runtime": "python", "code": "def handler(): pass"}'
    calls = records(platform)
    cut = request("POST", path, body, length=len(body) + 1) if form == "counted" else chunked(path, body)
    reply = talk(platform.address, cut, hang_up=True)
    assert reply is None or reply.status == 400
    assert records(platform) == calls
    assert platform.http.get("/functions/half").status_code == 404


@pytest.mark.parametrize(
    ("path", "limit"),
    [(INVOKE, 6 * MB), (b"/fn/echo", 6 * MB), (b"/functions", 10 * MB)],
    ids=["invoke", "url", "deploy"],
)
@pytest.mark.parametrize("form", ["announced", "sent", "chunked"])
def test_a_body_over_the_limit_is_413(platform: Platform, path: bytes, limit: int, form: str) -> None:
    """EX12: 7 MB are refused whatever the headers say; a length that is announced is refused before it is sent."""
    body = b'"' + b"x" * (limit + MB) + b'"'
    pieces = {
        "announced": [request("POST", path, b"", length=len(body))],
        "sent": [request("POST", path, body)],
        "chunked": [chunked(path), *(b"%x\r\n%s\r\n" % (MB, b"x" * MB) for _ in range(limit // MB + 1)), b"0\r\n\r\n"],
    }
    reply = answered(platform, *pieces[form])
    assert (reply.status, reply.code) == (413, "payload_too_large")
    assert reply.problem["limit_bytes"] == limit


def test_six_megabytes_pass_both_ways(platform: Platform) -> None:
    """AG9: what is allowed, works."""
    text = "x" * (6 * MB - 2)
    assert platform.call(ECHO, text) == text
    refused = platform.http.post(f"/functions/{ECHO}/invoke", content=b'"%s"' % (b"x" * (7 * MB)))
    assert (refused.status_code, refused.json()["code"]) == (413, "payload_too_large")
    assert platform.call(ECHO, 1) == 1


def test_heads_without_end_are_refused(platform: Platform) -> None:
    """GW10: a URL or head beyond its limit is a problem, not memory."""
    long_url = request("GET", b"/functions/" + b"a" * 20_000)
    assert answered(platform, long_url).status == 414
    long_head = request("GET", b"/functions", b"", b"x-filler: " + b"a" * 70_000)
    assert answered(platform, long_head).status == 431


def functions(platform: Platform) -> set[str]:
    return {function["name"] for function in platform.http.get("/functions", params={"limit": 500}).json()["items"]}


def records(platform: Platform) -> int:
    """How many calls of the function have been recorded."""
    calls: int = platform.http.get(f"/functions/{ECHO}/metrics").json()["calls"]
    return calls
