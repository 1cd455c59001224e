"""Who gets how much of the pump's time, in virtual time: functions whose work is sleep."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from unit.vmm.test_served import Rig
from virtfn.machine.clock import MS_PS, S_PS, US_PS
from virtfn.vmm.allowance import BURST_PS, SLICE_PS, WHOLE_PS, Allowance, refill
from virtfn.vmm.pump import Pump
from virtfn.vmm.served import ServedFunction

STEP_PS = 50 * US_PS


class Row:
    """Two functions with clients that ask for as much as `wishes` says, in steps; and time around them."""

    def __init__(self, folder) -> None:
        self.rig = Rig(folder)
        self.clock = self.rig.host.clock
        self.taken = [0, 0]
        self.longest = 0
        self.step_ps = STEP_PS
        self.asks_ps = self.rests_ps = 0  # when the second asks next, and how much later again
        self.wishes = [0, 0]
        vm = SimpleNamespace(functions=dict(zip(self.rig.rids, self.rig.functions, strict=True)))
        self.pump = Pump(self.rig.host, [self.rig.nic], [vm])
        for n, served in enumerate(self.rig.functions):
            served.serve = lambda budget, going, n=n: self.work(n, going)  # type: ignore[method-assign,assignment]

    def work(self, n: int, going) -> int:
        began = self.clock.now()
        if n == 1:
            if began < self.asks_ps:
                return 0
            self.asks_ps = began + self.rests_ps
        for step in range(self.wishes[n]):
            self.clock.sleep(self.step_ps)
            if step < self.wishes[n] - 1 and not going():
                break
        spent = self.clock.now() - began
        self.taken[n] += spent
        self.longest = max(self.longest, spent)
        return int(spent > 0)

    def move(self, n: int) -> None:
        """Let a frame be received by function `n`."""
        self.rig.nic.port.nic["pools"][n]["gprc"] += 1
        self.rig.nic.port.nic["card"]["forwarded"] += 1

    def go(self, duration_ps: int, receiver: int | None = None) -> list[float]:
        """Take turns, with 50 us of other work between them; return the functions' shares of the time."""
        self.taken, self.longest, began = [0, 0], 0, self.clock.now()
        while self.clock.now() - began < duration_ps:
            if receiver is not None:
                self.move(receiver)
            self.pump.turn()
            self.clock.sleep(STEP_PS)
        return [taken / (self.clock.now() - began) for taken in self.taken]


@pytest.fixture
def row(tmp_path, monkeypatch) -> Iterator[Row]:
    monkeypatch.setattr(ServedFunction, "waits", True)  # nobody asks at a socket here
    monkeypatch.setattr("virtfn.vmm.pump.answer_at_once", lambda *_: (0, 0, 0))
    made = Row(tmp_path)
    yield made
    made.rig.close()


def test_alone_a_function_has_all_the_time_there_is(row):
    row.wishes = [1000, 0]
    assert row.go(S_PS)[0] > 0.9
    assert row.longest <= WHOLE_PS + STEP_PS
    assert not row.go(S_PS, receiver=0)[0] < 0.75, "frames of its own hold nobody up"


def test_beside_frames_of_another_it_has_a_quarter_in_short_slices(row):
    row.wishes = [1000, 0]
    row.go(100 * MS_PS, receiver=1)
    assert 0.15 < row.go(S_PS, receiver=1)[0] < 0.3
    assert row.longest <= SLICE_PS + STEP_PS
    assert row.go(S_PS)[0] > 0.9, "and all of it again when they stop"


def test_beside_frames_with_pauses_long_steps_have_a_quarter_too(row):
    row.wishes = [1000, 0]
    row.step_ps = 2 * MS_PS
    row.go(100 * MS_PS, receiver=1)
    shares = [row.go(span, receiver=who)[0] for _ in range(50) for span, who in ((MS_PS, 1), (9 * MS_PS, None))]
    assert (sum(shares[::2]) + 9 * sum(shares[1::2])) / 500 < 0.3


def test_beside_one_that_asks_little_it_has_a_quarter(row):
    row.wishes = [1000, 1]
    row.rests_ps = MS_PS
    row.go(100 * MS_PS)
    much, little = row.go(S_PS)
    assert 0.15 < much < 0.3
    assert little > 0.04, "it is answered when it asks"


def test_work_that_cannot_be_cut_is_paid_back(row):
    row.wishes = [1, 0]
    row.step_ps = 20 * MS_PS
    row.go(200 * MS_PS, receiver=1)
    assert row.go(2 * S_PS, receiver=1)[0] < 0.3


def test_two_that_ask_for_much_have_the_same(row):
    row.wishes = [1000, 1000]
    first, second = row.go(2 * S_PS)
    assert abs(first - second) < 0.02
    assert first + second > 0.8, "nothing is left unused"
    third = row.go(S_PS, receiver=0)
    assert abs(third[0] - third[1]) < 0.02


def test_a_short_demand_is_met_at_once(row):
    row.wishes = [4, 0]
    assert row.go(20 * MS_PS, receiver=1)[0] > 0.7, "a burst is free"


def test_faults_take_an_eighth_at_most(row):
    spent = 0

    def service() -> None:
        nonlocal spent
        row.clock.sleep(MS_PS)
        spent += MS_PS

    row.rig.host.iommu.service = service  # type: ignore[method-assign]
    row.go(200 * MS_PS)
    spent = 0
    row.go(S_PS)
    assert 0.08 < spent / S_PS < 0.15


def test_what_comes_back_is_shared_by_those_who_are_short():
    full, one, other = Allowance(), Allowance(0), Allowance(-MS_PS)
    refill([full, one, other], 8 * MS_PS)
    assert (full.left_ps, one.left_ps, other.left_ps) == (BURST_PS, MS_PS, 0)
    refill([full, one, other], 100 * S_PS)
    assert {full.left_ps, one.left_ps, other.left_ps} == {BURST_PS}
    full.take(US_PS)
    assert full.left_ps == BURST_PS, "a look is free"
