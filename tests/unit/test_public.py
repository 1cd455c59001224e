"""The public API, held stable: nothing of virtfn is imported here but virtfn itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import virtfn

ROOT = Path(__file__).parents[2]
TEXT = """
name: text
pfs: [{name: pf0, sr-iov: {total-vfs: 2, vfs: [{id: 0, vlan-id: 10}, {id: 1, vlan-id: VLAN}]}}]
guests: [{name: a, memory-mib: 8, nic: {pf: pf0, vf: 0}}, {name: b, memory-mib: 8, nic: {pf: pf0, vf: 1}}]
workload: {kind: pairs, frames: 300, frame-bytes: 256}
"""


def guests(*names: str) -> list[virtfn.Guest]:
    return [virtfn.Guest(name=name, memory_mib=8, nic=virtfn.Nic(pf="pf0", vf=n)) for n, name in enumerate(names)]


def test_the_names_are_these_and_stay() -> None:
    assert set(virtfn.__all__) == {
        "CaptureError", "Disk", "Dom0", "FailedError", "FlowReport", "Frames", "Guest", "GuestReport", "Iommu", "Lab",
        "LabError",
        "Nic", "Pf", "Report", "Session", "Snapshot", "SrIov", "State", "Verdict", "VfPolicy", "VirtfnError",
        "Watch", "WatchLimit", "Workload", "__version__", "builtin_lab", "check", "load_lab", "make_lab", "parse_lab",
        "read_capture", "run", "verdict",
    }  # fmt: skip
    assert all(getattr(virtfn, name) is not None for name in virtfn.__all__)
    assert set(virtfn.__all__) <= set(dir(virtfn))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        virtfn.nonsense  # type: ignore[attr-defined]  # noqa: B018
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert [name for name in virtfn.__all__ if f"`{name}" not in page] == []


def test_importing_it_loads_no_compiler() -> None:
    script = "import sys, virtfn; print({'numba', 'numpy', 'pydantic', 'rich'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


def test_a_lab_from_text_passes(tmp_path: Path) -> None:
    report = virtfn.check(virtfn.run(TEXT.replace("VLAN", "10"), capture=tmp_path / "seen.pcapng"))
    assert [guest["rx_frames"] for guest in report["guests"]] == [300, 300]
    frames = virtfn.read_capture(tmp_path / "seen.pcapng")
    assert len(frames) == 1200  # each frame leaves one function, and enters another
    assert len(frames.frame(0)) == 252 + 4  # with the tag of the port VLAN, without check sequence


def test_a_verdict_raises(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(TEXT.replace("VLAN", "20"))
    report = virtfn.run(tmp_path / "lab.yaml")
    with pytest.raises(AssertionError, match="b heard 0 of 300 frames of a: vlan-membership") as caught:
        virtfn.check(report)
    assert isinstance(caught.value, virtfn.FailedError)
    assert isinstance(caught.value, virtfn.VirtfnError)
    assert caught.value.report is report
    assert virtfn.verdict(report) == virtfn.Verdict(False, str(caught.value))


def test_a_lab_of_objects() -> None:
    lab = virtfn.make_lab(guests=guests("a", "b"), workload=virtfn.Workload(kind="pairs", frames=100))
    assert lab.pfs[0].total_vfs == 8
    assert virtfn.check(virtfn.run(lab))["totals"]["frames"] == 200


def test_objects_that_do_not_fit_are_refused() -> None:
    workload = virtfn.Workload(kind="pairs", frames=100)
    with pytest.raises(virtfn.LabError, match=r"lab:1: guests\[1\].name: guest name a is taken already"):
        virtfn.make_lab(guests=guests("a", "a"), workload=workload)
    with pytest.raises(virtfn.LabError, match="guests: needs at least 1"):
        virtfn.make_lab(guests=[], workload=workload)
    with pytest.raises(ValueError, match="must be all, all-but-overruns, none, or a share"):
        virtfn.Workload(kind="pairs", expect="some")


def test_a_session_counts() -> None:
    lab = virtfn.make_lab(guests=guests("a", "b"), workload=virtfn.Workload(kind="pairs", frames=100))
    with virtfn.Session(lab) as session:
        session.start()
        assert session.state is virtfn.State.READY
        session.work()
        counts: virtfn.Snapshot = session.snapshot()
        assert [guest["rx_frames"] for guest in counts["guests"]] == [100, 100]
        assert virtfn.check(session.report())["lab"] == "lab"
        session.stop()
    assert session.state is virtfn.State.CLOSED


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_the_examples_run(script: Path) -> None:
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "b is heard, c is not\n"
