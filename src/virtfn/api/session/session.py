"""A session: a lab that lives, from nothing to nothing, and what it can be asked meanwhile.

    new -> starting -> ready -> working -> done -> stopping -> closed
                          +-----------------------^
    what raises on the way leads to: failed -> closed

A method belongs to states, and to the thread that made the session; in another state it is refused. `ask`, `snapshot`
and `events` are for any thread: requests are carried out by the world between turns, the other two read memory.
"""

from __future__ import annotations

import copy
import enum
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from virtfn.api.control import Control, Handler, Params
from virtfn.api.iommu import save_iommu
from virtfn.api.lab import Lab, refuse_unsupported
from virtfn.api.machine import Machine
from virtfn.api.progress import OnProgress, Progress
from virtfn.api.report import Report
from virtfn.api.session.desk import Desk
from virtfn.api.session.events import Events, StateChanged, StateUnwritten, WorkDone
from virtfn.api.session.live import Live
from virtfn.api.session.requests import REQUESTS, Request
from virtfn.api.session.snapshot import Snapshot, snapshot_pieces, take_snapshot
from virtfn.api.session.telling import Teller
from virtfn.api.signals import ended_by_signals
from virtfn.api.stopped import Stopped
from virtfn.cards import MODELS
from virtfn.kernels import warm
from virtfn.machine.captures import Frames, read_capture
from virtfn.machine.clock import S_PS, WallClock
from virtfn.machine.pieces import InPieces, finish
from virtfn.machine.ports import Actor, VirtfnError
from virtfn.vmm.world import PatientClock, World

if TYPE_CHECKING:
    from virtfn.api.image import Platform
    from virtfn.api.linux import LinuxGuest
    from virtfn.api.served import ServiceDocument

__all__ = ["Session", "State"]

ASK_S = 30.0
_KEPT_REST_PS = S_PS // 2

T = TypeVar("T")


