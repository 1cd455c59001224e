"""A session: its states, requests from other threads, snapshots, events, and reading that stops nobody."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unit.rig import lab_text
from virtfn.api import iommu
from virtfn.api.control import ask
from virtfn.api.iommu import show_document
from virtfn.api.lab import parse_lab
from virtfn.api.progress import Progress
from virtfn.api.session import (
    AddressRefused,
    Events,
    ExplainIommu,
    FaultsRecorded,
    GuestBooted,
    ReadEvents,
    ReadSnapshot,
    Request,
    RunInGuest,
    Session,
    ShowIommu,
    State,
    StateChanged,
    WorkDone,
)
from virtfn.api.session.desk import MAX_WAITING, Desk
from virtfn.api.session.events import FaultWatch
from virtfn.api.session.links import ShowLinks
from virtfn.api.session.looking import Look
from virtfn.api.session.watching import ListVfs
from virtfn.drivers.igbvf import MailboxError
from virtfn.hw.types import Iova, Ps, Rid, format_rid
from virtfn.hw.vtd.regs import Fault
from virtfn.hw.vtd.tables import FaultReason
from virtfn.iovm.iommu.state import SavedPages, UnitState, read_unit
from virtfn.machine.clock import MS_PS, S_PS, WallClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Job, Outcome

WAYS: dict[State, list[str]] = {
    State.NEW: [],
    State.READY: ["start"],
    State.DONE: ["start", "work"],
    State.CLOSED: ["start", "work", "stop"],
}
NEVER_OVER = "{kind: pairs, frames: 100000000}"


def session(workload: str = "{kind: pairs, frames: 500}", **options: Any) -> Session:
    return Session(parse_lab(lab_text(workload=workload)), **options)


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def work_while(*jobs: Callable[[Session], object]) -> list[Any]:
    """Let a lab work while threads do `jobs`; return what came of them."""
    futures: list[Future[object]] = []

    def look(moment: Progress) -> None:
        if moment.phase == "running" and all(future.done() for future in futures):
            raise KeyboardInterrupt

    with session(NEVER_OVER, progress=look) as made, ThreadPoolExecutor(len(jobs)) as pool:
        made.start()
        futures += [pool.submit(job, made) for job in jobs]
        with pytest.raises(KeyboardInterrupt):
            made.work()
        return [future.result() for future in futures]


# States.


@pytest.mark.parametrize("state", WAYS)
def test_it_closes_in_every_state_and_leaves_nothing(state: State) -> None:
    with session():
        pass
    files = open_files()
    for controlled in (False, True):
        with session(controlled=controlled) as made:
            for step in WAYS[state]:
                getattr(made, step)()
            assert made.state is state
        assert made.state is State.CLOSED
        made.close()
    assert open_files() == files


@pytest.mark.parametrize(
    ("state", "call", "words"),
    [
        (State.NEW, "work", "work takes a lab that is ready; it is new"),
        (State.NEW, "report", "report takes a lab that is done; it is new"),
        (State.NEW, "keep", "keep takes a lab that is ready or done; it is new"),
        (State.NEW, "snapshot", "nothing has counted anything: the lab is new"),
        (State.READY, "start", "start takes a lab that is new; it is ready"),
        (State.READY, "report", "report takes a lab that is done; it is ready"),
        (State.DONE, "work", "work takes a lab that is ready; it is done"),
        (State.CLOSED, "start", "start takes a lab that is new; it is closed"),
        (State.CLOSED, "stop", "stop takes a lab that is ready or done; it is closed"),
    ],
)
def test_a_call_in_another_state_names_both(state: State, call: str, words: str) -> None:
    with session() as made:
        for step in WAYS[state]:
            getattr(made, step)()
        with pytest.raises(VirtfnError, match=words) as caught:
            getattr(made, call)()
        assert caught.value.errno_name == "EINVAL"
        assert made.state is state


def test_what_is_under_way_is_busy_and_what_raises_has_failed() -> None:
    def stop(moment: Progress) -> None:
        if moment.phase == "running":
            made.stop()

    with session(NEVER_OVER, progress=stop) as made:
        made.start()
        with pytest.raises(VirtfnError, match="stop takes a lab that is ready or done; it is working") as caught:
            made.work()
        assert caught.value.errno_name == "EBUSY"
        assert made.state is State.FAILED
        assert made.ask(ReadSnapshot())["state"] == "failed"
    assert made.state is State.CLOSED


def test_work_that_is_stuck_fails_and_says_so() -> None:
    with Session(parse_lab(lab_text(workload="{kind: ping, frames: 20}"))) as made:
        made.start()
        made.machine.guests[1].guest.nics[0].driver.netdev["up"] = 0  # it hangs
        with pytest.raises(VirtfnError, match="got stuck: a cannot go on"):
            made.work()
        assert made.state is State.FAILED
        assert WorkDone(False) in [told.event for told in made.events.since(0).events]


def test_other_threads_may_look_and_ask_and_do_no_more() -> None:
    with session() as made, ThreadPoolExecutor(1) as pool:
        with pytest.raises(VirtfnError, match="for the thread that made the session"):
            pool.submit(made.start).result()
        made.start()
        assert pool.submit(made.snapshot).result()["state"] == "ready"


# Requests.


def test_a_thread_asks_and_the_world_answers() -> None:
    with session() as made:
        with pytest.raises(VirtfnError, match="nothing is up: the lab is new"):
            made.ask(ShowIommu())
        made.start()
        rid = made.machine.guests[0].vf.rid
        here = made.ask(ExplainIommu(rid, Iova(0x1000), write=True)), made.ask(ShowIommu())
        with ThreadPoolExecutor(2) as pool:
            explained = pool.submit(made.ask, ExplainIommu(rid, Iova(0x1000), write=True))
            shown = pool.submit(made.ask, ShowIommu())
            assert made.run_until(lambda: explained.done() and shown.done(), 10 * S_PS)
        assert (explained.result(), shown.result()["domains"]) == (here[0], here[1]["domains"])
        assert not shown.result()["changing"]


def test_the_world_wakes_for_a_request() -> None:
    with session() as made, ThreadPoolExecutor(1) as pool:
        made.start()
        waits = []

        def several() -> None:
            for _ in range(20):
                time.sleep(0.002)
                before = time.perf_counter()
                made.ask(ReadEvents())
                waits.append(time.perf_counter() - before)

        asked = pool.submit(several)
        made.run_until(asked.done)
        asked.result()
        assert sorted(waits)[10] < 0.01, "a rest is 20 ms long"


class Never(Request[object]):
    method = "never"
    long = True

    def pieces(self, session: object) -> Iterator[None]:  # type: ignore[override]
        while True:
            yield


class Bug(Request[object]):
    method = "bug"

    def answer(self, session: object) -> object:
        return 1 // 0


def test_what_goes_wrong_is_raised_where_it_was_asked() -> None:
    with session() as made, ThreadPoolExecutor(1) as pool:
        made.start()
        for request, error in ((Bug(), ZeroDivisionError), (Never(), VirtfnError)):
            asked = pool.submit(made.ask, request, 0.1)
            made.run_until(asked.done, 10 * S_PS)
            with pytest.raises(error):
                asked.result()
        made.run_until(lambda: not made._desk._long, 10 * S_PS)
        assert not made._desk._long, "nobody waits for it any more"


def test_so_many_wait_and_no_more() -> None:
    with session() as made:
        waiting = [made._desk.submit(ReadEvents()) for _ in range(MAX_WAITING)]
        with pytest.raises(VirtfnError, match="32 requests wait already") as caught:
            made._desk.submit(ReadEvents())
        assert caught.value.errno_name == "EBUSY"
        made.start()
        assert made.run_until(lambda: all(future.done() for future in waiting), 10 * S_PS)
        last = made._desk.submit(Never())
        made.run_until(lambda: True)
    with pytest.raises(VirtfnError, match="has ended meanwhile"):
        last.result(0)
    with ThreadPoolExecutor(1) as pool, pytest.raises(VirtfnError, match="the lab has ended") as caught:
        pool.submit(made.ask, ReadEvents()).result()
    assert caught.value.errno_name == "ESHUTDOWN"


# Snapshots.


def test_a_snapshot_is_read_while_frames_move_and_the_last_one_stays() -> None:
    seen = []

    def read() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and made.state is not State.DONE:
            seen.append(made.snapshot())

    lab = parse_lab(lab_text([("pf0", 0), ("pf0", 1), ("pf0", 3)], workload="{kind: broadcast, frames: 100000}"))
    with Session(lab) as made:
        made.start()
        thread = threading.Thread(target=read)
        thread.start()
        made.work()
        thread.join()
        report = made.report()
        made.stop()
    last = made.snapshot()
    for shown, guest in zip(last["guests"], report["guests"], strict=True):
        assert {key: guest[key] for key in shown} == shown  # type: ignore[literal-required]
    assert [pf["switch"] for pf in last["pfs"]] == [pf["switch"] for pf in report["pfs"]]
    assert last["iommu"]["faults"] == 0
    assert [(vf["vf"], vf["guest"]) for vf in last["pfs"][0]["vfs"]] == [(0, "a"), (1, "b"), (2, None), (3, "c")]
    assert last["state"] == "closed"
    sent = [snapshot["guests"][0]["tx_frames"] for snapshot in seen]
    assert sent == sorted(sent)
    assert len(set(sent)) > 3
    last["guests"].clear()
    assert made.snapshot()["guests"], "nobody changes what others see"


# Events.


def test_a_run_tells_what_happens() -> None:
    with session() as made:
        made.start()
        assert not made.machine.host.dma_write(made.machine.guests[0].vf.rid, Iova(1 << 40), b"x")
        made.work()
        made.stop()
    events = [told.event for told in made.events.since(0).events]
    states = ["new", "starting", "ready", "working", "done", "stopping", "closed"]
    assert [event for event in events if isinstance(event, StateChanged)] == [
        StateChanged(*pair) for pair in itertools.pairwise(states)
    ]
    assert [event for event in events if isinstance(event, GuestBooted)] == [
        GuestBooted("a", "embedded", 0.0),
        GuestBooted("b", "embedded", 0.0),
    ]
    assert WorkDone(True) in events
    (fault,) = (event for event in events if isinstance(event, FaultsRecorded))
    assert (fault.count, fault.iova, fault.reason, fault.write) == (1, 1 << 40, "write not allowed", True)


def test_an_address_that_is_anothers_is_refused_and_told() -> None:
    with session() as made:
        made.start()
        a, b = (run.guest.nics[0].driver for run in made.machine.guests)
        for mac in (b.mac, b.mac, made.machine.pfs[0].driver.mac):  # type: ignore[attr-defined]
            with pytest.raises(MailboxError):
                a.set_mac(mac)
        made.work()
        report = made.report()
        functions = made.machine.guests[0].vf.rid, made.machine.pfs[0].nic.pf_rid
        made.stop()
    refused = [told.event for told in made.events.since(0).events if isinstance(told.event, AddressRefused)]
    assert sum(event.count for event in refused) == 3
    assert (refused[-1].rid, refused[-1].holder) == tuple(map(format_rid, functions))
    assert [guest.get("addresses_refused") for guest in report["guests"]] == [3, None]


def test_who_reads_late_learns_what_is_lost() -> None:
    events = Events(WallClock(), kept=4)
    assert events.since(0) == ([], 0, 0)
    for n in range(10):
        events.tell(GuestBooted(str(n), "qemu", 1.5))
    reading = events.since(0)
    assert [told.sequence for told in reading.events] == [6, 7, 8, 9]
    assert (reading.lost, reading.next) == (6, 10)
    assert events.since(8, 1) == (reading.events[2:3], 0, 9)
    assert events.since(10) == events.since(99) == ([], 0, 10)
    document = reading.events[0].document()
    assert document["event"] == "GUEST_BOOTED"
    assert document["data"] == {"guest": "6", "vmm": "qemu", "boot_s": 1.5}
    assert abs(document["timestamp"]["seconds"] - time.time()) < 60
    assert document["timestamp"]["microseconds"] < 1_000_000


def test_a_flood_of_faults_is_a_few_events() -> None:
    told: list[object] = []
    watch = FaultWatch(told.append)
    for ms in range(1000):
        watch.note(Fault(Rid(0x180), Iova(ms), FaultReason.WRITE_NOT_ALLOWED, True))
        watch.turn(Ps(ms * MS_PS))
    assert len(told) == 10
    assert told[0] == FaultsRecorded(1, "0000:01:10.0", 0, "write not allowed", True)
    assert told[1] == FaultsRecorded(100, "0000:01:10.0", 100, "write not allowed", True)
    assert watch.due() == 1000 * MS_PS


# Reading tables stops nobody.


def large_tables(domains: int, tables: int = 256) -> dict[int, np.ndarray]:
    """Make tables, each of which maps every 32nd of its pages."""
    pages = {0x1000: np.zeros(512, np.uint64), 0x2000: np.zeros(512, np.uint64)}
    pages[0x1000][0] = 0x2001
    leaf = np.zeros(512, np.uint64)
    leaf[::32] = (np.arange(16, dtype=np.uint64) << np.uint64(16)) + np.uint64(0x1000_0003)
    at = 0x10_0000
    for n in range(domains):
        top, below = at, at + 4096
        at += 8192
        pages[0x2000][2 * n : 2 * n + 2] = top | 1, 1 | n + 1 << 8
        pages[top], pages[below] = np.zeros(512, np.uint64), np.zeros(512, np.uint64)
        pages[top][0] = below | 3
        for i in range(tables):
            pages[at], pages[below][i] = leaf.copy(), at | 3
            at += 4096
    return pages


def with_tables(monkeypatch: pytest.MonkeyPatch, memory: SavedPages) -> list[UnitState]:
    """Let a lab's unit have other tables; return the states that are read."""
    states: list[UnitState] = []

    def read(host: object) -> UnitState:
        states.append(dataclasses.replace(read_unit(host), memory=memory, root=0x1000))  # type: ignore[arg-type]
        return states[-1]

    monkeypatch.setattr(iommu, "read_unit", read)
    return states


