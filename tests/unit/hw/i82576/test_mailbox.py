"""Messages of the mailbox, against words seen on a wire between Intel's drivers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtfn.hw.i82576 import (
    MAILBOX_WORDS,
    MAX_MULTICAST,
    Message,
    Opcode,
    describe_message,
    hash_words,
    mac_words,
    multicast_hash,
    words_hashes,
    words_mac,
)
from virtfn.hw.types import Mac, parse_mac


def test_word_0_is_laid_out_as_drivers_expect() -> None:
    assert Message.of(OPCODE=Opcode.RESET, ACK=1).value == 0x80000001
    assert Message.of(OPCODE=Opcode.SET_MAC, INFO=2, NACK=1, CTS=1).value == 0x60020002
    assert Message.of(OPCODE=Opcode.CONTROL, CTS=1).value == 0x20000100


def test_an_address_takes_two_words_first_byte_lowest() -> None:
    assert mac_words(parse_mac("02:00:00:00:00:11")) == (0x00000002, 0x00001100)
    assert words_mac(0x4D211B00, 0xE8E2) == parse_mac("00:1b:21:4d:e2:e8")


@pytest.mark.parametrize(
    ("mac", "number"), [("33:33:00:00:00:01", 0x010), ("01:00:5e:00:00:fb", 0xFB0), ("33:33:ff:12:34:56", 0x563)]
)
def test_the_hash_is_the_last_twelve_bits_of_the_address(mac: str, number: int) -> None:
    assert multicast_hash(parse_mac(mac)) == number


def test_hashes_go_two_in_a_word() -> None:
    assert hash_words([0x010, 0x563, 0xFFF])[:3] == [0x05630010, 0x00000FFF, 0]
    assert len(hash_words(range(100))) == MAILBOX_WORDS - 1


@given(st.lists(st.integers(0, 0xFFF), max_size=MAX_MULTICAST))
def test_hashes_survive_the_trip(hashes: list[int]) -> None:
    assert words_hashes(hash_words(hashes), len(hashes)) == hashes


@given(st.integers(0, (1 << 48) - 1))
def test_addresses_survive_the_trip(mac: int) -> None:
    assert words_mac(*mac_words(Mac(mac))) == mac


def test_a_count_beyond_the_buffer_yields_no_more_than_it_holds() -> None:
    assert len(words_hashes([0] * 15, 31)) == MAX_MULTICAST
    assert words_hashes([], 31) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([0x00000001], "RESET"),
        ([0x80000001, 0x4D211B00, 0xE8E2], "RESET (ACK, mac=00:1b:21:4d:e2:e8)"),
        ([0xA0000002, 2, 0x1100], "SET_MAC (CTS, ACK, INFO=SET, mac=02:00:00:00:00:11)"),
        ([0x00010002], "SET_MAC (INFO=CLEAR_FILTERS)"),
        ([0x00090002], "SET_MAC (INFO=0x9)"),
        ([0x00020003, 0x00100010], "SET_MULTICAST (count=2, 0x010, 0x010)"),
        ([0x00800003], "SET_MULTICAST (count=0, overflow)"),
        ([0x00010004, 10], "SET_VLAN (add, vlan=10)"),
        ([0x00000004, 10], "SET_VLAN (remove, vlan=10)"),
        ([0x00000005, 0x5F2], "SET_LPE (max_frame=1522)"),
        ([0x00030006], "SET_PROMISC (unicast+multicast)"),
        ([0x00000006], "SET_PROMISC (off)"),
        ([0x20000100], "CONTROL (CTS)"),
        ([0x40000000], "no opcode (NACK)"),
        ([0x00050077], "opcode 0x0077 (INFO=0x5)"),
        ([], "no opcode"),
    ],
)
def test_messages_in_words(words: list[int], text: str) -> None:
    assert describe_message(words) == text


@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=MAILBOX_WORDS))
def test_any_message_can_be_put_into_words(words: list[int]) -> None:
    assert describe_message(words)
