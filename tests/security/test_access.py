"""The decision itself: grants, denials, and what may be given away."""

import pytest

from nova.api.apikeys import Role
from nova.api.table import routes
from nova.domain.identity import Grant, Identity
from nova.security import access
from nova.security.access import allowed, allowed_somewhere, exceeds, grant


def holder(*grants: Grant) -> Identity:
    return Identity("key:x", frozenset({"t"}), grants=grants)


def test_every_permission_is_asked_for_somewhere_and_every_role_can_be_given() -> None:
    asked = {row.permission for row in routes() if row.permission} | {"payload:read"}
    assert asked == access.PERMISSIONS
    assert set(access.ROLES) == set(Role.__args__)  # type: ignore[attr-defined]
    for name, codes in access.ROLES.items():
        assert name == access.PLATFORM_ADMIN or codes <= access.PERMISSIONS


def test_a_grant_on_some_functions_covers_only_those() -> None:
    """ID2: a key scoped to function a may do nothing else."""
    who = holder(grant("admin", ["a", "pay-*"]))
    assert allowed(who, "function:read", "a")
    assert allowed(who, "function:read", "pay-out")
    assert not allowed(who, "function:read", "b")
    assert not allowed(who, "function:read", "A")
    assert not allowed(who, "function:read", None)
    assert not allowed(who, "apikey:manage", None)


def test_a_deny_beats_every_allow() -> None:
    """ID2: neither a wider role nor the order of the rows undoes a deny."""
    for rows in ([grant("admin"), grant("viewer", ["a"], "deny")], [grant("viewer", ["a"], "deny"), grant("admin")]):
        who = holder(*rows)
        assert not allowed(who, "function:read", "a")
        assert allowed(who, "function:read", "b")
        assert allowed(who, "function:invoke", "a")
    assert not allowed(holder(grant("platform-admin"), grant("viewer", [], "deny")), "function:read", None)


def test_somewhere_means_at_least_one_function() -> None:
    assert allowed_somewhere(holder(grant("viewer", ["a"])), "build:read")
    assert not allowed_somewhere(holder(grant("invoker", ["a"])), "build:read")
    assert not allowed_somewhere(holder(grant("viewer"), grant("viewer", [], "deny")), "build:read")


@pytest.mark.parametrize(
    ("own", "given", "fits"),
    [
        ([grant("admin")], [grant("admin")], True),
        ([grant("admin")], [grant("platform-admin")], False),
        ([grant("admin")], [grant("viewer", ["a"])], True),
        ([grant("developer")], [grant("admin")], False),
        ([grant("developer")], [grant("admin", ["a"])], False),
        ([grant("developer", ["pay-*"])], [grant("viewer", ["pay-in"])], True),
        ([grant("developer", ["pay-*"])], [grant("viewer", ["pay-*"])], True),
        ([grant("developer", ["pay-*"])], [grant("viewer", ["pay-?"])], True),
        ([grant("developer", ["pay-*"])], [grant("viewer", ["pa*"])], False),
        ([grant("developer", ["pay-*"])], [grant("viewer")], False),
        ([grant("viewer"), grant("invoker")], [grant("viewer"), grant("invoker")], True),
        ([grant("admin"), grant("viewer", ["secret"], "deny")], [grant("viewer")], False),
        ([grant("admin"), grant("viewer", ["secret"], "deny")], [grant("viewer", ["secret"])], False),
        ([grant("admin"), grant("viewer", ["secret"], "deny")], [grant("viewer", ["s*"])], False),
        ([grant("admin"), grant("viewer", ["secret"], "deny")], [grant("viewer", ["open"])], True),
        (
            [grant("admin"), grant("viewer", ["secret"], "deny")],
            [grant("viewer"), grant("viewer", ["secret"], "deny")],
            True,
        ),
        ([], [grant("viewer", ["a"], "deny")], True),
    ],
)
def test_nobody_gives_more_than_they_hold(own: list[Grant], given: list[Grant], fits: bool) -> None:
    """ID3: what a key gets is within what its giver has, denials included."""
    assert (exceeds(holder(*own), given) is None) is fits
