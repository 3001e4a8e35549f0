"""Programs that speak the Lambda Runtime API, and libraries written for Lambda, as they are published."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.domain.call import CallResult
from nova.domain.function import Limits
from nova.domain.stream import Piece
from nova.domain.tree import SourceFile
from nova.payload import decode, encode
from tests.conftest import _database
from tests.execution.fakes import make_call
from tests.execution.stack import RealStack, real_stack

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

BOOTSTRAP = """#!/usr/bin/python3
import http.client, json, os, sys, time

if os.environ["_HANDLER"] == "broken":
    body = json.dumps({"errorType": "Config", "errorMessage": "no settings", "stackTrace": ["a.py:1"]})
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    api.request("POST", "/2018-06-01/runtime/init/error", body)
    print(api.getresponse().status)
    sys.exit(1)
if os.environ["_HANDLER"] == "exits":
    sys.exit(7)

api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])

def ask(method, path, body=None, headers={}):
    api.request(method, "/2018-06-01/runtime/" + path, body, headers)
    answer = api.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()

calls = 0
while True:
    status, headers, body = ask("GET", "invocation/next")
    event, way = json.loads(body), "invocation/" + headers["Lambda-Runtime-Aws-Request-Id"]
    calls += 1
    do = event.get("do")
    if do == "fail":
        print("about to fail", flush=True)
        ask("POST", way + "/error", json.dumps({"errorType": "Boom", "errorMessage": "as asked", "stackTrace": ["x"]}))
    elif do == "die":
        os._exit(3)
    elif do == "text":
        ask("POST", way + "/response", "not json")
    elif do == "large":
        api.close()
        try:
            ask("POST", way + "/response", b'"' + b"x" * (7 << 20) + b'"')
        except OSError:
            pass
        api.close()
    elif do == "stream":
        pieces = iter([b'{"statusCode": 201, "headers": {"x": "y"}}', b"\\0" * 8, b"hel", b"lo"])
        ask("POST", way + "/response", pieces, {
            "Lambda-Runtime-Function-Response-Mode": "streaming",
            "Content-Type": "application/vnd.awslambda.http-integration-response"})
    elif do == "odd":
        found = [ask("POST", "invocation/other/response", "1")[0], ask("GET", "invocation/next")[0], ask("GET", "x")[0]]
        ask("POST", way + "/response", json.dumps(found))
    else:
        if do == "sleep":
            time.sleep(event["s"])
        print("call", calls, flush=True)
        names = {name: value for name, value in headers.items() if name.startswith("Lambda-")}
        ask("POST", way + "/response", json.dumps({"calls": calls, "event": event, "headers": names,
            "handler": os.environ["_HANDLER"], "api": os.environ["AWS_LAMBDA_RUNTIME_API"]}))
"""


@pytest.fixture(scope="module")
def module_dsn(pg_server: str, pg_template: str) -> Iterator[str]:
    yield from _database(pg_server, pg_template)


@pytest.fixture(scope="module")
async def stack(module_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealStack]:
    async with real_stack(module_dsn, tmp_path_factory.mktemp("lambda")) as stack:
        yield stack


class Collecting:
    """A sink that is never full, and the times at which pieces came."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.at: list[float] = []

    def started(self, version: int, cold_start: bool) -> None: ...

    def piece(self, piece: Piece) -> bool:
        self.pieces.append(piece)
        self.at.append(time.monotonic())
        return True

    def printed(self, stream: str, text: str) -> None: ...

    def on_drained(self, drained: Callable[[], None]) -> None: ...


async def deploy(stack: RealStack, code: str = BOOTSTRAP, name: str = "hello", **config: Any) -> None:
    values = {"runtime": "provided", "entry": "bootstrap", "entry_mode": 0o755, "handler": "app.handler", **config}
    await stack.deploy(code, name, **values)


def output(result: CallResult) -> Any:
    assert result.error is None, result.error
    assert result.output is not None
    return decode(result.output)


def error(result: CallResult) -> tuple[str, str]:
    assert result.error is not None, result.output
    return result.error.type, result.error.message