def test_frames_move_while_large_tables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    states = with_tables(monkeypatch, SavedPages(large_tables(4)))
    turns: list[float] = []
    turn = Desk.turn

    def timed(desk: Desk, now: Ps) -> int:
        before = time.thread_time()
        try:
            return turn(desk, now)
        finally:
            turns.append(time.thread_time() - before)

    monkeypatch.setattr(Desk, "turn", timed)
    done = threading.Event()

    def show(made: Session) -> object:
        try:
            before = made.snapshot()
            document = made.ask(ShowIommu(), 60)
            return document, before, made.snapshot()
        finally:
            done.set()

    def look(made: Session) -> int:
        """Quick questions pass the long one."""
        answers = 0
        while not done.is_set():
            made.ask(ReadEvents(), 60)
            answers += 1
        return answers

    (document, before, after), looked = work_while(show, look)
    assert looked > 10
    assert document == {**show_document(states[0], "lab rig"), "changing": False}
    assert sum(domain["tables"] for domain in document["domains"]) == 4 * 258
    moved = [b["rx_frames"] - a["rx_frames"] for a, b in zip(before["guests"], after["guests"], strict=True)]
    assert min(moved) > 10_000, "frames moved"
    busy = sorted(seconds for seconds in turns if seconds > 1e-4)
    assert len(busy) > 100, "it was read in many turns"
    assert busy[len(busy) * 9 // 10] < 2e-3
    assert busy[-1] < 20e-3


class Restless(SavedPages):
    """Tables that change at every seventh look, so many times."""

    def __init__(self, pages: dict[int, np.ndarray], times: int) -> None:
        super().__init__(pages)
        self.looks, self.left = 0, times

    def page(self, address: int) -> np.ndarray | None:
        self.looks += 1
        if self.looks % 7 == 0 and self.left:
            self.left -= 1
            self.pages[0x2000][1] += np.uint64(1 << 8)  # the domain's ID
        return super().page(address)


@pytest.mark.parametrize(("times", "changing"), [(0, False), (1, False), (2, False), (100, True)])
def test_an_answer_is_of_one_moment_or_says_that_it_is_not(
    monkeypatch: pytest.MonkeyPatch, times: int, changing: bool
) -> None:
    memory = Restless(large_tables(1, 20), times)
    states = with_tables(monkeypatch, memory)
    with session() as made:
        made.start()
        document = made.ask(ShowIommu())
    assert document["changing"] is changing
    if not changing:
        assert document["domains"] == show_document(states[0], "")["domains"]


def test_a_root_table_that_moves_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with session() as made:
        made.start()
        reads = iter(range(100))
        monkeypatch.setattr(
            iommu, "read_unit", lambda host: dataclasses.replace(read_unit(host), root=next(reads) << 12)
        )
        assert made.ask(ShowIommu())["changing"]


# The door.


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_the_socket_is_a_door_to_the_session(runtime: Path) -> None:
    with session(controlled=True) as made, ThreadPoolExecutor(1) as pool:
        made.start()
        rid = int(made.machine.guests[0].vf.rid)

        def questions() -> dict[str, Any]:
            answers = {}
            for method, params in (
                ("iommu.show", {}),
                ("iommu.explain", {"rid": rid, "iova": 0x1000}),
                ("session.snapshot", {}),
                ("events.read", {"since": 1}),
            ):
                answers[method] = ask(method, params, "rig", 10)
            for method, params in (("events.read", {"since": -1}), ("iommu.show", {"x": 1}), ("nothing", {})):
                with pytest.raises(VirtfnError):
                    ask(method, params, "rig", 10)
            return answers

        asked = pool.submit(questions)
        assert made.run_until(asked.done, 20 * S_PS)
        answers = asked.result()
        assert answers["iommu.show"] == made.ask(ShowIommu())
        assert answers["iommu.explain"] == made.ask(ExplainIommu(Rid(rid), Iova(0x1000)))
        snapshot = made.ask(ReadSnapshot())
        assert {**answers["session.snapshot"], "elapsed_s": 0} == {**snapshot, "elapsed_s": 0}
        assert answers["events.read"] == made.ask(ReadEvents(1))
        names = [event["event"] for event in answers["events.read"]["events"]]
        assert names == ["GUEST_BOOTED", "GUEST_BOOTED", "STATE_CHANGED"]


def test_a_question_is_answered_in_the_step_that_hears_it(runtime: Path) -> None:
    path = str(runtime / "virtfn" / "rig.sock")
    with session(controlled=True) as made, socket.socket(socket.AF_UNIX) as asks:
        made.start()
        with socket.socket(socket.AF_UNIX) as probe:  # somebody looks whether the lab is there
            probe.connect(path)
        asks.connect(path)
        asks.sendall(b'{"method": "link.show"}\n')
        made.world.step()
        asks.settimeout(5)
        assert json.loads(asks.recv(1 << 16))["result"] == made.ask(ShowLinks())


def test_one_question_for_who_looks_again_and_again() -> None:
    with session() as made:
        made.start()
        look = made.ask(Look())
        assert {**look["snapshot"], "elapsed_s": 0} == {**made.ask(ReadSnapshot()), "elapsed_s": 0}
        assert (look["links"], look["vfs"]) == (None, None)
        assert look["events"]["events"]
        assert look["messages"]["messages"]
        again = made.ask(Look(look["events"]["next"], look["messages"]["next"], policies=True))
        assert (again["events"]["events"], again["messages"]["messages"]) == ([], [])
        assert again["links"] == made.ask(ShowLinks())
        assert again["vfs"] == made.ask(ListVfs())
    for wrong in ({"policies": 1}, {"events": -1}, {"messages": "0"}, {"more": 1}):
        with pytest.raises(VirtfnError):
            Look.from_params(wrong)


# Commands in guests.


class Guest:
    """A Linux guest as far as a command can tell."""

    def __init__(self, name: str) -> None:
        self.lab = SimpleNamespace(name=name)
        self.vm = SimpleNamespace(guest=SimpleNamespace(agent=SimpleNamespace(ready=True)))
        self.jobs: list[Job] = []

    def start(self, command: str) -> Job:
        self.jobs.append(Job(command))
        return self.jobs[-1]


def test_a_command_in_a_guest_is_waited_for_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest("linux")
    monkeypatch.setattr(Session, "linux_guests", [guest])

    def other(made: Session) -> float:
        began = time.monotonic()
        made.ask(ReadSnapshot())
        return time.monotonic() - began

    def run(made: Session) -> object:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(made.ask, RunInGuest("linux", "uname -a"))
            while not guest.jobs:
                time.sleep(0.01)
            assert guest.jobs[0].command == "uname -a"
            passed = [other(made) for _ in range(5)]
            assert not asked.done()
            guest.jobs[0].outcome = Outcome(3, "Linux\n")
            return asked.result(10), max(passed)

    ((answer, longest),) = work_while(run)
    assert answer == {"status": 3, "output": "Linux\n"}
    assert longest < 2


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"guest": "nobody", "command": "true"}, "has no guest called nobody (ENOENT)"),
        ({"guest": "a", "command": "true"}, "guest a is none under QEMU, or not there yet (EOPNOTSUPP)"),
        ({"guest": "a", "command": " "}, "there is a command (EINVAL)"),
        ({"guest": 1, "command": "true"}, "are text"),
        ({"guest": "a", "command": "echo \ud800"}, "half a character (EINVAL)"),
    ],
)
def test_a_command_for_nobody_is_refused(params: dict[str, object], words: str) -> None:
    with session() as made:
        made.start()
        with pytest.raises(VirtfnError) as refused:
            made.ask(RunInGuest.from_params(params))
        assert words in f"{refused.value} ({refused.value.errno_name})"


