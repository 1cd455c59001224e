"""Checksums and hashes against their twins and against published vectors."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import csum as twin
from virtfn.kernels._jit import hash_words_by_bits, kernel
from virtfn.kernels.csum import (
    KEY_START,
    add_words,
    adds_up,
    copy_sum,
    crc32c,
    fold,
    sum_bytes,
    sum_words,
    swap16,
    toeplitz,
    toeplitz_key,
)
from virtfn.kernels.ranges import address_of

# The verification suite that Microsoft publishes for RSS: key; destination, source, hash of addresses, and with ports.
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)  # fmt: skip
V4 = [
    ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
    ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
    ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
    ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xAFC7327F),
    ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5D1809C5, 0x10E828A2),
]
V6 = [
    ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2CC18CD5, 0x40207D3D),
    ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0F0C461C, 0xDDE51BBF),
    ("fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4B61E985, 0x02D1FEEF),
]


WORD = st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, (1 << 64) - 1])


def signed(word: int) -> int:
    """Return a word as kernels take it."""
    return word - (1 << 64) if word >> 63 else word


def at(content: bytes) -> tuple[np.ndarray, int]:
    """Put bytes into memory; what follows them must not matter."""
    room = np.frombuffer(content + b"\xa5" * 8, np.uint8).copy()
    return room, address_of(room)


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_internet_checksum(content: bytes) -> None:
    room, address = at(content)
    total = fold(sum_bytes(address, len(content)))
    # Little-endian sums are byte-swapped big-endian ones, and zero has two names.
    assert swap16(total) % 0xFFFF == twin.ones_sum(content) % 0xFFFF
    assert (total == 0) == (not any(content))
    assert room[len(content) :].tobytes() == b"\xa5" * 8


@settings(deadline=None)
@given(content=st.binary(min_size=64, max_size=600), shift=st.integers(0, 31), ones=st.booleans())
def test_a_copy_that_sums(content: bytes, shift: int, ones: bool) -> None:
    content = (b"\xff" * len(content) if ones else content)[shift:]
    room, address = at(content)
    copy, target = at(bytes(len(content) + shift))
    assert fold(copy_sum(target + shift, address, len(content))) == fold(sum_bytes(address, len(content)))
    assert copy[shift : shift + len(content)].tobytes() == content
    assert room.size


@settings(deadline=None)
@given(content=st.binary(min_size=80, max_size=80), start=st.integers(0, 39), size=st.integers(0, 80))
def test_a_sum_by_words(content: bytes, start: int, size: int) -> None:
    _, address = room = at(content)
    start, end = 2 * start, min(2 * start + size, 80)
    total = fold(sum_words(address, start, end))
    assert swap16(total) % 0xFFFF == twin.ones_sum(content[start:end]) % 0xFFFF
    assert (total == 0) == (not any(content[start:end]))
    assert room


@settings(deadline=None)
@given(total=st.integers(0, (1 << 64) - 1) | st.integers(0, (1 << 48) - 1).map(lambda n: n * 0xFFFF))
def test_fold_keeps_the_sum(total: int) -> None:
    folded = fold(signed(total))
    assert 0 <= folded <= 0xFFFF
    assert folded % 0xFFFF == total % 0xFFFF
    assert (folded == 0) == (total == 0)
    assert adds_up(signed(total)) == (total % 0xFFFF == 0)


@settings(deadline=None)
@given(first=WORD, second=WORD)
def test_words_are_added_in_ones_complement(first: int, second: int) -> None:
    total = add_words(signed(first), signed(second)) % (1 << 64)
    assert total % ((1 << 64) - 1) == (first + second) % ((1 << 64) - 1)
    assert (total == 0) == (first + second == 0)


def test_fold_of_the_largest_frame() -> None:
    room, address = at(b"\xff" * (256 << 10))
    assert fold(sum_bytes(address, 256 << 10)) == 0xFFFF
    assert room.size


@settings(deadline=None)
@given(value=st.integers(0, 0xFFFFFFFF))
def test_words(value: int) -> None:
    assert swap16(value & 0xFFFF) == int.from_bytes((value & 0xFFFF).to_bytes(2, "little"), "big")


@settings(deadline=None)
@given(content=st.binary(max_size=120), skip=st.integers(-8, 130))
def test_crc32c(content: bytes, skip: int) -> None:
    room, address = at(content)
    blanked = bytes(0 if skip <= i < skip + 4 else byte for i, byte in enumerate(content))
    assert crc32c(address, len(content), skip) == twin.crc32c(blanked)
    assert room.size


def test_crc32c_vectors() -> None:
    """Spec: RFC 3720, appendix B.4."""
    for content, wanted in (
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ):
        room, address = at(content)
        assert crc32c(address, room.size - 8, -8) == wanted == twin.crc32c(content)


def rss(key: bytes, content: bytes) -> int:
    room, address = at(content)
    assert room.size
    laid_out = toeplitz_key(key)
    return toeplitz(address_of(laid_out) + KEY_START, address, len(content), 0)


@pytest.mark.parametrize("vector", [*V4, *V6], ids=lambda v: v[2])
def test_rss_verification_suite(vector: tuple[str, int, str, int, int, int]) -> None:
    destination, dport, source, sport, addresses, ports = vector
    content = ip_address(source).packed + ip_address(destination).packed
    assert rss(KEY, content) == addresses
    assert rss(KEY, content + sport.to_bytes(2, "big") + dport.to_bytes(2, "big")) == ports


@settings(max_examples=40, deadline=None)
@given(key=st.binary(min_size=40, max_size=40), content=st.binary(max_size=36), cut=st.integers(0, 9))
def test_toeplitz(key: bytes, content: bytes, cut: int) -> None:
    content = content[: len(content) & ~3]
    cut = min(4 * cut, len(content))
    laid_out = toeplitz_key(key)
    _, first = pair = at(content[:cut])
    _, second = rest = at(content[cut:])
    where = address_of(laid_out) + KEY_START
    got = toeplitz(where, first, cut, 0) ^ toeplitz(where, second, len(content) - cut, cut)
    assert got == twin.toeplitz(key, content)
    assert len(pair) == len(rest)


@kernel
def hash_by_bits(key: int, first: int, second: int) -> int:
    return hash_words_by_bits(key, (first, second))


@settings(max_examples=40, deadline=None)
@given(key=st.binary(min_size=40, max_size=40), content=st.binary(min_size=16, max_size=16))
def test_toeplitz_where_nothing_multiplies_without_carries(key: bytes, content: bytes) -> None:
    laid_out = toeplitz_key(key)
    words = [int.from_bytes(content[i : i + 8], "little", signed=True) for i in (0, 8)]
    assert hash_by_bits(address_of(laid_out) + KEY_START, *words) == twin.toeplitz(key, content)
