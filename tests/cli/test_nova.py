"""The nova command as a process: starting, refusing to start, ending, and the demo."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from nova.config import KEYS
from tests.e2e.server import NOVA, NovaServer, RunningNova, clean_environment


def nova(*arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NOVA, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**clean_environment(), **environment},
        stdin=subprocess.DEVNULL,
    )


def test_a_second_server_on_the_directory_is_refused(nova_up: NovaServer) -> None:
    second = nova("up", "--http", "127.0.0.1:0", "--data-dir", str(nova_up.data_dir))
    assert second.returncode == 1
    assert f"another nova (process {nova_up.pid}) is running on" in second.stderr
    assert "--data-dir" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_is_said_before_anything_is_started(nova_up: NovaServer, tmp_path: Path) -> None:
    other = nova("up", "--http", nova_up.address, "--data-dir", str(tmp_path / "data"))
    assert other.returncode == 1
    assert f"cannot listen on {nova_up.address}" in other.stderr
    assert "Traceback" not in other.stderr
    assert not (tmp_path / "data" / "postgres").exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--config", "{file}"), {}, "pool.idle_tll: no such setting; did you mean pool.idle_ttl?"),
        ((), {"NOVA_POOL_FROB": "1"}, "NOVA_POOL_FROB: no such setting"),
        (("--http", "nowhere"), {}, "is not an address"),
        (("--backend", "lxc"), {}, "execution.backend"),
        (("--http", "0.0.0.0:0"), {"NOVA_AUTH_ENABLED": "false"}, "--insecure"),
        (("--frob",), {}, "No such option"),
    ],
)
def test_a_setting_that_cannot_be_meant_ends_with_its_name(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    file = tmp_path / "nova.yaml"
    file.write_text("pool: {idle_tll: 5s}\n")
    refused = nova("up", "--data-dir", str(tmp_path / "data"), *(a.format(file=file) for a in arguments), **environment)
    assert refused.returncode == 2
    assert message in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_quietly(tmp_path: Path, number: signal.Signals) -> None:
    with RunningNova(tmp_path / "data") as running:
        assert running.stop(number) == 0
    assert "Traceback" not in running.log.read_text()
    records = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert "ready" in [record["msg"] for record in records]


def test_an_interrupt_while_starting_leaves_nothing_behind(tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = subprocess.Popen(
        [NOVA, "up", "--http", "127.0.0.1:0", "--data-dir", str(data)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    with process:
        assert process.stderr is not None
        assert "starting the database" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert not (data / "postgres" / "postmaster.pid").exists()


def test_the_demo_deploys_and_calls_every_example_twice_the_same(tmp_path: Path) -> None:
    with RunningNova(tmp_path / "data") as running:
        first = demo(running.url)
        assert first.returncode == 0, first.stdout + first.stderr
        for name in ("thumbnail", "csv-stats", "word-count", "guestbook", "sysinfo", "rot13"):
            assert name in first.stdout
        assert "980×560 PNG → 96×55" in first.stdout
        curl = next(line for line in first.stdout.splitlines() if "curl -s" in line).partition("curl -s")[2]
        answer = subprocess.run(["sh", "-c", "curl -s" + curl], capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["output"]["words"] == 6
        own = tmp_path / "mine.txt"
        own.write_text("one two two")
        second = demo(running.url, "--input", str(own))
        assert "3 words, 2 distinct" in second.stdout
        assert second.stdout.count("unchanged") == 6
        unfit = demo(running.url, "--input", str(tmp_path))
        assert (unfit.returncode, "no example takes" in unfit.stderr) == (2, True)


def demo(url: str, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(NOVA).parent / "python"), "-m", "nova.cli.demo", url, *more]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, env=clean_environment())


def test_the_demo_of_a_server_that_is_gone_fails() -> None:
    gone = demo("http://127.0.0.1:1")
    assert gone.returncode == 1
    assert "no server answers" in gone.stdout
    assert "Traceback" not in gone.stderr


def test_doctor_finds_what_this_machine_has(tmp_path: Path) -> None:
    found = nova("doctor", "--data-dir", str(tmp_path), "--http", "127.0.0.1:0", "-o", "json")
    assert found.returncode == 0
    by_name = {finding["name"]: finding for finding in json.loads(found.stdout)}
    assert by_name["python"]["standing"] == "ok"
    assert by_name["PostgreSQL"]["detail"].startswith("embedded")
    assert by_name["isolation"]["standing"] == "ok"


def test_doctor_names_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        dsn = "host=127.0.0.1 port=1 dbname=x"
        found = nova("doctor", "--data-dir", str(file), "--http", address, "--pg-dsn", dsn, "-o", "json")
    assert found.returncode == 1
    missing = {f["name"]: f["fix"] for f in json.loads(found.stdout) if f["standing"] == "missing"}
    assert set(missing) == {"PostgreSQL", "data directory", "address"}
    assert all(missing.values())


def test_config_show_tells_every_key_and_its_source(tmp_path: Path) -> None:
    file = tmp_path / "nova.yaml"
    file.write_text("pool: {idle_ttl: 5m}\npostgres: {dsn: host=secret-host}\n")
    shown = nova("config", "show", "--config", str(file), "-o", "json", NOVA_LOG_LEVEL="debug")
    assert shown.returncode == 0
    rows = {row["key"]: row for row in json.loads(shown.stdout)}
    assert set(rows) == set(KEYS)
    assert rows["pool.idle_ttl"] == {"key": "pool.idle_ttl", "value": 300.0, "source": "file", "default": 60.0}
    assert (rows["daemon.log_level"]["value"], rows["daemon.log_level"]["source"]) == ("debug", "env")
    assert "secret-host" not in shown.stdout
    changed = nova("config", "show", "--config", str(file), "--changed")
    assert "pool.idle_ttl" in changed.stdout
    assert "pool.max_queue_depth" not in changed.stdout


def test_migrate_says_what_is_due_and_does_it(empty_dsn: str) -> None:
    due = nova("migrate", "--pg-dsn", empty_dsn, "--check")
    assert (due.returncode, "due: 0001 foundation" in due.stdout) == (1, True)
    assert nova("migrate", "--pg-dsn", empty_dsn).returncode == 0
    again = nova("migrate", "--pg-dsn", empty_dsn, "--check")
    assert (again.returncode, again.stdout) == (0, "the schema is up to date\n")
    unreachable = nova("migrate", "--pg-dsn", "host=127.0.0.1 port=1 dbname=x")
    assert (unreachable.returncode, "Traceback" in unreachable.stderr) == (1, False)


def test_version() -> None:
    assert nova("version").stdout == "0.1.0\n"


def test_a_server_told_to_go_while_it_gets_ready_ends_in_order(tmp_path: Path) -> None:
    """Told at the moment at which its database is there: nothing of it may be left, or the next start meets it."""
    data = tmp_path / "data"
    with subprocess.Popen(
        [NOVA, "up", "--http", "127.0.0.1:0", "--data-dir", str(data)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as process:
        assert process.stderr is not None
        assert any("preparing the sandbox" in line for line in process.stderr)
        process.terminate()
        said = process.stderr.read()
        assert process.wait(30) == 0, said
    assert not (data / "postgres" / "postmaster.pid").exists()
