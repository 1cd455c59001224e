"""What Linux guests on a wire are told of their neighbours, and how long they wait for whoever is at its other end."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from virtfn.api import linux
from virtfn.api.linux import LinuxGuests, meet, words
from virtfn.hw.types import parse_mac
from virtfn.machine.clock import S_PS, VirtualClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Job, Outcome


class World:
    """Each turn takes a second; then `happens` may change something."""

    def __init__(self, clock: VirtualClock, happens: Callable[[], None]) -> None:
        self._clock = clock
        self._happens = happens

    def tick(self) -> None:
        self._clock.sleep(S_PS)
        self._happens()

    def add(self, actor: object) -> None: ...

    def rest_by(self, actor: object) -> None: ...


class Rig:
    """Guests that note what they are told. wires: (PF of each guest, whether its wire leads outside)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *wires: tuple[str, bool]) -> None:
        monkeypatch.setattr(linux, "Pump", lambda *_: None)
        self.clock, self.told, self.progress = VirtualClock(), dict[str, list[str]](), set[str]()
        self.answer: Outcome | None = None
        self.happens: Callable[[], None] = lambda: None
        self.pfs = {
            name: SimpleNamespace(name=name, nic=None, live=live, wire=SimpleNamespace(up=True))
            for name, live in dict(wires).items()
        }
        lab = SimpleNamespace(pf=lambda name: SimpleNamespace(uplink="stream:listen:wire"))
        machine = SimpleNamespace(host=SimpleNamespace(clock=self.clock), pfs=list(self.pfs.values()), lab=lab)
        world = World(self.clock, lambda: self.happens())
        self.guests = LinuxGuests(cast(Any, machine), cast(Any, None), cast(Any, world), self._tell)
        self.guests.guests += [self._guest(n, pf) for n, (pf, _) in enumerate(wires)]

    def _tell(self, what: str, since: int) -> None:
        self.progress.add(what)

    def _guest(self, n: int, pf: str) -> Any:
        def start(command: str) -> Job:
            self.told.setdefault(f"g{n}", []).append(command)
            known = Outcome(0, f"eth{n}\n") if "find_device" in command else self.answer or Outcome(0, "")
            return Job(command, known)

        mac = parse_mac(f"02:00:00:00:00:1{n}")
        lab = SimpleNamespace(nic=SimpleNamespace(io="sriov"), name=f"g{n}", has_agent=True)
        return SimpleNamespace(
            lab=lab, mac=mac, ip=f"10.82.0.{n + 1}", device="", pf=self.pfs[pf], start=start, notes=[]
        )


def test_a_neighbour_has_an_ipv4_and_a_link_local_address() -> None:
    other = SimpleNamespace(mac=parse_mac("02:00:00:00:00:1a"), ip="10.82.0.2")
    towards = "lladdr 02:00:00:00:00:1a dev eth0 nud permanent"
    assert meet("eth0", cast(Any, other)) == (
        f"ip neigh replace 10.82.0.2 {towards} && ip neigh replace fe80::ff:fe00:1a {towards}"
    )


def test_guests_on_a_wire_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, ("p", True), ("p", True), ("q", True), ("p", True))
    rig.guests.set_up(1518)
    entered = [[word for word in told[-1].split() if "." in word] for told in rig.told.values() if len(told) == 2]
    assert entered == [["10.82.0.2", "10.82.0.4"], ["10.82.0.1", "10.82.0.4"], ["10.82.0.1", "10.82.0.2"]]
    assert "dev eth3 " in rig.told["g3"][-1]
    assert len(rig.told["g2"]) == 1


def test_guests_without_a_wire_ask_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, ("p", False), ("p", False))
    rig.guests.set_up(1518)
    assert [len(told) for told in rig.told.values()] == [1, 1]


def test_a_guest_that_cannot_be_told_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, ("p", True), ("p", True))
    rig.answer = Outcome(1, "sh: ip: not found\n")
    with pytest.raises(VirtfnError, match="guest g0: ip neigh: sh: ip: not found"):
        rig.guests.set_up(1518)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", "ended with status 1"),
        (" \n\t\n", "ended with status 1"),
        ("one\n\n two\tand a half \nthree\nfour\n", "two and a half; three; four"),
        ("\x1b]0;owned\x07\x1b[2Jsh: gone\r\n", r"\x1b]0;owned\x07\x1b[2Jsh: gone"),
        ("\u202etxt.exe\x00\ufffd", "\\u202etxt.exe\\x00\ufffd"),
        ("x" * (1 << 20), "..." + "x" * 300),
        ("\x00" * 400, "..." + r"\x00" * 75),
        ("begin\n" + " " * (1 << 20) + "\nend", "begin; end"),
    ],
)
def test_what_a_guest_says_is_a_line_that_no_terminal_obeys(said: str, told: str) -> None:
    assert words(Outcome(1, said)) == told


def one_set_up(rig: Rig, guest: Any) -> None:
    """Let a guest set its interface up; each look is a second later."""
    for _ in rig.guests.set_one_up(guest, 1518):
        rig.clock.sleep(S_PS)


def test_an_interface_that_comes_later_is_set_up_in_time_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, ("p", False))
    (guest,) = rig.guests.guests
    job = Job("sleep")
    monkeypatch.setattr(guest, "start", lambda command: job)
    with pytest.raises(VirtfnError, match="g0 does not set its interface up within 60 s") as refused:
        one_set_up(rig, guest)
    assert refused.value.errno_name == "ETIMEDOUT"
    job.lost = True
    with pytest.raises(VirtfnError, match="g0 has restarted or ended meanwhile"):
        one_set_up(rig, guest)
    job.outcome = Outcome(0, "eth5\n")
    one_set_up(rig, guest)
    assert guest.device == "eth5"


def test_guests_wait_for_whoever_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, ("p", True))
    wire = rig.pfs["p"].wire
    wire.up = False
    rig.happens = lambda: setattr(wire, "up", rig.clock.now() >= 30 * S_PS)
    rig.guests.set_up(1518)
    assert rig.clock.now() == 30 * S_PS
    assert "waiting for the uplink of p, stream:listen:wire" in rig.progress
    assert rig.told


def test_nobody_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, ("p", True))
    rig.pfs["p"].wire.up = False
    with pytest.raises(VirtfnError, match="uplink of p, stream:listen:wire: nobody was there for 60 s; start who"):
        rig.guests.set_up(1518)
    assert not rig.told
