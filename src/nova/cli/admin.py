"""orbit's nouns for who may act and where: keys, tenants, namespaces."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from nova.cli import lists
from nova.cli.output import Column, status, when
from nova.cli.session import CliError, Session, command
from nova.client import Json
from nova.config import seconds

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="The key's name.", show_default=False)]
TenantId = Annotated[str, typer.Argument(metavar="TENANT", show_default=False)]
SpaceName = Annotated[str, typer.Argument(metavar="NAMESPACE", show_default=False)]
Expires = Annotated[str | None, typer.Option("--expires", metavar="IN", help="Valid for: 12h, 30d.")]
Allow = Annotated[list[str] | None, typer.Option("--ip-allow", metavar="NET", help="Only from there. Repeatable.")]
Tier = Annotated[str | None, typer.Option("--tier", help="Rate limit tier.")]
Description = Annotated[str | None, typer.Option("--description")]
Body = Annotated[
    str | None, typer.Option("--file", "-f", metavar="FILE", help="Fields in YAML or JSON; - is stdin. Options win.")
]

KEY_COLUMNS = (
    Column("name", "name"),
    Column("prefix", "prefix"),
    Column("may", lambda k: ", ".join(map(_grant, k["permissions"]))),
    Column("enabled", "enabled"),
    Column("expires", when("expires_at")),
    Column("last used", when("last_used_at")),
    Column("namespaces", "namespaces", wide=True),
    Column("from", "ip_allow", wide=True),
    Column("tier", "tier", wide=True),
    Column("created by", "created_by", wide=True),
    Column("description", "description", wide=True),
)

TENANT_COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("status", status("status")),
    Column("tier", "tier"),
    Column("created", when("created_at")),
)

SPACE_COLUMNS = (
    Column("name", "name"),
    Column("description", "description"),
    Column("created", when("created_at")),
)


def _grant(permission: Json) -> str:
    deny = "not " if permission["effect"] == "deny" else ""
    on = f" on {' '.join(permission['functions'])}" if permission["functions"] else ""
    return f"{deny}{permission['role']}{on}"


def _body(file: str | None, **options: Any) -> Json:
    """The fields of a request: those of the file, and over them the options that were given."""
    fields: Any = {}
    if file is not None:
        try:
            fields = yaml.safe_load(sys.stdin.read() if file == "-" else Path(file).read_text())  # JSON is YAML
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            raise CliError(f"{file}: {exc}", 2) from None
        if not isinstance(fields, dict):
            raise CliError(f"{file}: fields are expected", 2)
    return {**fields, **{name: value for name, value in options.items() if value is not None}}


def _moment(after: str | None) -> str | None:
    if after is None:
        return None
    try:
        return (datetime.now(UTC) + timedelta(seconds=seconds(after))).isoformat()
    except (ValueError, OverflowError) as exc:
        raise CliError(f"--expires: {exc}", 2) from None


@command
def list_keys(session: Session, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """API keys of the tenant."""
    page = lists.fetch(session.client, "apikey.list", limit=limit, everything=everything)
    session.out.items(page, KEY_COLUMNS, empty="no keys")


@command
def get_key(session: Session, name: KeyName) -> None:
    """One key, without its text."""
    session.out.item(session.client.call("apikey.get", {"name": name}))


@command
def create_key(
    session: Session,
    name: KeyName,
    role: Annotated[list[str] | None, typer.Option("--role", help="viewer, invoker, developer … Repeatable.")] = None,
    function: Annotated[
        list[str] | None, typer.Option("--function", metavar="GLOB", help="Roles count for these only. Repeatable.")
    ] = None,
    within: Annotated[
        list[str] | None, typer.Option("--within", metavar="NAMESPACE", help="Only in these. Repeatable.")
    ] = None,
    expires: Expires = None,
    ip_allow: Allow = None,
    tier: Tier = None,
    description: Description = None,
    file: Body = None,
) -> None:
    """Create a key and print it: it is shown this once."""
    grants = [{"role": each, "functions": function or []} for each in role or []]
    body = _body(
        file,
        name=name,
        permissions=grants or None,
        namespaces=within or None,
        expires_at=_moment(expires),
        ip_allow=ip_allow or None,
        tier=tier,
        description=description,
    )
    if not body.get("permissions"):
        raise CliError("a key without a role may do nothing: say --role, or give permissions by -f", 2)
    _show_secret(session, session.client.call("apikey.create", body=body))


@command
def update_key(
    session: Session,
    name: KeyName,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable")] = None,
    expires: Expires = None,
    ip_allow: Allow = None,
    tier: Tier = None,
    description: Description = None,
    file: Body = None,
) -> None:
    """Change what a key may do, from where and until when."""
    body = _body(
        file,
        enabled=enabled,
        expires_at=_moment(expires),
        ip_allow=ip_allow or None,
        tier=tier,
        description=description,
    )
    if not body:
        raise CliError("say what to change", 2)
    session.out.item(session.client.call("apikey.patch", {"name": name}, body=body))


@command
def rotate_key(
    session: Session,
    name: KeyName,
    grace: Annotated[
        str | None, typer.Option("--grace", metavar="FOR", help="The old key stays good: 10m, 7d.")
    ] = None,
) -> None:
    """Replace a key's secret and print the new key."""
    try:
        body = {} if grace is None else {"grace_s": int(seconds(grace))}
    except ValueError as exc:
        raise CliError(f"--grace: {exc}", 2) from None
    _show_secret(session, session.client.call("apikey.rotate", {"name": name}, body=body))


