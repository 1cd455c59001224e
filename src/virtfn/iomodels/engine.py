"""The engine: lets guests and NIC run until the work is done, and does what the data plane cannot.

breath   guests and port in compiled code, some hundred rounds
between  the uplink is served, interrupts are handled by guests, captured frames written, faults recorded, pollers put
         to sleep, timers, drivers reset that must be, tails shown that nothing maps
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from virtfn.devices.nic82576 import Nic82576
from virtfn.drivers.igbvf import Igbvf, State
from virtfn.iomodels.workload import Workload
from virtfn.kernels.breath import PATIENCE, breathe
from virtfn.kernels.i82576.state import EV_CAPTURE, EV_FAULT, EV_IDLE, EV_TIMER
from virtfn.machine.clock import MS_PS, S_PS, US_PS
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import Guest
from virtfn.vmm.host import Host
from virtfn.vmm.uplink import Wire

__all__ = ["Engine"]

_ROUNDS = 128
_BUDGET = 64
_STUCK_PS = 2 * S_PS
_RETRY_PS = 100 * MS_PS
_LINGER = 256  # steps without progress of the work, before what comes from outside counts as idleness


class Engine:
    """Run the guests of one NIC. guests: in the order of the workload's stations; each has one function of the NIC.

    wire: of the NIC, if it leads anywhere. on_capture: called when captured frames wait. on_tick: called often.
    """

    def __init__(
        self,
        host: Host,
        nic: Nic82576,
        guests: Sequence[Guest],
        workload: Workload,
        *,
        wire: Wire | None = None,
        on_capture: Callable[[], None] | None = None,
        on_tick: Callable[[], None] | None = None,
    ) -> None:
        self.host = host
        self.nic = nic
        self.guests = list(guests)
        self.workload = workload
        self.ping_ps: list[list[int]] = [[] for _ in guests]
        self._asked_at: list[tuple[int, int]] = [(0, 0) for _ in guests]
        self._wire = wire
        self._progress = (0, 0)
        self._idle_steps = 0
        self._on_capture = on_capture
        self._on_tick = on_tick
        self._retry_ps = 0
        self._timer = False

    def _drivers(self) -> list[Igbvf]:
        return [nic.driver for guest in self.guests for nic in guest.nics]

    def step(self, rounds: int = _ROUNDS, budget: int = _BUDGET) -> bool:
        """Run one breath and what it calls for; return whether anything moved.

        rounds: of guests and NIC, at most. budget: frames of each queue in a round.
        """
        nic, host = self.nic, self.host
        nic.port.settle()
        nic.port.tick()
        drivers = self._drivers()
        trapping = [driver for driver in drivers if driver.rings.traps]
        rounds = 1 if self.workload.kind == "ping" or trapping else rounds
        moved, events = breathe(nic.port.address, self.workload.block.ctypes.data, host.now(), rounds, budget)
        for driver in trapping:
            driver.rings.show_tails()
        if self._wire is not None:
            carried, told = self._wire.serve(budget)
            moved += carried
            events |= told
        nic.handle(events)
        if events & EV_FAULT:
            host.serve_iommu()
        if events & EV_CAPTURE and self._on_capture is not None:
            self._on_capture()
        handled = sum(guest.run_interrupts() for guest in self.guests if guest.interrupted)
        if events & EV_IDLE:
            for driver in drivers:
                if driver.netdev["polling"] and driver.netdev["empty_polls"] >= PATIENCE:
                    driver.idle()
        handled += self._recover()
        self._note_pings()
        self._timer = bool(events & EV_TIMER)
        return moved + handled > 0

    def _recover(self) -> int:
        """Let drivers recover that must; one whose PF is not back is left alone for a while. Returns how many did."""
        done = 0
        if self.host.now() < self._retry_ps:
            return done
        for driver in self._drivers():
            if driver.state is State.RESET_NEEDED:
                try:
                    driver.recover()
                    done += 1
                except VirtfnError:
                    self._retry_ps = self.host.now() + _RETRY_PS
        return done

    def _note_pings(self) -> None:
        if self.workload.kind != "ping":
            return
        now = self.host.now()
        for g, task in enumerate(self.workload.row["tasks"][: len(self.guests)]):
            asked, since = self._asked_at[g]
            if int(task["answered"]) == asked and asked:
                self.ping_ps[g].append(now - since)
                self._asked_at[g] = 0, 0
            if int(task["asked"]) > int(task["answered"]) and self._asked_at[g][0] != int(task["asked"]):
                self._asked_at[g] = int(task["asked"]), now

    def run(self) -> bool:
        """Run until every frame has been sent and nothing moves any more; False if the work got stuck before."""
        last = self.host.now()
        while True:
            busy = self.step()
            if self._on_tick is not None:
                self._on_tick()
            now = self.host.now()
            alone = self._wire is None or not self._wire.uplink.live
            progresses = alone or self._progresses()
            if busy and progresses:
                last = now
                continue
            if self.workload.finished and (self._drained() or not (progresses or self._departing)):
                return True
            if now - last > _STUCK_PS:
                return self.workload.finished and not alone
            self.host.clock.sleep(20 * US_PS if self._timer else MS_PS // 10)

    @property
    def _departing(self) -> bool:
        return self._wire is not None and self._wire.departing

    def _progresses(self) -> bool:
        """Whether the work goes on, or did a moment ago: what comes from outside may keep guests busy for ever."""
        progress = self.workload.sent, int(self.workload.row["tasks"]["answered"].sum())
        self._idle_steps = 0 if progress != self._progress else self._idle_steps + 1
        self._progress = progress
        return self._idle_steps < _LINGER

    def _drained(self) -> bool:
        """Whether no driver waits for anything: all sent frames taken by the device, no one polls."""
        if self._wire is not None and (self._wire.arriving or self._departing):
            return False
        if self._timer or int(self.nic.port.nic["port"]["stalled"]):
            return False
        for driver in self._drivers():
            d = driver.netdev
            if d["up"] and (d["polling"] or driver.tx_pending):
                return False
        return not any(guest.interrupted for guest in self.guests)
