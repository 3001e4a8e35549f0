"""A PostgreSQL server that no subject starts: the embedded one, on a directory of its own, with its usual settings."""

from pathlib import Path
from types import TracebackType
from typing import Self

from bench.processes import ServerFailed
from nova.store.embedded import EmbeddedPostgres


class Postgres:
    """Runs inside the ``with`` block; ServerFailed when it does not start."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedPostgres(folder)

    @property
    def dsn(self) -> str:
        return self._server.dsn

    def __enter__(self) -> Self:
        try:
            self._server.start()
        except (RuntimeError, OSError) as error:
            raise ServerFailed(f"PostgreSQL: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop()
