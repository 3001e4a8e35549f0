"""Rules by name: the name server of one instance, in the daemon, which answers what the rules name and nothing else.

Its sockets lie on the loopback of the instance's own network namespace, so nobody else reaches it and it knows who asks.
An answer leaves only when the packet filter knows its addresses; they stay there for their time to live. Addresses that no
instance may reach are refused, whatever name they come under. Instances have no IPv6, so such questions have no answer.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address

import dns.asyncresolver
import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset
import structlog

from nova.execution.backends.sandbox.rules import NameRule
from nova.service import Background

log = structlog.get_logger(__name__)

ADDRESS = "127.0.0.53"
"""Where the name server listens inside the instance's network namespace, on port 53."""
RESOLV_CONF = f"nameserver {ADDRESS}\noptions timeout:5 attempts:2\n"
TTL_MOST_S = 3600
PIN_LEAST_S = 60
PIN_SLACK_S = 10
"""An address stays reachable so much longer than its time to live, for programs that connect at its very end."""

_RATE, _BURST = 50.0, 100.0
"""Questions per second that one instance gets answered, and how many at once after a pause; the rest waits in its socket."""
_AT_ONCE = 16
_RECEIVE_BUFFER = 32 << 10
"""Bytes of questions that wait: a flood must not be answered for long after it."""
_TCP_AT_ONCE = 4
_TCP_IDLE_S = 5.0
_UPSTREAM_S = 4.0
_DATAGRAM = 4096
_PLAIN = 512
"""What fits in an answer to a client that does not say what it can take."""
_NO_ANSWER = (dns.rdatatype.AAAA, dns.rdatatype.HTTPS, dns.rdatatype.SVCB, dns.rdatatype.ANY)
"""Types that could carry an IPv6 address or go around the answer's addresses."""

Pin = Callable[[list[NameRule], list[IPv4Address], int], Awaitable[None]]
"""Make addresses reachable for rules, for so many seconds; in force when it returns. Raises OSError."""


def upstream(servers: Sequence[str] = (), *, port: int = 53) -> dns.asyncresolver.Resolver:
    """The resolver that questions go on to: ``servers``, or what the host is configured with now."""
    resolver: dns.asyncresolver.Resolver
    try:
        resolver = dns.asyncresolver.Resolver(configure=not servers)
    except (dns.resolver.NoResolverConfiguration, ValueError) as error:
        log.warning("this host's name servers are not known, public ones are asked", reason=str(error))
        resolver = dns.asyncresolver.Resolver(configure=False)
        servers = ("1.1.1.1", "8.8.8.8")
    if servers:
        resolver.nameservers = list(servers)
        resolver.port = port
    resolver.use_edns(0, 0, 1232)
    resolver.lifetime = _UPSTREAM_S
    return resolver


