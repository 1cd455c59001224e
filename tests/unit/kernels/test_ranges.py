"""The checked build finds an access that leaves what the call may touch, and says where. In a build of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from virtfn.kernels._jit import copy_bytes, grant, kernel, load64, store64
from virtfn.kernels.ranges import (
    StrayAccessError,
    address_of,
    forget_memory,
    machine_memory,
    row_address,
    start_call,
)
from virtfn.kernels.stray import CHECKED
from virtfn.kernels.traffic import TRAFFIC, traffic_at

checked = pytest.mark.skipif(not CHECKED, reason="not run: this is the ordinary build, which checks nothing")


@kernel
def peek(address: int) -> int:
    return load64(address)


@kernel
def peek_often(address: int, times: int) -> int:
    total = 0
    for _ in range(times):
        total += load64(address)
    return total


@kernel
def poke(address: int, value: int) -> None:
    store64(address, value)


@kernel
def move(target: int, source: int, size: int) -> None:
    copy_bytes(target, source, size)


@kernel
def let_through(address: int, size: int, write: int) -> None:
    grant(address, size, write, 0x210)


@kernel
def guests_of(address: int) -> int:
    return traffic_at(address).guests


@checked
def test_an_array_may_be_touched_to_its_last_byte() -> None:
    words = np.arange(4, dtype=np.int64)
    at = address_of(words, "four words")
    assert peek(at + 24) == 3
    for wrong in (at - 1, at + 25, at + 32, 0, -8, (1 << 63) - 4):
        with pytest.raises(StrayAccessError, match="kernel peek would read 8 bytes"):
            peek(wrong)
    with pytest.raises(StrayAccessError, match="four words"):
        poke(at + 25, 0)
    assert words.tolist() == [0, 1, 2, 3]


@checked
def test_nothing_remains_of_an_array_that_is_gone() -> None:
    words = np.zeros(1 << 16, np.int64)
    at = address_of(words[5:])
    assert peek(at) == 0
    del words
    with pytest.raises(StrayAccessError):
        peek(at)


@checked
def test_ranges_may_come_and_go_while_a_kernel_looks() -> None:
    """Another thread lets go of memory, or the collector in it: a kernel meets the old ranges or the new ones."""
    words = np.ones(2, np.int64)
    at = address_of(words)
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            address_of(np.zeros(8, np.int64), "a passing array")

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(20):
            assert peek_often(at + 8, 100_000) == 100_000
    finally:
        done.set()
        other.join()


@checked
def test_copies_are_checked_at_both_ends_and_never_run_backwards() -> None:
    source, target = np.arange(64, dtype=np.uint8), np.zeros(64, np.uint8)
    a, b = address_of(source), address_of(target)
    move(b, a, 64)
    for wrong in ((b, a, 65), (b + 1, a, 64), (b, a + 1, 64), (b, a, -1)):
        with pytest.raises(StrayAccessError):
            move(*wrong)
    move(0, 0, 0)
    assert (target == source).all()


@checked
def test_the_machines_memory_may_be_touched_where_a_gate_let_through() -> None:
    pages = np.zeros(8192, np.uint8)
    base = int(pages.ctypes.data)
    machine_memory(base, pages.size, "a machine")
    try:
        start_call()
        with pytest.raises(StrayAccessError, match=r"that is a machine.*nothing of it was let through"):
            peek(base)
        let_through(base + 64, 64, 0)
        let_through(base + 128, 64, 1)
        assert peek(base + 120) == 0
        poke(base + 128, 7)
        with pytest.raises(StrayAccessError, match=r"for reading by requester 0x0210"):
            poke(base + 64, 7)
        with pytest.raises(StrayAccessError):
            peek(base + 124)  # each grant by itself: what lies between two of them was let through by none
        start_call()
        with pytest.raises(StrayAccessError):
            peek(base + 64)
    finally:
        forget_memory(base, pages.size, "a machine")
    with pytest.raises(StrayAccessError):
        peek(base + 128)


@checked
def test_a_row_is_seen_only_where_one_is() -> None:
    rows = np.zeros(2, TRAFFIC)
    at = row_address(rows)
    assert guests_of(at) == guests_of(at + TRAFFIC.itemsize) == 0
    for wrong in (at + 8, at - 8, at + 2 * TRAFFIC.itemsize):
        with pytest.raises(StrayAccessError, match="as a row of"):
            guests_of(wrong)
    with pytest.raises(StrayAccessError):
        peek(at)  # its members are not bytes to walk over


@pytest.mark.skipif(CHECKED, reason="not run: this is the checked build")
def test_an_ordinary_build_keeps_nothing() -> None:
    words = np.arange(4, dtype=np.int64)
    assert address_of(words) == words.ctypes.data == row_address(words)


@pytest.mark.skipif(CHECKED, reason="not run: this is the checked build")
def test_the_builds_have_caches_of_their_own(tmp_path: Path) -> None:
    show = (
        "from virtfn.kernels._objects import cache; from virtfn.kernels.stray import CHECKED; print(cache(), CHECKED)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", show], env={**os.environ, **more}, capture_output=True, text=True, check=True
        ).stdout.split()
        for more in ({}, {"VIRTFN_CHECKED": "1"})
    ]
    assert [one[1] for one in said] == ["False", "True"]
    assert said[0][0] != said[1][0]
