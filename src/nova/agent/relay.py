"""One end of a relay: a control socket, and the descriptors sent over it, carried through one byte stream.

A machine of its own cannot be handed descriptors. So both ends have a relay, and to its own side each looks like the other
side's control socket: bytes and descriptors that arrive here are made again over there. The same class serves inside (on
a poll loop) and in the daemon (on its event loop).

What must not overtake what:

- A worker's answer comes after what it printed before. So bytes of a socket go on after the bytes that lay, when they were
  read, in the pipes that were sent together with it.
- The end of a worker is reported on the control socket. So control bytes go on after what lay in every other stream.

Each stream has credit, so a slow reader stops its own writer and nobody else. The peer is not trusted: whatever it sends
costs at most this relay, and at most :data:`MAX_STREAMS` descriptors and :data:`~nova.agent.relay_codec.WINDOW` bytes each.
"""

import os
import socket
import stat
from collections.abc import Callable
from typing import Final

from nova.agent import relay_codec as codec
from nova.agent.reactor import Reactor
from nova.agent.relay_codec import CONTROL, MAX_DATA, WINDOW, Packet, PacketDecoder, PacketError
from nova.agent.relay_stream import Piece, Stream, group

MAX_STREAMS: Final = 1024
_MAX_ARRIVED: Final = 16
"""Descriptors that came and wait for the control bytes with which they go on."""
_MOST_INSIDE: Final = 1 << 20
"""Bytes that may lie in a pipe or socket. Who waits for what lay in one waits for no more than this."""


