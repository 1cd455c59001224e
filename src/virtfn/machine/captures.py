"""Captures: frames out of pcap and pcapng files, and what functions sent and received into pcapng files.

A capture read is one piece of memory, so that kernels take it as it is:

    bytes    | frame 0 | frame 1 | frame 2 | ...       (sum of lengths,) uint8, no gaps, no frame check sequences
    offsets  0         ^         ^                     (n,) int64
    lengths, ts_ps                                     (n,) int64; time since the first frame

A pcap record keeps what was captured and how long the frame was on the wire; a frame cut by the snap length is not a
frame any more and is left out and counted. Who calls: the workload of kind pcap, and whoever records a run.
"""

from __future__ import annotations

import enum
import errno
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from virtfn import private
from virtfn.machine.ports import VirtfnError

__all__ = ["CaptureError", "Direction", "Frames", "Recorder", "read_capture"]

MAX_BYTES = 1 << 30
MAX_FRAME = 256 << 10  # the longest that libpcap itself believes
ETHERNET = 1
_PS = 10**12
_FAR = 1 << 62
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # nothing is wrong with the name

_PCAP = {  # the magic as the file has it: byte order of the rest, ticks a second
    b"\xa1\xb2\xc3\xd4": (">", 10**6),
    b"\xd4\xc3\xb2\xa1": ("<", 10**6),
    b"\xa1\xb2\x3c\x4d": (">", 10**9),
    b"\x4d\x3c\xb2\xa1": ("<", 10**9),
}
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_LINKS = {0: "BSD loopback", 9: "PPP", 12: "raw IP", 101: "raw IP", 105: "IEEE 802.11", 113: "Linux cooked (any)",
          127: "radiotap", 228: "IPv4", 229: "IPv6", 276: "Linux cooked v2 (any)"}  # fmt: skip


class CaptureError(VirtfnError):
    """A capture cannot be used: `FILE: what is wrong; how to mend it`. The command line ends with status 2."""

    exit_status = 2


class Direction(enum.IntEnum):
    """Which way a frame passed a function, as epb_flags has it."""

    INBOUND = 1
    OUTBOUND = 2


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames in one piece of memory. `skipped` counts those left out because the snap length had cut them."""

    bytes: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    ts_ps: npt.NDArray[np.int64]
    skipped: int

    def __len__(self) -> int:
        return len(self.lengths)

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Look at one frame."""
        start = self.offsets[index]
        return self.bytes[start : start + self.lengths[index]]


@dataclass(frozen=True, slots=True)
class _Record:
    """One frame of a file: time since the epoch, bytes captured, bytes there were, bytes of FCS at the end."""

    ts_ps: int
    captured: bytes | memoryview
    length: int
    fcs: int


def read_capture(path: Path) -> Frames:
    """Read the Ethernet frames of a pcap (either byte order, micro- or nanoseconds) or pcapng file.

    Raises CaptureError when the file is missing, cut short, empty, of another kind, or not Ethernet.
    """
    content = _content(path)
    name = str(path)
    magic = bytes(content[:4])
    if magic in _PCAP:
        records = _pcap(content, name)
    elif magic == _PCAPNG:
        records = _pcapng(content, name)
    elif magic[:2] == b"\x1f\x8b":
        raise CaptureError(f"{name}: is compressed; unpack it with gunzip first")
    else:
        raise CaptureError(f"{name}: is neither pcap nor pcapng; record one with tcpdump -w FILE")
    return _gather(records, name)


def _content(path: Path) -> memoryview:
    try:
        if path.is_dir():
            raise CaptureError(f"{path}: is a directory; give a pcap or pcapng file")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise CaptureError(f"{path}: cannot be read ({reason}); check the name and the permissions") from None
    if len(content) > MAX_BYTES:
        raise CaptureError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; cut it with editcap -c")
    if not content:
        raise CaptureError(f"{path}: is empty; record one with tcpdump -w FILE")
    return memoryview(content)


def _gather(records: Iterator[_Record], name: str) -> Frames:
    pieces: list[bytes | memoryview] = []
    times: list[int] = []
    skipped = 0
    for record in records:
        if len(record.captured) < record.length:
            skipped += 1
            continue
        pieces.append(record.captured[: len(record.captured) - record.fcs] if record.fcs else record.captured)
        times.append(record.ts_ps)
    if not pieces:
        if skipped:
            raise CaptureError(f"{name}: the snap length has cut all {skipped} frames; record with tcpdump -s 0")
        raise CaptureError(f"{name}: holds no frame; record one with tcpdump -w FILE")
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    return Frames(
        bytes=np.frombuffer(bytearray().join(pieces), np.uint8),
        offsets=np.cumsum(lengths) - lengths,
        lengths=lengths,
        # Stamps are the file's to choose; what is months away from the first frame is only kept far away.
        ts_ps=np.array([max(-_FAR, min(_FAR, t - times[0])) for t in times], np.int64),
        skipped=skipped,
    )


