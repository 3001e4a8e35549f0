"""Real brokers for tests: each a child process on loopback with its data in a folder of its own, stopped by its pid.

They keep what they have acknowledged, so :meth:`Broker.kill` and :meth:`Broker.start` are a crash and a recovery.
"""

import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import pytest

from tests.e2e.server import free_port

UP_LIMIT_S = 60
STOP_LIMIT_S = 20
_RABBIT = "/usr/lib/rabbitmq/lib"


class Broker(ABC):
    """One server; a context manager. ``port`` stays the same over restarts."""

    program: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.tls_port = free_port()
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        _make_certificate(self.certificate, self.key)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, with what they log in with."""

    @abstractmethod
    def argv(self) -> list[str]:
        """The command that starts it, in the foreground."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> None:
        """Start it, or start it again, and wait until it accepts connections."""
        self._process = self._spawn(self.argv(), self.environment())
        deadline = time.monotonic() + UP_LIMIT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"{self.program} ended:\n{self.tail()}")
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", self.port), timeout=1)):
                return
            time.sleep(0.02)
        raise AssertionError(f"{self.program} was not up within {UP_LIMIT_S} s:\n{self.tail()}")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])

    def _spawn(self, argv: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.folder
            )

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class Redis(Broker):
    """With a password and an append-only file."""

    program = "redis-server"

    @property
    def url(self) -> str:
        return f"redis://:pa55@127.0.0.1:{self.port}/0"

    def argv(self) -> list[str]:
        options = {"port": str(self.port), "bind": "127.0.0.1", "requirepass": "pa55", "dir": str(self.folder)}
        options |= {"appendonly": "yes", "save": "", "tls-port": str(self.tls_port), "tls-auth-clients": "no"}
        options |= {"tls-cert-file": str(self.certificate), "tls-key-file": str(self.key)}
        options |= {"tls-ca-cert-file": str(self.certificate)}
        return [self.program, *(word for name, value in options.items() for word in (f"--{name}", value))]


class Nats(Broker):
    """With JetStream in files, and one user."""

    program = "nats-server"

    @property
    def url(self) -> str:
        return f"nats://nova:pa55@127.0.0.1:{self.port}"

    def argv(self) -> list[str]:
        where = ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder / "js")]
        return [self.program, *where, "--user", "nova", "--pass", "pa55"]


class NatsTls(Nats):
    """Speaks TLS and nothing else."""

    @property
    def url(self) -> str:
        return f"tls://nova:pa55@127.0.0.1:{self.port}"

    def argv(self) -> list[str]:
        return [*super().argv(), "--tls", "--tlscert", str(self.certificate), "--tlskey", str(self.key)]


class Mosquitto(Broker):
    """Keeps sessions and queued messages, and writes them down when told to (:meth:`save`)."""

    program = "mosquitto"

    @property
    def url(self) -> str:
        return f"mqtt://nova:pa55@127.0.0.1:{self.port}"

    def argv(self) -> list[str]:
        passwords = self.folder / "passwords"
        if not passwords.exists():
            passwords.touch(mode=0o600)
            subprocess.run(["mosquitto_passwd", "-b", str(passwords), "nova", "pa55"], check=True)
        lines = [f"listener {self.port} 127.0.0.1", f"password_file {passwords}", "allow_anonymous false"]
        lines += [f"user {_user()}", "persistence true", f"persistence_location {self.folder}/"]
        lines += ["autosave_interval 0", "max_queued_messages 0"]
        lines += [f"listener {self.tls_port} 127.0.0.1", f"certfile {self.certificate}", f"keyfile {self.key}"]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        return [self.program, "-c", str(config)]

    def save(self) -> None:
        """What it has now outlives a kill."""
        file = self.folder / "mosquitto.db"
        before = file.stat().st_mtime_ns if file.exists() else 0
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + STOP_LIMIT_S
        while not file.exists() or file.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline, f"mosquitto wrote nothing:\n{self.tail()}"
            time.sleep(0.01)


class RabbitMQ(Broker):
    """A node of its own with a port mapper of its own: nothing of the machine's installation is touched."""

    program = "rabbitmq-server"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._mapper_port = free_port()
        self._dist_port = free_port()
        self._mapper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def argv(self) -> list[str]:
        if self._mapper is None or self._mapper.poll() is not None:
            mapper = ["epmd", "-port", str(self._mapper_port), "-address", "127.0.0.1"]
            self._mapper = self._spawn(mapper, dict(os.environ))
        versions = sorted(Path(_RABBIT).glob("rabbitmq_server-*/sbin/rabbitmq-server"))
        assert versions, "rabbitmq-server is not installed"
        return [str(versions[-1])]

    def environment(self) -> dict[str, str]:
        folder = self.folder
        (folder / "env.conf").touch()
        (folder / "plugins").write_text("[].\n")
        lines = [f"listeners.tcp.default = 127.0.0.1:{self.port}", "log.console = true", "log.file = false"]
        lines += ["vm_memory_high_watermark.absolute = 400MB", "disk_free_limit.absolute = 10MB"]
        lines += [f"listeners.ssl.default = 127.0.0.1:{self.tls_port}", "ssl_options.verify = verify_none"]
        lines += [f"ssl_options.cacertfile = {self.certificate}", f"ssl_options.certfile = {self.certificate}"]
        lines += [f"ssl_options.keyfile = {self.key}"]
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        return os.environ | {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -start_epmd false",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The script then becomes the server instead of waiting for it: our pid is the server's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()


_B = TypeVar("_B", bound=Broker)


def _make_certificate(certificate: Path, key: Path) -> None:
    """For 127.0.0.1, and its own authority."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=nova test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)


def _user() -> str:
    """Mosquitto as root would become somebody who cannot read the test's folder."""
    return "root" if os.geteuid() == 0 else str(os.geteuid())


def _running(kind: type[_B], factory: pytest.TempPathFactory) -> Iterator[_B]:
    with kind(factory.mktemp(kind.__name__.lower())) as broker:
        yield broker


@pytest.fixture(scope="session")
def redis_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    yield from _running(Redis, tmp_path_factory)


@pytest.fixture(scope="session")
def nats_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    yield from _running(Nats, tmp_path_factory)


@pytest.fixture(scope="session")
def mqtt_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    yield from _running(Mosquitto, tmp_path_factory)


@pytest.fixture(scope="session")
def rabbit_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    yield from _running(RabbitMQ, tmp_path_factory)
