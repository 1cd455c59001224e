"""Saved states that mean harm: whatever stands in the file, it is read, or refused as what it is, and nothing else.

VIRTFN_SEED repeats a run, VIRTFN_FUZZ_SECONDS makes it longer.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import struct
import time
import zipfile
from pathlib import Path

import pytest

from unit.iovm.iommu.looking import CAPS
from virtfn.api.iommu import ask_explanation, ask_show
from virtfn.hw.types import Iova, Rid
from virtfn.iovm.iommu.state import StateError, load_state

SECONDS = float(os.environ.get("VIRTFN_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("VIRTFN_SEED", "82576"))
PAGES = 5
DESCRS = (
    "<u8", ">u8", "<i8", "<f8", "<U9", "<U0", "|S9", "|S0", "|O", "<M8", "|V8", "<U99999999", "|S99999999",
)  # fmt: skip
SIZES = (-1, 0, 1, 2, PAGES, 511, 512, 513, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, 10**20 - 1, 10**20)
NUMBERS: tuple[object, ...] = (
    -1, 0, 1, 0xFFFF, (1 << 64) - 1, 1 << 64, 10**400, 1.5, float("nan"), float("inf"), True, None, "", "0x1000", "0b1",
    "-1", " 7 ", "\u0663", "\ud800", "0x" + "f" * 99, "9" * 5000, [], {}, [[]],
)  # fmt: skip
CODE_POINTS = (0, 0x7B, 0xD800, 0xDFFF, 0xFFFE, 0x10FFFF, 0x110000, 0x7FFFFFFF, 0xFFFFFFFF)


def npy(descr: str, shape: str, payload: bytes, *, version: int = 1, order: str = "False", length: int = -1) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode("latin-1", "replace")
    size = struct.pack("<H" if version == 1 else "<I", len(header) if length < 0 else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + payload


class Forger:
    """Writes saved states that are nearly right."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def meta(self) -> object:
        """A document with some of its values replaced by what does not belong there."""
        rng = self.rng
        made: dict[str, object] = {
            "root": 0x1000,
            "irta": 0x3007,
            "cap": CAPS.value,
            "ecap": 0xFF,
            "remapping": True,
            "faults": [{"rid": 0x200, "iova": 0x1000, "reason": 5, "write": True, "kind": 0}],
            "counters": {"iotlb_hits": 7, "iotlb_misses": 0},
            "cached": {
                "entries": 64,
                "in_use": [{"domain": 1, "page_bytes": 4096, "entries": 1}],
                "contexts": 1,
                "interrupts": 1,
            },
        }
        for _ in range(rng.randrange(3)):
            place: object = made
            while isinstance(place, (dict, list)) and place:
                key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
                inner = place[key]
                if not isinstance(inner, (dict, list)) or rng.random() < 0.2:
                    if isinstance(place, dict) and rng.random() < 0.2:
                        del place[key]
                        place[rng.choice(("\ud800", "a\nb", "x" * 99, "root"))] = inner
                    else:
                        place[key] = rng.choice(NUMBERS)
                    break
                place = inner
        return rng.choice(NUMBERS) if rng.random() < 0.05 else made

    def text(self) -> tuple[str, bytes]:
        """The document as the text of an array: its type, and its bytes."""
        rng = self.rng
        said = json.dumps(self.meta(), ensure_ascii=rng.random() < 0.8)
        if rng.random() < 0.5:
            raw = said.encode("utf-8", "surrogatepass")
            if rng.random() < 0.2:
                raw = raw.replace(b"root", rng.randbytes(4))
            return f"|S{len(raw)}", raw
        words = [ord(letter) for letter in said]
        for _ in range(rng.choice((0, 0, 1, 3))):
            words[rng.randrange(len(words))] = rng.choice((*CODE_POINTS, rng.getrandbits(32)))
        if rng.random() < 0.1:
            words = rng.choices(CODE_POINTS, k=rng.randrange(1, 4))
        return f"<U{len(words)}", struct.pack(f"<{len(words)}I", *words)

    def pages(self) -> bytes:
        """Tables that lead to each other, and to nowhere."""
        rng = self.rng
        words = [0] * (512 * PAGES)
        for _ in range(rng.randrange(400)):
            target = 0x1000 * rng.randrange(1, PAGES + 2) | rng.choice((1, 3, 7, 0x83, 0x103, rng.randrange(4096)))
            words[rng.choice((rng.randrange(64), rng.randrange(len(words))))] = rng.choice(
                (target, rng.getrandbits(64))
            )
        return struct.pack(f"<{len(words)}Q", *words)

    def member(self, descr: str, shape: str, payload: bytes) -> bytes:
        """An array whose header does not say what follows, now and then."""
        rng = self.rng
        if rng.random() < 0.05:
            descr = rng.choice(DESCRS)
        if rng.random() < 0.05:
            shape = "(" + "".join(f"{rng.choice(SIZES)}, " for _ in range(rng.randrange(4))) + ")"
        made = npy(
            descr,
            shape,
            payload,
            version=rng.choice((1,) * 30 + (2, 3, 0, 255)),
            order=rng.choice(("False",) * 30 + ("True",)),
            length=rng.choice((-1,) * 60 + (0, 1, 0xFFFF)),
        )
        return made[: rng.randrange(len(made))] if rng.random() < 0.03 else made

    def file(self) -> bytes:
        """The archive; sometimes compressed, encrypted in name only, cut or spoilt."""
        rng = self.rng
        addresses = [0x1000 * (i + 1) for i in range(PAGES)]
        if rng.random() < 0.1:
            addresses[rng.randrange(PAGES)] = rng.getrandbits(64) & -4096
        members = {
            "addresses": self.member("<u8", f"({PAGES},)", struct.pack(f"<{PAGES}Q", *addresses)),
            "words": self.member("<u8", f"({PAGES}, 512)", self.pages()),
        }
        descr, payload = self.text()
        members["meta"] = self.member(descr, "()", payload)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, body in members.items():
                if rng.random() < 0.98:
                    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
                    archive.writestr(f"{name}.npy", body, zipfile.ZIP_BZIP2 if rng.random() < 0.02 else kind, 1)
        made = bytearray(out.getvalue())
        if rng.random() < 0.3:
            for _ in range(rng.randrange(1, 6)):
                # What the archive says of its members stands at its end.
                at = (
                    rng.randrange(max(0, len(made) - 300), len(made))
                    if rng.random() < 0.7
                    else rng.randrange(len(made))
                )
                made[at] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        return bytes(made[: rng.randrange(len(made))] if rng.random() < 0.03 else made)


