"""Labs as services: guests that rest and send, state files, labs that were lost, the commands as processes."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from unit.rig import lab_text
from virtfn.api import service
from virtfn.api.control import ask
from virtfn.api.lab import LabError, parse_lab
from virtfn.api.labmodel import MOST_PFS
from virtfn.api.machine import Machine
from virtfn.api.running import lab_document, write_lab
from virtfn.api.service import Kept, bring_down, describe_loss, find_kept, list_labs, serve_lab
from virtfn.api.session import Session, SetLinks
from virtfn.api.session.changes import AttachGuest, DetachGuest
from virtfn.api.session.service import EndLab, ReadStatus, StartTraffic, StopTraffic
from virtfn.api.session.watching import ListVfs, QuarantineVf, ReleaseVf
from virtfn.api.stopped import Stopped
from virtfn.machine.clock import S_PS, VirtualClock
from virtfn.machine.ports import VirtfnError


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@contextmanager
def standing(text: str = "", **options: Any) -> Iterator[Session]:
    with Session(parse_lab(text or lab_text()), standing=True, **options) as session:
        session.start()
        yield session
        session.stop()


def test_guests_rest_until_they_are_told_to_send() -> None:
    with standing() as session:
        session.run_until(lambda: False, S_PS // 10)
        assert session.ask(ReadStatus())["traffic"] == {"rate": 0, "rounds": 0, "sent": 0, "heard": 0, "corrupt": 0}
        assert all(guest["tx_frames"] == 0 for guest in session.snapshot()["guests"])
        session.ask(StartTraffic(rate=200))
        session.run_until(lambda: False, S_PS // 2)
        sent = session.snapshot()["guests"][1]["tx_frames"]
        assert 20 <= sent <= 120  # at a pace
        counts = session.ask(StopTraffic())
        assert counts["rate"] == 200
        sent = session.snapshot()["guests"][1]["tx_frames"]
        session.run_until(lambda: False, S_PS // 10)
        assert session.snapshot()["guests"][1]["tx_frames"] == sent


def test_a_round_is_judged_and_another_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtfn.api.session.standing.ROUND_S", 1)
    with standing() as session:
        counts = session.ask(StartTraffic(rate=1000))
        session.run_until(lambda: counts["rounds"] > 0, 20 * S_PS)
        assert counts == {"rate": 1000, "rounds": 1, "sent": 1000, "heard": 1000, "corrupt": 0}
        session.run_until(lambda: session.snapshot()["guests"][1]["tx_frames"] > 1000, 20 * S_PS)


@pytest.mark.parametrize("rate", [0, -1, 100_001, True, "9"])
def test_traffic_out_of_range_is_refused(rate: object) -> None:
    with pytest.raises(VirtfnError):
        StartTraffic.from_params({"rate": rate})


def test_a_lab_that_does_its_work_once_has_no_traffic() -> None:
    with Session(parse_lab(lab_text())) as session:
        session.start()
        with pytest.raises(VirtfnError, match="virtfn up is for this"):
            session.ask(StartTraffic())


def test_attacks_are_no_service() -> None:
    text = lab_text([("pf0", 0), ("pf0", 1), ("pf0", 2)], workload="{kind: attack}")
    with pytest.raises(VirtfnError, match="use virtfn run"):
        Session(parse_lab(text), standing=True)


def test_it_ends_when_it_is_asked_to() -> None:
    with standing(controlled=True) as session:
        answers: list[object] = []
        asker = threading.Thread(target=lambda: answers.append(ask("lab.down", {}, "rig")))
        session.keep(asker.start)
        asker.join(10)
        assert answers == [{"lab": "rig", "pid": os.getpid()}]


def test_a_lab_at_work_is_not_ended() -> None:
    with Session(parse_lab(lab_text())) as session, pytest.raises(VirtfnError, match="the lab is new"):
        session.ask(EndLab())


def test_a_lab_is_written_as_it_was_read(tmp_path: Path) -> None:
    policies = '[{id: 1, mac-address: "02:00:00:00:00:10", vlan-id: 7, trust: true}]'
    lab = parse_lab(lab_text(policies=policies), str(tmp_path / "lab.yaml"), tmp_path)
    again = parse_lab(write_lab(lab))
    assert again.model_dump() == lab.model_dump()
    assert lab_document(again) == lab_document(lab)
    uplink = lab.model_copy(update={"pfs": (lab.pfs[0].model_copy(update={"uplink": "stream:listen:s.sock"}),)})
    uplink._tree = lab._tree
    assert lab_document(uplink)["pfs"][0]["uplink"] == f"stream:listen:{tmp_path}/s.sock"


def test_state_files_that_make_no_sense_are_no_labs(tmp_path: Path) -> None:
    folder = tmp_path / "virtfn"
    folder.mkdir(mode=0o700)
    for name, text in {"a": "{", "b": "[]", "c": '{"name": "c"}', "d": json.dumps({"name": "other", "pid": 1})}.items():
        (folder / f"{name}.state").write_text(text)
    assert list_labs() == []
    with pytest.raises(VirtfnError, match="no lab called a is running"):
        bring_down("a")


SPOILT: list[dict[str, object]] = [
    *({"since": since} for since in ("x", 1e300, -1, None)),
    *({"pid": pid} for pid in (True, 1.5, -1, 0)),
    *({"started": started} for started in (0, -1, "1")),
    *({"changes": "2"}, {"rate": None}, {"http": 5}, {"error": []}, {"lab": 1}, {"more": 1}),
    *({"stopped": stopped} for stopped in (5, "x", [1], [{}], [{"pf": "pf0", "vf": "1", "guest": "a", "why": ""}])),
]


@pytest.mark.parametrize("changed", SPOILT, ids=str)
def test_a_state_that_somebody_has_spoilt_is_none(changed: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "virtfn").mkdir(mode=0o700)
    fields = asdict(Kept("x", 2**22 + 1, 1, 1e9, lab_text())) | changed
    (tmp_path / "virtfn" / "x.state").write_text(json.dumps(fields))
    assert list_labs() == []
    assert find_kept("x") is None


def test_who_only_asks_needs_no_machine() -> None:
    commands = [["status"], ["link", "show"], ["get"], ["watch"], ["events"], ["top", "-n", "1"], ["down"]]
    script = (
        "import sys; from virtfn.cli.main import main; sys.argv[0] = 'virtfn'\n"
        f"for command in {commands}:\n"
        "    try: main(command)\n"
        "    except SystemExit: pass\n"
        "print([name for name in sys.modules if name in ('numba', 'virtfn.api.machine', 'virtfn.api.lab')])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"


def test_a_lab_whose_process_is_gone_is_lost_until_it_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "virtfn").mkdir(mode=0o700)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    service._write(Kept("x", gone.pid, 1, 1e9, lab_text(), changes=2))
    path = tmp_path / "virtfn" / "x.state"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (entry,) = list_labs()
    assert (entry["lab"], entry["state"]) == ("x", "lost")
    assert "with 2 changes since" in str(entry["lost"])
    assert bring_down("x") == "x"
    assert list_labs() == []
    assert find_kept("x") is None


@pytest.mark.parametrize("lost", [True, False])
def test_a_state_is_not_taken_for_that_of_another_process(lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab that runs has the name of one that was lost, or somebody else's process is in the state file."""
    monkeypatch.setattr(service, "_DOWN_S", 0.0)
    pid = 2**22 + 1 if lost else os.getppid()
    seen: list[Any] = []

    def look() -> None:
        service._write(Kept("rig", pid, service._started(pid) or 1, 1e9, lab_text(), http="http://127.0.0.1:9"))
        seen.extend([*list_labs(), service.find_up("rig")])
        with pytest.raises(VirtfnError, match="does not end"):  # as it is this process
            bring_down("rig")
        seen.append(find_kept("rig"))

    with standing(controlled=True) as session, ThreadPoolExecutor(1) as pool:
        asked: list[Future[None]] = []
        session.keep(lambda: asked.append(pool.submit(look)))
        asked[0].result(20)
    entry, up, kept = seen
    assert (entry["state"], entry["pid"], entry["since"]) == ("ready", os.getpid(), None)
    assert (entry["http"], entry["lost"], up) == (None, None, None)
    assert kept is not None


