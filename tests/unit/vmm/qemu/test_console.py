import re
from pathlib import Path

import pytest

from virtfn.machine.clock import S_PS, VirtualClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu.console import CAPACITY, Console, Recording
from virtfn.vmm.qemu.wait import Watch


def console() -> tuple[Console, VirtualClock]:
    clock = VirtualClock()
    return Console(lambda typed: None, Watch(clock=clock)), clock


def test_a_recording_forgets_the_oldest() -> None:
    recording = Recording(8)
    for byte in b"abcdefghijklmnopqrstuvwxyz":
        recording.feed(bytes((byte,)))
    assert recording.since(0) == b"stuvwxyz"
    assert recording.since(24) == b"yz"
    assert recording.since(99) == b""
    assert recording.since(-5) == b"stuvwxyz"


def test_text_is_for_reading() -> None:
    recording = Recording()
    recording.feed(b"\x1bc\x1b[?7l\x1b[2J\x1b[1;32mone\x1b[0m\r\ntwo\r\n\xff\r\n")
    assert recording.text() == "one\ntwo\n\ufffd\n"
    assert recording.text(2) == "two\n\ufffd"


def test_each_wait_goes_on_where_the_last_one_ended() -> None:
    a, _ = console()
    a.feed(b"login: x\r\nlogin: y\r\n")
    assert a.wait_for(r"login: (\w)")[1] == "x"
    assert a.wait_for(r"login: (\w)")[1] == "y"
    script = iter([b"pass", b"word", b": "])
    assert a.wait_for("password: $", tick=lambda: a.feed(next(script)))[0] == "password: "
    a.feed(b"\nlast line")
    assert a.wait_for(r"(?<=last )line$")[0] == "line"


def test_a_wait_sees_no_escapes() -> None:
    a, _ = console()
    a.feed(b"\x1b[1mguest:~# \x1b[6n\xc3\xa9\xff \x1b[0mon\x1b[Ke\r\ntwo")
    assert a.wait_for("~# ")[0] == "~# "
    assert a.wait_for("^.* one$")[0] == "\xe9\ufffd one"
    assert a.wait_for("^t")[0] == "t"
    assert a.wait_for("wo$")[0] == "wo"


def test_a_wait_outlives_a_flood() -> None:
    a, _ = console()
    flood = iter([b"x" * CAPACITY, b"y" * (2 * CAPACITY), b"\ndone\n"])
    assert a.wait_for("^done$", tick=lambda: a.feed(next(flood)))
    a.feed(b"more")
    assert a.wait_for("more")


def test_a_wait_ends_with_what_was_said() -> None:
    a, clock = console()
    a.feed(b"Kernel panic - not syncing\r\n")
    said = re.escape("'login' on the console did not come within 5 s; it said last:\nKernel panic")
    with pytest.raises(VirtfnError, match=said):
        a.wait_for("login", timeout_s=5, tick=lambda: clock.sleep(S_PS))


def test_a_log_that_cannot_be_written() -> None:
    with pytest.raises(VirtfnError, match="/no/where/log: No such file"):
        Console(lambda typed: None, Watch(), Path("/no/where/log"))