def _show_secret(session: Session, key: Json) -> None:
    if not session.out.for_people:
        session.out.item(key)
        return
    session.out.line(key["key"])
    session.out.note("this is the only time the key is shown; use it as NOVA_API_KEY or --api-key")


@command
def delete_key(session: Session, name: KeyName) -> None:
    """Delete a key; it stops working at once."""
    session.confirm(f"Delete the key {name}?")
    session.client.call("apikey.delete", {"name": name})
    session.out.done(f"deleted the key {name}")


@command
def list_tenants(session: Session, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """Tenants."""
    page = lists.fetch(session.client, "tenant.list", limit=limit, everything=everything)
    session.out.items(page, TENANT_COLUMNS, name="id")


@command
def get_tenant(session: Session, tenant: TenantId) -> None:
    """One tenant."""
    session.out.item(session.client.call("tenant.get", {"t": tenant}), name="id")


@command
def create_tenant(
    session: Session,
    tenant: TenantId,
    name: Annotated[str | None, typer.Option("--name", help="For people; default: the id.")] = None,
    tier: Tier = None,
) -> None:
    """Create a tenant with a namespace called default."""
    session.out.item(session.client.call("tenant.create", body=_body(None, id=tenant, name=name, tier=tier)), name="id")


@command
def update_tenant(
    session: Session,
    tenant: TenantId,
    suspended: Annotated[bool | None, typer.Option("--suspend/--resume")] = None,
    name: Annotated[str | None, typer.Option("--name")] = None,
    tier: Tier = None,
) -> None:
    """Suspend or resume a tenant, rename it, change its tier."""
    state = None if suspended is None else "suspended" if suspended else "active"
    body = _body(None, status=state, name=name, tier=tier)
    if not body:
        raise CliError("say what to change", 2)
    session.out.item(session.client.call("tenant.patch", {"t": tenant}, body=body), name="id")


@command
def delete_tenant(session: Session, tenant: TenantId) -> None:
    """Delete a tenant with everything in it."""
    session.confirm(f"Delete the tenant {tenant} with everything in it?")
    session.client.call("tenant.delete", {"t": tenant})
    session.out.done(f"deleted the tenant {tenant}")


def _tenant(session: Session) -> str:
    return session.options.tenant or "default"


@command
def list_namespaces(session: Session, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """Namespaces of the tenant."""
    page = lists.fetch(session.client, "namespace.list", {"t": _tenant(session)}, limit=limit, everything=everything)
    session.out.items(page, SPACE_COLUMNS)


@command
def get_namespace(session: Session, name: SpaceName) -> None:
    """One namespace."""
    session.out.item(session.client.call("namespace.get", {"t": _tenant(session), "ns": name}))


@command
def create_namespace(session: Session, name: SpaceName, description: Description = None) -> None:
    """Create a namespace in the tenant."""
    body = _body(None, name=name, description=description)
    session.out.item(session.client.call("namespace.create", {"t": _tenant(session)}, body=body))


@command
def update_namespace(
    session: Session,
    name: SpaceName,
    rename: Annotated[str | None, typer.Option("--rename", metavar="NAME", help="Only while it is empty.")] = None,
    description: Description = None,
) -> None:
    """Describe a namespace, or rename it while it is empty."""
    body = _body(None, name=rename, description=description)
    if not body:
        raise CliError("say what to change", 2)
    session.out.item(session.client.call("namespace.patch", {"t": _tenant(session), "ns": name}, body=body))


@command
def delete_namespace(session: Session, name: SpaceName) -> None:
    """Delete an empty namespace."""
    session.confirm(f"Delete the namespace {name}?")
    session.client.call("namespace.delete", {"t": _tenant(session), "ns": name})
    session.out.done(f"deleted the namespace {name}")


def register(app: typer.Typer) -> None:
    for noun, about, verbs in (
        (
            "keys",
            "API keys.",
            {
                "list": list_keys,
                "get": get_key,
                "create": create_key,
                "update": update_key,
                "rotate": rotate_key,
                "delete": delete_key,
            },
        ),
        (
            "tenants",
            "Tenants.",
            {
                "list": list_tenants,
                "get": get_tenant,
                "create": create_tenant,
                "update": update_tenant,
                "delete": delete_tenant,
            },
        ),
        (
            "namespaces",
            "Namespaces of the tenant that --tenant names.",
            {
                "list": list_namespaces,
                "get": get_namespace,
                "create": create_namespace,
                "update": update_namespace,
                "delete": delete_namespace,
            },
        ),
    ):
        group = typer.Typer(no_args_is_help=True, help=about)
        for verb, function in verbs.items():
            group.command(verb)(function)
        app.add_typer(group, name=noun)
