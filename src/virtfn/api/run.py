"""Run a lab: bring it up, let its guests work, take it down, and account for every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virtfn.api.accounts import Group, account
from virtfn.api.attack import attack, attack_unprotected, compare
from virtfn.api.control import Control
from virtfn.api.image import Platform, find_platform
from virtfn.api.iommu import iommu_methods, save_iommu
from virtfn.api.lab import Lab, refuse_unsupported
from virtfn.api.linux import LinuxGuests
from virtfn.api.linuxwork import LinuxWork
from virtfn.api.machine import LabGuestRun, Machine
from virtfn.api.progress import Progress
from virtfn.api.recording import Recording
from virtfn.api.report import AttackReport, Report
from virtfn.api.signals import ended_by_signals
from virtfn.cards import MODELS
from virtfn.hw.eth import FCS_BYTES
from virtfn.iomodels.engine import BREATH_PS, Engine
from virtfn.iomodels.workload import Station, Workload
from virtfn.kernels import warm
from virtfn.machine.captures import Frames, read_capture
from virtfn.machine.clock import MS_PS, S_PS, WallClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import rest
from virtfn.vmm.world import World

__all__ = ["machine_for", "run_lab"]

_PROGRESS_PS = 100 * MS_PS
_BESIDE_PS = MS_PS // 4  # a breath of embedded guests beside Linux guests, who wait for answers


@contextmanager
def machine_for(lab: Lab) -> Iterator[Machine]:
    """Bring the machine of a lab up, without running its workload.

    Raises VirtfnError as the lab's parts do.
    """
    refuse_unsupported(lab)
    with Machine(lab, WallClock()) as machine:
        yield machine


class _Run:
    """One run of a lab."""

    def __init__(self, lab: Lab, capture: Path | None, progress: Callable[[Progress], None] | None) -> None:
        self.lab = lab
        self.clock = WallClock()
        self.started = self.clock.now()
        self.compile_ps = 0
        self.moving_ps = 0
        self.world = World(self.clock)
        self.groups: list[Group] = []
        self._capture = capture
        self._progress = progress
        self._shown = 0
        self._last = (self.started, 0, 0)
        self.recording: Recording | None = None
        self.control: Control | None = None
        self.linux: LinuxGuests | None = None
        self.linux_work: LinuxWork | None = None

    def tell(self, phase: str, since: int | None = None, *, force: bool = False) -> None:
        """Report progress, not too often. since: when the phase began, if the start of the run is not meant."""
        now = self.clock.now()
        if self._progress is None or (not force and now - self._shown < _PROGRESS_PS):
            return
        self._shown = now
        guests = tuple(
            (
                run.lab.name,
                int(self._row(run)["tx_frames"]),
                int(self._row(run)["rx_frames"]),
                sum(run.pf.nic.drops(run.vf.index).values()),
            )
            for group in self.groups
            for run in group.runs
            if run.guest.nics
        )
        frames, size = self._received()
        before, had, bytes_before = self._last
        seconds = max((now - before) / S_PS, 1e-9)
        self._last = now, frames, size
        rate, bits = (frames - had) / seconds / 1e6, (size - bytes_before) * 8 / seconds / 1e9
        if phase != "running":
            rate = bits = 0.0
        total = sum(group.workload.total_frames for group in self.groups)
        sent = sum(group.workload.sent for group in self.groups)
        elapsed = now - (self.started if since is None else since)
        self._progress(Progress(phase, elapsed / S_PS, sent, total, rate, bits, guests))

    @staticmethod
    def _row(run: LabGuestRun) -> dict[str, int]:
        return run.guest.nics[0].driver.netdev  # type: ignore[return-value]

    def _received(self) -> tuple[int, int]:
        rows = [self._row(run) for group in self.groups for run in group.runs if run.guest.nics]
        return sum(int(r["rx_frames"]) for r in rows), sum(int(r["rx_bytes"]) for r in rows)

    def compile(self) -> None:
        """Load the kernels, or compile them at the first run."""
        before = self.clock.now()
        self.tell("starting" if warm.cached() else "compiling kernels (first run only)", force=True)
        self.compile_ps = warm.load() and self.clock.now() - before

    def boot_linux(self, machine: Machine, platform: Platform) -> None:
        """Bring the guests under QEMU up."""
        self.linux = LinuxGuests(machine, platform, self.world, self.tell)
        self.linux.start()
        self.linux.boot()
        self.linux.set_up(self.lab.workload.frame_bytes)
        self.linux_work = LinuxWork(machine, self.linux)

    def prepare(self, machine: Machine, frames: Frames | None) -> None:
        """Set the workload of each PF's embedded guests up."""
        work = self.lab.workload
        for pf in machine.pfs:
            runs = machine.guests_of(pf)
            if not runs:
                continue
            stations = [Station(run.guest.nics[0].driver.row, run.guest.nics[0].driver.mac) for run in runs]
            if frames is not None:
                _listen(runs, frames)
            workload = Workload(
                work.kind,
                stations,
                length=work.frame_bytes - FCS_BYTES,
                frames=work.frames_each,
                capture=frames,
                rewrite=work.rewrite,
                uplink=pf.strangers,
            )
            guests = [run.guest for run in runs]
            breath = BREATH_PS if self.linux is None else _BESIDE_PS
            engine = Engine(machine.host, pf.nic, guests, workload, wire=pf.wire, breath_ps=breath)
            self.world.add_lane(engine)
            self.groups.append(Group(pf, runs, workload, engine))

    def open_capture(self, machine: Machine) -> None:
        """Record from now on, if the run is to be recorded."""
        if self._capture is not None:
            self.recording = Recording(self._capture, machine, self.clock)
            self.world.add(self.recording)

    def attack(self, machine: Machine) -> list[AttackReport]:
        """Let the hostile guest of an attack lab try, here and without remapping, while the others begin their work."""
        if self.lab.workload.kind != "attack":
            return []
        (group,) = (group for group in self.groups if group.pf is machine.guests[0].pf)
        before = self.clock.now()
        self.tell("attacking", force=True)
        findings = attack(machine, group.engine)
        self.moving_ps += self.clock.now() - before
        self.tell("attacking a machine without remapping", force=True)
        return compare(findings, attack_unprotected(self.lab, self.clock))

    def work(self) -> bool:
        """Let Linux guests and all groups run to their ends; False if one got stuck."""
        before = self.clock.now()
        for group in self.groups:
            group.engine.start()
        if self.linux_work is not None:
            self.linux_work.run()
        self.world.until(self._over)
        if self.recording is not None:
            self.recording.drain()
        self.moving_ps += self.clock.now() - before
        return all(group.engine.done for group in self.groups)

    def _over(self) -> bool:
        self.tell("running")
        over = [group.engine.over() for group in self.groups]  # each takes note of its progress
        return all(over)

    def keep(self) -> None:
        """Keep the machine at work and answer questions, until interrupted."""
        asks = "virtfn iommu show" if self.linux is None else "virtfn shell GUEST, virtfn iommu show"

        def kept() -> bool:
            self.tell(f"kept up: {asks} looks at it, Ctrl-C ends it")
            return False

        with suppress(KeyboardInterrupt), ended_by_signals():
            self.world.until(kept)

    def unfinished(self) -> str:
        """Say whose work is not done."""
        names = [group.runs[g].lab.name for group in self.groups for g in group.workload.unfinished()]
        return f"{', '.join(names)} cannot go on" if names else "frames wait in the NIC and nobody takes them"

    def close(self) -> None:
        """Close what the run has opened."""
        if self.linux is not None:
            self.linux.close()
        if self.control is not None:
            self.control.close()
        if self.recording is not None:
            self.recording.close()
        self.world.close()


