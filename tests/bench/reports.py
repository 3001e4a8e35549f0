"""Reports made by hand, for the tests of tables and comparison."""

from bench.model import Bar, Machine, Report, Row


def row(value: float, rounds: list[float] | None = None, *, subject: str = "nova", limit: float = 400) -> Row:
    return Row(
        measure="warm_latency",
        metric="p50",
        subject=subject,
        value=value,
        unit="µs",
        better="lower",
        bar=Bar(limit=limit) if subject == "nova" else None,
        rounds=rounds or [],
    )


def report(*rows: Row, cores: int = 2) -> Report:
    machine = Machine(
        cpu="a processor", cores=cores, memory_mb=1024, kernel="6.1", system="Debian", python="3.11.2", load_before=0
    )
    return Report(
        taken_at="2026-01-01T00:00:00+00:00",
        revision="abc",
        quick=False,
        crowd_driver="wrk",
        machine=machine,
        subjects={"nova": "0.1.0"},
        rows=list(rows),
    )
