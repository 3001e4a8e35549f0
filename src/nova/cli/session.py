"""What every orbit command shares: the global options, the profile they fall back on, the client and the output."""

import functools
import inspect
import os
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from nova.cli.output import Format, Output
from nova.client import DEFAULT_SERVER, Client

P = ParamSpec("P")
_PANEL = "Global options"
_PREFIX = "global_"
"""Of the parameters' names, so that a command may have one called ``tenant`` too."""


class CliError(Exception):
    """A failure with a message for the user and the exit code that goes with it."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(slots=True)
class Options:
    """The global options as given on the command line; None and False mean not given."""

    server: str | None = None
    api_key: str | None = None
    tenant: str | None = None
    namespace: str | None = None
    profile: str | None = None
    output: Format | None = None
    query: str | None = None
    yes: bool = False
    quiet: bool = False
    no_color: bool = False
    timeout: float | None = None

    def over(self, other: "Options") -> "Options":
        """These options, and the other's where these say nothing."""
        return Options(**{f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)})


_DECLARED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "server": (str | None, "--server", {"metavar": "URL", "help": f"Nova's address (ZENITH_URL; {DEFAULT_SERVER})."}),
    "api_key": (str | None, "--api-key", {"metavar": "KEY", "help": "API key (NOVA_API_KEY)."}),
    "tenant": (str | None, "--tenant", {"metavar": "NAME", "help": "Tenant to act in (NOVA_TENANT)."}),
    "namespace": (str | None, "--namespace", {"metavar": "NAME", "help": "Namespace to act in (NOVA_NAMESPACE)."}),
    "profile": (str | None, "--profile", {"metavar": "NAME", "help": "Profile of orbit.toml (NOVA_PROFILE)."}),
    "output": (Format | None, "-o --output", {"help": "How results are printed."}),
    "query": (str | None, "--query", {"metavar": "JMESPATH", "help": "Print only this part of the result."}),
    "yes": (bool, "--yes -y", {"help": "Do not ask before deleting."}),
    "quiet": (bool, "--quiet", {"help": "No progress, no hints."}),
    "no_color": (bool, "--no-color", {"help": "No colours (NO_COLOR)."}),
    "timeout": (
        float | None,
        "--timeout",
        {"metavar": "SECONDS", "min": 0.001, "help": "How long to wait for an answer; of invoke: for the function."},
    ),
}


def global_parameters(*, hidden: bool) -> list[inspect.Parameter]:
    """The global options as parameters of a Typer function."""
    return [
        inspect.Parameter(
            _PREFIX + name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if kind is bool else None,
            annotation=Annotated[kind, typer.Option(*flags.split(), hidden=hidden, rich_help_panel=_PANEL, **more)],
        )
        for name, (kind, flags, more) in _DECLARED.items()
    ]


class Session:
    """One run of the command line."""

    def __init__(self, options: Options, environ: dict[str, str] | None = None) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        profile = self._profile(options.profile)
        env = {name: self._environ.get(variable) for name, variable in _VARIABLES.items()}
        self.options = options.over(Options(**env)).over(profile)  # type: ignore[arg-type]
        self.server = self.options.server or DEFAULT_SERVER
        no_color = self.options.no_color or bool(self._environ.get("NO_COLOR"))
        self.out = Output(
            self.options.output or Format.TABLE, self.options.query, no_color=no_color, quiet=self.options.quiet
        )
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            chosen = self.options
            self._client = Client(self.server, chosen.api_key, chosen.tenant, chosen.namespace, timeout=chosen.timeout)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def confirm(self, question: str) -> None:
        """Ask before something that cannot be undone. Without a terminal only ``--yes`` is an answer."""
        if self.options.yes:
            return
        if not self.out.interactive:
            raise CliError(f"{question} Say --yes to go on.", 2)
        if not typer.confirm(question, err=True):
            raise CliError("nothing was done")

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def _profile(self, named: str | None) -> Options:
        home = Path(self._environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        file = home / "nova" / "orbit.toml"
        name = named or self._environ.get("NOVA_PROFILE")
        try:
            content = tomllib.loads(file.read_text())
        except FileNotFoundError:
            if name:
                raise CliError(f"profile {name!r}: there is no {file}", 2) from None
            return Options()
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise CliError(f"{file}: {exc}", 2) from None
        return _read_profile(file, content, name)


_VARIABLES = {
    "server": "ZENITH_URL",
    "api_key": "NOVA_API_KEY",
    "tenant": "NOVA_TENANT",
    "namespace": "NOVA_NAMESPACE",
}
_PROFILE_KEYS = ("server", "api_key", "tenant", "namespace", "output")


def _read_profile(file: Path, content: dict[str, Any], name: str | None) -> Options:
    """``default = "name"`` and one table ``[profiles.name]`` each."""
    for key in content:
        if key not in ("default", "profiles"):
            raise CliError(f"{file}: {key!r} is not known; there are: default, profiles", 2)
    profiles = content.get("profiles", {})
    name = name or content.get("default")
    if name is None:
        return Options()
    if not isinstance(profiles, dict) or not isinstance(profiles.get(name), dict):
        raise CliError(f"{file}: there is no profile {name!r}", 2)
    values: dict[str, Any] = dict(profiles[name])
    for key, value in values.items():
        if key not in _PROFILE_KEYS or not isinstance(value, str):
            raise CliError(f"{file}: profiles.{name}.{key} is not one of: {', '.join(_PROFILE_KEYS)} (text)", 2)
    if "output" in values:
        if values["output"] not in list(Format):
            raise CliError(f"{file}: profiles.{name}.output is not one of: {', '.join(Format)}", 2)
        values["output"] = Format(values["output"])
    return Options(**values)


def command(function: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Make a Typer command of a function whose first parameter is the session.

    The command takes the global options too, so that they may stand before and after its name.
    """
    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    own = [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    shared = global_parameters(hidden=True)

    @functools.wraps(function)
    def run(*, ctx: typer.Context, **given: Any) -> None:
        after = _options({p.name: given.pop(p.name) for p in shared})
        before = ctx.find_root().obj
        session = Session(after.over(before) if isinstance(before, Options) else after)
        try:
            function(session, **given)  # type: ignore[call-arg]  # the signature above is what Typer fills in
        finally:
            session.close()

    parameters = [context, *own, *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def root(ctx: typer.Context, **given: Any) -> None:
    ctx.obj = _options(given)


def _options(given: dict[str, Any]) -> Options:
    return Options(**{name.removeprefix(_PREFIX): value for name, value in given.items()})


_parameters = [
    inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
    *global_parameters(hidden=False),
]
root.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]
root.__annotations__ = {p.name: p.annotation for p in _parameters}
