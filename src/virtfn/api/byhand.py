"""The embedded guests of a lab in somebody's hands: they send and receive frame by frame, and nothing by themselves.

What an engine does for guests at work (`iomodels/engine.py`) is done here for guests whose frames come from a test:
cards are served, interrupts handled, drivers recovered. Frames that come wait in an inbox for each guest.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from virtfn.api.machine import LabGuestRun, LabPf, Machine
from virtfn.hw.types import Ps
from virtfn.kernels.card import EV_FAULT, EV_TIMER
from virtfn.machine.clock import MS_PS, US_PS, WallClock, epoch_ps
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.vmm.uplink import Burst, Wire
from virtfn.vmm.uplink.uplink import NOTHING

__all__ = ["ByHand", "FarEnd", "Record"]

Record = Callable[[LabPf, int | None, bool, int, bytes], None]
"""Takes a frame that passed: PF, VF or None for the wire, whether it was sent, when (ps since 1970), the frame."""

_INBOX = 1 << 14  # frames that wait for a guest's test, at most
_QUIET_PS, _PATIENCE_PS = 2 * MS_PS, 50 * MS_PS
_QUIET_TURNS = 3  # whatever time has passed: the processor may have been others'
_RETRY_PS = 100 * MS_PS
_SOON_PS = 100 * US_PS


class FarEnd:
    """The other end of a wire, in somebody's hands; an `Uplink`."""

    live = bare = False

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._arriving: list[bytes] = []
        self._departed: deque[bytes] = deque(maxlen=_INBOX)

    def attend(self) -> bool:
        """Return True: it does not go away."""
        return True

    def send(self, departures: npt.NDArray[np.uint8]) -> int:
        """Take everything that has left the card."""
        stream, at = departures.tobytes(), 0
        while at < len(stream):
            length = int.from_bytes(stream[at : at + 4], "big")
            self._departed.append(stream[at + 4 : at + 4 + length])
            at += 4 + length
        return departures.size

    def receive(self) -> Burst:
        """Return the frames that were given."""
        if not self._arriving:
            return NOTHING
        frames, self._arriving = self._arriving, []
        lengths = np.array([len(frame) for frame in frames], np.int64)
        store = np.frombuffer(b"".join(frames) + bytes(256), np.uint8).copy()  # kernels look past the end of heads
        return Burst(store, np.cumsum(lengths) - lengths, lengths)

    def fileno(self) -> int:
        """There is nothing to wait for."""
        return -1

    def close(self) -> None:
        """There is nothing to let go of."""

    def put(self, frames: Sequence[bytes]) -> None:
        """Give frames that are to arrive. Raises VirtfnError (EMSGSIZE) for what is no frame."""
        for frame in frames:
            if not 14 <= len(frame) <= 9724:
                raise VirtfnError(f"a frame has 14 to 9724 bytes, not {len(frame)}", errno_name="EMSGSIZE")
        self._arriving += [frame.ljust(60, b"\0") for frame in frames]

    def take(self) -> list[bytes]:
        """Take what has left."""
        taken = list(self._departed)
        self._departed.clear()
        return taken


class ByHand(Actor):
    """All embedded guests of a machine, and the cards that they are on. An actor of the world."""

    def __init__(self, machine: Machine, clock: WallClock) -> None:
        self._machine = machine
        self._epoch_ps = epoch_ps(clock)
        self._inboxes: dict[str, deque[bytes]] = {run.lab.name: deque() for run in machine.guests}
        self._ends: dict[str, FarEnd] = {}
        self._record: Record | None = None
        self._moved_at, self._quiet_turns = machine.host.now(), 0
        self._later = False
        self._retry_at = 0

    def far_end(self, pf: LabPf) -> FarEnd:
        """Take the other end of a PF's wire. Raises VirtfnError (EBUSY) if the lab leads it elsewhere."""
        if pf.name not in self._ends:
            if pf.wire is not None:
                raise VirtfnError(f"the lab leads the wire of {pf.name} elsewhere", errno_name="EBUSY")
            end = self._ends[pf.name] = FarEnd()
            pf.wire = Wire(pf.nic, end, self._machine.lab.pf(pf.name).link_mbps)
        return self._ends[pf.name]

    def take(self, run: LabGuestRun) -> list[bytes]:
        """Take the frames that a guest has received."""
        inbox = self._inboxes[run.lab.name]
        taken = list(inbox)
        inbox.clear()
        return taken

    def record(self, record: Record | None) -> None:
        """Have all frames told that pass from now on, or no more."""
        self._drain()
        self._record = record
        for pf in self._machine.pfs:
            pf.nic.start_capture() if record is not None else pf.nic.stop_capture()
            pf.nic.take_capture()

    def _drain(self) -> None:
        if self._record is None:
            return
        for pf in self._machine.pfs:
            for n, outbound, at, frame in pf.nic.take_capture():
                self._record(pf, n, outbound, at + self._epoch_ps, frame.tobytes())

    # Turns.

    def turn(self, now: Ps) -> int:
        """Let frames move, and guests do what their systems do."""
        done, self._later = 0, False
        for pf in self._machine.pfs:
            if pf.driven:
                done += self._serve(pf)
        for run in self._machine.guests:
            done += self._attend(run, now)
        self._drain()
        if done:
            self.stir()
        else:
            self._quiet_turns += 1
        return done

    def _serve(self, pf: LabPf) -> int:
        frames, events = pf.nic.serve()
        if pf.wire is not None:
            carried, told = pf.wire.serve()
            frames, events = frames + carried, events | told
            pf.nic.handle(told)
        if events & EV_FAULT:
            self._machine.host.serve_iommu()
        self._later |= bool(events & EV_TIMER)
        return frames

    def _attend(self, run: LabGuestRun, now: int) -> int:
        driver, inbox = run.driver, self._inboxes[run.lab.name]
        done = run.guest.run_interrupts()
        received = driver.receive()
        if len(inbox) + len(received) > _INBOX:
            raise VirtfnError(f"{run.lab.name} has {_INBOX} frames that nobody has taken", errno_name="ENOBUFS")
        inbox.extend(received)
        done += len(received)
        if driver.netdev["polling"]:
            driver.idle()
        if driver.broken and now >= self._retry_at:
            try:
                driver.recover()
                done += 1
            except VirtfnError:
                self._retry_at = self._machine.host.now() + _RETRY_PS
        return done

    def due(self) -> Ps:
        """Say that there is always something to look at."""
        return Ps(self._machine.host.now() + _SOON_PS)

    def stir(self) -> None:
        """Begin anew to look for rest: something is about to move."""
        self._moved_at, self._quiet_turns = self._machine.host.now(), 0

    def at_rest(self) -> bool:
        """Tell whether nothing moves any more: for some turns, or longer where frames wait for their time."""
        waits = self._later or any(run.driver.tx_pending or run.driver.broken for run in self._machine.guests)
        quiet = self._machine.host.now() - self._moved_at
        return self._quiet_turns >= _QUIET_TURNS and quiet > (_PATIENCE_PS if waits else _QUIET_PS)
