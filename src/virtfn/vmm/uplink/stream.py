"""A stream uplink: a UNIX stream socket, each frame after its length, as passt and QEMU's `-netdev stream` have it.

    listens       nobody --accepted--> peer --gone, or out of step--> nobody
    connects      peer --gone, or out of step--> nobody --tried again every half second--> peer

The peer is not trusted: it costs one buffer of fixed size and no waiting, whatever it sends or does not read. A length
that no frame can have ends the connection, since nothing after it can be found any more; so does a descriptor.

Short IPv4 frames leave without what would fill them up on a cable: Debian 12's passt, of March 2023, drops a packet
that is shorter than its frame, and TCP then stops after one window, for want of acknowledgements.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from virtfn.hw.eth import MIN_FRAME
from virtfn.kernels.ranges import address_of
from virtfn.kernels.streams import LENGTH_BYTES, MAX_STREAM_FRAME, cut_stream, whole_frames
from virtfn.machine.clock import MS_PS
from virtfn.machine.ports import Clock, VirtfnError
from virtfn.vmm.closing import Closer, close_listening, close_socket, receive_into, take_all_rights
from virtfn.vmm.listening import connect, listen, remove
from virtfn.vmm.uplink.uplink import NOTHING, Burst

__all__ = ["StreamUplink"]

_RETRY_PS = 500 * MS_PS
_BURST = 256
_STORE_BYTES = 256 << 10
assert _STORE_BYTES > LENGTH_BYTES + MAX_STREAM_FRAME


class StreamUplink:
    """The peer at a UNIX socket.

    path: of the socket. listening: whether this side makes it, and takes one peer at a time; the other way it must be
    there. Raises VirtfnError if the socket cannot be made, or nobody listens there.
    """

    live = bare = True

    def __init__(self, path: Path, clock: Clock, *, listening: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self._path = path
        self._clock = clock
        self._door: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._closer = Closer()
        if listening:
            self._door, self._identity = listen(path)
        else:
            self._peer = self._connect()
        self._retry_ps = 0
        self._ahead = 0  # bytes that the peer has of the first frame that waits
        self._store = np.zeros(_STORE_BYTES + _BURST * MIN_FRAME, np.uint8)
        self._bytes = self._store.data[:_STORE_BYTES]
        self._start = self._end = 0
        self._offsets = np.zeros(_BURST, np.int64)
        self._lengths = np.zeros(_BURST, np.int64)

    def _connect(self) -> socket.socket:
        try:
            peer = connect(self._path)
        except OSError as e:
            raise VirtfnError(
                f"no uplink at {self._path}: {e.strerror or e}; start what listens there first, "
                f"like passt --socket {self._path}, or let this side listen: stream:listen:{self._path}; "
                "docs/uplinks.md has recipes",
                errno_name=errno.errorcode.get(e.errno or 0, ""),
            ) from None
        take_all_rights(peer)
        self.counts["connected"] += 1
        return peer

    def attend(self) -> bool:
        """Let a peer in, or look for the one that has gone; return whether there is one."""
        if self._peer is None and not self._closer.full:
            self._peer = self._accept() if self._door is not None else self._try_again()
            if self._peer is not None:
                self._ahead = self._start = self._end = 0
        return self._peer is not None

    def _accept(self) -> socket.socket | None:
        assert self._door is not None
        try:
            peer, _ = self._door.accept()
        except OSError:
            return None
        peer.setblocking(False)
        take_all_rights(peer)
        self.counts["connected"] += 1
        return peer

    def _try_again(self) -> socket.socket | None:
        if self._clock.now() < self._retry_ps:
            return None
        self._retry_ps = self._clock.now() + _RETRY_PS
        try:
            return self._connect()
        except VirtfnError:
            self.counts["refused"] += 1
            return None

    def _lose(self, why: str) -> None:
        """End the connection; frames that came whole are still good."""
        if self._peer is not None:
            close_socket(self._peer, self._closer)
            self._peer = None
            self._retry_ps = self._clock.now() + _RETRY_PS
            self.counts[why] += 1

    def send(self, departures: npt.NDArray[np.uint8]) -> int:
        """Write as much as the peer takes now; a frame that it has in part is sent on first the next time."""
        if self._peer is None:
            return 0
        try:
            self._ahead += self._peer.send(departures[self._ahead :].data, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._lose("gone")
            return 0
        _, done = whole_frames(int(departures.ctypes.data), self._ahead)
        self._ahead -= done
        return int(done)

    def receive(self) -> Burst:
        """Return the frames that are here whole; read more only when there is none."""
        burst = self._cut()
        if not burst and self._read():
            burst = self._cut()
        return burst

    def _read(self) -> bool:
        """Read what the peer has sent; return whether it was anything."""
        if self._peer is None:
            return False
        left = self._end - self._start
        self._bytes[:left] = bytes(self._bytes[self._start : self._end])
        self._start, self._end = 0, left
        try:
            got, given = receive_into(self._peer, self._bytes[left:], self._closer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            got, given = 0, False
        if given:
            self._lose("malformed")
            return False
        if not got:
            self._lose("cut short" if left else "gone")
            return False
        self._end += got
        return True

    def _cut(self) -> Burst:
        if self._end - self._start < LENGTH_BYTES:
            return NOTHING
        count, self._start, sound = cut_stream(
            address_of(self._store, "a stream's bytes"),
            self._start,
            self._end,
            _STORE_BYTES,
            self._offsets,
            self._lengths,
        )
        if not sound and not count:
            self._start = self._end
            self._lose("malformed")
        return Burst(self._store, self._offsets[:count], self._lengths[:count])

    def fileno(self) -> int:
        """Return the peer's descriptor, or that of the door, or -1."""
        if self._peer is not None:
            return self._peer.fileno()
        return self._door.fileno() if self._door is not None else -1

    def close(self) -> None:
        """Hang up, and take the socket away if it is ours."""
        if self._peer is not None:
            close_socket(self._peer, self._closer)
            self._peer = None
        if self._door is not None:
            close_listening(self._door, self._closer)
            remove(self._path, self._identity)
        self._closer.end()