def _check_link(link: int, name: str) -> None:
    if link != ETHERNET:
        kind = _LINKS.get(link, "unknown")
        raise CaptureError(f"{name}: link type {link} ({kind}) is not Ethernet; record on an Ethernet interface")


def _pcap(content: memoryview, name: str) -> Iterator[_Record]:
    order, ticks = _PCAP[bytes(content[:4])]
    if len(content) < 24:
        raise CaptureError(f"{name}: is cut short in its header; record or copy it again")
    (link,) = struct.unpack_from(order + "I", content, 20)
    _check_link(link & 0xFFFF, name)
    fcs = 2 * (link >> 28) if link & 1 << 26 else 0  # the link type's upper bits may give the FCS in 16-bit words
    header = struct.Struct(order + "IIII")
    at, count = 24, 0
    while at < len(content):
        count += 1
        if at + 16 > len(content):
            raise CaptureError(f"{name}: is cut short in the header of frame {count}; record or copy it again")
        seconds, fraction, captured, length = header.unpack_from(content, at)
        if captured > MAX_FRAME:
            raise CaptureError(f"{name}: frame {count} claims {captured} bytes; the file is damaged, record it again")
        start, at = at + 16, at + 16 + captured
        if at > len(content):
            raise CaptureError(f"{name}: is cut short in frame {count}; record or copy it again")
        yield _Record(seconds * _PS + fraction * (_PS // ticks), content[start:at], length, fcs)


@dataclass(frozen=True, slots=True)
class _Interface:
    """What an interface of a pcapng section says about its frames. `shift`: the resolution is a power of two."""

    link: int
    snaplen: int
    shift: bool
    resolution: int
    offset_ps: int
    fcs: int

    def ps(self, high: int, low: int) -> int:
        """Turn a stamp into picoseconds since the epoch."""
        ticks = (high << 32 | low) * _PS
        return (ticks >> self.resolution if self.shift else ticks // 10**self.resolution) + self.offset_ps


def _pcapng(content: memoryview, name: str) -> Iterator[_Record]:
    """Walk the blocks: type, length, body, length again; a section sets the byte order and its own interfaces."""
    order = "<"
    interfaces: list[_Interface] = []
    at = 0
    while at < len(content):
        try:
            if bytes(content[at : at + 4]) == _PCAPNG:
                order = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}[bytes(content[at + 8 : at + 12])]
                interfaces = []
            kind, length = struct.unpack_from(order + "II", content, at)
            (again,) = struct.unpack_from(order + "I", content, at + length - 4)
            if length != again or length < 12 or length & 3:
                raise ValueError
            body = content[at + 8 : at + length - 4]
            if kind == 1:
                interfaces.append(_interface(body, order))
            record, link = _packet(kind, body, order, interfaces)
        except (struct.error, IndexError, KeyError, ValueError):
            raise CaptureError(f"{name}: is damaged or cut short after byte {at}; record or copy it again") from None
        if record is not None:
            _check_link(link, name)
            yield record
        at += length


def _interface(body: memoryview, order: str) -> _Interface:
    link, _, snaplen = struct.unpack_from(order + "HHI", body)
    resolution, fcs, offset_s = 6, 0, 0
    at = 8
    while at < len(body):
        code, size = struct.unpack_from(order + "HH", body, at)
        match code:
            case 0:  # end of options
                break
            case 9:  # if_tsresol
                resolution = body[at + 4]
            case 13:  # if_fcslen
                fcs = body[at + 4]
            case 14:  # if_tsoffset
                (offset_s,) = struct.unpack_from(order + "q", body, at + 4)
        at += 4 + size + (-size & 3)
    return _Interface(link, snaplen, bool(resolution & 128), resolution & 127, offset_s * _PS, fcs)


def _packet(kind: int, body: memoryview, order: str, interfaces: list[_Interface]) -> tuple[_Record | None, int]:
    """Read a packet block: the frame and the link type of its interface; (None, 0) for other blocks."""
    match kind:
        case 6:  # enhanced
            number, high, low, captured, length = struct.unpack_from(order + "IIIII", body)
            start = 20
        case 2:  # obsolete, still written by old tools
            number, _, high, low, captured, length = struct.unpack_from(order + "HHIIII", body)
            start = 20
        case 3:  # simple: the first interface, no time
            (length,) = struct.unpack_from(order + "I", body)
            number, high, low, captured, start = 0, 0, 0, min(length, interfaces[0].snaplen or length), 4
        case _:
            return None, 0
    interface = interfaces[number]
    if start + captured > len(body) or captured > MAX_FRAME:
        raise ValueError
    return _Record(interface.ps(high, low), body[start : start + captured], length, interface.fcs), interface.link


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
