"""Changes of Linux guests that end, hang, or whose client has left: what is undone, and that nothing is in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from virtfn.api.lab import Lab, parse_lab
from virtfn.api.labchange import with_nic, with_vfs
from virtfn.api.labpolicy import driver_policy, switch_policy
from virtfn.api.session import change as changing
from virtfn.api.session.asking import Request
from virtfn.api.session.desk import Desk
from virtfn.machine.clock import MS_PS, VirtualClock
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError

LAB = """\
name: two
pfs: [{name: p, sr-iov: {total-vfs: 4}}]
guests:
  - {name: a, vmm: qemu, nic: {pf: p, vf: 0}}
  - {name: b, vmm: qemu, nic: {pf: p, vf: 1}}
workload: {kind: none}
"""


class Guest:
    """A Linux guest and its machine. lets_go: at once, or never."""

    def __init__(self, rig: Rig, lab: Any) -> None:
        self.lab, self.attached, self.device = lab, lab.nic.attached, "eth0"
        self.plug = SimpleNamespace(vf=SimpleNamespace(rid=lab.nic.vf) if self.attached else None)
        self.vm, self.lets_go = self, True
        self._told = rig.told

    def let_go(self, rid: int) -> InPieces[None]:
        self._told.append(f"ask {self.lab.name}")
        while not self.lets_go:
            yield


class Rig:
    """A lab of Linux guests that is up. told: what was done, in order; hangs: whose interfaces are never set up."""

    def __init__(self, lab: Lab) -> None:
        self.told: list[str] = []
        self.events: list[str] = []
        self.hangs: set[str] = set()
        self.ended: set[str] = set()
        self.changing, self.served, self.standing = False, [], None
        self.guests = [Guest(self, guest) for guest in lab.guests]
        says = lab.pf("p")
        driver = SimpleNamespace(
            switch_policy=lambda: switch_policy(says.sr_iov) if says.sr_iov else None, set_switch=lambda policy: None
        )
        pf = SimpleNamespace(name="p", driven=True, driver=driver, policies={}, vfs=[0, 1, 2, 3])
        model = SimpleNamespace(plug=self._plug)
        iovm = SimpleNamespace(take_back=lambda vf: self.told.append(f"take vf{vf.rid}"))
        self.machine = SimpleNamespace(
            pfs=[pf],
            lab=lab,
            guests=[],
            pf=lambda name: pf,
            iovm=iovm,
            model=lambda pf, io: model,
            wish=lambda pf, guest: guest,
            set_vfs=self._set_vfs,
            policy=lambda pf, n: driver_policy(says.policy(n)),
        )
        self.clock = VirtualClock()
        self.desk = Desk(cast(Any, None), self.clock)
        self.on_set_vfs: Callable[[], None] = lambda: None

    def running_lab(self) -> Lab:
        return self.machine.lab

    def linux_guest(self, name: str) -> Guest | None:
        return next((guest for guest in self.guests if guest.lab.name == name), None)

    def tell_event(self, event: Any) -> None:
        self.events.append(event.name)

    def _plug(self, vm: Guest, guest: Any) -> Any:
        self.told.append(f"plug {guest.name}")
        return SimpleNamespace(vf=SimpleNamespace(rid=guest.nic.vf))

    def _set_vfs(self, pf: Any, count: int) -> None:
        self.told.append(f"{count} VFs")
        self.on_set_vfs()

    def set_up(self, guest: Guest) -> InPieces[None]:
        self.told.append(f"set up {guest.lab.name}")
        while guest.lab.name in self.hangs:
            if guest not in self.guests:
                raise VirtfnError("it has ended")
            yield

    def end(self, name: str) -> None:
        """A guest's QEMU ends; its VF is taken back by who notices."""
        self.guests = [guest for guest in self.guests if guest.lab.name != name]
        self.ended.add(name)

    def submit(self, after: Lab) -> Any:
        class Change(Request[None]):
            waits = True

            def pieces(_, session: object) -> InPieces[None]:  # noqa: N805
                return changing.change(cast(Any, self), after)

        return self.desk.submit(Change())

    def turn(self, count: int = 6) -> None:
        for _ in range(count):
            self.clock.sleep(6 * MS_PS)
            self.desk.turn(self.clock.now())


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(attached(parse_lab(LAB), b=False))
    yield made
    made.desk.close()