async def test_a_program_asks_for_its_calls(stack: RealStack) -> None:
    await deploy(stack)

    async def call(event: Any, **more: Any) -> CallResult:
        return await stack.invoke(encode(event), **more)

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    first = await call({"a": "ü\n"}, traceparent=trace)
    told = output(first)
    assert (told["calls"], told["event"], told["handler"], told["api"]) == (
        1,
        {"a": "ü\n"},
        "app.handler",
        "127.0.0.1:8399",
    )
    headers = told["headers"]
    assert headers["Lambda-Runtime-Aws-Request-Id"] == first.request_id
    assert headers["Lambda-Runtime-Invoked-Function-Arn"] == "arn:nova:lambda:local:default:function:hello:1"
    assert (
        headers["Lambda-Runtime-Trace-Id"]
        == "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1"
    )
    assert int(headers["Lambda-Runtime-Deadline-Ms"]) > 1_700_000_000_000
    second = await call({})
    assert (output(second)["calls"], second.cold_start, second.stdout) == (2, False, "call 2\n")
    failed = await call({"do": "fail"})
    assert (error(failed), failed.stdout) == (("Boom", "as asked"), "about to fail\n")
    assert output(await call({"do": "text"})) == "not json"
    assert output(await call({"do": "odd"})) == [400, 403, 404]
    streamed = output(await call({"do": "stream"}))
    assert streamed == {"statusCode": 201, "headers": {"x": "y"}, "body": "hello"}
    assert error(await call({"do": "large"}))[0] == "Nova.OutputTooLarge"
    assert output(await call({}))["calls"] == 8, "it is still the same program"
    assert error(await call({"do": "die"})) == ("Nova.ExitError", "the process exited with code 3")
    assert output(await call({}))["calls"] == 1


async def test_a_result_in_chunks_is_streamed_to_who_wants_it(stack: RealStack) -> None:
    """Status and headers first; each piece before the next one is made."""
    code = BOOTSTRAP.replace("pieces = iter([", "pieces = slowly([").replace(
        "calls = 0",
        "def slowly(pieces):\n    for piece in pieces:\n        yield piece\n        time.sleep(0.05)\n\ncalls = 0",
    )
    assert "slowly([" in code
    await deploy(stack, code, name="streams")
    sink = Collecting()
    call = make_call("streams", b'{"do": "stream"}', received=SYSTEM_CLOCK.monotonic())
    result = await stack.executor.stream(call, sink)
    assert (result.error, result.output) == (None, b"null")
    kinds = [(piece.kind, decode(piece.data)) for piece in sink.pieces]
    assert kinds[0] == ("json", {"statusCode": 201, "headers": {"x": "y"}})
    assert "".join(text for kind, text in kinds[1:] if kind == "text") == "hello"
    assert sink.at[-1] - sink.at[0] >= 0.04
    again = await stack.executor.stream(make_call("streams", b"{}", received=SYSTEM_CLOCK.monotonic()), Collecting())
    assert output(again)["calls"] == 2


async def test_a_program_that_does_not_get_ready_says_why(stack: RealStack) -> None:
    await deploy(stack, name="broken", handler="broken")
    assert error(await stack.invoke(name="broken")) == ("Config", "no settings")
    await deploy(stack, name="exits", handler="exits")
    assert error(await stack.invoke(name="exits")) == ("Nova.ExitError", "the process exited with code 7")


async def test_each_program_of_an_instance_has_its_own_calls(stack: RealStack) -> None:
    await deploy(stack, name="several", concurrency=3)
    event = encode({"do": "sleep", "s": 0.3})
    results = list[CallResult]()
    while len(addresses := {output(result)["api"] for result in results}) < 2:  # a further program takes its time
        results += await asyncio.gather(*(stack.invoke(event, "several") for _ in range(3)))
    assert addresses <= {f"127.0.0.{number}:8399" for number in (1, 2, 3)}
    assert len({result.instance_id for result in results}) == 1


async def test_the_template_runs_where_curl_is(stack: RealStack) -> None:
    from nova.runtimes.registry import Runtimes

    await deploy(stack, Runtimes().get("provided").manifest.template.lstrip(), "template", handler="bootstrap")
    assert output(await stack.invoke(name="template")) == {"message": "Hello from a shell"}
    assert output(await stack.invoke(name="template")) == {"message": "Hello from a shell"}


APP = """
import base64, json
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, LambdaFunctionUrlResolver
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from mangum import Mangum
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

logger, metrics = Logger(service="shop"), Metrics(namespace="Shop", service="shop")
app = APIGatewayHttpResolver()

@app.get("/orders/<order_id>")
def order(order_id: str):
    if order_id == "0":
        raise NotFoundError("no such order")
    metrics.add_metric(name="Orders", unit=MetricUnit.Count, value=1)
    return {"order": order_id, "q": app.current_event.query_string_parameters}

@logger.inject_lambda_context(log_event=True)
@metrics.log_metrics(capture_cold_start_metric=True)
def powertools(event: dict, context: LambdaContext):
    logger.info("resolving")
    return app.resolve(event, context)

async def root(request):
    scope = request.scope["aws.context"]
    body = await request.body()
    return JSONResponse({"path": request.url.path, "body": body.decode(), "id": scope.aws_request_id,
                         "left": scope.get_remaining_time_in_millis() > 0, "arn": scope.invoked_function_arn.count(":")})

asgi = Mangum(Starlette(routes=[Route("/{path:path}", root, methods=["GET", "POST"])]), lifespan="off")
"""


