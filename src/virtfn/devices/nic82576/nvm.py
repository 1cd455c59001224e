"""The EEPROM: read by EERD, written by EEWR, or bit by bit through the four wires of EECD.

The wires speak SPI: chip select, then commands most significant bit first, an address of 8 or 16 bits by size, data.
Spec: 82576 datasheet, chapter "Non-Volatile Memory"; SPI EEPROM commands as of the AT25 parts.
"""

from __future__ import annotations

from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.i82576 import Regs, Word, word_count
from virtfn.hw.i82576.fields import EECD, EERD, EEWR
from virtfn.machine.regfile import Handlers, on_write

__all__ = ["Nvm"]

_WRITE_STATUS, _WRITE, _READ, _WRITE_DISABLE, _READ_STATUS, _WRITE_ENABLE = 1, 2, 3, 4, 5, 6
_A8 = 8  # small parts carry the ninth address bit in the command


class Nvm(Handlers):
    """The EEPROM of a card. image: its 16-bit words, changed in place by writes."""

    def __init__(self, registers: PortRegisters, image: list[int]) -> None:
        self._registers = registers
        self.image = image
        self._shifted: list[int] = []
        self._out: list[int] = []
        self._write_enabled = False
        registers.bind(self)

    @property
    def _wide(self) -> bool:
        return word_count(EECD(self._registers.peek(Regs.EECD)).SIZE_EX) > 128

    def word(self, address: int) -> int:
        """Read a word; beyond the part all ones."""
        return self.image[address] if 0 <= address < len(self.image) else 0xFFFF

    @on_write(Regs.EERD)
    def _eerd(self, index: int, written: int, old: int) -> None:
        command = EERD(written)
        if command.START:
            value = EERD.of(DONE=1, ADDR=command.ADDR, DATA=self.word(command.ADDR))
            self._registers.poke(Regs.EERD, 0, value.value)

    @on_write(Regs.EEWR)
    def _eewr(self, index: int, written: int, old: int) -> None:
        command = EEWR(written)
        if command.START:
            if len(self.image) > command.ADDR:
                self.image[command.ADDR] = command.DATA
            self._registers.poke(Regs.EEWR, 0, command.replace(START=0, DONE=1).value)

    @on_write(Regs.EECD)
    def _eecd(self, index: int, written: int, old: int) -> None:
        value, before = EECD(self._registers.peek(Regs.EECD)), EECD(old)
        value = value.replace(GNT=value.REQ)
        # The part's select is active low; this bit is the level of the wire. Without the grant the wires are not ours.
        if value.CS or not value.GNT:
            if before.GNT and not before.CS:
                self._deselected()
        elif value.SK and not before.SK:
            self._shifted.append(value.DI)
            self._clocked()
        elif before.SK and not value.SK:
            value = value.replace(DO=self._out.pop(0) if self._out else 0)
        self._registers.poke(Regs.EECD, 0, value.value)

    def _clocked(self) -> None:
        """A bit came in: prepare the answer of a command that is complete enough."""
        bits = self._shifted
        if len(bits) < 8:
            return
        command = _number(bits[:8])
        address_bits = 16 if self._wide else 8
        if command == _READ_STATUS and len(bits) == 8:
            self._out = [0] * 6 + [int(self._write_enabled), 0]
        elif self._is(command, _READ) and len(bits) >= 8 + address_bits and (len(bits) - 8 - address_bits) % 8 == 0:
            self._out = _bits(self._byte(self._address(command, bits) + (len(bits) - 8 - address_bits) // 8))

    def _deselected(self) -> None:
        """The select was lifted: carry out what was shifted in."""
        bits, self._shifted, self._out = self._shifted, [], []
        if len(bits) < 8:
            return
        command = _number(bits[:8])
        address_bits = 16 if self._wide else 8
        if command == _WRITE_ENABLE:
            self._write_enabled = True
        elif command == _WRITE_DISABLE:
            self._write_enabled = False
        elif self._is(command, _WRITE) and self._write_enabled:
            self._write_enabled = False
            start = self._address(command, bits)
            payload = bits[8 + address_bits :]
            for i in range(len(payload) // 8):
                self._put_byte(start + i, _number(payload[8 * i : 8 * i + 8]))

    def _is(self, command: int, wanted: int) -> bool:
        return command == wanted or (command == wanted | _A8 and not self._wide)

    def _address(self, command: int, bits: list[int]) -> int:
        if self._wide:
            return _number(bits[8:24])
        return _number(bits[8:16]) | (0x100 if command & _A8 else 0)

    def _byte(self, address: int) -> int:
        return self.word(address >> 1) >> 8 * (address & 1) & 0xFF

    def _put_byte(self, address: int, value: int) -> None:
        if address >> 1 < len(self.image):
            shift = 8 * (address & 1)
            self.image[address >> 1] = self.image[address >> 1] & ~(0xFF << shift) | value << shift

    def reset(self) -> None:
        """Load what the device takes from the EEPROM: the port's address."""
        mac = self.word(Word.MAC0) | self.word(Word.MAC1) << 16 | self.word(Word.MAC2) << 32
        self._registers.poke(Regs.RAL, 0, mac & 0xFFFFFFFF)
        self._registers.poke(Regs.RAH, 0, mac >> 32 | 1 << 31)
        self._shifted, self._out, self._write_enabled = [], [], False
        size = max(0, (len(self.image) // 64).bit_length() - 1)
        self._registers.poke(Regs.EECD, 0, EECD.of(PRES=1, AUTO_RD=1, ADDR16=int(size > 1), SIZE_EX=size).value)


def _number(bits: list[int]) -> int:
    value = 0
    for bit in bits:
        value = value << 1 | bit
    return value


def _bits(byte: int) -> list[int]:
    return [byte >> 7 - i & 1 for i in range(8)]