def attached(lab: Lab, **which: bool) -> Lab:
    for guest in lab.guests:
        if guest.name in which:
            nic = guest.nic.model_copy(update={"attached": which[guest.name]})
            lab = with_nic(lab, guest.name, nic)
    return lab


@pytest.mark.parametrize("then", ["cancelled", "closed", "noticed"])
def test_a_guest_that_ends_while_it_is_attached_ends_nothing_else(rig: Rig, then: str) -> None:
    rig.hangs.add("b")
    answer = rig.submit(attached(rig.machine.lab, b=True))
    rig.turn()
    assert rig.told == ["plug b", "set up b"]
    rig.end("b")
    if then == "cancelled":
        answer.cancel()
    elif then == "closed":
        rig.desk.close()
    if then != "closed":
        rig.turn()
    assert not rig.changing
    assert rig.told == ["plug b", "set up b"]
    if then == "noticed":
        with pytest.raises(VirtfnError, match=r"^it has ended$"):
            answer.result(0)


def test_a_change_that_detaches_a_guest_which_ends_meanwhile_is_undone_as_far_as_there_are_guests(rig: Rig) -> None:
    rig.machine.lab = lab = attached(rig.machine.lab, b=True)
    rig.guests[1].plug.vf = SimpleNamespace(rid=1)
    rig.guests[0].lets_go = False
    answer = rig.submit(with_vfs(lab, "p", 2))
    rig.turn()
    assert rig.told == ["ask a"]
    rig.end("b")
    rig.guests[0].lets_go = True
    rig.turn(12)
    with pytest.raises(VirtfnError, match=r"^guest b has ended; virtfn down, then up$"):
        answer.result(0)
    done = ["ask a", "take vf0", "2 VFs", "plug a", "set up a"]
    assert rig.told == [*done, "ask a", "take vf0", "4 VFs", "plug a", "set up a"]
    assert [guest.nic.attached for guest in rig.machine.lab.guests] == [True, False], "who has ended stays so"


def test_who_leaves_gets_the_change_undone_and_the_network_of_guests_again(rig: Rig) -> None:
    rig.guests[0].lets_go = False
    answer = rig.submit(attached(rig.machine.lab, a=False))
    rig.turn()
    assert rig.changing
    assert answer.cancel()
    rig.turn()
    assert rig.told == ["ask a", "take vf0", "plug a", "set up a"]
    assert not rig.changing
    assert rig.guests[0].attached


def test_a_lab_that_ends_waits_for_no_guest(rig: Rig) -> None:
    rig.guests[0].lets_go = False
    rig.hangs.add("a")
    answer = rig.submit(attached(rig.machine.lab, a=False))
    rig.turn()
    rig.desk.close()
    assert rig.told == ["ask a", "take vf0", "plug a"]
    with pytest.raises(VirtfnError, match="the lab has ended meanwhile"):
        answer.result(0)


@pytest.mark.parametrize("error", [VirtfnError("not now"), RuntimeError("not now")])
def test_a_step_that_cannot_be_undone_is_no_reason_to_leave_the_others(rig: Rig, error: Exception) -> None:
    calls = iter([False, True])

    def refuse() -> None:
        if next(calls):
            raise error

    rig.on_set_vfs = refuse
    rig.hangs.add("a")
    answer = rig.submit(with_vfs(rig.machine.lab, "p", 2))
    rig.turn()
    rig.hangs.clear()
    answer.cancel()
    rig.turn(12)
    assert rig.told[-3:] == ["4 VFs", "plug a", "set up a"]
    assert not rig.changing


def test_requests_that_leave_something_behind_are_all_told_that_the_lab_ends(rig: Rig) -> None:
    class Stubborn(Request[None]):
        waits = True

        def pieces(self, session: object) -> InPieces[None]:
            try:
                while True:
                    yield
            finally:
                raise RuntimeError("it is what it is")

    answers = [rig.desk.submit(Stubborn()) for _ in range(2)]
    rig.turn()
    answers[0].cancel()
    rig.turn()
    rig.desk.close()
    with pytest.raises(VirtfnError, match="the lab has ended meanwhile"):
        answers[1].result(0)
