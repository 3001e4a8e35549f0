"""Streams from a real handler to a real client, in both shapes of the platform: at once, bounded, and ended on both sides."""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nova.client import ApiError, Client, Unreachable
from tests.e2e.server import NovaServer

PIECES = 1000
"""of 64 KiB each: more than twice what the platform may take on for them"""
PNG = b"\x89PNG\r\n\x1a\n\x00\xff"
CODE = """
import base64, time

def handler(event, context):
    if "rawPath" in event:
        return url(event, context)
    return pieces(event)

def url(event, context):
    got = base64.b64decode(event["body"]) if event["isBase64Encoded"] else event.get("body", "").encode()
    if event["rawPath"] == "/whole":
        return {"statusCode": 203, "headers": {"content-type": "image/png"}, "isBase64Encoded": True,
                "body": base64.b64encode(got[::-1]).decode()}
    return stream(event, got)

def stream(event, got):
    yield {"statusCode": 201, "headers": {"content-type": "image/png", "x-kind": event["headers"].get("content-type", "")}}
    yield got
    if event["rawPath"] == "/slow":
        time.sleep(30)

def pieces(event):
    print("begun")
    for number in range(event.get("n", 1)):
        yield event.get("text", "ü") * event.get("times", 1)
    yield {"n": 1}
    yield b"\\xff\\x00"
    if event.get("fail"):
        raise ValueError("too late")
    time.sleep(event.get("sleep", 0))
"""


@pytest.fixture(scope="module")
def client(nova_server: NovaServer) -> Iterator[Client]:
    """A client of a server that has the function ``teller``, whose URL streams, and ``answerer``, whose URL does not."""
    with nova_server.client() as client:
        for name, mode in (("teller", "stream"), ("answerer", "buffered")):
            function = {"name": name, "runtime": "python", "code": CODE, "timeout_s": 60}
            client.call("function.create", body={**function, "function_url": {"invoke_mode": mode}})
        yield client
        for name in ("teller", "answerer"):
            client.call("function.delete", {"name": name})


def wait_for(condition: Callable[[], Any], limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def status_of(client: Client, request_id: str) -> str | None:
    try:
        found: str = client.call("invocation.get", {"id": request_id})["status"]
    except ApiError:
        return None
    return found


def test_pieces_come_while_the_handler_runs_and_leaving_ends_it(client: Client) -> None:
    """The first byte does not wait for the handler's end; a client that leaves takes the call with it within a second."""
    began = time.monotonic()
    events = client.stream("teller", b'{"sleep": 30}', logs=True)
    found = []
    for event in events:
        found.append((event.event, event.data))
        if "b64" in event.data:
            break
    assert time.monotonic() - began < 10
    request_id = found[0][1]["request_id"]
    assert [(kind, data) for kind, data in found if kind == "chunk"] == [
        ("chunk", {"text": "ü"}),
        ("chunk", {"json": {"n": 1}}),
        ("chunk", {"b64": base64.b64encode(b"\xff\x00").decode()}),
    ]
    events.close()
    wait_for(lambda: status_of(client, request_id) is not None, 20)  # records are written in batches
    record = client.call("invocation.get", {"id": request_id})
    assert record["status"] == "cancelled" or record["error"]["type"] == "Nova.Cancelled"
    assert record["duration_ms"] < 10_000


def test_a_handler_that_fails_late_ends_the_stream_with_its_error(client: Client) -> None:
    *_, last = client.stream("teller", b'{"fail": true}')
    assert (last.event, last.data["type"], last.data["message"]) == ("error", "ValueError", "too late")
    with pytest.raises(ApiError) as caught:
        list(client.stream("nobody"))
    assert caught.value.code == "not_found"
    with pytest.raises(Unreachable, match="incomplete"):
        client.request(
            "POST",
            "/functions/teller/invoke-stream",
            json={"fail": True},
            headers={"Accept": "application/octet-stream"},
        )


def test_bytes_go_through_a_url_both_ways(client: Client) -> None:
    for name in ("teller", "answerer"):
        whole = client.http.post(f"/fn/{name}/whole", content=PNG, headers={"content-type": "image/png"})
        assert (whole.status_code, whole.headers["content-type"], whole.content) == (203, "image/png", PNG[::-1])
    sent = client.http.post("/fn/teller/now", content=PNG, headers={"content-type": "image/png"})
    assert (sent.status_code, sent.headers["x-kind"], sent.content) == (201, "image/png", PNG)
    with client.http.stream("POST", "/fn/teller/slow", content=b"text", headers={"content-type": "text/plain"}) as slow:
        assert (slow.status_code, next(slow.iter_raw())) == (201, b"text")


def test_a_change_of_the_mode_counts_at_once(client: Client) -> None:
    path = "/fn/answerer/now"
    collected = client.http.get(path)
    assert collected.headers["content-type"] == "application/json"  # an array of pieces is what such a call returns
    client.call("function.patch", {"name": "answerer"}, body={"function_url": {"invoke_mode": "stream"}})
    wait_for(lambda: client.http.get(path).status_code == 201, 20)
    client.call("function.patch", {"name": "answerer"}, body={"function_url": None})
    wait_for(lambda: client.http.get(path).status_code == 200, 20)


def test_a_long_stream_passes_in_bounded_memory(client: Client, nova_server: NovaServer) -> None:
    """Of a stream the platform holds what waits, not what went by."""
    list(client.stream("teller"))
    before = memory_mb(nova_server)
    payload = json.dumps({"n": PIECES, "text": "x", "times": 64 << 10}).encode()
    size = 0
    headers = {"Accept": "application/octet-stream"}
    with client.http.stream("POST", "/functions/teller/invoke-stream", content=payload, headers=headers) as answer:
        for piece in answer.iter_raw():
            size += len(piece)
    assert size == PIECES * (64 << 10) + len(b'{"n": 1}\n\xff\x00')
    assert memory_mb(nova_server) - before < 30


def memory_mb(server: NovaServer) -> float:
    """What the platform's own processes hold: those whose command line names the data directory, PostgreSQL aside."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if str(server.data_dir).encode() in command and b"postgres" not in command.split(b"\0")[0]:
                total += int((folder / "statm").read_text().split()[1])
        except OSError:
            continue  # it has just ended
    return total * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