def test_a_change_that_cannot_be_kept_holds_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with standing() as session, service._kept(session, None):
        with monkeypatch.context() as full:
            full.setattr("virtfn.private.write", refuse)
            session.ask(SetLinks.from_params({"pf": "pf0", "settings": [{"vf": 1, "vlan": 9}]}))
            assert session.ask(StartTraffic(rate=7))["rate"] == 7
            session.ask(DetachGuest("a"))
        assert session.machine.pf("pf0").driver.policy(1).vlan == 9
        (why,) = session.unwritten
        assert "rig.state: cannot be written (No space left on device)" in why
        assert session.ask(ReadStatus())["unwritten"] == why
        session.ask(StopTraffic())
        assert session.ask(ReadStatus())["unwritten"] is None, "the next change is written with all before it"
        told = [each.event for each in session.events.since(0).events if each.event.name == "STATE_UNWRITTEN"]
        assert [asdict(event) for event in told] == [{"why": why}] * 3


def test_the_state_file_has_the_lab_as_each_change_leaves_it() -> None:
    def link(*settings: dict[str, object]) -> SetLinks:
        return SetLinks.from_params({"pf": "pf0", "settings": list(settings)})  # type: ignore[return-value]

    changes: list[tuple[Any, int, int, bool]] = [  # and the limit of VF 0, the VLAN of VF 1, whether guest a has its VF
        (link({"vf": 1, "vlan": 9}), 0, 9, True),
        (link({"vf": 0, "max_tx_rate": 7}, {"vf": 1, "trust": True}), 7, 9, True),
        (StartTraffic(rate=7), 7, 9, True),
        (DetachGuest("a"), 7, 9, False),
        (link({"vf": 1, "vlan": 0}), 7, 0, False),
        (AttachGuest("a"), 7, 0, True),
        (link({"vf": 1, "vlan": 9}), 7, 9, True),
    ]
    with standing() as session, service._kept(session, None):
        for change, limit, vlan, attached in changes:
            session.ask(change)
            kept = find_kept("rig")
            assert kept is not None
            assert json.loads(kept.lab) == lab_document(session.lab), "nothing is what it was before"
            lab = parse_lab(kept.lab)
            pf = lab.pf("pf0")
            assert (pf.policy(0).max_tx_rate, pf.policy(1).vlan_id) == (limit, vlan)
            assert {guest.name: guest.nic.attached for guest in lab.guests}["a"] is attached


