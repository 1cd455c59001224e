"""The 82576's EEPROM: by EERD and EEWR, bit by bit over four wires, and who holds it."""

from __future__ import annotations

import pytest

from conformance.rig import Rig
from virtfn.hw.i82576 import Regs, checksum_ok
from virtfn.hw.i82576.fields import CTRL_EXT, EECD, EERD, EEWR

SK, CS, DI, DO, REQ, GNT = (f.mask for f in (EECD.SK, EECD.CS, EECD.DI, EECD.DO, EECD.REQ, EECD.GNT))
WRITE, READ, WRDI, RDSR, WREN, A8 = 2, 3, 4, 5, 6, 8


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


class Wires:
    """The EEPROM's serial interface, as a driver wiggles it."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.value = rig.get(Regs.EECD) | REQ
        self.write(self.value)
        assert rig.get(Regs.EECD) & GNT

    def write(self, value: int) -> None:
        self.value = value
        self.rig.set(Regs.EECD, value)

    def select(self) -> None:
        self.write(self.value | CS)
        self.write(self.value & ~(CS | SK))

    def out(self, number: int, bits: int) -> None:
        for i in reversed(range(bits)):
            self.write(self.value & ~DI | (DI if number >> i & 1 else 0))
            self.write(self.value | SK)
            self.write(self.value & ~SK)

    def take(self, bits: int) -> int:
        number = 0
        for _ in range(bits):
            self.write(self.value | SK)
            number = number << 1 | int(bool(self.rig.get(Regs.EECD) & DO))
            self.write(self.value & ~SK)
        return number

    def word(self, address: int) -> int:
        self.select()
        self.out(READ | (A8 if address >= 128 else 0), 8)
        self.out(2 * address & 0xFF, 8)
        swapped = self.take(16)
        return swapped >> 8 | (swapped & 0xFF) << 8

    def status(self) -> int:
        self.select()
        self.out(RDSR, 8)
        return self.take(8)


def read_word(rig: Rig, address: int) -> int:
    rig.set(Regs.EERD, EERD.of(START=1, ADDR=address).value)
    value = EERD(rig.get(Regs.EERD))
    assert value.DONE
    assert address == value.ADDR
    return value.DATA


def write_word(rig: Rig, address: int, word: int) -> None:
    rig.set(Regs.EEWR, EEWR.of(START=1, ADDR=address, DATA=word).value)
    assert EEWR(rig.get(Regs.EEWR)).DONE


def test_the_part_is_present_loaded_and_of_128_words(rig):
    value = EECD(rig.get(Regs.EECD))
    assert value.PRES
    assert value.AUTO_RD
    assert value.value == 0xB00
    assert 1 << value.SIZE_EX + 6 == 128
    assert rig.get(Regs.STATUS) & 0x200, "LAN_INIT_DONE"


def test_eerd_reads_64_words_with_a_valid_checksum_and_the_address(rig):
    image = [read_word(rig, address) for address in range(64)]
    assert checksum_ok(image)
    assert sum(image) & 0xFFFF == 0xBABA
    assert image[:3] == [0x1B00, 0x2B21, 0xE046], "00:1b:21:2b:46:e0"
    assert image[0x0D] == 0x10C9
    assert image[0x26] == 0x10CA
    assert image[0x37] == 0xFFFF


def test_a_read_beyond_the_part_is_all_ones_and_done(rig):
    assert read_word(rig, 0x3FFF) == 0xFFFF


def test_eewr_writes_what_eerd_reads(rig):
    write_word(rig, 0x30, 0xCAFE)
    assert read_word(rig, 0x30) == 0xCAFE
    write_word(rig, 0x3FFF, 0x1234)
    assert read_word(rig, 0x3FFF) == 0xFFFF


def test_a_new_address_is_loaded_by_a_reset_of_the_eeprom(rig):
    write_word(rig, 2, 0x7746)
    assert rig.get(Regs.RAH, 0) & 0xFFFF == 0xE046
    rig.set(Regs.CTRL_EXT, CTRL_EXT.of(EE_RST=1).value)
    assert rig.get(Regs.CTRL_EXT) & CTRL_EXT.EE_RST.mask == 0
    assert rig.get(Regs.RAH, 0) == 0x80007746


def test_the_wires_read_the_same_words(rig):
    wires = Wires(rig)
    assert [wires.word(a) for a in range(128)] == [read_word(rig, a) for a in range(128)]


def test_one_command_reads_on_and_on(rig):
    wires = Wires(rig)
    wires.select()
    wires.out(READ, 8)
    wires.out(0, 8)
    octets = [wires.take(8) for _ in range(6)]
    assert octets == [0x00, 0x1B, 0x21, 0x2B, 0x46, 0xE0]


def test_the_wires_write_after_write_enable_only(rig):
    wires = Wires(rig)

    def put(address: int, word: int) -> None:
        wires.select()
        wires.out(WRITE, 8)
        wires.out(2 * address, 8)
        wires.out(word & 0xFF, 8)
        wires.out(word >> 8, 8)
        wires.select()

    put(0x31, 0x1234)
    assert wires.word(0x31) == 0xFFFF
    assert wires.status() == 0
    wires.select()
    wires.out(WREN, 8)
    assert wires.status() == 2, "write enable latch"
    put(0x31, 0x1234)
    assert wires.word(0x31) == 0x1234
    assert read_word(rig, 0x31) == 0x1234
    assert wires.status() == 0, "the latch falls with the write"
    wires.select()
    wires.out(WREN, 8)
    wires.select()
    wires.out(WRDI, 8)
    assert wires.status() == 0


def test_without_the_grant_the_wires_are_dead(rig):
    wires = Wires(rig)
    wires.write(wires.value & ~REQ)
    assert rig.get(Regs.EECD) & GNT == 0
    assert wires.word(0) == 0


def test_read_only_bits_of_eecd_stay(rig):
    rig.set(Regs.EECD, 0xFFFFFFFF & ~(SK | CS | DI | REQ))
    assert rig.get(Regs.EECD) & 0xFF80 == 0xB00


def test_the_semaphores_are_taken_and_given_back(rig):
    assert rig.get(Regs.SWSM) == 0
    assert rig.get(Regs.SWSM) == 1, "reading took it"
    rig.set(Regs.SWSM, 3)
    assert rig.get(Regs.SWSM) == 3, "SWESMBI is granted by reading back"
    rig.set(Regs.SW_FW_SYNC, 0x2)
    assert rig.get(Regs.SW_FW_SYNC) == 0x2
    rig.set(Regs.SW_FW_SYNC, 0)
    rig.set(Regs.SWSM, 0)
    assert rig.get(Regs.SWSM) == 0
    assert rig.get(Regs.FWSM) == 0
