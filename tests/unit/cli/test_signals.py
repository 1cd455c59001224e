"""Signals end the command alike, whenever they come: no traceback, no socket, no folder left."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from virtfn.api.signals import Ended, ended_by_signals

COMMAND = [sys.executable, "-c", "from virtfn.cli.start import main; main()"]
LAB = """
name: rig
pfs: [{name: pf0, sr-iov: {total-vfs: 2}}]
guests:
  - {name: a, memory-mib: 8, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, memory-mib: 8, nic: {pf: pf0, io: sriov, vf: 1}}
workload: {kind: pairs, frames: 1000000000}
"""
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def begin(folder: Path, *, ignore: bool = False) -> subprocess.Popen[str]:
    """Start a lab that would run for minutes."""
    (folder / "lab.yaml").write_text(LAB)
    return subprocess.Popen(
        [*COMMAND, "run", str(folder / "lab.yaml"), "--keep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignore else None,
    )


def listens(pid: int) -> bool:
    """Tell whether a process catches SIGHUP, the last that the command takes care of."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) & 1)


def works(folder: Path, child: subprocess.Popen[str]) -> None:
    """Wait until others can ask it."""
    while not list(folder.glob("virtfn/*.sock")):
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    time.sleep(0.5)


def judge(folder: Path, child: subprocess.Popen[str], number: signal.Signals) -> None:
    out, err = child.communicate(timeout=60)
    assert (child.returncode, "Traceback" in err) == (STATUS[number], False), err
    assert err.splitlines()[-1] == "virtfn: interrupted"
    assert out == ""
    assert not list(folder.glob("virtfn/*"))


@pytest.mark.parametrize("number", STATUS)
def test_a_lab_at_work_is_taken_down(tmp_path: Path, number: signal.Signals) -> None:
    child = begin(tmp_path)
    works(tmp_path, child)
    child.send_signal(number)
    judge(tmp_path, child, number)


@pytest.mark.parametrize("number", STATUS)
def test_it_ends_at_any_moment_of_its_start(tmp_path: Path, number: signal.Signals) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(3):
        child = begin(tmp_path)
        while not listens(child.pid):  # the interpreter's own start is not ours
            time.sleep(0.001)
        time.sleep(rng.random())
        child.send_signal(number)
        judge(tmp_path, child, number)


def test_what_ignores_ctrl_c_is_ended_by_sigterm(tmp_path: Path) -> None:
    child = begin(tmp_path, ignore=True)
    works(tmp_path, child)
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.send_signal(signal.SIGTERM)
    judge(tmp_path, child, signal.SIGTERM)


def test_a_second_signal_does_not_disturb(tmp_path: Path) -> None:
    child = begin(tmp_path)
    works(tmp_path, child)
    for _ in range(5):
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode in (130, 143), err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("virtfn/*"))


class Loses:
    """Loses what is raised while it is let go, as every destructor does."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)


def lost() -> None:
    Loses()
    time.sleep(60)


def made_another() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except BaseException as error:
        raise RuntimeError("setting a name failed") from error


def lost_in_a_callback_that_returned_nothing() -> None:
    Loses()
    raise ValueError("NULL pointer access")


@pytest.mark.parametrize("happens", [lost, made_another, lost_in_a_callback_that_returned_nothing])
def test_a_signal_arrives_whatever_is_made_of_it(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # pytest's would keep it
    with pytest.raises(Ended) as caught, ended_by_signals():
        happens()
    assert caught.value.status == 143


def test_a_signal_is_over_when_it_has_arrived() -> None:
    with suppress(Ended), ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    gc.collect()
    time.sleep(0.05)  # nothing comes again


def test_python_tells_of_what_it_loses_but_not_of_signals(monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)

    class Cut:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def __del__(self) -> None:
            raise self.error

    with ended_by_signals():
        Cut(ValueError("lost"))
        ended = Ended(signal.SIGTERM)
        ended.arrived = True
        Cut(ended)
    assert [lost.exc_type for lost in told] == [ValueError]
    assert sys.unraisablehook == told.append
