"""A package index of the test's own: it knows one package, and answers only when it is let."""

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

PACKAGE = "nova-test-greeting"
WHEEL = "nova_test_greeting-1.0-py3-none-any.whl"
USING_IT = "import nova_test_greeting\ndef handler(event):\n    return nova_test_greeting.TEXT\n"
TEXT = "hello from a dependency"


class Index:
    """``asked`` is set by the first request; nothing is answered until ``open`` is."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/simple"
        self.asked = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.paths: list[str] = []

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Servers that are started from now on install from here, and from nowhere else."""
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CERT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", self.url)


@contextmanager
def package_index() -> Iterator[Index]:
    wheel = _wheel()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.paths.append(self.path)
            index.asked.set()
            index.open.wait(60)
            if self.path == f"/simple/{PACKAGE}/":
                self._answer(200, "text/html", f'<a href="/{WHEEL}">{WHEEL}</a>'.encode())
            elif self.path == f"/{WHEEL}":
                self._answer(200, "application/octet-stream", wheel)
            else:
                self._answer(404, "text/plain", b"there is no such package")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                return  # who asked has been killed

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        index = Index(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield index
        finally:
            index.open.set()
            server.shutdown()
            thread.join()


def _wheel() -> bytes:
    info = "nova_test_greeting-1.0.dist-info"
    files = {
        "nova_test_greeting.py": f"TEXT = {TEXT!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_digest(text)},{len(text)}\n" for name, text in files.items()]
    files[f"{info}/RECORD"] = "".join(record) + f"{info}/RECORD,,\n"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return data.getvalue()


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
