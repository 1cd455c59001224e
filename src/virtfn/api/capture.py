"""Capture frames of a lab that runs, into a pcapng file or a pipe: the reader's side of `capture.start`.

The lab is never waited for by its card: what does not fit between two looks here is lost, and counted in the file
(isb_ifdrop) and in the report.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from virtfn.api.control import Handed, ask_handed
from virtfn.api.signals import ended_by_signals
from virtfn.kernels.tapring import TAP_DROP, TAP_SWITCH
from virtfn.machine.recorder import Direction, Packet, Recorder
from virtfn.machine.taps import Seen, TapReader

if TYPE_CHECKING:
    from virtfn.api.session.captures import InterfaceDocument, TapDocument

__all__ = ["CaptureDocument", "capture", "record"]

_BATCH = 2048
_IDLE_S = 0.002
_FLUSH_S = 0.2


class CaptureDocument(TypedDict):
    """What `virtfn capture --json` writes. lost: frames that there was no room for, of all that were to be captured."""

    lab: str
    file: str
    interfaces: list[str]
    points: list[str]
    frames: int
    lost: int


def capture(
    interface: str,
    path: Path,
    *,
    points: Sequence[str] = (),
    count: int | None = None,
    snap: int = 0,
    mib: int = 0,
    lab: str | None = None,
    started: Callable[[TapDocument], None] | None = None,
) -> CaptureDocument:
    """Capture frames of `PF` or `PF/vfN` of a lab that runs, until `count`, the lab's end, or KeyboardInterrupt.

    path: a pcapng file, or `-`: standard output. points: of tx, switch, rx and drop. snap: bytes of each frame, 0: all.
    mib: of the ring between lab and here. started: is told when frames come. Raises VirtfnError if the lab refuses or
    the file cannot be written, BrokenPipeError if nobody reads standard output any more.
    """
    params = {"interface": interface, "points": list(points), "snap": snap, "mib": mib}
    handed = ask_handed("capture.start", params, lab)
    try:
        return record(handed, path, count, snap, started)
    finally:
        handed.close()


def record(
    handed: Handed,
    path: Path,
    count: int | None = None,
    snap: int = 0,
    started: Callable[[TapDocument], None] | None = None,
) -> CaptureDocument:
    """Write what comes through a tap that was handed over; ends and raises as `capture` does."""
    document = cast("TapDocument", handed.document)
    memory, end = handed.descriptors
    names = [interface["name"] for interface in document["interfaces"]]
    descriptions = [interface["description"] for interface in document["interfaces"]]
    with (
        TapReader(memory, document["bytes"]) as reader,
        Recorder(path, names, descriptions=descriptions, epoch_ps=document["epoch_ps"], snap=snap) as recorder,
    ):
        recorder.flush()
        if started is not None:
            started(document)
        with suppress(KeyboardInterrupt), ended_by_signals():  # the signal has arrived: what comes now is not cut off
            _Copier(document, reader, recorder).run(end, count)
        lost = _tell_lost(document["interfaces"], reader, recorder)
        return {
            "lab": document["lab"],
            "file": str(path),
            "interfaces": names,
            "points": document["wanted"],
            "frames": recorder.frames,
            "lost": lost,
        }


def _tell_lost(interfaces: Sequence[InterfaceDocument], reader: TapReader, recorder: Recorder) -> int:
    now = time.time_ns() * 1000 - recorder.epoch_ps
    total = 0
    for i, interface in enumerate(interfaces):
        lost = sum(reader.lost(number) for number in interface["numbers"])
        recorder.write_statistics(i, now, recorder.written[i] + lost, lost)
        total += lost
    return total


class _Copier:
    """Copies frames out of the ring, with words for what happened to them."""

    def __init__(self, document: TapDocument, reader: TapReader, recorder: Recorder) -> None:
        self._reader = reader
        self._recorder = recorder
        self._reasons = document["reasons"]
        self._interfaces = {number: i for i, face in enumerate(document["interfaces"]) for number in face["numbers"]}
        self._names = document["names"]
        self._comments: dict[tuple[int, int], str] = {}

    def run(self, end: int, count: int | None) -> None:
        """Copy until `count` frames are written, or the descriptor `end` says that the lab has gone."""
        poll = select.poll()
        poll.register(end, select.POLLIN)
        flushed = time.monotonic()
        while count is None or self._recorder.frames < count:
            before = self._recorder.frames
            room = _BATCH if count is None else min(_BATCH, count - before)
            self._recorder.write(self._packet(seen) for seen in self._reader.read(room))
            idle = self._recorder.frames == before
            if idle or time.monotonic() - flushed > _FLUSH_S:
                self._recorder.flush()
                flushed = time.monotonic()
            if idle and poll.poll(_IDLE_S * 1000) and not _more(end):
                room = 1 << 62 if count is None else count - self._recorder.frames
                self._recorder.write(self._packet(seen) for seen in self._reader.read(room))
                return

    def _packet(self, seen: Seen) -> Packet:
        direction = Direction.OUTBOUND if seen.outbound else Direction.INBOUND
        comment = ""
        if seen.point & (TAP_DROP | TAP_SWITCH):
            key = seen.point, seen.detail
            comment = self._comments.get(key) or self._comments.setdefault(key, self._words(*key))
        return Packet(self._interfaces[seen.interface], seen.time_ps, seen.frame, direction, comment, seen.length)

    def _words(self, point: int, detail: int) -> str:
        if point == TAP_DROP:
            return f"dropped: {self._reasons[detail] if detail < len(self._reasons) else detail}"
        names = [name for number, name in enumerate(self._names) if detail >> number & 1]
        return "to " + (", ".join(dict.fromkeys(names)) or "nobody")


def _more(end: int) -> bool:
    try:
        return bool(os.read(end, 64))
    except BlockingIOError:
        return True
    except OSError:
        return False
