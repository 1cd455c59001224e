"""Recordings: what functions sent and received, into a pcapng file, while they run.

Who calls: whoever records a run. Spec: IETF draft opsawg-pcapng.
"""

from __future__ import annotations

import enum
import errno
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from virtfn import private
from virtfn.machine.captures import ETHERNET, CaptureError

__all__ = ["Direction", "Recorder"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # nothing is wrong with the name


class Direction(enum.IntEnum):
    """Which way a frame passed a function, as epb_flags has it."""

    INBOUND = 1
    OUTBOUND = 2


class Recorder:
    """Writes a pcapng file with one interface for each function, in nanoseconds.

    interfaces: names in the order of their numbers, like "vf0 0000:02:10.0". epoch_ps: what to add to the times of
    frames to make them times since 1970. Raises CaptureError when the file cannot be written.
    """

    def __init__(self, path: Path, interfaces: Sequence[str], *, epoch_ps: int = 0) -> None:
        from pcapng import FileWriter, blocks

        self.path = path
        self.frames = 0
        self._count = len(interfaces)
        self._epoch_ps = epoch_ps
        section = blocks.SectionHeader(options={"shb_userappl": "virtfn"}, endianness="<")
        for interface in interfaces:
            options = {"if_name": interface, "if_tsresol": b"\x09", "if_fcslen": 0}
            section.new_member(blocks.InterfaceDescription, link_type=ETHERNET, snaplen=0, options=options)
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

    def write(self, batch: Iterable[tuple[int, int, bytes | memoryview, Direction]]) -> None:
        """Append frames: interface number, time in picoseconds, bytes without FCS, direction as the function sees it.

        Raises CaptureError when the disk refuses; ValueError for an interface that was not named.
        """
        try:
            for interface, ts_ps, frame, direction in batch:
                if not 0 <= interface < self._count:
                    raise ValueError(f"interface {interface} of {self._count}")
                self._stream.write(_enhanced_packet(interface, (ts_ps + self._epoch_ps) // 1000, frame, direction))
                self.frames += 1
        except OSError as error:
            raise self._unwritable(error) from None

    def flush(self) -> None:
        """Put everything so far into the file.

        Raises CaptureError when the disk refuses.
        """
        try:
            self._stream.flush()
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Finish the file.

        Raises CaptureError when the disk refuses.
        """
        try:
            self._stream.close()
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


_EPB_HEAD = struct.Struct("<7I")  # type, length, interface, time high, time low, captured, original
_EPB_TAIL = struct.Struct("<HHIHHI")  # epb_flags (code 2, 4 bytes), end of options, length


def _enhanced_packet(interface: int, ts_ns: int, frame: bytes | memoryview, direction: Direction) -> bytes:
    """Lay out an Enhanced Packet Block: a tenth of the time that a block object of python-pcapng takes."""
    size = len(frame)
    pad = -size & 3
    length = _EPB_HEAD.size + size + pad + _EPB_TAIL.size
    head = _EPB_HEAD.pack(6, length, interface, ts_ns >> 32 & 0xFFFFFFFF, ts_ns & 0xFFFFFFFF, size, size)
    return b"".join((head, frame, bytes(pad), _EPB_TAIL.pack(2, 4, direction, 0, 0, length)))
