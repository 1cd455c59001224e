"""Saved states: what was saved comes back, and a file of any kind is read safely."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from unit.iovm.iommu.looking import CAPS, saved
from virtfn.hw.types import Iova, Rid
from virtfn.hw.vtd.regs import IRTA, Fault
from virtfn.hw.vtd.tables import FaultReason, Request
from virtfn.iovm.iommu.state import SavedPages, StateError, load_state, save_state

META = {"root": "0x1000", "cap": CAPS.value, "ecap": 0}


def write(path: Path, said: object = None, **arrays: object) -> Path:
    made = {"addresses": np.array([0x1000], np.uint64), "words": np.zeros((1, 512), np.uint64)}
    text = said if isinstance(said, str) else json.dumps(META if said is None else said)
    made = {**made, "meta": np.array(text), **arrays}
    np.savez(path, **{name: value for name, value in made.items() if value is not None})
    return path


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    state = saved(
        {0x1010: 0x2001, 0x2000: (1 << 64) - 1},
        irta=IRTA(0x8807),
        remapping=True,
        compatible=True,
        faults=(Fault(Rid(0x180), Iova((1 << 64) - 4096), FaultReason.READ_NOT_ALLOWED, True, Request.TRANSLATED),) * 2,
        counters={"iotlb_hits": 7},
        cached={
            "entries": 64,
            "in_use": [{"domain": 5, "page_bytes": 4096, "entries": 3}],
            "contexts": 1,
            "interrupts": 0,
        },
    )  # fmt: skip
    assert isinstance(state.memory, SavedPages)
    save_state(tmp_path / "state", state, state.memory.pages)
    back = load_state(tmp_path / "state")
    for name in ("root", "enabled", "cap", "ecap", "irta", "remapping", "compatible", "faults", "counters", "cached"):
        assert getattr(back, name) == getattr(state, name), name
    assert (back.word(0x1010), back.word(0x2000), back.word(0x9000)) == (0x2001, (1 << 64) - 1, None)
    assert (back.interrupt_table, back.interrupt_entries) == (0x8000, 256)


def test_what_an_operating_system_wrote_needs_little(tmp_path: Path) -> None:
    state = load_state(write(tmp_path / "state.npz", {**META, "linux": {"anything": [1]}, "root": 0x1000}))
    assert (state.root, state.enabled, state.faults, state.cached) == (0x1000, True, (), None)


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("[]", "no JSON object"),
        ("{", "Expecting"),
        ("[" * 50000, "too deeply"),
        ("1" * 5000, "no saved state"),
        ({}, "root is no number"),
        ({**META, "root": -1}, "root is no number"),
        ({**META, "root": True}, "root is no number"),
        ({**META, "cap": "zero"}, "cap is no number"),
        ({**META, "cap": 1 << 64}, "cap is no number"),
        ({**META, "faults": [{"rid": 1, "iova": 2, "reason": 0x99}]}, "not a valid FaultReason"),
        ({**META, "faults": [5]}, "a fault is an object"),
        ({**META, "faults": {}}, "faults is a list"),
        ({**META, "counters": {"a": None}}, "a is no number"),
        ({**META, "cached": {"in_use": [1]}}, "says nothing about the caches"),
    ],
)
def test_meta_that_is_none_is_refused(tmp_path: Path, meta: object, words: str) -> None:
    with pytest.raises(StateError, match=words):
        load_state(write(tmp_path / "state.npz", meta))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"words": np.zeros((2, 512), np.uint64)}, "need as many pages"),
        ({"words": np.zeros((1, 511), np.uint64)}, "need as many pages"),
        ({"words": np.zeros(512, np.uint64)}, "words is an array"),
        ({"words": np.zeros((1, 512), np.float64)}, "words is an array"),
        ({"words": np.zeros((1, 512), ">u8")}, "words is an array"),
        ({"words": np.asfortranarray(np.zeros((2, 512), np.uint64))}, "stored by rows"),
        ({"addresses": np.array([0x1008], np.uint64)}, "not that of a page"),
        ({"addresses": np.array([0x1000], np.int64)}, "addresses is an array"),
        ({"addresses": np.array([None], object)}, "addresses is no array"),
        ({"meta": np.frombuffer(b"{}", np.uint8)}, "meta is an array"),
        ({"addresses": None}, "addresses is missing"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, arrays: dict[str, object], words: str) -> None:
    with pytest.raises(StateError, match=words):
        load_state(write(tmp_path / "state.npz", **arrays))


def test_a_header_that_promises_too_much_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    for shape, words in (((1 << 40, 512), "more than"), ((65536, 512), "ends early"), ((-1, 512), "no array")):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<u8", "fortran_order": False, "shape": shape})
        write(path, words=None)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("words.npy", header.getvalue())
        with pytest.raises(StateError, match=words):
            load_state(path)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("it was run",))

    path = tmp_path / "state.npz"
    write(path, words=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("words.npy", pickle.dumps(Trap()))
    with pytest.raises(StateError):
        load_state(path)


def test_files_of_any_kind_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.npz").read_bytes()
    rng = random.Random(1)
    path = tmp_path / "state.npz"
    with pytest.raises(StateError, match="cannot be read"):
        load_state(tmp_path / "missing")
    with pytest.raises(StateError, match="cannot be read"):
        load_state(tmp_path)
    for _ in range(300):
        bad = bytearray(good[: rng.randrange(len(good))] if rng.random() < 0.3 else good)
        for _ in range(rng.randrange(1, 8)):
            if bad:
                bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bad)
        with contextlib.suppress(StateError):
            load_state(path)
    assert StateError("").exit_status == 2