def _listen(runs: list[LabGuestRun], frames: Frames) -> None:
    """Let the guests of a replay hear every group and VLAN that the capture has, as far as the NIC has room."""
    vids = set()
    for k in range(len(frames)):
        frame = frames.frame(k)
        if len(frame) >= 18 and frame[12] == 0x81 and frame[13] == 0:
            vids.add((int(frame[14]) << 8 | int(frame[15])) & 0xFFF)
    for run in runs:
        driver = run.guest.nics[0].driver
        driver.set_promiscuous(False, True)
        for vid in sorted(vids)[:31]:
            try:
                driver.set_vlan(vid)
            except VirtfnError:
                break  # the host chose this guest's VLAN, or the table is full: the NIC counts what it then drops


def run_lab(
    lab: Lab,
    *,
    capture: Path | None = None,
    trace: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    controlled: bool = False,
    keep: bool = False,
    save_state: Path | None = None,
) -> Report:
    """Run a lab from nothing to nothing and report.

    capture: where to record what each function sent and received. trace: where to write what happened. controlled:
    whether others can ask it while it runs. keep: whether it stays up after its work, until interrupted, and can be
    asked. save_state: where to write the state of the IOMMU at the end of the work.

    Raises VirtfnError if a part refuses, the work gets stuck, or others can ask a lab of that name already.
    """
    refuse_unsupported(lab)
    if capture is not None and lab.workload.kind == "attack":
        raise VirtfnError(
            "an attack cannot be captured: the attacker's accomplice has the wire", errno_name="EOPNOTSUPP"
        )
    platform = find_platform(rest) if any(guest.vmm == "qemu" for guest in lab.guests) else None
    run = _Run(lab, capture, progress)
    frames = read_capture(lab.workload.pcap) if lab.workload.kind == "pcap" and lab.workload.pcap else None
    run.compile()
    longest = int(frames.lengths.max()) + 4 if frames is not None and len(frames) else lab.workload.frame_bytes
    mtu = min(max(1500, longest - 18), *(MODELS[str(pf.model)].limits.mtu for pf in lab.pfs))
    if controlled or keep:
        run.control = Control(lab.name, {})
        run.world.add(run.control)
    try:
        machine = Machine(lab, run.clock, mtu=mtu, trace=trace)
    except BaseException:
        run.close()
        raise
    try:
        if run.control is not None:
            run.control.methods.update(iommu_methods(machine.host, lab.name))
        run.tell("starting", force=True)
        machine.start(lambda: run.tell("starting"))
        run.open_capture(machine)
        if platform is not None:
            run.boot_linux(machine, platform)
        run.prepare(machine, frames)
        attacks = run.attack(machine)
        if not run.work():
            raise VirtfnError(f"the work got stuck: {run.unfinished()}", errno_name="ETIMEDOUT")
        others = run.linux_work.reports() if run.linux_work is not None else []
        report = account(machine, run.groups, others, moving_ps=run.moving_ps, compile_ps=run.compile_ps)
        if attacks:
            report["attacks"] = attacks
        if save_state is not None:
            save_iommu(machine.host, save_state)
        if keep:
            run.keep()
        run.tell("stopping", force=True)
        if run.linux is not None:
            run.linux.stop()
        machine.stop()
    finally:
        try:
            run.close()
        finally:
            machine.close()
    report["elapsed_s"] = round((run.clock.now() - run.started) / S_PS, 3)
    return report
