"""The engine: the guests of one NIC and their work, as a lane of the world.

work     a breath: guests and port in compiled code, some hundred rounds
end      the uplink is served, interrupts are handled by guests, faults told, pollers put to sleep, tails shown that
         nothing maps, drivers recovered that must be
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.hw.types import Ps
from virtfn.iomodels.workload import Workload
from virtfn.kernels.breath import PATIENCE, breathe
from virtfn.kernels.card import EV_FAULT, EV_IDLE, EV_TIMER
from virtfn.machine.clock import MS_PS, S_PS, US_PS, WallClock
from virtfn.machine.netports import NetDriver, Served
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.guest import Guest
from virtfn.vmm.host import Host
from virtfn.vmm.uplink import Wire
from virtfn.vmm.world import World

__all__ = ["BREATH_PS", "PACE", "Engine"]

PACE = 128, 64
BREATH_PS = 2 * MS_PS
_STUCK_PS = 2 * S_PS
_RETRY_PS = 100 * MS_PS
_SOON_PS = 20 * US_PS  # a frame or an interrupt waits for its time
_LATER_PS = 100 * US_PS
_LINGER = 256  # steps without progress of the work, before what comes from outside counts as idleness


class Engine:
    """Run the guests of one NIC; a `Lane`. guests: in the order of the workload's stations, with one interface each.

    nic: the card, with all that stands on it. hosts: drivers of the host's, which poll and idle as guests' do. wire: of
    the NIC, if it leads anywhere. breath_ps: how long it may work before others have their turn. pace: rounds of guests
    and NIC in a breath, and frames of each queue in a round, at most.
    """

    def __init__(
        self,
        host: Host,
        nic: Served,
        guests: Sequence[Guest],
        workload: Workload,
        *,
        wire: Wire | None = None,
        hosts: Sequence[NetDriver] = (),
        breath_ps: int = BREATH_PS,
    ) -> None:
        self._hosts = list(hosts)
        self.host = host
        self.nic = nic
        self.guests = list(guests)
        self.workload = workload
        self.ping_ps: list[list[int]] = [[] for _ in guests]
        self._asked_at: list[tuple[int, int]] = [(0, 0) for _ in guests]
        self._wire = wire
        if isinstance(host.clock, WallClock):
            nic.follow_time(breath_ps)
        self.pace = PACE
        self._met = 0, 0
        self._met_drivers: list[NetDriver] = []
        self._trapping: list[NetDriver] = []
        self._progress = (0, 0)
        self._idle_steps = 0
        self._retry_ps = 0
        self._timer = False
        self._busy = True
        self._progresses = True
        self._last_ps = host.now()
        self.done: bool | None = None

    def _drivers(self) -> list[NetDriver]:
        return [*(driver for guest in self.guests for driver in guest.drivers), *self._hosts]

    def step(self, rounds: int = PACE[0], budget: int = PACE[1]) -> bool:
        """Take one turn alone; return whether anything moved.

        rounds: of guests and NIC, at most. budget: frames of each queue in a round.
        """
        before, self.pace = self.pace, (rounds, budget)
        try:
            return self.turn(self.host.now()) > 0
        finally:
            self.pace = before

    def turn(self, now: Ps) -> int:
        """Take one turn alone; return how much was done."""
        self.begin()
        self.work()
        return self.end()

    def begin(self) -> bool:
        """Do what comes before a breath."""
        self.nic.settle()
        self._met_drivers = self._drivers()
        self._trapping = [driver for driver in self._met_drivers if driver.traps]
        return True

    def work(self) -> None:
        """Breathe."""
        rounds, budget = self.pace
        if self.workload.kind == "ping" or self._trapping:
            rounds = 1
        now = self.host.now()
        self._met = breathe(self.nic.address, self.workload.block.ctypes.data, now, rounds, budget)

    def end(self) -> int:
        """Do what the breath called for; return how much was done."""
        nic, host = self.nic, self.host
        moved, events = self._met
        for driver in self._trapping:
            driver.show_tails()
        if self._wire is not None:
            carried, told = self._wire.serve(self.pace[1])
            moved += carried
            events |= told
        nic.handle(events)
        if events & EV_FAULT:
            host.serve_iommu()
        moved += sum(guest.run_interrupts() for guest in self.guests if guest.interrupted)
        if events & EV_IDLE:
            for driver in self._drivers():
                if driver.netdev["polling"] and driver.netdev["empty_polls"] >= PATIENCE:
                    driver.idle()
        moved += self._recover()
        self._note_pings()
        self._timer = bool(events & EV_TIMER)
        self._busy = moved > 0
        self._note_progress()
        if self._busy and self._progresses:
            self._last_ps = host.now()
        return moved

    def due(self) -> Ps | None:
        """Say when the next breath is wanted: soon while anything waits; what comes from outside is waited for."""
        if self.done is not None and not self._timer and not self._waits:
            return None
        return Ps(self.host.now() + (_SOON_PS if self._timer else _LATER_PS))

    def fileno(self) -> int:
        """Return the descriptor of what comes from outside, unless frames wait for their time anyway."""
        return -1 if self._wire is None or self._timer or self._waits else self._wire.fileno()

    @property
    def _waits(self) -> bool:
        """Whether frames from outside wait for the card: more of them are no news."""
        return self._wire is not None and self._wire.arriving

    def _recover(self) -> int:
        """Let drivers recover that must; one whose PF is not back is left alone for a while. Returns how many did."""
        done = 0
        if self.host.now() < self._retry_ps:
            return done
        for driver in self._met_drivers:
            if driver.broken:
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
        self.start()
        World.of(self.host.clock, self).until(self.over)
        return bool(self.done)

    def start(self) -> None:
        """Begin to judge whether the work is over."""
        self.done, self._busy, self._last_ps = None, True, self.host.now()

    def over(self) -> bool:
        """Tell whether the work is over, to be asked between steps. `done` then says whether all of it was done."""
        if self.done is None and not (self._busy and self._progresses):
            if self.workload.finished and (self._drained() or not (self._progresses or self._departing)):
                self.done = True
            elif self.host.now() - self._last_ps > _STUCK_PS:
                self.done = self.workload.finished and self._wire is not None and self._wire.uplink.live
        return self.done is not None

    def _note_progress(self) -> None:
        """Note whether the work goes on, or did a moment ago: what comes from outside may keep guests busy for ever."""
        if self._wire is None or not self._wire.uplink.live:
            return
        progress = self.workload.sent, int(self.workload.row["tasks"]["answered"].sum())
        waits = self._timer and any(driver.tx_pending for driver in self._drivers())
        self._idle_steps = 0 if progress != self._progress or waits else self._idle_steps + 1
        self._progress = progress
        self._progresses = self._idle_steps < _LINGER

    @property
    def _departing(self) -> bool:
        return self._wire is not None and self._wire.departing

    def _drained(self) -> bool:
        """Whether no driver waits for anything: all sent frames taken by the device, no one polls."""
        if self._waits or self._departing:
            return False
        if self._timer or self.nic.waits:
            return False
        for driver in self._drivers():
            d = driver.netdev
            if d["up"] and (d["polling"] or driver.tx_pending):
                return False
        return not any(guest.interrupted for guest in self.guests)
