"""The packet filter's rules as text: those of every slot, and the chain of one policy.

A rule by name has a set that :mod:`names` fills with the addresses it has answered. A connection to one of them is marked
with the number of this use of the slot, so that it outlives the address in the set, and no later user of the slot inherits it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses, ip_network

from nova.domain.function import EgressRule, NetworkPolicy
from nova.errors import NovaError

INTERFACE = "nvs"
"""All interfaces of all daemons begin with this; instances of different daemons are strangers as well."""

PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))
NEVER = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")))
PINNED_MOST = 1024
"""Addresses that one rule by name holds at once."""

_PRIVATE = ", ".join(map(str, PRIVATE))
_NEVER = ", ".join(map(str, NEVER))


@dataclass(frozen=True, slots=True)
class NameRule:
    """Rules by name that share port and protocol; ``names`` are host names or ``*.suffix``, in lower case."""

    number: int
    names: tuple[str, ...]

    def covers(self, name: str) -> bool:
        """``*.example.com`` covers what is below ``example.com``, not that itself."""
        return any(
            name == given or (given.startswith("*.") and name.endswith(given[1:]) and len(name) >= len(given))
            for given in self.names
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """What a policy adds to :func:`base_rules`: the lines of a chain, the last one included, and its rules by name."""

    lines: tuple[str, ...]
    names: tuple[NameRule, ...] = ()
    private: tuple[IPv4Network, ...] = ()
    """private networks that rules name by address"""


def base_rules(
    table: str,
    own: str,
    addresses: IPv4Network,
    *,
    never: Sequence[IPv4Network] = NEVER,
    private: bool = True,
    resolvers: Sequence[str] = (),
) -> str:
    """The rules that hold for every slot; ``own``: how the names of this daemon's interfaces begin. Other daemons' slots are
    kept from the host and from ours, what else they may reach is for their own daemon to say.

    ``never`` is out of reach under every policy. ``private`` false: private networks only where a policy's rule names them,
    and the name servers ``resolvers``.
    """
    every = f'"{INTERFACE}*"'
    blocked = ", ".join(map(str, collapse_addresses(never)))
    unruled = "accept"
    if not private:
        servers = ", ".join(resolvers)
        asking = f"ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept\n    " if servers else ""
        unruled = f"{asking}ip daddr {{ {_PRIVATE} }} drop\n    accept"
    return f"""