def test_a_lab_that_fails_is_lost_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Session, ready: object) -> None:
        raise VirtfnError("no more", errno_name="EIO")

    monkeypatch.setattr(Session, "keep", fail)
    with pytest.raises(VirtfnError, match="no more"):
        serve_lab(parse_lab(lab_text()), ready=lambda _: None)
    kept = find_kept("rig")
    assert kept is not None
    assert "it failed: no more" in describe_loss(kept)


@pytest.mark.slow
def test_as_many_pfs_as_io_space_has_room_for() -> None:
    text = lab_text([(f"pf{n}", 0) for n in range(MOST_PFS)], total_vfs=8, memory_mib=4)
    with Machine(parse_lab(text, works=False), VirtualClock(), ring=80) as machine:
        assert [len(pf.vfs) for pf in machine.pfs] == [8] * 15
        assert len({vf.rid for pf in machine.pfs for vf in pf.vfs}) == 120
        assert all(run.driver.netdev["up"] for run in machine.guests)
    with pytest.raises(LabError, match=r"pfs: .*15"):
        parse_lab(lab_text([(f"pf{n}", 0) for n in range(MOST_PFS + 1)]), works=False)


def test_a_quarantine_outlasts_the_process() -> None:
    where = {"pf": "pf0", "vf": 1}
    with standing() as session, service._kept(session, None):
        session.ask(QuarantineVf("pf0", 1, "it smells"))
        kept = find_kept("rig")
        assert kept is not None
        assert kept.stopped == (Stopped("pf0", 1, "b", "it smells"),)
        assert "still in quarantine: pf0/vf1 of b (it smells)" in describe_loss(kept)
        session.ask(ReleaseVf(**where))
        after = find_kept("rig")
        assert after is not None
        assert (after.stopped, after.changes) == ((), 2)
    strangers = [Stopped("pf0", 0, "b", "x"), Stopped("pf9", 0, "a", "x"), Stopped("pf0", 7, "a", "x")]
    with standing(stopped=[*kept.stopped, *strangers]) as session:
        states = {(vf["pf"], vf["vf"]): (vf["state"], vf["why"]) for vf in session.ask(ListVfs())}
        assert states[("pf0", 1)] == ("quarantined", "it smells")
        assert states[("pf0", 0)] == ("assigned", ""), "its owner is another"
        told = [told.event.name for told in session.events.since(0).events]
        assert told.count("VF_QUARANTINED") == 1
        session.ask(StartTraffic(rate=200))
        session.run_until(lambda: False, S_PS // 4)
        assert [vf["rx_frames"] for vf in session.snapshot()["pfs"][0]["vfs"]][:2] == [0, 0]
        session.ask(ReleaseVf(**where))
        session.run_until(lambda: session.snapshot()["guests"][0]["rx_frames"] > 0, 10 * S_PS)
        assert session.snapshot()["guests"][0]["rx_frames"] > 0


def test_a_quarantine_that_cannot_be_kept_holds_all_the_same() -> None:
    with standing() as session:

        def fail() -> None:
            raise VirtfnError("the disk is full", errno_name="EACCES")

        session.on_change = fail
        session.machine.watch.quarantine(session.machine.pfs[0].vfs[0], "it smells")
        assert session.ask(ListVfs())[0]["state"] == "quarantined"
        session.on_change = lambda: None


def test_changes_are_kept() -> None:
    with standing() as session:
        with service._kept(session, None):
            session.ask(StartTraffic(rate=7))
            session.ask(DetachGuest("a"))
            session.ask(SetLinks.from_params({"pf": "pf0", "settings": [{"vf": 1, "vlan": 9}]}))
            kept = find_kept("rig")
            assert kept is not None
            assert (kept.changes, kept.rate) == (3, 7)
            assert parse_lab(kept.lab).pfs[0].policy(1).vlan_id == 9
            assert [guest.nic.attached for guest in parse_lab(kept.lab).guests] == [False, True]
        assert find_kept("rig") is None


def test_nothing_of_the_working_folder_serves_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    for name in ("uvicorn", "fastapi", "h11"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ.get("PYTHONPATH", ""), ""]))
    with service.serve_web("rig", 0) as web:
        assert os.readlink(f"/proc/{web.process.pid}/cwd") == "/"
    assert not (tmp_path / "run").exists()


