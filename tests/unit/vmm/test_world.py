"""The world: everybody has turns, lanes work side by side, and a rest ends when somebody is due or can be read."""

from __future__ import annotations

import itertools
import os
import threading
import time

import pytest

from virtfn.hw.types import Ps
from virtfn.machine.clock import MS_PS, S_PS, US_PS, VirtualClock, WallClock
from virtfn.vmm.world import World


class Player:
    """An actor that notes its turns. has: how much there is to do, at each of them."""

    def __init__(self, log, name="a", has=(), every=None, fd=-1):
        self.log, self.name, self.has, self.every, self.fd = log, name, list(has), every, fd
        self.last = 0

    def turn(self, now):
        self.log.append((self.name, int(now)))
        self.last = int(now)
        return self.has.pop(0) if self.has else 0

    def due(self):
        return None if self.every is None else Ps(self.last + self.every)

    def fileno(self):
        return self.fd


class Worker(Player):
    """A lane."""

    def __init__(self, log, name="lane", work=lambda: None, **more):
        super().__init__(log, name, **more)
        self._work = work

    def begin(self):
        self.log.append((self.name, "begin"))
        return True

    def work(self):
        self._work()

    def end(self):
        self.log.append((self.name, "end"))
        return self.has.pop(0) if self.has else 0


def test_everybody_has_a_turn_in_each_step_in_the_order_in_which_they_came():
    log = []
    world = World(VirtualClock())
    world.add_lane(Worker(log))
    for name in "abc":
        world.add(Player(log, name, has=[0, 1] if name == "b" else []))
    assert not world.step()
    assert log == [("lane", "begin"), ("lane", "end"), ("a", 0), ("b", 0), ("c", 0)]
    assert world.step()


def test_actors_come_and_go_in_turns():
    log = []
    world = World(VirtualClock())
    other = Player(log, "b")

    class Leaver(Player):
        def turn(self, now):
            world.add(other)
            world.remove(self)
            return super().turn(now)

    world.add(Leaver(log, "a"))
    for _ in range(3):
        world.step()
    assert [name for name, _ in log] == ["a", "b", "b"]
    world.remove(other)
    world.remove(other)
    world.step()
    assert len(log) == 3


def test_virtual_time_jumps_to_whoever_is_due_and_takes_the_same_steps_again():
    def play():
        log = []
        clock = VirtualClock()
        world = World(clock)
        world.add(Player(log, "a", every=3 * MS_PS))
        world.add(Player(log, "b", every=5 * MS_PS))
        assert not world.until(lambda: False, 20 * MS_PS)
        return log

    log = play()
    assert log == play()
    times = sorted({at for _, at in log})
    assert all(later - sooner in (MS_PS, 2 * MS_PS, 3 * MS_PS) for sooner, later in itertools.pairwise(times))


def test_until_says_whether_it_happened():
    clock = VirtualClock()
    world = World(clock)
    world.add(Player([], every=US_PS))
    assert world.until(lambda: clock.now() >= MS_PS)
    assert not world.until(lambda: False, MS_PS)
    assert 2 * MS_PS <= clock.now() < 3 * MS_PS


def test_a_rest_ends_when_a_descriptor_can_be_read():
    readable, writable = os.pipe()
    world = World(WallClock())
    world.add(Player([], fd=readable))
    os.write(writable, b"!")
    began = time.monotonic()
    for _ in range(50):
        world.rest()
    assert time.monotonic() - began < 0.9, "less than fifty of the longest rests"
    os.close(readable)
    os.close(writable)


def test_who_only_looks_wakes_nobody_else():
    log = []
    world = World(WallClock())
    world.add_lane(Worker(log))
    looker = Player(log, "looks", every=20 * MS_PS)
    world.add(looker)
    world.add(Player(log, "sleeps"))
    looker.last = int(world.clock.now())  # who is due within a millisecond ends the rest instead
    world.rest(208 * MS_PS)
    names = [name for name, _ in log]
    assert set(names) == {"looks"}
    assert 2 <= len(names) <= 10
    log.clear()
    looker.has = [0, 1]
    looker.last = int(world.clock.now())
    began = time.monotonic()
    world.rest(S_PS)
    assert [name for name, _ in log] == ["looks"] * 2, "what it has done is for all to see"
    assert time.monotonic() - began < 0.9


def test_what_the_rester_does_keeps_nobody_from_resting():
    log = []

    class Rester(Player):
        def rest(self, limit_ps):
            log.append(("rest", limit_ps))

    world = World(VirtualClock())
    world.rest_by(Rester(log, "r", has=[5] * 9))
    world.add(Player(log, "a", has=[1], every=7 * MS_PS))
    world.tick()
    assert log == [("a", 0), ("rest", 0), ("r", 0)], "what compiled code can do is done, without a rest"
    world.tick()
    assert log[3:] == [("a", 0), ("r", 0), ("rest", 7 * MS_PS)]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="not run: one processor")
def test_lanes_work_at_the_same_time():
    meet = threading.Barrier(2, timeout=10)
    world = World(WallClock())
    world._side_by_side = True  # the checked build knows one call at a time
    for name in "ab":
        world.add_lane(Worker([], name, work=lambda: meet.wait() and None))
    world.step()
    world.close()


def test_a_lane_that_had_nothing_to_do_takes_no_thread():
    here, where = threading.current_thread(), {}
    world = World(WallClock())
    world._side_by_side = True
    for name, has in (("a", [1, 1, 1]), ("b", [1, 0, 1]), ("c", [1, 1, 1])):
        note = lambda name=name: where.setdefault(name, []).append(threading.current_thread() is here)  # noqa: E731
        world.add_lane(Worker([], name, work=note, has=has))
    for _ in range(4):
        world.step()
    assert where["a"] == [True] * 4
    assert where["b"] == [False, False, True, False]
    assert where["c"] == [False] * 4
    world.close()


def test_what_goes_wrong_in_a_lane_is_heard():
    def fail():
        raise RuntimeError("stray")

    world = World(WallClock())
    world.add_lane(Worker([]))
    world.add_lane(Worker([], work=fail))
    with pytest.raises(RuntimeError, match="stray"):
        world.step()
    world.close()


def test_nobody_goes_on_while_a_lane_is_at_work():
    """An interrupt in one lane, Ctrl-C say: the others end their work before anything is taken down."""
    ended = []

    def linger():
        time.sleep(0.05)
        ended.append(True)

    def interrupted():
        raise KeyboardInterrupt

    world = World(WallClock())
    world._side_by_side = True
    world.add_lane(Worker([], work=interrupted))
    world.add_lane(Worker([], work=linger))
    with pytest.raises(KeyboardInterrupt):
        world.step()
    assert ended
    world.close()


def test_nobody_at_all_is_a_world_too():
    clock = VirtualClock()
    assert not World(clock).until(lambda: False, S_PS)
    assert clock.now() >= S_PS
