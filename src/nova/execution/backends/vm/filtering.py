"""The packet filter's rules for machines, as text: those of the host's bridge and those of one machine's namespace.

What a policy means is compiled by the sandbox's :mod:`rules`; here it is put where a machine's packets pass. They are in
force before the machine's side has an address, and a machine cannot change them: they are outside of it.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from nova.execution.backends.sandbox.rules import PINNED_MOST, PRIVATE, Chain, set_name
from nova.execution.backends.vm.bridge import TAP, UPLINK

TABLE = "nova"
"""in a machine's own namespace"""
SLOT = "own"


def host_table(bridge: str) -> str:
    return f"nova_vm_{bridge}"


def host_rules(bridge: str, subnet: IPv4Network) -> str:
    """Nothing comes in to the host or to a machine, and what goes out has the host's address. Safe to apply again."""
    table = host_table(bridge)
    return f"""
add table inet {table}
delete table inet {table}
table inet {table} {{
  chain host {{
    type filter hook input priority filter - 10; policy accept;
    iifname "{bridge}" drop
  }}
  chain ways {{
    type filter hook forward priority filter - 10; policy accept;
    iifname "{bridge}" meta nfproto ipv6 drop
    iifname "{bridge}" oifname "{bridge}" drop
    iifname "{bridge}" ip saddr != {subnet} drop
    iifname "{bridge}" accept
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
  }}
  chain address {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "{bridge}" masquerade
  }}
}}
"""


def no_host_rules(bridge: str) -> str:
    return f"add table inet {host_table(bridge)}\ndelete table inet {host_table(bridge)}\n"


def machine_rules(
    chain: Chain | None,
    *,
    gateway: IPv4Address,
    never: Sequence[IPv4Network],
    private: bool,
    resolver: IPv4Address | None,
) -> str:
    """All of one namespace. ``gateway`` is where the machine asks for names: a server there answers when the policy has
    rules by name, else its questions go on to ``resolver`` (None: nobody answers)."""
    blocked = ", ".join(map(str, collapse_addresses(never)))
    named = chain is not None and bool(chain.names)
    ask = f"ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53"
    serve = f"{ask} accept" if named else ""
    onward = resolver is not None and not named
    redirect = f"ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {resolver}" if onward else ""
    asking = f"ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept" if onward and chain is None else ""
    sets = "".join(
        f"  set {set_name(SLOT, rule.number)} {{ type ipv4_addr; size {PINNED_MOST}; flags timeout; }}\n"
        for rule in (chain.names if chain is not None else ())
    )
    inward = "" if private else f"ip daddr {{ {', '.join(map(str, PRIVATE))} }} drop"
    allowed = "\n    ".join(chain.lines if chain is not None else [inward, "accept"])
    return f"""
table inet {TABLE} {{
{sets}  chain host {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    {f'iifname "{TAP}" {serve}' if serve else ""}
  }}
  chain ways {{
    type filter hook forward priority filter; policy drop;
    iifname "{TAP}" oifname "{UPLINK}" jump out
    iifname "{UPLINK}" ct state established,related accept
  }}
  chain out {{
    meta nfproto ipv6 drop
    ip daddr {{ {blocked} }} drop
    {asking}
    {allowed}
  }}
  chain asked {{
    type nat hook prerouting priority dstnat; policy accept;
    {f'iifname "{TAP}" {redirect}' if redirect else ""}
  }}
  chain address {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{UPLINK}" masquerade
  }}
}}
"""
