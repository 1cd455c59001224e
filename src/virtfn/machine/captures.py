"""Captures: frames out of pcap and pcapng files. What writes them is `recorder.py`.

A capture is one piece of memory, so that kernels take it as it is:

    bytes    | frame 0 | frame 1 | frame 2 | ...       (sum of lengths,) uint8, no gaps, no frame check sequences
    offsets  0         ^         ^                     (n,) int64
    lengths, ts_ps                                     (n,) int64; time since the first frame

A pcap record keeps what was captured and how long the frame was on the wire; a frame cut by the snap length is not a
frame any more and is left out and counted. A file that ends in the middle of a record, as those of a tool that was
killed, has the frames before it. What is left out is said in `notes`. Who calls: the workload of kind pcap, and the
uplink of a capture. Spec: IETF drafts opsawg-pcap and opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from virtfn.machine.ports import VirtfnError

__all__ = ["CaptureError", "Frames", "read_capture"]

MAX_BYTES = 1 << 30
MAX_FRAME = 256 << 10  # the longest that libpcap itself believes
ETHERNET = 1
_PS = 10**12
_FAR = 1 << 62

_PCAP = {  # the magic as the file has it: byte order of the rest, ticks a second, bytes of a record's header
    b"\xa1\xb2\xc3\xd4": (">", 10**6, 16),
    b"\xd4\xc3\xb2\xa1": ("<", 10**6, 16),
    b"\xa1\xb2\x3c\x4d": (">", 10**9, 16),
    b"\x4d\x3c\xb2\xa1": ("<", 10**9, 16),
    # A patched libpcap of old, whose records also tell interface, protocol and direction.
    b"\xa1\xb2\xcd\x34": (">", 10**6, 24),
    b"\x34\xcd\xb2\xa1": ("<", 10**6, 24),
}
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\xfd7zX": "unxz",
    b"BZh": "bunzip2",
    b"\x04\x22\x4d\x18": "unlz4",
}
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_LINKS = {0: "BSD loopback", 9: "PPP", 12: "raw IP", 101: "raw IP", 105: "IEEE 802.11", 113: "Linux cooked (any)",
          127: "radiotap", 228: "IPv4", 229: "IPv6", 276: "Linux cooked v2 (any)"}  # fmt: skip


class CaptureError(VirtfnError):
    """A capture cannot be used: `FILE: what is wrong; how to mend it`. The command line ends with status 2."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames in one piece of memory. `skipped` counts those left out because the snap length had cut them.

    notes: what of the file is not used, in words, a line each.
    """

    bytes: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    ts_ps: npt.NDArray[np.int64]
    skipped: int
    notes: tuple[str, ...] = ()

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

    Raises CaptureError when the file is missing, damaged, without a whole frame, of another kind, or not Ethernet.
    """
    content = _content(path)
    name = str(path)
    magic = bytes(content[:4])
    notes: list[str] = []
    if magic in _PCAP:
        records = _pcap(content, name, notes)
    elif magic == _PCAPNG:
        records = _pcapng(content, name, notes)
    else:
        for start, tool in _COMPRESSED.items():
            if magic.startswith(start):
                raise CaptureError(f"{name}: is compressed; unpack it with {tool} first")
        raise CaptureError(
            f"{name}: is neither pcap nor pcapng; record one with tcpdump -w FILE, or convert it with editcap -F pcapng"
        )
    return _gather(records, name, notes)


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


def _count(number: int) -> str:
    return "1 frame" if number == 1 else f"{number:,} frames"


def _gather(records: Iterator[_Record], name: str, notes: list[str]) -> Frames:
    """Lay the frames out in memory; what is not used is in `notes` when the records have come to their end."""
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
        if notes:
            raise CaptureError(f"{name}: {notes[0]}, and holds no whole frame; record or copy it again")
        raise CaptureError(f"{name}: holds no frame; record one with tcpdump -w FILE")
    if skipped:
        notes.append(f"{_count(skipped)} that the snap length had cut {'is' if skipped == 1 else 'are'} left out")
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    return Frames(
        bytes=np.frombuffer(bytearray().join(pieces), np.uint8),
        offsets=np.cumsum(lengths) - lengths,
        lengths=lengths,
        # Stamps are the file's to choose; what is months away from the first frame is only kept far away.
        ts_ps=np.array([max(-_FAR, min(_FAR, t - times[0])) for t in times], np.int64),
        skipped=skipped,
        notes=tuple(f"{name}: {note}" for note in notes),
    )


