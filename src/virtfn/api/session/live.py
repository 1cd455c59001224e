"""What stands while a lab is up: its machine, its guests at work, its recording. It exists as long as they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from virtfn.api.accounts import Group, account
from virtfn.api.lab import Lab, Pf, VfPolicy
from virtfn.api.labchange import detached
from virtfn.api.machine import LabGuestRun, LabPf, Machine
from virtfn.api.recording import Recording
from virtfn.api.report import AttackReport, Report
from virtfn.api.running import policy_words
from virtfn.api.session.events import ClaimWatch, Event, FaultWatch, GuestBooted, GuestEnded, HostWatch
from virtfn.api.session.quarantine import stop_again
from virtfn.api.session.standing import Standing
from virtfn.api.session.telling import Teller
from virtfn.api.session.watching import event_of
from virtfn.api.stopped import Stopped
from virtfn.drivers.policy import VfPolicy as DriverPolicy
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.types import Mac, format_rid
from virtfn.hw.vtd.regs import Fault
from virtfn.iomodels.engine import BREATH_PS, Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.iovm.watch import Deed, Notice
from virtfn.machine.captures import Frames
from virtfn.machine.clock import MS_PS, WallClock
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.world import World

if TYPE_CHECKING:
    from virtfn.api.hosts import HostWork
    from virtfn.api.image import Platform
    from virtfn.api.linux import LinuxGuest, LinuxGuests
    from virtfn.api.linuxwork import LinuxWork
    from virtfn.api.served import ServedGuest, ServedGuests, ServiceDocument

__all__ = ["Live"]

_GROUPS = 30  # of a guest that is not trusted
_BESIDE_PS = MS_PS // 4  # a breath of embedded guests beside Linux guests, who wait for answers


class Live:
    """A lab that is up. What is opened is closed with `closes`, the last first.

    standing: the embedded guests of a service. changing: whether a change is under way. ended: guests that are no more.
    groups: embedded guests at work, by PF. guests: those under QEMU. attacks: what a hostile guest has tried.
    compile_ps: how long kernels were compiled. on_stop: is told when a VF goes into quarantine, or comes out.
    """

    def __init__(
        self,
        machine: Machine,
        world: World,
        clock: WallClock,
        teller: Teller,
        tell_event: Callable[[Event], None],
        closes: ExitStack,
        compile_ps: int,
    ) -> None:
        self.machine = machine
        self.lab: Lab = machine.lab
        self.groups = teller.groups
        self.attacks: list[AttackReport] = []
        self.notes: list[str] = []
        self.standing: Standing | None = None
        self.changing = False
        self.ended: set[str] = set()
        self.on_stop: Callable[[], None] | None = None
        self._reworded: dict[str, tuple[Pf | None, dict[int, DriverPolicy], Pf]] = {}
        self._compile_ps = compile_ps
        self._moving_ps = 0
        self._world = world
        self._clock = clock
        self._teller = teller
        self.tell_event = tell_event
        self._closes = closes
        self._recordings: list[Recording] = []
        self._linux: list[LinuxGuests] = []
        self._linux_work: list[LinuxWork | HostWork] = []
        self._served: list[ServedGuests] = []

    @property
    def guests(self) -> Sequence[LinuxGuest]:
        """The guests under QEMU."""
        return [guest for linux in self._linux for guest in linux.guests]

    def linux_guest(self, name: str) -> LinuxGuest | None:
        """Return the guest of that name, if it is under QEMU."""
        return next((guest for guest in self.guests if guest.lab.name == name), None)

    def running_lab(self) -> Lab:
        """Return the lab as it is now, with the policies that were changed since it was read."""
        lab, policies = self.machine.lab, {pf.name: pf.policies for pf in self.machine.pfs}
        pfs = tuple(self._reworded_pf(pf, policies[pf.name]) for pf in lab.pfs)
        return lab if pfs == lab.pfs else lab.model_copy(update={"pfs": pfs})

    def _reworded_pf(self, pf: Pf, policies: dict[int, DriverPolicy]) -> Pf:
        """Return a PF with these policies: as long as nothing changes, the same object, which `Documents` knows."""
        if pf.sr_iov is None or not policies:
            return pf
        said, had, found = self._reworded.get(pf.name, (None, {}, pf))
        if said is not pf or had != policies:
            vfs = {policy.id: policy for policy in pf.sr_iov.vfs}
            vfs |= {n: _reworded(pf.policy(n), each) for n, each in policies.items()}
            ordered = tuple(policy for _, policy in sorted(vfs.items()))
            found = pf.model_copy(update={"sr_iov": pf.sr_iov.model_copy(update={"vfs": ordered})})
            self._reworded[pf.name] = pf, dict(policies), found
        return found

    @property
    def served(self) -> Sequence[ServedGuest]:
        """The guests whose QEMUs others start."""
        return [guest for served in self._served for guest in served.guests]

    @property
    def all_linux(self) -> Sequence[LinuxGuest | ServedGuest]:
        """All guests under QEMU, whoever starts them."""
        return [*self.guests, *self.served]

    def served_words(self) -> str:
        """Say who of those is there; empty if there are none."""
        return "; ".join(served.words() for served in self._served)

    def service(self) -> ServiceDocument:
        """Say where their sockets are. Raises VirtfnError (EINVAL) if there are none."""
        for served in self._served:
            return served.document()
        raise VirtfnError("the lab starts its QEMUs itself", errno_name="EINVAL")

    # Starting.

    def start(
        self,
        capture: Path | None,
        platform: Platform | None,
        frames: Frames | None,
        *,
        standing: bool = False,
        by_hand: bool = False,
        sockets: Path | None = None,
        stopped: Sequence[Stopped] = (),
    ) -> None:
        """Bring machine and guests up, and prepare their work.

        capture: where to record from now on, if anywhere; platform: of guests under QEMU; frames: to be replayed.
        standing: they stay and rest, until they are told to work; by_hand: until somebody else moves their frames.
        sockets: a folder, where guests under QEMU are served and not started. stopped: VFs that stay in quarantine.
        """
        machine, tell = self.machine, self._teller.tell
        tell("starting", force=True)
        machine.start(lambda: tell("starting"))
        self._watch_faults()
        self._watch_claims()
        self._watch_vfs()
        stop_again(machine, stopped)
        for run in machine.guests:
            self.tell_event(GuestBooted(run.lab.name, run.lab.vmm, 0.0))
        if capture is not None:
            recording = self._closes.enter_context(closing(Recording(capture, machine, self._clock)))
            self._recordings.append(recording)
            self._world.add(recording)
        if platform is not None:
            self._boot_linux(platform, stopped)
        if standing:
            for linux in self._linux:
                linux.on_end = self._note_end
        if sockets is not None:
            self._serve(sockets)
        breath_ps = _BESIDE_PS if platform is not None else BREATH_PS
        if standing:
            self.standing = Standing(machine, self._world, self.groups, frames, breath_ps)
            for pf in machine.pfs:
                self.standing.settle(pf)
            self._world.add(self.standing)
        elif not by_hand:
            self._prepare(frames, breath_ps)

    def _watch_faults(self) -> None:
        """Tell of faults, beside whoever is told already."""
        watch, unit = FaultWatch(self.tell_event), self.machine.host.iommu
        others = [unit.on_fault] if unit.on_fault is not None else []

        def note(fault: Fault) -> None:
            watch.note(fault)
            self.machine.watch.note_fault(fault)
            for tell in others:
                tell(fault)

        unit.on_fault = note
        self._world.add(watch)

    def _watch_vfs(self) -> None:
        """Tell of what the watch over all VFs sees and does, and of VFs that guests make."""
        machine = self.machine
        for pf in machine.pfs:
            if host := machine.lab.host_of(pf.name):
                self._world.add(HostWatch(self.tell_event, pf.name, host, pf.nic))

        def note(notice: Notice) -> None:
            self.tell_event(event_of(machine, notice))
            if self.on_stop is not None and notice.deed in (Deed.QUARANTINED, Deed.RELEASED):
                self.on_stop()

        machine.watch.on_notice = note
        self._world.add(machine.watch)

    def _watch_claims(self) -> None:
        """Tell of addresses that guests are refused, where the PF's driver is ours."""
        for pf in self.machine.pfs:
            if not pf.driven:
                continue

            def name(n: int | None, pf: LabPf = pf) -> str:
                return format_rid(pf.nic.pf_rid if n is None else pf.vfs[n].rid)

            watch = ClaimWatch(self.tell_event, name)
            pf.driver.watch_claims(watch.note)
            self._world.add(watch)

    def _boot_linux(self, platform: Platform, stopped: Sequence[Stopped]) -> None:
        from virtfn.api.hosts import HostWork
        from virtfn.api.linux import LinuxGuests  # QEMU and all that it needs: most labs do without
        from virtfn.api.linuxwork import LinuxWork

        linux = self._closes.enter_context(closing(LinuxGuests(self.machine, platform, self._world, self._teller.tell)))
        self._linux.append(linux)
        linux.start()
        stop_again(self.machine, stopped)
        linux.boot(
            lambda guest: self.tell_event(GuestBooted(guest.lab.name, guest.lab.vmm, round(guest.boot_s or 0.0, 2)))
        )
        linux.set_up(self.lab.workload.frame_bytes)
        hosts = HostWork(self.machine, linux)
        hosts.set_up()
        self._linux_work += [LinuxWork(self.machine, linux), hosts]

    def _serve(self, sockets: Path) -> None:
        from virtfn.api.served import ServedGuests  # vfio-user and all that it needs

        served = self._closes.enter_context(closing(ServedGuests(self.machine, sockets, self._world, self.tell_event)))
        self._served.append(served)
        served.start()

    def _prepare(self, frames: Frames | None, breath_ps: int) -> None:
        """Set the work of each PF's embedded guests up."""
        machine, work = self.machine, self.lab.workload
        for pf in machine.pfs:
            runs = machine.guests_of(pf)
            if not runs:
                continue
            stations = [Station(run.driver.row, run.driver.mac) for run in runs]
            if frames is not None:
                self.notes += _listen(runs, frames)
            try:
                workload = Workload(
                    work.kind,
                    stations,
                    length=work.frame_bytes - FCS_BYTES,
                    frames=work.frames_each,
                    capture=frames,
                    rewrite=work.rewrite,
                    uplink=pf.strangers,
                )
            except VirtfnError as error:
                error.args = (f"{self.lab.where(('workload', 'kind'))}: {error}",)
                raise
            guests = [run.guest for run in runs]
            engine = Engine(
                machine.host, pf.served, guests, workload, wire=pf.wire, hosts=pf.hosts, breath_ps=breath_ps
            )
            self.groups.append(Group(pf, runs, workload, engine))

    def _note_end(self, guest: LinuxGuest, how: str) -> None:
        """Go on without a guest that has ended."""
        self.ended.add(guest.lab.name)
        self.machine.lab = detached(self.machine.lab, self.ended)
        self.tell_event(GuestEnded(guest.lab.name, how))

    def set_up(self, guest: LinuxGuest) -> InPieces[None]:
        """Let a Linux guest find its new interface, and bring it up. Raises VirtfnError with the guest's own words."""
        for linux in self._linux:
            yield from linux.set_one_up(guest, self.lab.workload.frame_bytes)

    # Working.

    def work(self) -> bool:
        """Let the hostile guest of an attack lab try, then all guests work to their ends; False if one got stuck."""
        if self.lab.workload.kind == "attack":
            self._attack()
        before = self._clock.now()
        for group in self.groups:
            group.engine.start()
            self._world.add_lane(group.engine)
        for work in self._linux_work:
            work.run()
        self._world.until(self._over)
        for recording in self._recordings:
            recording.drain()
        self._moving_ps += self._clock.now() - before
        return all(group.engine.done for group in self.groups)

    def _attack(self) -> None:
        """Let the hostile guest try, here and without remapping, while the others begin their work."""
        (group,) = (group for group in self.groups if group.pf is self.machine.guests[0].pf)
        before = self._clock.now()
        self._teller.tell("attacking", force=True)
        from virtfn.api.attack import attack, attack_unprotected, compare

        findings = attack(self.machine, group.engine)
        self._moving_ps += self._clock.now() - before
        self._teller.tell("attacking a machine without remapping", force=True)
        self.attacks += compare(findings, attack_unprotected(self.lab, self._clock))

    def _over(self) -> bool:
        self._teller.tell("running")
        over = [group.engine.over() for group in self.groups]  # each takes note of its progress
        return all(over)

    def cut_off(self) -> bool:
        """Tell whether all work that is not done is pings that were dropped for a counted reason."""
        for group in self.groups:
            if not group.engine.done:
                left = set(group.workload.unfinished())
                explained = (
                    {e.flow.sender for e in group.explained() if e.reasons} if group.workload.kind == "ping" else set()
                )
                if not left or not left <= explained:
                    return False
        return True

    def unfinished(self) -> str:
        """Say whose work is not done."""
        names = [group.runs[g].lab.name for group in self.groups for g in group.workload.unfinished()]
        return f"{', '.join(names)} cannot go on" if names else "frames wait in the NIC and nobody takes them"

    def report(self) -> Report:
        """Account for every frame."""
        others = [report for work in self._linux_work for report in work.reports()]
        flows = [flow for work in self._linux_work for flow in work.flows]
        report = account(
            self.machine, self.groups, others, flows, moving_ps=self._moving_ps, compile_ps=self._compile_ps
        )
        for recording in self._recordings:
            recording.flush()
        self.machine.flush_trace()
        if self.attacks:
            report["attacks"] = self.attacks
        return report

    # Stopping.

    def stop(self) -> None:
        """Take guests and functions down in good order; nothing is closed yet."""
        if self.standing is not None:
            self.standing.stop()
        for linux in self._linux:
            linux.stop()
        for served in self._served:
            served.stop()
        self.machine.stop()


