"""What the tests of bad input and faults share: a platform's client, and a neighbour that must not notice anything."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

COUNTING = """
count = 0
def handler(event):
    global count
    count += 1
    return count
"""
_BETWEEN_CALLS_S = 0.05


class Platform:
    """A running platform as its users have it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.address = ("127.0.0.1", int(url.rpartition(":")[2]))
        self.http = httpx.Client(base_url=url, timeout=120, trust_env=False)
        self._last: dict[str, str | None] = {}

    def close(self) -> None:
        self.http.close()

    def deploy(self, name: str, code: str, **fields: object) -> dict[str, Any]:
        answer = self.http.post("/functions", json={"name": name, "runtime": "python", "code": code} | fields)
        assert answer.status_code == 201, answer.text
        deployed: dict[str, Any] = answer.json()
        return deployed

    def delete(self, name: str) -> None:
        answer = self.http.delete(f"/functions/{name}")
        assert answer.status_code in (204, 404), answer.text

    def post(self, name: str, event: object = None) -> httpx.Response:
        answer = self.http.post(f"/functions/{name}/invoke", json=event)
        self._last[name] = answer.headers.get("x-request-id")
        return answer

    def call(self, name: str, event: object = None) -> Any:
        """The output of a call that succeeds."""
        answer = self.post(name, event)
        assert answer.status_code == 200, answer.text
        assert answer.json()["error"] is None, answer.text
        return answer.json()["output"]

    def error(self, name: str, event: object = None) -> dict[str, Any]:
        """The error of a call that the function answers with one."""
        answer = self.post(name, event)
        assert answer.status_code == 200, answer.text
        error: dict[str, Any] = answer.json()["error"]
        assert error is not None, answer.text
        assert answer.headers["x-nova-function-error"] == error["type"]
        return error

    def build_ended(self, build_id: str) -> dict[str, Any]:
        """The build when it has ended."""
        build: dict[str, Any] = {}

        def ended() -> bool:
            build.update(self.http.get(f"/builds/{build_id}").json())
            return build["finished_at"] is not None

        until(ended, "the build ends", 60)
        return build

    def log(self, name: str) -> dict[str, Any]:
        """The last call of a function that was made here, with its prints."""
        found: list[dict[str, Any]] = []

        def written() -> bool:
            found[:] = self.http.get(f"/functions/{name}/logs", params={"tail": 1}).json()["items"]
            return bool(found) and self._last.get(name) in (None, found[0]["id"])

        until(written, "the call is in the log")
        return found[0]


@contextlib.contextmanager
def platform_at(url: str) -> Iterator[Platform]:
    platform = Platform(url)
    try:
        yield platform
    finally:
        platform.close()


class Neighbour:
    """Somebody else's function. Whatever happens around it, one and the same process answers every call."""

    NAME = "neighbour"

    def __init__(self, platform: Platform) -> None:
        self._url = platform.url
        platform.deploy(self.NAME, COUNTING, idle_ttl_s=3600)
        platform.call(self.NAME)
        self.calls = 1

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Call it all the time, and once more at the end: each call must be warm and in order."""
        ended = threading.Event()
        problems: list[str] = []
        caller = threading.Thread(target=self._call_until, args=(ended, problems), name="neighbour")
        caller.start()
        try:
            yield
        finally:
            ended.set()
            caller.join()
        assert not problems, f"the neighbour was harmed: {problems[0]}"

    def _call_until(self, ended: threading.Event, problems: list[str]) -> None:
        with platform_at(self._url) as platform:
            last = False
            while not last:
                last = ended.wait(_BETWEEN_CALLS_S)
                try:
                    answer = platform.post(self.NAME)
                except httpx.HTTPError as exc:
                    problems.append(repr(exc))
                    return
                self.calls += 1
                if answer.status_code != 200 or answer.json()["output"] != self.calls:
                    problems.append(f"call {self.calls}: {answer.status_code} {answer.text}")
                    return


def until(condition: Callable[[], object], what: str, limit_s: float = 60) -> None:
    """Wait for something that nothing announces."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.05)


def processes(word: str) -> list[int]:
    """The host's processes that have ``word`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