class State(enum.Enum):
    """Where a session is on its way."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    WORKING = "working"
    DONE = "done"
    STOPPING = "stopping"
    FAILED = "failed"
    CLOSED = "closed"


_PASSING = (State.STARTING, State.WORKING, State.STOPPING)
_UP = (State.READY, State.DONE)


class Session:
    """A lab that lives; a `with` block, whose end closes it in any state.

    capture: where to record what each function sends and receives. trace: where to write what happens. progress: is
    told what goes on. controlled: whether there is a socket by the lab's name, where other processes can ask. standing:
    guests do not work to an end: they rest, come and go, and send when that is asked for; `keep` follows `start`.
    by_hand: embedded guests do nothing but what somebody has them do, frame by frame (`api/byhand.py`).

    sockets: a folder where guests under QEMU find their functions, for QEMUs that others start; without it, QEMU is
    started here. stopped: VFs that are in quarantine from the start. unwritten: files that could not be written, and
    why.

    Raises VirtfnError for a lab that cannot be.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        capture: Path | None = None,
        trace: Path | None = None,
        progress: OnProgress | None = None,
        controlled: bool = False,
        standing: bool = False,
        by_hand: bool = False,
        sockets: Path | None = None,
        stopped: Sequence[Stopped] = (),
    ) -> None:
        refuse_unsupported(lab)
        if standing and lab.workload.kind == "attack":
            raise VirtfnError("an attack ends with its lab; use virtfn run", errno_name="EOPNOTSUPP")
        if capture is not None and lab.workload.kind == "attack":
            raise VirtfnError(
                "an attack cannot be captured: the attacker's accomplice has the wire", errno_name="EOPNOTSUPP"
            )
        self._lab = lab
        self.clock = WallClock()
        self.events = Events(self.clock)
        self._capture, self._trace, self._controlled, self._standing = capture, trace, controlled, standing
        self._ending = False
        self.on_change: Callable[[], None] = _tell_nobody_of_changes
        self._by_hand = by_hand
        self._sockets, self._stopped = sockets, stopped
        self._began = self.clock.now()
        self._state = State.NEW
        self._thread = threading.get_ident()
        self._world = World(self.clock)
        self._desk = Desk(self, self.clock)
        self._teller = Teller(self.clock, progress or _tell_nobody)
        self._closes = ExitStack()
        self._live: Live | None = None  # exists as long as the lab is up; `live` is how to reach it
        self.unwritten: list[str] = []
        self._behind: str | None = None
        self._notes: list[str] = []
        self._reading = threading.Lock()  # what snapshots read does not go away meanwhile
        self._look: Callable[[], Snapshot] = self._see_nothing

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What may be read at any time.

    @property
    def state(self) -> State:
        """Where the session is on its way."""
        return self._state

    @property
    def lab(self) -> Lab:
        """The lab, as it is now; before and after it is up, as it was read."""
        return self._lab if self._live is None else self._live.running_lab()

    @property
    def elapsed_s(self) -> float:
        """How long ago the session was made."""
        return (self.clock.now() - self._began) / S_PS

    @property
    def behind(self) -> str | None:
        """Why the lab's file does not know the latest change; None if it does, or there is none."""
        return self._behind

    @property
    def machine(self) -> Machine:
        """The machine, for the session's thread. Raises VirtfnError if none is up."""
        return self.live.machine

    @property
    def linux_guests(self) -> Sequence[LinuxGuest]:
        """The guests under QEMU that are there, for the session's thread. Raises VirtfnError if nothing is up."""
        return self.live.guests

    @property
    def world(self) -> World:
        """The world, for requests that bring actors."""
        return self._world

    @property
    def live(self) -> Live:
        """What stands, for the session's thread. Raises VirtfnError if nothing is up."""
        if self._live is None:
            raise VirtfnError(f"nothing is up: the lab is {self._state.value}", errno_name="EINVAL")
        return self._live

    def snapshot(self) -> Snapshot:
        """Return what guests, functions and cards have counted; once the lab is taken down, what they had then.

        For any thread; nobody waits for it. Raises VirtfnError if nothing has ever been up.
        """
        with self._reading:
            return self._look()

    def snapshot_pieces(self) -> InPieces[Snapshot]:
        """Do the same between others' turns, for the session's thread."""
        live, elapsed = self._live, round(self.elapsed_s, 3)
        if live is None:
            return self.snapshot()
        return (yield from snapshot_pieces(live.machine, live.all_linux, state=self._state.value, elapsed_s=elapsed))

    def _see_nothing(self) -> Snapshot:
        raise VirtfnError(f"nothing has counted anything: the lab is {self._state.value}", errno_name="EINVAL")

    def _see(self) -> Snapshot:
        live, elapsed = self.live, round(self.elapsed_s, 3)
        return take_snapshot(live.machine, live.all_linux, state=self._state.value, elapsed_s=elapsed)

    def ask(self, request: Request[T], timeout_s: float = ASK_S) -> T:
        """Have a request carried out, and return the answer.

        In another thread this waits for the world to do it; in the session's own it is done at once.

        Raises VirtfnError if it is refused, too many wait (EBUSY), the session ends (ESHUTDOWN), or time is up
        (ETIMEDOUT).
        """
        if threading.get_ident() == self._thread:
            pieces = request.pieces(self)
            return self._world.finish(pieces) if request.waits else finish(pieces)
        answer = self._desk.submit(request)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            if not answer.cancel():
                return answer.result()
            raise VirtfnError(f"{request.method}: no answer within {timeout_s:g} s", errno_name="ETIMEDOUT") from None

    # The way.

    def start(self) -> None:
        """Bring everything up: kernels, machine, guests, and prepare their work.

        Raises VirtfnError if a part refuses, or others can ask a lab of that name already.
        """
        with self._through("start", (State.NEW,), State.STARTING, State.READY):
            lab = self.lab
            ours = self._sockets is None and any(guest.vmm == "qemu" for guest in lab.guests)
            platform = _find_platform(lab) if ours else None
            frames = read_capture(lab.workload.pcap) if lab.workload.kind == "pcap" and lab.workload.pcap else None
            compile_ps = self._compile()
            machine = self._make_machine(frames)
            live = Live(machine, self._world, self.clock, self._teller, self.events.tell, self._closes, compile_ps)
            live.on_stop = self.changed
            with self._reading:
                self._live, self._look = live, self._see
            live.start(
                self._capture,
                platform,
                frames,
                standing=self._standing,
                by_hand=self._by_hand,
                sockets=self._sockets,
                stopped=self._stopped,
            )
            captures = [frames, *(pf.strangers for pf in machine.pfs)]
            self._notes = list(dict.fromkeys(note for capture in captures if capture for note in capture.notes))
            self._notes += live.notes + [note for guest in live.guests for note in guest.notes]
            # What is there by now stays, the compiler's memory most of all: to search it for garbage takes 50 ms.
            gc.freeze()
            self._closes.callback(gc.unfreeze)

    def _compile(self) -> int:
        """Load the kernels, or compile them at the first run; return how long they compiled."""
        before = self.clock.now()
        lab = self.lab
        rest = lab.workload.kind not in ("pairs", "fan-in") or any(pf.uplink != "none" for pf in lab.pfs)
        rest = rest or any(guest.vmm == "qemu" or guest.nic.io != "sriov" for guest in lab.guests)
        phase = warm.phase(rest=rest)
        self._teller.tell(phase, force=True)
        self._closes.enter_context(warm.told(self._say_that_it_compiles))
        compiled = warm.load(rest=rest, watch=lambda steps, total: self._teller.tell_steps(phase, steps, total))
        return self.clock.now() - before if compiled else 0

    def _say_that_it_compiles(self) -> None:
        if self._state is not State.STARTING:
            self._teller.tell("compiling kernels (first use only)", force=True)

    def _make_machine(self, frames: Frames | None) -> Machine:
        """Open the door, if there is to be one, and make the machine. frames: that will be replayed."""
        longest = int(frames.lengths.max()) + 4 if frames is not None and len(frames) else self.lab.workload.frame_bytes
        mtu = min(max(1500, longest - 18), *(MODELS[str(pf.model)].limits.mtu for pf in self.lab.pfs))
        with ExitStack() as at_first:
            if self._controlled:
                methods = {kind.method: self._door(kind) for kind in REQUESTS}
                control = at_first.enter_context(closing(Control(self.lab.name, methods)))
                for actor in (control, self._desk, control.replies):  # who asks, is answered in the same step
                    self._world.add(actor)
            else:
                self._world.add(self._desk)
            waiting = PatientClock(self._world) if self._standing else None
            machine = Machine(
                self.lab, self.clock, mtu=mtu, trace=self._trace, waiting=waiting, standing=self._standing
            )
            self.unwritten = machine.unwritten
            self._closes.callback(machine.close)
            self._closes.callback(self._world.close)
            self._closes.push(at_first.pop_all())
        return machine

    def _door(self, kind: type[Request[object]]) -> Handler:
        def take(params: Params) -> object:
            return self._desk.submit(kind.from_params(params))

        return take

    def work(self) -> None:
        """Let all guests work to their ends; pings end at the first that is dropped.

        Raises VirtfnError (ETIMEDOUT) if one got stuck, or as guests do that end or hang.
        """
        with self._through("work", (State.READY,), State.WORKING, State.DONE):
            finished = self.live.work()
            self.events.tell(WorkDone(finished))
            if not finished and not self.live.cut_off():
                raise VirtfnError(f"the work got stuck: {self.live.unfinished()}", errno_name="ETIMEDOUT")

    def report(self) -> Report:
        """Account for every frame of the work."""
        self._require("report", State.DONE)
        report = self.live.report()
        report["elapsed_s"] = round(self.elapsed_s, 3)
        if self.unwritten:
            report["unwritten"] = list(self.unwritten)
        if self._notes:
            report["notes"] = list(self._notes)
        return report

    def save_iommu(self, path: Path) -> None:
        """Write the state of the IOMMU, with all tables; the lab rests meanwhile.

        Raises VirtfnError as api/iommu.py does.
        """
        self._require("save_iommu", *_UP)
        save_iommu(self.machine.host, path)

    def add(self, actor: Actor) -> None:
        """Let somebody have turns in the lab's world, as long as the lab is up."""
        self._require("add", *_UP)
        self._world.add(actor)

    def run_until(self, done: Callable[[], bool], limit_ps: int | None = None) -> bool:
        """Keep the lab at work until `done`, which is asked between steps; False if `limit_ps` is over before."""
        self._require("run_until", *_UP)
        return self._world.until(done, limit_ps)

    def keep(self, ready: Callable[[], None] | None = None) -> None:
        """Keep the lab up, and answer, until a signal or a request ends that. ready: is told that this has begun."""
        self._require("keep", *_UP)
        asks = "virtfn shell GUEST, virtfn iommu show" if self.live.guests else "virtfn iommu show"

        def kept() -> bool:
            served = self.live.served_words()
            self._teller.tell(f"{served}; Ctrl-C ends it" if served else f"kept up: {asks} looks at it, Ctrl-C ends it")
            return self._ending

        with suppress(KeyboardInterrupt), ended_by_signals():
            if ready is not None:
                ready()
            self._world.until(kept, longest_ps=_KEPT_REST_PS)

    def changed(self) -> None:
        """Tell `on_change` that the lab is not as it was. The change holds, whatever becomes of its file."""
        self._behind = None
        try:
            self.on_change()
        except VirtfnError as error:
            self._behind = str(error)
            if str(error) not in self.unwritten:
                self.unwritten.append(str(error))
            self.events.tell(StateUnwritten(str(error)))

    def end(self) -> None:
        """Let `keep` end, after a moment: who asked for it gets an answer. Raises VirtfnError (EBUSY) during work."""
        if self._state not in _UP:
            raise VirtfnError(f"the lab is {self._state.value}; it ends by itself, or by Ctrl-C", errno_name="EBUSY")
        self._ending = True

    def service(self) -> ServiceDocument:
        """Say where the sockets of guests are. Raises VirtfnError if they are not served."""
        self._require("service", *_UP)
        return self.live.service()

    def stop(self) -> None:
        """Take guests and functions down in good order, then close."""
        with self._through("stop", _UP, State.STOPPING, State.CLOSED):
            self._teller.tell("stopping", force=True)
            live = self.live
            self._end_questions()
            live.stop()
            self._closes.close()

    def close(self) -> None:
        """Release everything, whatever state it is in: as a power cut, from the guests' point of view."""
        if self._state is State.CLOSED:
            return
        try:
            self._end_questions()
        finally:
            try:
                self._closes.close()
            finally:
                self._enter(State.CLOSED)

    def _end_questions(self) -> None:
        """Take what can be seen for the last time, and refuse who still waits: what they would read goes away."""
        with self._reading:
            look, self._look, last = self._look, self._see_nothing, self._live is not None
            if last:
                with suppress(VirtfnError):
                    seen = look()
                    self._look = lambda: {**copy.deepcopy(seen), "state": self._state.value}
            self._live = None
        self._desk.close()

    # States.

    def _require(self, what: str, *states: State) -> None:
        if threading.get_ident() != self._thread:
            raise VirtfnError(f"{what} is for the thread that made the session", errno_name="EPERM")
        if self._state not in states:
            wanted = " or ".join(state.value for state in states)
            errno_name = "EBUSY" if self._state in _PASSING else "EINVAL"
            raise VirtfnError(f"{what} takes a lab that is {wanted}; it is {self._state.value}", errno_name=errno_name)

    @contextmanager
    def _through(self, what: str, states: tuple[State, ...], during: State, after: State) -> Iterator[None]:
        """Go through a state into the next; or into `failed`, if that raises."""
        self._require(what, *states)
        self._enter(during)
        try:
            yield
        except BaseException:
            self._enter(State.FAILED)
            raise
        self._enter(after)

    def _enter(self, state: State) -> None:
        before, self._state = self._state, state
        self.events.tell(StateChanged(before.value, state.value))


def _find_platform(lab: Lab) -> Platform:
    from virtfn.api.image import find_platform  # only who needs QEMU needs its modules
    from virtfn.vmm.qemu import rest

    return find_platform(rest, lab.guests)


def _tell_nobody_of_changes() -> None:
    """Nobody keeps it in a file."""


def _tell_nobody(progress: Progress) -> None:
    """Nobody watches."""
