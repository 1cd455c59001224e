"""Recordings: what functions sent and received, into a pcapng file, while they run.

Who calls: whoever records a run. Spec: IETF draft opsawg-pcapng.
"""

from __future__ import annotations

import enum
import errno
import functools
import struct
import warnings
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from virtfn import private
from virtfn.machine.captures import ETHERNET, CaptureError

__all__ = ["Direction", "Packet", "Recorder"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # nothing is wrong with the name


class Direction(enum.IntEnum):
    """Which way a frame passed a function, as epb_flags has it."""

    INBOUND = 1
    OUTBOUND = 2


class Packet(NamedTuple):
    """A frame to write: the number of its interface, its time, its bytes without FCS, its way as the function sees it.

    comment: for people. length: bytes that there were, where not all of them are kept.
    """

    interface: int
    ts_ps: int
    frame: bytes | memoryview
    direction: Direction
    comment: str = ""
    length: int = 0


class Recorder:
    """Writes a pcapng file with one interface for each function, in nanoseconds.

    interfaces: names in the order of their numbers, like "vf0 0000:02:10.0". descriptions: of as many, or none.
    epoch_ps: what to add to the times of frames to make them times since 1970. snap: bytes of a frame that are kept, at
    most; 0: all. Raises CaptureError when the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        interfaces: Sequence[str],
        *,
        descriptions: Sequence[str] = (),
        epoch_ps: int = 0,
        snap: int = 0,
    ) -> None:
        from pcapng import FileWriter, blocks

        self.path = path
        self.frames = 0
        self.written = [0] * len(interfaces)
        self.epoch_ps = epoch_ps
        self._count = len(interfaces)
        section = blocks.SectionHeader(options={"shb_userappl": "virtfn"}, endianness="<")
        for interface, description in zip_longest(interfaces, descriptions):
            options = {"if_name": interface, "if_tsresol": b"\x09", "if_fcslen": 0}
            if description:
                options["if_description"] = description
            section.new_member(blocks.InterfaceDescription, link_type=ETHERNET, snaplen=snap, options=options)
        try:
            self._stream = open(path, "wb", buffering=1 << 20, opener=private.opener)  # noqa: SIM115  # open until close()
            with warnings.catch_warnings():
                # python-pcapng declares if_tsresol without a type and then warns of that itself.
                warnings.simplefilter("ignore", DeprecationWarning)
                FileWriter(self._stream, section)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: Exception) -> CaptureError:
        reason = getattr(error, "strerror", None) or "not a file name"
        refused = CaptureError(f"{self.path}: cannot be written ({reason}); choose another file")
        if getattr(error, "errno", None) in _DISK:
            refused.exit_status = 1
        return refused

    def write(self, batch: Iterable[Packet]) -> None:
        """Append frames.

        Raises CaptureError when the disk refuses, BrokenPipeError when nobody reads any more; ValueError for an
        interface that was not named.
        """
        try:
            for interface, ts_ps, frame, direction, comment, length in batch:
                if not 0 <= interface < self._count:
                    raise ValueError(f"interface {interface} of {self._count}")
                ts_ns = (ts_ps + self.epoch_ps) // 1000
                self._stream.write(_enhanced_packet(interface, ts_ns, frame, direction, comment, length))
                self.frames += 1
                self.written[interface] += 1
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritable(error) from None

    def write_statistics(self, interface: int, ts_ps: int, received: int, dropped: int) -> None:
        """Append what is known of an interface at the end: frames recorded, and those that there was no room for.

        Raises as `write` does.
        """
        ts_ns = (ts_ps + self.epoch_ps) // 1000
        self._stream.write(_ISB.pack(5, _ISB.size, interface, ts_ns >> 32, ts_ns & _M32, 4, 8, received, 5, 8, dropped,
                                     0, 0, _ISB.size))  # fmt: skip

    def flush(self) -> None:
        """Put everything so far into the file.

        Raises CaptureError when the disk refuses.
        """
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Finish the file.

        Raises CaptureError when the disk refuses.
        """
        try:
            self._stream.close()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


_M32 = 0xFFFFFFFF
_EPB_HEAD = struct.Struct("<7I")  # type, length, interface, time high, time low, captured, original
_EPB_TAIL = struct.Struct("<HHIHHI")  # epb_flags (code 2, 4 bytes), end of options, length
_ISB = struct.Struct("<5IHHQHHQHHI")  # type, length, interface, time; isb_ifrecv, isb_ifdrop, end of options; length


def _enhanced_packet(
    interface: int, ts_ns: int, frame: bytes | memoryview, direction: Direction, comment: str, original: int
) -> bytes:
    """Lay out an Enhanced Packet Block: a tenth of the time that a block object of python-pcapng takes."""
    size = len(frame)
    pad = -size & 3
    told = _option(comment) if comment else b""
    length = _EPB_HEAD.size + size + pad + len(told) + _EPB_TAIL.size
    head = _EPB_HEAD.pack(6, length, interface, ts_ns >> 32 & _M32, ts_ns & _M32, size, original or size)
    return b"".join((head, frame, bytes(pad), told, _EPB_TAIL.pack(2, 4, direction, 0, 0, length)))


@functools.cache
def _option(comment: str) -> bytes:
    """Lay out opt_comment: there are few."""
    text = comment.encode()
    return struct.pack("<HH", 1, len(text)) + text + bytes(-len(text) & 3)
