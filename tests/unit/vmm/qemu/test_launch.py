import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from virtfn.machine.places import runtime_folder
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Function, Machine, Qemu, QemuGuest, attach, console_doors, launch, rest
from virtfn.vmm.qemu.folder import GuestFolder

Make = Callable[..., QemuGuest]


def function(guest: QemuGuest, name: str = "n0") -> Function:
    socket = guest.folder / name
    socket.touch()
    return Function(name, socket)


def test_a_guest_runs_and_quits_without_a_trace(guest: Make) -> None:
    a = guest()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        rest()

    a.start(tick=tick)
    assert a.running
    assert ticks
    assert a.folder.stat().st_mode & 0o777 == 0o700
    state = a.qmp("query-status")
    assert isinstance(state, dict)
    assert state["session"]  # Ctrl-C in our terminal does not reach it
    a.close()
    a.close()
    assert not a.running
    assert not a.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(a.pid, 0)
    with pytest.raises(VirtfnError, match="was closed"):
        a.qmp("query-status")


def test_an_early_death_is_told_in_qemus_words(guest: Make) -> None:
    a = guest("dies")
    with pytest.raises(VirtfnError, match=r"QEMU ended at start \(status 1\): fakeqemu: -fake dies: no such thing"):
        a.start()
    assert not a.folder.exists()


def test_a_qemu_that_cannot_be_started(guest: Make) -> None:
    a = guest()
    a._qemu = type(a._qemu)(Path("/no/qemu"), ("/no/qemu",), (11, 1, 0))
    with pytest.raises(VirtfnError, match="/no/qemu: No such file or directory"):
        a.start()


def test_a_silent_qemu_is_ended(guest: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "QUIT_S", 0.05)
    a = guest("silent")
    with pytest.raises(VirtfnError, match="the start of QEMU did not come within"):
        a.start(timeout_s=0.3)
    assert not a.running


def test_a_deaf_qemu_is_killed(guest: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "QUIT_S", 0.05)
    a = guest("deaf")
    a.start()
    a.close()
    assert a._child is not None
    assert a._child.returncode == -signal.SIGKILL


def test_ctrl_c_while_waiting_leaves_nothing(guest: Make) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    a = guest()
    a.start()
    with pytest.raises(KeyboardInterrupt):
        a.qmp("never", tick=interrupt)
    with pytest.raises(KeyboardInterrupt):
        a.close(tick=interrupt)
    assert not a.running
    assert not a.folder.exists()


def test_hot_plug_and_unplug(guest: Make) -> None:
    a = guest(slots=2)
    a.start()
    assert a.plug(function(a, "n0")) == 0
    assert a.plug(function(a, "n1")) == 1
    assert a.plugged == {"n0": 0, "n1": 1}
    with pytest.raises(VirtfnError, match="no free slot"):
        a.plug(function(a, "n2"))
    with pytest.raises(VirtfnError, match="plugged in already"):
        a.plug(function(a, "n1"))
    a.unplug("n0")
    assert a.plugged == {"n1": 1}
    assert a.plug(function(a, "n2")) == 0
    with pytest.raises(VirtfnError, match="n0 is not plugged in"):
        a.unplug("n0")
    assert "DEVICE_DELETED" in a.events


def test_a_refused_plug_frees_the_slot(guest: Make) -> None:
    a = guest()
    a.start()
    with pytest.raises(VirtfnError, match="QEMU refuses device_add: Failed to connect"):
        a.plug(Function("n0", Path("/nowhere")))
    assert a.plugged == {}


def test_a_guest_that_does_not_let_go(guest: Make) -> None:
    a = guest("stubborn")
    a.start()
    a.plug(function(a))
    with pytest.raises(VirtfnError, match="does not let go of n0"):
        a.unplug("n0")
    assert a.plugged == {"n0": 0}


def test_a_qemu_that_crashes_is_told_with_its_words(guest: Make) -> None:
    a = guest("crash")
    a.start()
    a.plug(function(a))
    with pytest.raises(VirtfnError, match=r"QEMU ended \(signal 6\): Assertion failed"):
        a.unplug("n0")
    with pytest.raises(VirtfnError, match="QEMU ended"):
        a.console.wait_for("anything")
    a.close()