def url_event(path: str, method: str = "GET", body: str | None = None) -> dict[str, Any]:
    """As a function URL makes it (payload format 2.0)."""
    http = {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "t"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "x=1",
        "headers": {"host": "example.org", "content-type": "text/plain"},
        "queryStringParameters": {"x": "1"},
        "requestContext": {
            "accountId": "default",
            "apiId": "f",
            "domainName": "example.org",
            "domainPrefix": "f",
            "stage": "$default",
            "routeKey": "$default",
            "requestId": "r",
            "time": "22/Nov/2026:05:08:00 +0000",
            "timeEpoch": 1795324080000,
            "http": http,
        },
        "isBase64Encoded": False,
        **({} if body is None else {"body": body}),
    }


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[SourceFile]:
    """What users' requirements.txt names, installed as the platform does."""
    folder = tmp_path_factory.mktemp("libraries")
    names = ["aws-lambda-powertools", "mangum", "starlette", "awslambdaric"]
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--target", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *names], check=True, capture_output=True, timeout=120
    )
    return [
        SourceFile(f"deps/{file.relative_to(folder)}", 0o644, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    ]


async def test_libraries_for_lambda_run_unmodified(stack: RealStack, libraries: list[SourceFile]) -> None:
    """AG22: Powertools' logger, metrics and router, as decorators and as a callable object; an ASGI application by Mangum."""

    async def deployed(name: str, handler: str) -> None:
        await stack.deploy(APP, name, handler=f"main.{handler}", files=libraries, limits=Limits(memory_mb=256))

    await deployed("powertools", "powertools")
    first = await stack.invoke(encode(url_event("/orders/7")), "powertools")
    answer = output(first)
    assert (answer["statusCode"], decode(answer["body"])) == (200, {"order": "7", "q": {"x": "1"}})
    lines = [decode(line) for line in first.stdout.splitlines()]
    (resolving,) = [line for line in lines if line.get("message") == "resolving"]
    assert (resolving["function_request_id"], resolving["service"]) == (first.request_id, "shop")
    assert resolving["function_arn"].split(":")[6] == "powertools"
    assert {line["Orders"][0] for line in lines if "Orders" in line} == {1.0}
    assert output(await stack.invoke(encode(url_event("/orders/0")), "powertools"))["statusCode"] == 404
    await deployed("router", "app")
    assert output(await stack.invoke(encode(url_event("/orders/8")), "router"))["statusCode"] == 200
    await deployed("asgi", "asgi")
    called = await stack.invoke(encode(url_event("/a/b", "POST", "hi")), "asgi")
    told = decode(output(called)["body"])
    assert told == {"path": "/a/b", "body": "hi", "id": called.request_id, "left": True, "arn": 7}


async def test_the_published_runtime_client_runs_unmodified(stack: RealStack, libraries: list[SourceFile]) -> None:
    """awslambdaric, which speaks the Runtime API from a compiled part, with a handler as Lambda has them."""
    handler = """
def handler(event, context):
    if event.get("fail"):
        raise KeyError("gone")
    print("hello from ric")
    return {"event": event, "id": context.aws_request_id, "name": context.function_name,
            "left": context.get_remaining_time_in_millis() > 0, "arn": context.invoked_function_arn}
"""
    files = [*libraries, SourceFile("app.py", 0o644, handler.encode())]
    bootstrap = "#!/bin/sh\nexec /usr/bin/python3 -m awslambdaric $_HANDLER\n"
    await deploy(stack, bootstrap, "ric", files=files)
    first = await stack.invoke(b'{"a": [1, "\xc3\xbc"]}', "ric")
    assert output(first) == {
        "event": {"a": [1, "ü"]},
        "id": first.request_id,
        "name": "ric",
        "left": True,
        "arn": "arn:nova:lambda:local:default:function:ric:1",
    }
    assert "hello from ric" in first.stdout
    failed = await stack.invoke(b'{"fail": 1}', "ric")
    assert error(failed)[0] == "KeyError"
    assert failed.error is not None
    assert "app.py" in " ".join(failed.error.stack)
    assert not (await stack.invoke(b"{}", "ric")).cold_start