def look(path: Path) -> None:
    """Ask of a saved state what `virtfn iommu` can ask; the answers are JSON."""
    answers = [ask_show(None, path)]
    answers += [ask_explanation(Rid(0x200), Iova(iova), True, 0, None, path) for iova in (0x1000, 0xFEE00018)]
    for answer in answers:
        json.dumps(answer)


def test_any_saved_state_is_read_or_refused(tmp_path: Path) -> None:
    print(f"VIRTFN_SEED={SEED}")
    forger, path = Forger(random.Random(SEED)), tmp_path / "state.npz"
    deadline, tried, read = time.monotonic() + SECONDS, 0, 0
    while tried < 200 or time.monotonic() < deadline:
        path.write_bytes(forger.file())
        tried += 1
        try:
            look(path)
        except StateError as refused:
            str(refused).encode()  # it can be printed
        else:
            read += 1
    assert tried / 20 < read < tried, "some are right, and some are not"


def one(path: Path, **members: bytes) -> Path:
    made = {
        "addresses": npy("<u8", "(1,)", struct.pack("<Q", 0x1000)),
        "words": npy("<u8", "(1, 512)", bytes(4096)),
        "meta": npy("|S40", "()", b'{"root": 4096, "cap": 0, "ecap": 0}'.ljust(40, b"\0")),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in {**made, **members}.items():
            archive.writestr(f"{name}.npy", body)
    return path


@pytest.mark.parametrize("before", ["", "{", '{"root": "1'])
@pytest.mark.parametrize("word", CODE_POINTS[2:4] + CODE_POINTS[6:])
def test_a_word_that_is_no_character_is_refused(tmp_path: Path, word: int, before: str) -> None:
    words = [*map(ord, before), word]
    text = npy(f"<U{len(words)}", "()", struct.pack(f"<{len(words)}I", *words))
    with pytest.raises(StateError, match="is no saved state"):
        load_state(one(tmp_path / "state.npz", meta=text))


@pytest.mark.parametrize("size", SIZES[5:])
@pytest.mark.parametrize("shape", ["(0, {})", "({}, 0)", "({}, 512)"])
def test_an_array_of_any_shape_is_refused(tmp_path: Path, shape: str, size: int) -> None:
    path = one(tmp_path / "state.npz", words=npy("<u8", shape.format(size), b""))
    with pytest.raises(StateError, match="is no saved state"):
        load_state(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A hundred million zeros in a hundred thousand bytes, behind headers that promise less, as much, and more."""
    path = tmp_path / "state.npz"
    zeros = bytes(100 << 20)
    for bomb in (
        {"words": npy("<u8", "(1, 512)", zeros)},
        {"meta": npy("|S99999999", "()", zeros)},
        {"words": npy("<u8", f"({1 << 40}, 512)", zeros)},
        {"addresses": npy("<u8", f"({len(zeros) // 8},)", zeros)},
        {"words": npy("<u8", "(1, 512)", zeros, version=2, length=len(zeros))},
    ):
        one(path, **bomb)
        started = time.process_time()
        with contextlib.suppress(StateError):
            load_state(path)
        assert time.process_time() - started < 0.5