def test_console_and_agent(guest: Make, tmp_path: Path) -> None:
    a = guest(log=tmp_path / "log")
    with pytest.raises(VirtfnError, match="does not run"):
        a.console.send(b"early")
    a.start()
    assert a.console.wait_for(r"Linux version (\S+)")[1] == "6.1"
    a.console.wait_for("login:")
    a.console.send(b"root\n")
    assert a.console.wait_for("typed (.*)")[1] == "root"
    with pytest.raises(VirtfnError, match=r"(?s)'password' on the console did not come.*you typed root"):
        a.console.wait_for("password", timeout_s=0.05)
    a.agent.wait_ready()
    assert a.agent.run("echo hello; exit 4").status == 4
    assert b"Linux version" in (tmp_path / "log").read_bytes()


def test_a_command_that_a_guest_never_ends_is_lost_with_it(guest: Make) -> None:
    with guest() as a:
        a.start()
        a.agent.wait_ready()
        job = a.agent.start("sleep 60")
        assert not job.done
    assert job.lost


def test_the_console_has_a_door(guest: Make) -> None:
    a = guest()
    a.start()
    a.console.wait_for("login:")
    doors = console_doors()
    assert list(doors) == ["a"]
    assert doors["a"].stat().st_mode & 0o077 == 0
    keyboard, typing = os.pipe()
    seen, screen = os.pipe()
    person = threading.Thread(target=attach, args=(doors["a"],), kwargs={"stdin": keyboard, "stdout": screen})
    person.start()
    assert b"Linux version" in os.read(seen, 4096)
    os.write(typing, b"hi")
    a.console.wait_for("you typed hi")
    os.write(typing, b"\x1d")
    person.join()
    a.close()
    for descriptor in (keyboard, typing, seen, screen):
        os.close(descriptor)
    assert console_doors() == {}
    with pytest.raises(VirtfnError, match="no guest at"):
        attach(doors["a"])


def test_piped_input_hears_what_the_guest_says_to_it(guest: Make) -> None:
    a = guest()
    a.start()
    a.console.wait_for("login:")
    keyboard, typing = os.pipe()
    seen, screen = os.pipe()
    os.write(typing, b"hi\n")
    os.close(typing)
    attach(console_doors()["a"], stdin=keyboard, stdout=screen)
    assert b"you typed hi" in os.read(seen, 1 << 16)
    for descriptor in (keyboard, seen, screen):
        os.close(descriptor)


def test_qemu_does_not_start_where_anybody_may_have_put_firmware(
    guest: Make, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(kernel.parent)
    a = guest()
    a.start()
    assert os.readlink(f"/proc/{a.pid}/cwd") == "/"
    argv = Machine("b", Path(kernel.name), initrd=Path(kernel.name)).argv(
        Qemu(kernel, ("qemu",), (11, 1, 0)), a.acceleration, qmp=0, console=1, agent=2
    )
    assert argv[argv.index("-kernel") + 1] == argv[argv.index("-initrd") + 1] == str(kernel)


def test_only_guests_folders_are_swept() -> None:
    runtime = runtime_folder()
    names = ("a.0123abcd", "b.c.zzzz____", "0123456789abcdef", "qemu", "other.x")
    for name in names:
        (runtime / name).mkdir()
    GuestFolder("d").close()
    assert sorted(entry.name for entry in runtime.iterdir()) == sorted(names[2:])


def forgetful(kernel: Path, ending: str) -> list[str]:
    """Return a program that starts a guest, says its pid and folder, and never closes it."""
    program = (
        "import sys, time; from pathlib import Path; from virtfn.vmm.qemu import *;"
        "fake = sys.argv[1]; qemu = Qemu(Path(fake), (sys.executable, '-S', fake), (11, 1, 0));"
        "g = QemuGuest(Machine('b', Path(sys.argv[2])), qemu, Acceleration('tcg', '')); g.start();"
        f"print(g.pid, g.folder, flush=True); {ending}"
    )
    return [sys.executable, "-c", program, str(Path(__file__).with_name("fakeqemu.py")), str(kernel)]


def test_qemu_and_folder_go_when_we_are_killed(kernel: Path) -> None:
    """SIGKILL leaves no time to tidy up: the kernel ends QEMU, and the next guest removes the folder."""
    argv = forgetful(kernel, "time.sleep(60)")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        pid, folder = ours.stdout.readline().split()
        assert list(console_doors()) == ["b"]
        ours.kill()
    for _ in range(200):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.01)
                continue
        break
    else:
        pytest.fail("QEMU outlived us")
    assert Path(folder).exists()
    assert console_doors() == {}
    GuestFolder("c").close()
    assert not Path(folder).exists()


def test_a_program_that_forgets_close_leaves_nothing(kernel: Path) -> None:
    argv = forgetful(kernel, "raise SystemExit(7)")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    assert not Path(done.stdout.split()[1]).exists()
