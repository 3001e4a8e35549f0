"""The planes as commands of their own: ``comet``, ``corona``, ``nebula``, ``aurora``, ``zenith``; and ``nova daemon``.

Every one takes ``--config`` and ``--pg-dsn``. Without ``--config`` it reads ``configs/nova.json`` of the current directory when
there is one, so that planes started side by side agree. Without a DSN they share the embedded database of their data directory.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nova.cli import serving
from nova.cli.running import Config, DataDir, Dsn, Insecure, Logs, end, load_settings
from nova.config_sources import Loaded
from nova.errors import invalid
from nova.listen import Address, parse
from nova.telemetry import LogFormat

if TYPE_CHECKING:
    from nova.app.process import Process

USUAL_CONFIG = Path("configs/nova.json")
"""What planes read that were started without ``--config``."""
_EVERY_PLANE = {"control", "execution", "scheduling", "events", "observability", "gateway"}

Comets = Annotated[
    str | None,
    typer.Option(
        "--comet-grpc",
        metavar="ADDR[,ADDR…]|auto",
        help="Comets to run calls on; auto: those that registered; default: run calls in this process.",
    ),
]
Health = Annotated[str, typer.Option("--health-addr", metavar="ADDR", help="Where grpc.health.v1 is served.")]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Take the listening socket of the process that serves here, which then drains and ends."
    ),
]


def _load(
    config: Path | None, pg_dsn: str | None, data_dir: Path | None, log_format: LogFormat | None, **more: object
) -> Loaded:
    if config is None and USUAL_CONFIG.is_file():
        config = USUAL_CONFIG
    flags = {"postgres.dsn": pg_dsn, "daemon.data_dir": data_dir, "logging.format": log_format, **more}
    return load_settings(config, flags)


def _address(loaded: Loaded, text: str, insecure: bool) -> Address:
    return parse(text, open_access=loaded.settings.auth.enabled == "false", insecure=insecure)


def _comets(text: str | None) -> list[str] | None:
    """Addresses; none of them for ``auto``, which finds the comets that registered; None when nothing was said."""
    if text is None or text.strip() == "auto":
        return None if text is None else []
    addresses = [part.strip() for part in text.split(",") if part.strip()]
    if not addresses:
        raise invalid("comet-grpc", "host:port, several with commas between, or auto")
    return addresses


def daemon(
    http: Annotated[
        str | None, typer.Option("--http", metavar="ADDR", help="Listen here; default 127.0.0.1:9000.")
    ] = None,
    config: Config = None,
    pg_dsn: Dsn = None,
    data_dir: DataDir = None,
    idle_ttl: Annotated[str | None, typer.Option("--idle-ttl", metavar="60s", help="pool.idle_ttl")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="daemon.log_level")] = None,
    planes: Annotated[
        str | None, typer.Option("--planes", metavar="control", help="control, or all: every plane in this process.")
    ] = None,
    log_format: Logs = None,
    insecure: Insecure = False,
    take_over: TakeOver = False,
) -> None:
    """Serve the control plane, or every plane; daemon.planes says which."""
    wanted = None if planes is None else [] if planes == "all" else planes.split(",")
    loaded = load_settings(
        config,
        {
            "daemon.http_addr": http,
            "postgres.dsn": pg_dsn,
            "daemon.data_dir": data_dir,
            "pool.idle_ttl": idle_ttl,
            "daemon.log_level": log_level,
            "daemon.planes": wanted,
            "logging.format": log_format,
        },
    )
    chosen = set(loaded.settings.daemon.planes)

    def work() -> int:
        if chosen in (set(), _EVERY_PLANE):
            if take_over:
                raise invalid("take-over", "only planes that run apart hand their sockets over")
            return serving.up(loaded, insecure=insecure, demo=False, demo_input=None)
        if chosen != {"control"}:
            raise invalid("daemon.planes", "control, or every plane; the others have commands of their own")
        address = _address(loaded, loaded.settings.daemon.http_addr, insecure)

        def make(talk: serving.Talk) -> "Process":
            from nova.app.control_plane import ControlPlane

            return ControlPlane(loaded, address=address, take_over=take_over, on_progress=talk.step)

        return serving.serve(loaded, "nova", make, warning=address.warning)

    end(work)


def _app(name: str, text: str) -> typer.Typer:
    app = typer.Typer(
        name=name,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=text,
    )
    app.callback()(lambda: None)  # keeps the command's name although it is the only one
    return app


comet_app = _app("comet", "The execution plane of Nova: instances, pools, builds.")
corona_app = _app("corona", "The scheduling plane of Nova: schedules, and instances that stand ready.")
nebula_app = _app("nebula", "The event plane of Nova: asynchronous calls and where their results go.")
aurora_app = _app("aurora", "The observability plane of Nova: metrics, time series, retention.")
zenith_app = _app("zenith", "The door of Nova: every request of a client enters here.")


@comet_app.command("daemon")
def comet_daemon(
    grpc: Annotated[
        str | None, typer.Option("--grpc", metavar="ADDR", help="Listen here; default 127.0.0.1:9090.")
    ] = None,
    config: Config = None,
    pg_dsn: Dsn = None,
    data_dir: DataDir = None,
    log_format: Logs = None,
) -> None:
    """Run functions for the other planes, over gRPC only."""
    loaded = _load(config, pg_dsn, data_dir, log_format, **{"grpc.addr": grpc})

    def make(talk: serving.Talk) -> "Process":
        from nova.app.comet import Comet

        return Comet(loaded, on_progress=talk.step)

    end(lambda: serving.serve(loaded, "comet", make))


@corona_app.command("daemon")
def corona_daemon(
    comet_grpc: Comets = None,
    config: Config = None,
    pg_dsn: Dsn = None,
    data_dir: DataDir = None,
    log_format: Logs = None,
    health_addr: Health = "127.0.0.1:9003",
) -> None:
    """Fire schedules and keep instances ready. Two of them share the work: one leads, the other stands by."""
    loaded = _load(config, pg_dsn, data_dir, log_format)

    def make(talk: serving.Talk) -> "Process":
        from nova.app.workers import Corona

        return Corona(loaded, comets=_comets(comet_grpc), health=health_addr, on_progress=talk.step)

    end(lambda: serving.serve(loaded, "corona", make))


@nebula_app.command("daemon")
def nebula_daemon(
    comet_grpc: Comets = None,
    config: Config = None,
    pg_dsn: Dsn = None,
    data_dir: DataDir = None,
    log_format: Logs = None,
    health_addr: Health = "127.0.0.1:9004",
) -> None:
    """Run asynchronous calls and deliver their results. As many of them as wanted."""
    loaded = _load(config, pg_dsn, data_dir, log_format)

    def make(talk: serving.Talk) -> "Process":
        from nova.app.workers import Nebula

        return Nebula(loaded, comets=_comets(comet_grpc), health=health_addr, on_progress=talk.step)

    end(lambda: serving.serve(loaded, "nebula", make))


@aurora_app.command("daemon")
def aurora_daemon(
    listen: Annotated[str, typer.Option("--listen", metavar="ADDR", help="Listen here.")] = "127.0.0.1:9002",
    config: Config = None,
    pg_dsn: Dsn = None,
    data_dir: DataDir = None,
    log_format: Logs = None,
    insecure: Insecure = False,
) -> None:
    """Serve Prometheus metrics of all planes, keep time series, and delete what is past its retention."""
    loaded = _load(config, pg_dsn, data_dir, log_format)

    def work() -> int:
        address = _address(loaded, listen, insecure)

        def make(talk: serving.Talk) -> "Process":
            from nova.app.aurora import Aurora

            return Aurora(loaded, address=address, on_progress=talk.step)

        return serving.serve(loaded, "aurora", make, warning=address.warning)

    end(work)


@zenith_app.command("serve")
def zenith_serve(
    listen: Annotated[str, typer.Option("--listen", metavar="ADDR", help="Listen here.")] = "127.0.0.1:9000",
    nova_url: Annotated[
        str, typer.Option("--nova-url", metavar="URL", help="The control plane.")
    ] = "http://127.0.0.1:9001",
    comet_grpc: Annotated[
        str, typer.Option("--comet-grpc", metavar="ADDR[,ADDR…]|auto", help="The comets; auto: those that registered.")
    ] = "127.0.0.1:9090",
    config: Config = None,
    pg_dsn: Dsn = None,
    data_dir: DataDir = None,
    log_format: Logs = None,
    insecure: Insecure = False,
    take_over: TakeOver = False,
) -> None:
    """Answer clients: calls go to a comet, everything else to the plane that owns it."""
    loaded = _load(config, pg_dsn, data_dir, log_format)

    def work() -> int:
        address = _address(loaded, listen, insecure)

        def make(talk: serving.Talk) -> "Process":
            from nova.app.zenith import Zenith

            return Zenith(
                loaded,
                address=address,
                nova_url=nova_url,
                comets=_comets(comet_grpc),
                take_over=take_over,
                on_progress=talk.step,
            )

        return serving.serve(loaded, "zenith", make, warning=address.warning)

    end(work)


def comet() -> None:
    comet_app()


def corona() -> None:
    corona_app()


def nebula() -> None:
    nebula_app()


def aurora() -> None:
    aurora_app()


def zenith() -> None:
    zenith_app()