class Relay:
    """Pumps until one end is gone and what it had said before is passed on, then calls ``ended`` once."""

    def __init__(self, reactor: Reactor, wire: int, control: socket.socket, ended: Callable[[], None]) -> None:
        """``wire``: the byte stream behind the preambles, anything that can be read, written and polled. It and
        ``control`` belong to the relay from here on."""
        self._reactor = reactor
        self._wire = wire
        self._ended = ended
        self._decoder = PacketDecoder()
        self._queue = bytearray()
        self._arrived: list[Stream] = []
        self._theirs: list[int] = []
        self._last = CONTROL
        self._wire_reads = True
        self._control = Stream(CONTROL, control.detach(), is_socket=True, reads=True, writes=True)
        self._streams = {CONTROL: self._control}
        os.set_blocking(self._control.fd, False)
        os.set_blocking(wire, False)

    def start(self, first: bytes = b"") -> None:
        """``first``: what was read of the wire behind the preamble."""
        self._reactor.on_readable(self._wire, self._on_wire)
        self._watch(self._control)
        if first:
            self._take(first)

    # -- the wire ------------------------------------------------------------------------------------------------

    def _on_wire(self) -> None:
        try:
            data = os.read(self._wire, MAX_DATA)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._peer_ended()

    def _take(self, data: bytes) -> None:
        try:
            for packet in self._decoder.feed(data):
                if self._wire_reads:
                    self._packet(packet)
        except PacketError:
            self._peer_ended()

    def _packet(self, packet: Packet) -> None:
        stream = self._streams.get(packet.stream)
        if packet.kind == codec.OPEN:
            self._opened(packet)
        elif stream is None:
            if packet.stream > self._last:
                raise PacketError(f"stream {packet.stream} was not opened")
        elif packet.kind == codec.DATA:
            self._arrive(stream, packet.data)
        elif packet.kind == codec.CREDIT:
            stream.credit += packet.credit
            if stream.credit > WINDOW:
                raise PacketError(f"too much credit for stream {packet.stream}")
            self._pump(stream)
        elif stream is self._control:
            self._peer_ended()
        elif packet.kind == codec.END:
            stream.ending = True
            self._flush(stream)
        else:
            self._end_reading(stream, told=False)

    def _send(self, data: bytes) -> None:
        if self._wire < 0:
            return
        self._queue += data
        if len(self._queue) == len(data):
            self._on_wire_writable()

    def _on_wire_writable(self) -> None:
        while self._queue:
            try:
                sent = os.write(self._wire, self._queue[:MAX_DATA])
            except BlockingIOError:
                self._reactor.on_writable(self._wire, self._on_wire_writable)
                return
            except OSError:
                self._queue.clear()  # reading tells the end, and what the peer had said before
                break
            del self._queue[:sent]
        self._reactor.on_writable(self._wire, None)
        if not self._wire_reads:
            self._close_wire()

    def _close_wire(self) -> None:
        if self._wire >= 0:
            self._reactor.on_readable(self._wire, None)
            self._reactor.on_writable(self._wire, None)
            os.close(self._wire)
            self._wire = -1
            self._end_if_done()

    # -- from the wire to descriptors ----------------------------------------------------------------------------

    def _opened(self, packet: Packet) -> None:
        """Make a descriptor like the one that the peer was sent; its other end goes on with the next control bytes."""
        if packet.stream != self._last + 1 or len(self._streams) > MAX_STREAMS or len(self._arrived) >= _MAX_ARRIVED:
            raise PacketError(f"stream {packet.stream} cannot be opened")
        self._last = packet.stream
        is_socket = packet.data == codec.SOCKET
        try:
            if is_socket:
                ours, theirs = (one.detach() for one in socket.socketpair())
            else:
                theirs, ours = os.pipe()
        except OSError as error:
            raise PacketError(f"no descriptor for stream {packet.stream}: {error}") from None
        os.set_blocking(ours, False)
        os.set_blocking(theirs, False)
        stream = Stream(packet.stream, ours, is_socket, reads=is_socket, writes=True)
        self._streams[stream.number] = stream
        self._arrived.append(stream)
        self._theirs.append(theirs)
        self._watch(stream)

    def _arrive(self, stream: Stream, data: bytes) -> None:
        if not stream.writes:
            return
        if stream.size + stream.owed + len(data) > WINDOW:
            raise PacketError(f"stream {stream.number} sent more than it had credit for")
        piece = Piece(data)
        if stream is self._control and self._arrived:
            group(self._arrived)
            piece.fds = self._theirs
            self._arrived, self._theirs = [], []
        stream.put(piece)
        self._flush(stream)

    def _flush(self, stream: Stream) -> None:
        """Write what came for a descriptor, as far as it takes it and nothing else has to come before."""
        while stream.pending and not self._must_wait(stream):
            try:
                sent = stream.write()
            except BlockingIOError:
                self._reactor.on_writable(stream.fd, lambda: self._flush(stream))
                return
            except OSError:
                self._end_writing(stream, told=True)
                return
            stream.owed += sent
        if stream.fd < 0 or not stream.writes:
            return
        self._reactor.on_writable(stream.fd, None)
        if stream.owed >= WINDOW // 4 and not stream.ending:
            self._send(codec.encode_credit(stream.number, stream.owed))
            stream.owed = 0
        if not stream.pending:
            if not stream.ending:
                self._flush_after(stream)
            elif not self._must_wait(stream):
                self._end_writing(stream, told=False)

    def _must_wait(self, stream: Stream) -> bool:
        """Other streams have bytes that this side must see first."""
        if stream is self._control:
            return any(other.ending and other.pending for other in self._streams.values() if other is not stream)
        return any(pipe.pending for pipe in stream.pipes)

    def _flush_after(self, stream: Stream) -> None:
        """Whoever waited for ``stream`` to have written all."""
        for other in list(self._streams.values()):
            behind = other is self._control or stream in other.pipes
            if behind and other is not stream and (other.pending or other.ending):
                self._flush(other)

    # -- from descriptors to the wire ----------------------------------------------------------------------------

    def _watch(self, stream: Stream) -> None:
        """Be called when there is something, if it may be read."""
        if stream.fd >= 0:
            wanted = stream.reads and stream.held is None and stream.credit > 0
            self._reactor.on_readable(stream.fd, (lambda: self._pump(stream)) if wanted else None)

    def _pump(self, stream: Stream) -> None:
        """Send on what can be read: one piece, or all while somebody waits for it."""
        if stream.pumping:
            return
        stream.pumping = True
        while stream.reads and stream.held is None and stream.credit > 0:
            if not self._read_one(stream) or not self._awaited(stream):
                break
        stream.pumping = False
        if stream.reads and stream.credit <= 0 and stream in self._control.waits and not stream.peer_gone():
            self._heard(stream, None, by_control_only=True)  # its reader is slow; that holds up nobody else
        self._watch(stream)

    def _read_one(self, stream: Stream) -> bool:
        """Read a piece and send it, when what has to come before is sent. False when there is nothing."""
        try:
            piece = stream.read(with_fds=stream is self._control)
        except BlockingIOError:
            self._heard(stream, None)
            return False
        if not piece.data:
            self._at_end(stream)
            return False
        stream.credit -= len(piece.data)
        stream.held = piece
        before = self._before(stream)
        stream.waits = dict.fromkeys(before, _MOST_INSIDE)
        self._heard(stream, len(piece.data))
        for other in before:
            self._pump(other)
        if not stream.waits:
            self._release(stream)
        return True

    def _before(self, stream: Stream) -> list[Stream]:
        """The streams whose bytes go on before those of ``stream``."""
        others = list(self._streams.values()) if stream is self._control else stream.pipes
        return [other for other in others if other.reads and other is not stream]

    def _awaited(self, stream: Stream) -> bool:
        return any(stream in other.waits for other in self._streams.values())

    def _heard(self, stream: Stream, size: int | None, *, by_control_only: bool = False) -> None:
        """``stream`` gave ``size`` bytes, or (None) nothing lies in it any more: those who wait for it."""
        for other in [self._control] if by_control_only else list(self._streams.values()):
            if stream not in other.waits:
                continue
            other.waits[stream] -= _MOST_INSIDE if size is None else size
            if other.waits[stream] <= 0:
                del other.waits[stream]
                if not other.waits:
                    self._release(other)

    def _release(self, stream: Stream) -> None:
        """Send what was held back."""
        piece, stream.held = stream.held, None
        if piece is None:
            return
        fresh = [self._adopt(fd) for fd in piece.fds]
        group(fresh)
        self._send(codec.encode(codec.DATA, stream.number, piece.data))
        for one in (stream, *fresh):
            self._watch(one)
        if self._awaited(stream):
            self._pump(stream)

    def _adopt(self, fd: int) -> Stream:
        """Carry a descriptor that was sent over the control socket."""
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        os.set_blocking(fd, False)
        self._last += 1
        stream = Stream(self._last, fd, is_socket, reads=True, writes=is_socket)
        self._streams[stream.number] = stream
        self._send(codec.encode(codec.OPEN, stream.number, codec.SOCKET if is_socket else codec.PIPE))
        return stream

    def _at_end(self, stream: Stream) -> None:
        """A descriptor gives nothing more. If its other end is closed, it takes nothing more either."""
        if stream is self._control:
            self._own_side_ended()
            return
        gone = stream.peer_gone()
        self._end_reading(stream, told=True)
        if gone:
            self._end_writing(stream, told=True)

    def rest(self) -> None:
        """Pass on what the control socket still says, and nothing else. The other descriptors are closed and nothing more is
        done to them: somebody else goes on using what they stand for. What the wire brings is left for the next host."""
        for stream in list(self._streams.values()):
            if stream is not self._control:
                self._heard(stream, None)
                stream.reads = False
                self._drop(stream)
        self._reactor.on_readable(self._wire, None)

    def listen(self) -> None:
        """The end of :meth:`rest`, as far as there is one: the control socket hears its host again."""
        if self._wire_reads:
            self._reactor.on_readable(self._wire, self._on_wire)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _end_reading(self, stream: Stream, *, told: bool) -> None:
        """``told``: tell the peer, because it was our descriptor that ended."""
        if not stream.reads:
            return
        stream.stop_reading()
        if told:
            self._send(codec.encode(codec.END, stream.number))
        self._reactor.on_readable(stream.fd, None)
        self._heard(stream, None)
        self._close_if_done(stream)

    def _end_writing(self, stream: Stream, *, told: bool) -> None:
        if not stream.writes:
            return
        if told and stream is self._control:
            self._own_side_ended()
            return
        stream.stop_writing()
        if told:
            self._send(codec.encode(codec.STOP, stream.number))
        self._reactor.on_writable(stream.fd, None)
        self._close_if_done(stream)
        self._flush_after(stream)

    def _close_if_done(self, stream: Stream) -> None:
        if stream.fd >= 0 and not stream.reads and not stream.writes:
            self._reactor.on_readable(stream.fd, None)
            self._reactor.on_writable(stream.fd, None)
            stream.close()
            self._streams.pop(stream.number, None)
            self._end_if_done()

    def _own_side_ended(self) -> None:
        """Pass on what the descriptors had still to give, then close everything."""
        if not self._wire_reads:
            self._drop(self._control)
            return
        self._control.reads = self._control.writes = False
        self._control.waits = dict.fromkeys(self._before(self._control), _MOST_INSIDE)
        for other in list(self._control.waits):
            self._pump(other)
        self._wire_reads = False
        self._send(codec.encode(codec.END, CONTROL))
        self._reactor.on_readable(self._wire, None)
        for stream in list(self._streams.values()):
            self._drop(stream)
        for fd in self._theirs:
            os.close(fd)
        self._theirs.clear()
        if not self._queue:
            self._close_wire()

    def _drop(self, stream: Stream) -> None:
        stream.reads = stream.writes = False
        stream.forget()
        self._close_if_done(stream)

    def _peer_ended(self) -> None:
        """Nothing more comes: pass on what has come, then close each descriptor; the control socket last."""
        if not self._wire_reads:
            return
        self._wire_reads = False
        self._queue.clear()
        for fd in self._theirs:
            os.close(fd)
        self._theirs.clear()
        self._close_wire()
        for stream in list(self._streams.values()):
            stream.ending = True
            self._end_reading(stream, told=False)
        for stream in sorted(self._streams.values(), key=lambda one: -one.number):
            self._flush(stream)

    def _end_if_done(self) -> None:
        if self._wire < 0 and not self._streams:
            ended, self._ended = self._ended, lambda: None
            ended()
