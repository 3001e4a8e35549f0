"""The public HTTP API as the benchmark uses it: deploying, deleting, and asking about jobs and nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx

from bench.driving import Target

BUILD_LIMIT_S = 120.0
POLL_S = 0.02
FUNCTIONS = Path(__file__).parent.parent / "functions"


class ApiError(Exception):
    """The API refused something the benchmark needs."""


@dataclass(frozen=True, slots=True)
class Language:
    runtime: str
    handler: str
    source: str

    def numbered(self, number: int) -> str:
        """The source of one of many functions that differ in code and in answer."""
        return self.source.replace("WHICH = 0", f"WHICH = {number}")


def python(file: str) -> Language:
    return Language("python", "main.handler", (FUNCTIONS / file).read_text())


PYTHON = python("hello.py")
NODE = Language("node", "index.handler", (FUNCTIONS / "hello.js").read_text())


class Control:
    """A client of one platform at ``port`` of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._api = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def close(self) -> None:
        self._api.close()

    def deploy(
        self,
        name: str,
        language: Language,
        *,
        number: int = 0,
        mode: str = "persistent",
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> Target:
        """Create the function, wait until it can be called, and say how. ApiError when that does not happen."""
        body = {
            "name": name,
            "runtime": language.runtime,
            "handler": language.handler,
            "code": language.numbered(number),
            "mode": mode,
            "memory_mb": 128,
            "timeout_s": 30,
            **more,
        }
        self._built(name, self.call("POST", "/functions", 201, body, headers=headers), headers)
        return Target(self._port, f"/functions/{name}/invoke", f'"which":{number}')

    def redeploy(self, name: str, language: Language, number: int) -> None:
        """Give a function other code, and wait until it can be called."""
        changed = self.call("PATCH", f"/functions/{name}", 200, {"code": language.numbered(number)})
        self._built(name, changed)

    def _built(self, name: str, seen: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        deadline = monotonic() + BUILD_LIMIT_S
        while seen["compile_status"] not in ("success", "not_required"):
            if seen["compile_status"] == "failed" or monotonic() > deadline:
                raise ApiError(f"{name} is {seen['compile_status']}: {seen.get('compile_error')}")
            sleep(POLL_S)
            seen = self.call("GET", f"/functions/{name}", 200, headers=headers)

    def delete(self, name: str) -> None:
        self.call("DELETE", f"/functions/{name}", 204)

    def accepting(self, name: str) -> Target:
        """How the function is called without waiting for its result."""
        path = f"/functions/{name}/invoke-async"
        return Target(self._port, path, '"invocation_id"', body='{"payload":{"name":"bench"}}', status=202)

    def jobs(self) -> dict[str, Any]:
        """How many jobs there are of each status."""
        return self.call("GET", "/async-invocations/summary", 200)

    def await_jobs(self, limit_s: float) -> dict[str, Any]:
        """The same, once none waits or runs. ApiError when that takes longer than ``limit_s``."""
        if left := self.drained(limit_s):
            raise ApiError(f"{left} jobs wait or run after {limit_s:.0f} s")
        return self.jobs()

    def drained(self, limit_s: float) -> int:
        """How many jobs wait or run, as soon as there are none, or after ``limit_s``."""
        deadline = monotonic() + limit_s
        while True:
            seen = self.jobs()
            left: int = seen["queued"] + seen["running"]
            if not left or monotonic() > deadline:
                return left
            sleep(POLL_S)

    def stats(self) -> dict[str, Any]:
        """What there is of instances and calls."""
        return self.call("GET", "/stats", 200)

    def nodes(self, plane: str) -> list[dict[str, Any]]:
        """The active processes of a plane."""
        found: list[dict[str, Any]] = self.call("GET", f"/cluster/nodes?plane={plane}&state=active", 200)["items"]
        return found

    def call(
        self,
        method: str,
        path: str,
        status: int,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """One request; ApiError for any other status."""
        try:
            answer = self._api.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise ApiError(f"{method} {path}: {error!r}") from error
        if answer.status_code != status:
            raise ApiError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found