def listen() -> tuple[socket.socket, socket.socket]:
    """Sockets for datagrams and for connections at :data:`ADDRESS`, in the network namespace of the calling thread."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        datagrams.bind((ADDRESS, 53))
        return datagrams, socket.create_server((ADDRESS, 53))
    except OSError:
        datagrams.close()
        raise


class NameServer:
    """Answers one instance. ``refused`` says which addresses it may never reach."""

    def __init__(
        self,
        rules: Sequence[NameRule],
        resolver: dns.asyncresolver.Resolver,
        pin: Pin,
        refused: Callable[[IPv4Address], bool],
    ) -> None:
        self._rules = rules
        self._resolver = resolver
        self._pin = pin
        self._refused = refused
        self._background = Background("names")
        self._allowance = Allowance()
        self._running = 0
        self._datagrams: socket.socket | None = None
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._resume: asyncio.TimerHandle | None = None

    async def start(self, datagrams: socket.socket, listener: socket.socket) -> None:
        """Serve on these sockets, which belong to this object from now on."""
        datagrams.setblocking(False)
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._datagrams = datagrams
        asyncio.get_running_loop().add_reader(datagrams, self._read)
        self._listener = await asyncio.start_server(self._converse, sock=listener)

    async def close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        if self._datagrams is not None:
            asyncio.get_running_loop().remove_reader(self._datagrams)
        await self._background.close()
        for writer in list(self._writers):
            writer.transport.abort()
        if self._listener is not None:
            self._listener.close()
        if self._datagrams is not None:
            self._datagrams.close()
            self._datagrams = None

    # -- transport -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take questions as long as there is an allowance; then leave them to the kernel, which drops what is too much."""
        assert self._datagrams is not None
        while self._running < _AT_ONCE and self._allowance.take():
            try:
                wire, peer = self._datagrams.recvfrom(_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                self._allowance.give_back()
                return
            except OSError:
                continue
            self._running += 1
            self._background.spawn("answer", self._answer_datagram(wire, peer))
        self._pause()

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._datagrams)  # type: ignore[arg-type]
        if self._resume is None:
            self._resume = loop.call_later(1 / _RATE, self._resumed)

    def _resumed(self) -> None:
        self._resume = None
        if self._datagrams is not None:
            asyncio.get_running_loop().add_reader(self._datagrams, self._read)

    async def _answer_datagram(self, wire: bytes, peer: tuple[str, int]) -> None:
        try:
            answer = await self.answer(wire, stream=False)
        finally:
            self._running -= 1
        if answer and self._datagrams is not None:
            with contextlib.suppress(OSError):
                self._datagrams.sendto(answer, peer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while len(self._writers) <= _TCP_AT_ONCE and self._allowance.take():
                async with asyncio.timeout(_TCP_IDLE_S):
                    size = int.from_bytes(await reader.readexactly(2))
                    wire = await reader.readexactly(size)
                answer = await self.answer(wire, stream=True)
                if not answer:
                    break
                writer.write(len(answer).to_bytes(2) + answer)
                async with asyncio.timeout(_TCP_IDLE_S):
                    await writer.drain()
        except (TimeoutError, EOFError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    # -- questions -----------------------------------------------------------------------------------------------

    async def answer(self, wire: bytes, *, stream: bool) -> bytes:
        """The answer to one message; empty for what is not a question at all."""
        try:
            query = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError):
            return b""
        if query.flags & dns.flags.QR:
            return b""
        response = await self._respond(query)
        most = 65535 if stream else max(_PLAIN, min(query.payload, _DATAGRAM)) if query.edns >= 0 else _PLAIN
        try:
            return response.to_wire(max_size=most)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire(max_size=most)

    async def _respond(self, query: dns.message.Message) -> dns.message.Message:
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            return _failure(query, dns.rcode.NOTIMP)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        rules = [rule for rule in self._rules if rule.covers(name)]
        if not rules or question.rdclass != dns.rdataclass.IN:
            return _failure(query, dns.rcode.REFUSED, f"no rule of this function's network policy names {name}")
        response = dns.message.make_response(query, recursion_available=True)
        if question.rdtype in _NO_ANSWER:
            return response
        try:
            found = await self._resolver.resolve(question.name, question.rdtype, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return response
        except (dns.exception.DNSException, OSError) as error:
            log.debug("a name could not be resolved", name=name, reason=str(error))
            return _failure(query, dns.rcode.SERVFAIL)
        response.answer = [*found.chaining_result.cnames, *([found.rrset] if found.rrset is not None else [])]
        for rrset in response.answer:
            rrset.ttl = min(rrset.ttl, TTL_MOST_S)
        if question.rdtype == dns.rdatatype.A and found.rrset is not None:
            return await self._pinned(query, response, found.rrset, rules)
        return response

    async def _pinned(
        self, query: dns.message.Message, response: dns.message.Message, found: dns.rrset.RRset, rules: list[NameRule]
    ) -> dns.message.Message:
        addresses = sorted({IPv4Address(record.address) for record in found})
        wrong = next(filter(self._refused, addresses), None)
        if wrong is not None:
            name = query.question[0].name
            log.warning("a name leads where no instance may go", name=str(name), address=str(wrong))
            return _failure(query, dns.rcode.REFUSED, f"{name} leads to {wrong}, which no function may reach")
        try:
            await self._pin(rules, addresses, max(PIN_LEAST_S, found.ttl + PIN_SLACK_S))
        except OSError as error:
            log.warning("addresses could not be allowed", reason=str(error))
            return _failure(query, dns.rcode.SERVFAIL)
        return response


def _failure(query: dns.message.Message, rcode: dns.rcode.Rcode, why: str = "") -> dns.message.Message:
    """An answer without records; clients that can read it are told why (RFC 8914)."""
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(rcode)
    if why and query.edns >= 0:
        response.use_edns(0, options=[dns.edns.EDEOption(dns.edns.EDECode.PROHIBITED, why)])
    return response


class Allowance:
    """A bucket that fills with the questions one instance may ask."""

    def __init__(self) -> None:
        self._level = _BURST
        self._at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._level = min(_BURST, self._level + (now - self._at) * _RATE)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def give_back(self) -> None:
        self._level += 1
