"""The NVM as a driver reads it: checksum, address, identity."""

from __future__ import annotations

import pytest

from virtfn.hw.i82576 import Word, checksum_ok, default_image, image_mac, seal, word_count
from virtfn.hw.i82576.nvm import IovControl
from virtfn.hw.types import parse_mac

MAC = parse_mac("02:1b:21:4d:e2:e8")


def test_the_base_area_sums_to_baba() -> None:
    image = default_image(MAC)
    assert len(image) == 128
    assert sum(image[:64]) & 0xFFFF == 0xBABA
    assert all(0 <= word <= 0xFFFF for word in image)


@pytest.mark.parametrize("address", range(64))
def test_any_changed_word_breaks_the_checksum_and_sealing_mends_it(address: int) -> None:
    image = default_image(MAC)
    image[address] ^= 0x0101
    assert not checksum_ok(image)
    seal(image)
    assert checksum_ok(image)


def test_words_hold_the_cards_identity() -> None:
    image = default_image(MAC, subsystem_id=0x1234, subsystem_vendor_id=0x5678)
    assert image[0:3] == [0x1B02, 0x4D21, 0xE8E2]
    assert (image[0x0D], image[0x0E], image[0x26]) == (0x10C9, 0x8086, 0x10CA)
    assert (image[0x0B], image[0x0C]) == (0x1234, 0x5678)
    assert image[0x37] == 0xFFFF, "no alternate address"


def test_the_second_port_has_the_address_with_its_last_bit_inverted() -> None:
    image = default_image(MAC)
    assert image_mac(image) == MAC
    assert image_mac(image, 1) == parse_mac("02:1b:21:4d:e2:e9")


def test_the_iov_word_offers_eight_vfs_with_three_vectors() -> None:
    control = IovControl(default_image(MAC)[Word.IOV_CONTROL])
    assert (control.ENABLE, control.MAX_VFS + 1, control.VECTORS + 1, control.BAR64, control.PREFETCHABLE) == (
        1,
        8,
        3,
        1,
        0,
    )


@pytest.mark.parametrize(("size_ex", "words"), [(0, 64), (1, 128), (9, 32768), (15, 32768)])
def test_eecd_tells_the_number_of_words(size_ex: int, words: int) -> None:
    assert word_count(size_ex) == words