# The commands, as processes.


def virtfn(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from virtfn.cli.start import main; main()", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def _nothing_left() -> Iterator[None]:
    yield
    for entry in list_labs():
        bring_down(entry["lab"])


@pytest.mark.slow
@pytest.mark.usefixtures("_nothing_left")
def test_several_labs_side_by_side() -> None:
    text = lab_text()
    for name in ("one", "two"):
        result = virtfn("up", "-", stdin=text.replace("name: rig", f"name: {name}"))
        assert (result.returncode, result.stdout, result.stderr) == (0, f"ready: {name} is up\n", "")
    again = virtfn("up", "-", stdin=text.replace("name: rig", "name: one"))
    assert again.returncode == 1
    assert "EADDRINUSE" in again.stderr
    labs = json.loads(virtfn("status", "--json", "-").stdout)["labs"]
    assert [(lab["lab"], lab["state"], lab["status"]["attached"]) for lab in labs] == [
        ("one", "ready", 2),
        ("two", "ready", 2),
    ]
    assert virtfn("traffic", "start", "500").returncode == 2  # which?
    assert virtfn("traffic", "start", "500", "--lab", "two").returncode == 0
    lines = virtfn("events", "--lab", "one").stdout.splitlines()
    assert lines[-1].endswith("STATE_CHANGED before=starting state=ready")
    assert virtfn("down").returncode == 2
    assert virtfn("down", "one").stdout == "one is down\n"
    assert virtfn("down").stdout == "two is down\n"
    assert virtfn("status").stdout == "no lab is up; virtfn up LAB.yaml\n"
    assert virtfn("down").returncode == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_nothing_left")
def test_a_lab_that_was_killed_says_what_was_lost_and_comes_again(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    up = virtfn("up", "-", "--traffic", "300", "--http", "0", stdin=lab_text())
    assert up.returncode == 0, up.stderr
    token = (tmp_path / "virtfn" / "rig.token").read_text().strip()
    assert f"Authorization: Bearer {token}" in up.stdout
    assert stat.S_IMODE((tmp_path / "virtfn" / "rig.token").stat().st_mode) == 0o600
    kept = find_kept("rig")
    assert kept is not None
    assert virtfn("quarantine", "pf0/vf1", "--why", "it smells").returncode == 0
    following = subprocess.Popen(
        [sys.executable, "-c", "from virtfn.cli.start import main; main()", "events", "-f", "--json", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["event"] == "STATE_CHANGED"
    os.kill(kept.pid, signal.SIGKILL)
    _, said = following.communicate(timeout=60)
    assert (following.returncode, said) == (0, "virtfn: lab rig has ended\n")
    while kept.alive:
        time.sleep(0.01)
    status = virtfn("status")
    assert "rig was lost: up from" in status.stdout
    assert "still in quarantine: pf0/vf1 of b (it smells)" in " ".join(status.stdout.split())
    again = virtfn("up", "--again", "rig")
    assert again.returncode == 0, again.stderr
    assert again.stderr.startswith("lab rig was lost: up from")
    assert "still in quarantine: pf0/vf1 of b (it smells)" in again.stderr
    (vf,) = [vf for vf in json.loads(virtfn("watch", "--json", "-").stdout) if vf["vf"] == 1]
    assert (vf["state"], vf["why"]) == ("quarantined", "it smells")
    (entry,) = list_labs()
    assert entry["status"] is not None
    assert entry["status"]["traffic"] is not None
    assert entry["status"]["traffic"]["rate"] == 300
    assert entry["http"] == kept.http


@pytest.mark.slow
@pytest.mark.usefixtures("_nothing_left")
def test_a_rate_is_kept_by_the_clock_on_the_wall() -> None:
    """No second has more than the limit; where the machine has time for it, one of five has all of it."""
    text = lab_text(workload="{kind: fan-in, frame-bytes: 1518, frames: 1000}", link_mbps=1000)
    assert virtfn("up", "-", stdin=text).returncode == 0

    def look() -> tuple[float, int, float]:
        """Read what the sender has sent, with check sequences; between which times, that was."""
        before = time.monotonic()
        vf = ask("session.snapshot", {}, "rig")["pfs"][0]["vfs"][1]
        return before, vf["tx_bytes"] + 4 * vf["tx_frames"], time.monotonic()

    for mbps in (10, 100, 1000):
        limits = [word for n in (0, 1) for word in ("vf", str(n), "max_tx_rate", str(mbps))]
        assert virtfn("link", "set", "pf0", *limits).returncode == 0
        assert ask("traffic.start", {"rate": 100_000}, "rig")["rate"] == 100_000
        while look()[1] < 100_000:
            time.sleep(0.05)
        looks = [look()]
        for _ in range(5):
            time.sleep(1)
            looks.append(look())
        least, most = 0.0, 0.0
        for (began, had, later), (soon, has, ended) in itertools.pairwise(looks):
            least, most = (
                max(least, (has - had) * 8e-6 / (ended - began)),
                max(most, (has - had) * 8e-6 / (soon - later)),
            )
        print(f"{mbps} Mb/s: {least:.2f} to {most:.2f} in the best of five seconds")
        assert least <= 1.02 * mbps
        # A card that is not run for more than 2 ms, as on a machine that others keep busy, has lost time for good.
        quiet = os.getloadavg()[0] < (os.cpu_count() or 1)
        assert most >= (0.98 if quiet else 0.2) * mbps


@pytest.mark.slow
def test_what_is_wrong_is_said_by_up() -> None:
    assert virtfn("up", "-", stdin="name: [").returncode == 2
    text = lab_text(memory_mib=65536)
    result = virtfn("up", "-", stdin=text)
    assert result.returncode == 1
    assert "ENOMEM" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list_labs() == []


@pytest.mark.slow
@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_get_nothing(tmp_path: Path) -> None:
    assert virtfn("up", "-", stdin=lab_text()).returncode == 0
    for path in [tmp_path, *tmp_path.parents]:
        if path != Path("/tmp") and path.is_relative_to("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)  # up to the folder that is virtfn's own
    become = (
        "import os, socket; s = socket.socket(socket.AF_UNIX); os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    )
    script = f"{become}; s.connect({str(tmp_path / 'virtfn/rig.sock')!r})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "PermissionError" in result.stderr
    for name in ("rig.sock", "rig.state"):
        path = tmp_path / "virtfn" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "virtfn").stat().st_mode) == 0o700
