"""What guests say is read with care: they may say anything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from virtfn.api.comparelinux import _driver, _lab, _ping, _turns
from virtfn.api.comparerig import Plan
from virtfn.machine.ports import VirtfnError


def guest(said: str | None) -> Any:
    outcome = None if said is None else SimpleNamespace(output=said)
    job = SimpleNamespace(done=True, outcome=outcome)
    return SimpleNamespace(start=lambda command: job, device="eth0", ip="10.82.0.1", lab=SimpleNamespace(name="a"))


SESSION: Any = SimpleNamespace(run_until=lambda done, limit: done())


def test_round_trips_are_numbers_of_ping_alone() -> None:
    said = "seq=1 time=0.52 ms\nseq=2 time=12 ms\ntime=... ms\ntime=1.2.3 ms\ntime=99999999999 ms\ntime=\u0661 ms\n"
    assert _ping(SESSION, [guest(said)] * 2) == [0.52, 12.0]


@pytest.mark.parametrize("said", [None, "", "time=.. ms"])
def test_a_ping_without_answers_is_an_error(said: str | None) -> None:
    with pytest.raises(VirtfnError, match="ping from a: nothing came back within 60 s"):
        _ping(SESSION, [guest(said)] * 2)


@pytest.mark.parametrize(
    ("said", "name"),
    [("igbvf\n", "igbvf"), ("virtio_net", "virtio_net"), ("\x1b[31mred", ""), ("a" * 33, ""), (None, "")],
)
def test_a_driver_is_a_name(said: str | None, name: str) -> None:
    assert _driver(SESSION, guest(said)) == name


@pytest.mark.parametrize("n", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["split", "direct", "sriov"])
def test_a_lab_has_so_many_guests_by_a_model(name: str, n: int) -> None:
    lab = _lab(Plan(vmm="qemu"), name, n)
    assert [guest.nic.vf for guest in lab.guests] == ([*range(n)] if name == "sriov" else [None] * n)
    assert {(guest.vmm, guest.nic.io) for guest in lab.guests} == {("qemu", name)}


def test_pairs_send_at_once_and_an_odd_number_in_turn() -> None:
    assert [_turns(n) for n in (2, 3, 4, 5, 8)] == [2, 3, 2, 5, 2]