def _reworded(said: VfPolicy, policy: DriverPolicy) -> VfPolicy:
    """Return what a lab says of a VF, but for what its driver's policy says otherwise."""
    words = policy_words(said.id, policy)
    return said.model_copy(update={name: getattr(words, name) for name in words.model_fields_set})


def _listen(runs: list[LabGuestRun], frames: Frames) -> list[str]:
    """Let the guests of a replay hear every group and VLAN that the capture has; return what they cannot, in words."""
    notes = []
    vids, groups = set(), set()
    for k in range(len(frames)):
        frame = frames.frame(k)
        if len(frame) >= 18 and frame[12] == 0x81 and frame[13] == 0:
            vids.add((int(frame[14]) << 8 | int(frame[15])) & 0xFFF)
        if len(frame) >= 6 and frame[0] & 1:
            groups.add(Mac(int.from_bytes(frame[:6].tobytes(), "little")))
    for run in runs:
        driver = run.driver
        try:
            driver.set_promiscuous(False, True)
        except VirtfnError:  # a guest that is not trusted hears the groups that it may ask for one by one
            driver.set_multicast(sorted(groups)[:_GROUPS])
            if len(groups) > _GROUPS:
                notes.append(
                    f"guest {run.lab.name} hears {_GROUPS} of the capture's {len(groups)} multicast groups: "
                    f"the policy of its VF does not say trust: true"
                )
        for vid in sorted(vids)[:31]:
            try:
                driver.set_vlan(vid)
            except VirtfnError:
                break  # the host chose this guest's VLAN, or the table is full: the NIC counts what it then drops
    return notes
