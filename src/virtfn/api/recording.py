"""The recording of a lab: what each function sends and receives, from the cards into one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtfn.api.machine import LabPf, Machine, function_name
from virtfn.hw.types import Ps, format_rid
from virtfn.machine.clock import WallClock, epoch_ps
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.machine.recorder import Direction, Packet, Recorder

__all__ = ["Recording"]


class Recording(Actor):
    """A recording that goes on until `close`, or until the disk refuses: the lab goes on all the same.

    An actor: cards that have frames for it wait for its turn.
    """

    def __init__(self, path: Path, machine: Machine, clock: WallClock) -> None:
        names: list[str] = []
        self._machine = machine
        self._failed = False
        self._interfaces: dict[tuple[int, int | None], int] = {}
        self._pfs: list[LabPf] = machine.pfs
        for i, pf in enumerate(machine.pfs):
            for n, rid in machine.used_vfs(pf):
                self._interfaces[i, n] = len(names)
                name = function_name(n, rid)
                names.append(name if len(machine.pfs) == 1 else f"{pf.name} {name}")
            self._interfaces[i, None] = len(names)
            names.append(f"{pf.name} wire {format_rid(pf.nic.pf_rid)}")
            pf.nic.start_capture()
        self._recorder = Recorder(path, names, epoch_ps=epoch_ps(clock))

    def turn(self, now: Ps) -> int:
        """Write what cards have for it; who moved the frames says whether there is more to do."""
        self.drain()
        return 0

    def drain(self) -> None:
        """Write what cards have for it."""
        if self._failed:
            for pf in self._pfs:
                pf.nic.take_capture()
            return
        with self._noting_failures():
            self._write()

    def flush(self) -> None:
        """Put everything so far into the file."""
        if not self._failed:
            with self._noting_failures():
                self._recorder.flush()

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        try:
            yield
        except VirtfnError as error:
            self._failed = True
            self._machine.note_unwritten(error)

    def _write(self) -> None:
        for number, pf in enumerate(self._pfs):
            batch = []
            for interface, outbound, time_ps, frame in pf.nic.take_capture():
                index = self._interfaces.get((number, interface))
                if index is not None:
                    direction = Direction.OUTBOUND if outbound else Direction.INBOUND
                    batch.append(Packet(index, time_ps, frame.data, direction))
            self._recorder.write(batch)

    def close(self) -> None:
        """Complete the file."""
        with self._noting_failures():
            self._recorder.close()