def _check_link(link: int, name: str) -> None:
    if link != ETHERNET:
        kind = _LINKS.get(link, "unknown")
        raise CaptureError(f"{name}: link type {link} ({kind}) is not Ethernet; record on an Ethernet interface")


def _pcap(content: memoryview, name: str, notes: list[str]) -> Iterator[_Record]:
    order, ticks, size = _PCAP[bytes(content[:4])]
    if len(content) < 24:
        raise CaptureError(f"{name}: is cut short in its header; record or copy it again")
    major, minor, link = struct.unpack_from(order + "HH12xI", content, 4)
    version = major, minor
    _check_link(link & 0xFFFF, name)
    fcs = 2 * (link >> 28) if link & 1 << 26 else 0  # the link type's upper bits may give the FCS in 16-bit words
    header = struct.Struct(order + "IIII")
    at, count = 24, 0
    while at < len(content):
        count += 1
        if at + size > len(content):
            notes.append(f"ends in the header of frame {count}")
            return
        seconds, fraction, captured, length = header.unpack_from(content, at)
        # libpcap once wrote the two lengths the other way round, and some of its users did so a version longer.
        if version < (2, 3) or (version == (2, 3) and captured > length):
            captured, length = length, captured
        if captured > MAX_FRAME:
            raise CaptureError(f"{name}: frame {count} claims {captured} bytes; the file is damaged, record it again")
        start, at = at + size, at + size + captured
        if at > len(content):
            notes.append(f"ends in frame {count}")
            return
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


def _pcapng(content: memoryview, name: str, notes: list[str]) -> Iterator[_Record]:
    """Walk the blocks: type, length, body, length again; a section sets the byte order and its own interfaces.

    Frames of interfaces that are not Ethernet are left out, if there are others.
    """
    order = "<"
    interfaces: list[_Interface] = []
    strange: dict[int, int] = {}
    ethernet = at = 0
    while at < len(content):
        try:
            if bytes(content[at : at + 4]) == _PCAPNG:
                order = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}[bytes(content[at + 8 : at + 12])]
                interfaces = []
            kind, length = struct.unpack_from(order + "II", content, at)
            if length >= 12 and not length & 3 and at + length > len(content):
                break
            (again,) = struct.unpack_from(order + "I", content, at + length - 4)
            if length != again or length < 12 or length & 3:
                raise ValueError
            body = content[at + 8 : at + length - 4]
            if kind == 1:
                interfaces.append(_interface(body, order))
            record, link = _packet(kind, body, order, interfaces)
        except (struct.error, IndexError, KeyError, ValueError):
            if len(content) - at < 12:
                break
            raise CaptureError(f"{name}: is damaged after byte {at}; record or copy it again") from None
        if record is not None and link == ETHERNET:
            ethernet += 1
            yield record
        elif record is not None:
            strange[link] = strange.get(link, 0) + 1
        at += length
    if at < len(content):
        notes.append(f"ends in the block after byte {at:,}")
    if strange and not ethernet:
        _check_link(next(iter(strange)), name)
    for link, count in strange.items():
        left = f"{_count(count)} of link type {link} ({_LINKS.get(link, 'unknown')})"
        notes.append(f"{left}, not Ethernet, {'is' if count == 1 else 'are'} left out")


def _interface(body: memoryview, order: str) -> _Interface:
    link, _, snaplen = struct.unpack_from(order + "HHI", body)
    resolution, fcs, offset_s = 6, 0, 0
    options = body[8:]
    for code, at, _ in _options(options, order):
        match code:
            case 9:  # if_tsresol
                resolution = options[at]
            case 13:  # if_fcslen
                fcs = options[at]
            case 14:  # if_tsoffset
                (offset_s,) = struct.unpack_from(order + "q", options, at)
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
    fcs = interface.fcs
    if kind == 6:
        fcs = _fcs_of(body[start + captured + (-captured & 3) :], order) or fcs
    return _Record(interface.ps(high, low), body[start : start + captured], length, fcs), interface.link


def _fcs_of(options: memoryview, order: str) -> int:
    """Find the bytes of FCS in the options of a packet (epb_flags); 0 if they do not say."""
    for code, at, size in _options(options, order):
        if code == 2 and size >= 4:
            (flags,) = struct.unpack_from(order + "I", options, at)
            return int(flags) >> 5 & 15
    return 0


def _options(options: memoryview, order: str) -> Iterator[tuple[int, int, int]]:
    """Walk options: (code, where the value begins, its bytes)."""
    at = 0
    while at + 4 <= len(options):
        code, size = struct.unpack_from(order + "HH", options, at)
        if code == 0:
            return
        yield code, at + 4, size
        at += 4 + size + (-size & 3)