table inet {table} {{
  map policies {{ type ifname : verdict; }}
  chain host {{
    type filter hook input priority filter - 10; policy accept;
    iifname {every} drop
  }}
  chain ways {{
    type filter hook forward priority filter - 10; policy accept;
    iifname {every} jump out
    oifname {every} ct state established,related accept
    oifname {every} drop
  }}
  chain out {{
    meta nfproto ipv6 drop
    oifname {every} drop
    iifname != "{own}*" accept
    ip daddr {{ {blocked} }} drop
    iifname vmap @policies
    {unruled}
  }}
  chain address {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {addresses} oifname != {every} masquerade
  }}
}}
"""


def compile_policy(policy: NetworkPolicy, *, slot: str, use: int, private: bool = True) -> Chain | None:
    """The chain of a policy; None when the policy adds nothing. ``slot`` and ``use`` make its sets and marks its own.

    Raises NovaError ``unsupported`` for a rule with an IPv6 address: instances have none.
    """
    outside = [f"ip daddr != {{ {_PRIVATE} }} drop"] if policy.deny_external_access else []
    if not _ruled(policy):
        if not outside:
            return None
        return Chain((*outside, "accept" if private else "drop"))
    within: dict[tuple[int, str], list[IPv4Network]] = {}
    beyond: dict[tuple[int, str], list[IPv4Network]] = {}
    named: dict[tuple[int, str], list[str]] = {}
    for index, rule in enumerate(policy.egress_rules):
        target = _network(rule, index)
        if target is None:
            named.setdefault((rule.port, rule.protocol), []).append(rule.host)
        else:
            inner = any(target.subnet_of(network) for network in PRIVATE)
            (within if inner else beyond).setdefault((rule.port, rule.protocol), []).append(target)
    names = [NameRule(number, tuple(hosts)) for number, hosts in enumerate(named.values())]
    lines = [
        *outside,
        *([f"ct state established ct mark {use:#x} accept"] if names else []),
        *_accepted(within),
        *([] if private else [f"ip daddr {{ {_PRIVATE} }} drop"]),
        *_accepted(beyond),
        *(
            f"ip daddr @{set_name(slot, number)}{_service(*service)} ct mark set {use:#x} accept"
            for number, service in enumerate(named)
        ),
        "drop",
    ]
    return Chain(tuple(lines), tuple(names), tuple(itertools.chain.from_iterable(within.values())))


def check_policy(policy: NetworkPolicy) -> None:
    """Raises what :func:`compile_policy` raises."""
    compile_policy(policy, slot="", use=0)


def _ruled(policy: NetworkPolicy) -> bool:
    return policy.isolation_mode != "none" and (bool(policy.egress_rules) or policy.isolation_mode == "strict")


def _network(rule: EgressRule, index: int) -> IPv4Network | None:
    """None for a name."""
    try:
        target = ip_network(rule.host, strict=False)
    except ValueError:
        return None
    if not isinstance(target, IPv4Network):
        field = f"network_policy.egress_rules[{index}].host"
        raise NovaError("unsupported", f"{field}: the sandbox backend gives instances no IPv6 address")
    return target


def _accepted(grouped: dict[tuple[int, str], list[IPv4Network]]) -> list[str]:
    """One line for each port and protocol: a line costs more than an address. Sets refuse networks that overlap."""
    return [
        f"ip daddr {{ {', '.join(map(str, collapse_addresses(networks)))} }}{_service(*service)} accept"
        for service, networks in grouped.items()
    ]


def _service(port: int, protocol: str) -> str:
    protocols = "{ tcp, udp }" if protocol == "any" else protocol
    if port:
        return f" meta l4proto {protocols} th dport {port}"
    return "" if protocol == "any" else f" meta l4proto {protocols}"


# -- changes to the table ------------------------------------------------------------------------------------------------


def set_name(slot: str, number: int) -> str:
    return f"pins_{slot}_{number}"


def add_chain(table: str, slot: str, interface: str, chain: Chain) -> str:
    sets = "".join(
        f"set {set_name(slot, rule.number)} {{ type ipv4_addr; size {PINNED_MOST}; flags timeout; }}\n"
        for rule in chain.names
    )
    lines = "\n".join(chain.lines)
    return (
        f"table inet {table} {{\n{sets}chain slot_{slot} {{\n{lines}\n}}\n}}\n"
        f'add element inet {table} policies {{ "{interface}" : goto slot_{slot} }}\n'
    )


def remove_chain(table: str, slot: str, interface: str, chain: Chain) -> str:
    sets = "".join(f"delete set inet {table} {set_name(slot, rule.number)}\n" for rule in chain.names)
    return (
        f'delete element inet {table} policies {{ "{interface}" }}\n'
        f"flush chain inet {table} slot_{slot}\ndelete chain inet {table} slot_{slot}\n{sets}"
    )


def pin(table: str, slot: str, rules: list[NameRule], addresses: list[IPv4Address], seconds: int) -> str:
    """Addresses that are there already get the new time: adding alone would leave them their old one."""
    lines = []
    for rule in rules:
        where = f"element inet {table} {set_name(slot, rule.number)}"
        timed = ", ".join(f"{address} timeout {seconds}s" for address in addresses)
        plain = ", ".join(map(str, addresses))
        lines += [f"add {where} {{ {timed} }}", f"delete {where} {{ {plain} }}", f"add {where} {{ {timed} }}"]
    return "\n".join(lines) + "\n"