def test_a_guest_that_restarts_has_forgotten_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest("linux")
    monkeypatch.setattr(Session, "linux_guests", [guest])
    with session() as made:
        made.start()
        pieces = RunInGuest("linux", "true").pieces(made)
        next(pieces)
        guest.jobs[0].lost = True
        with pytest.raises(VirtfnError, match="has restarted or ended meanwhile"):
            next(pieces)


def test_who_waits_for_a_guest_neither_spins_nor_loses_who_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest("linux")
    monkeypatch.setattr(Session, "linux_guests", [guest])
    clock = WallClock()
    with session() as made:
        made.start()
        desk = Desk(made, clock)
        first = desk.submit(RunInGuest("linux", "one"))
        late: list[Future[Any]] = []
        started = guest.start

        def start(command: str) -> Job:
            if not late:  # in the midst of a look
                late.append(desk.submit(RunInGuest("linux", "two")))
            return started(command)

        monkeypatch.setattr(guest, "start", start)
        for _ in range(3):
            clock.sleep(6 * MS_PS)
            desk.turn(clock.now())
        assert [job.command for job in guest.jobs] == ["one", "two"]
        assert not select.select([desk.fileno()], [], [], 0)[0], "it would not rest"
        for job in guest.jobs:
            job.outcome = Outcome(0, job.command)
        clock.sleep(6 * MS_PS)
        desk.turn(clock.now())
        assert [future.result(0)["output"] for future in (first, *late)] == ["one", "two"]
        desk.close()
