import pytest

from virtfn.devices.pci import MsiXTable
from virtfn.hw.pci import MsiX, Type0
from virtfn.machine.function import Capability, Function
from virtfn.machine.ports import Reset

ENABLE, FUNCTION_MASK = 0x8000, 0x4000


class Rig:
    def __init__(self, vectors: int = 3) -> None:
        values = {MsiX.CONTROL: vectors - 1, MsiX.TABLE: 3, MsiX.PBA: 0x2003}
        self.function = Function(Type0, [Capability(MsiX, 0x70, values)], values={})
        self.sent: list[tuple[int, int]] = []
        self.table = MsiXTable(self.function, lambda address, message: self.sent.append((address, message)))

    def control(self, value: int) -> None:
        self.function.config_write(0x72, 2, value)

    def bus_master(self, on: bool) -> None:
        self.function.config_write(0x04, 2, 4 * on)

    def program(self, vector: int, address: int, message: int, mask: int = 0) -> None:
        self.table.write(vector * 16, 8, address)
        self.table.write(vector * 16 + 8, 4, message)
        self.table.write(vector * 16 + 12, 4, mask)


@pytest.fixture
def rig() -> Rig:
    b = Rig()
    b.bus_master(True)
    b.control(ENABLE)
    return b


def test_entries_are_masked_at_reset():
    b = Rig()
    assert [b.table.read(v * 16 + 12, 4) for v in range(3)] == [1, 1, 1]
    assert (b.table.bar, b.table.vectors) == (3, 3)


def test_a_raised_vector_sends_its_message(rig):
    rig.program(1, 0x1_FEE0_0000, 0x41)
    assert rig.table.raise_vector(1)
    assert rig.sent == [(0x1_FEE0_0000, 0x41)]
    assert rig.table.pending == 0


def test_a_masked_vector_becomes_pending_and_fires_when_unmasked(rig):
    rig.program(2, 0xFEE00000, 7, mask=1)
    assert not rig.table.raise_vector(2)
    assert not rig.table.raise_vector(2)
    assert rig.table.read(0x2000, 4) == 4
    assert rig.table.read(0x2000, 8) == 4
    rig.table.write(2 * 16 + 12, 4, 0)
    assert rig.sent == [(0xFEE00000, 7)], "raised twice, sent once"
    assert rig.table.read(0x2000, 4) == 0


def test_the_function_mask_holds_all_vectors(rig):
    rig.program(0, 0xFEE00000, 1)
    rig.program(1, 0xFEE00000, 2)
    rig.control(ENABLE | FUNCTION_MASK)
    rig.table.raise_vector(1)
    rig.table.raise_vector(0)
    assert rig.sent == []
    rig.control(ENABLE)
    assert rig.sent == [(0xFEE00000, 1), (0xFEE00000, 2)]


def test_messages_are_writes_and_wait_for_bus_mastering(rig):
    rig.program(0, 0xFEE00000, 1)
    rig.bus_master(False)
    assert not rig.table.raise_vector(0)
    assert rig.table.pending == 1
    rig.bus_master(True)
    assert rig.sent == [(0xFEE00000, 1)]


def test_without_msix_nothing_is_sent_or_kept(rig):
    rig.program(0, 0xFEE00000, 1)
    rig.control(0)
    assert not rig.table.raise_vector(0)
    rig.control(ENABLE)
    assert (rig.sent, rig.table.pending) == ([], 0)


def test_unknown_vectors_are_ignored(rig):
    assert not rig.table.raise_vector(3)
    assert not rig.table.raise_vector(-1)
    assert rig.table.pending == 0


def test_reserved_bits_and_the_pba_cannot_be_written(rig):
    rig.table.write(0, 4, 0xFFFFFFFF)
    rig.table.write(12, 4, 0xFFFFFFFF)
    rig.table.write(0x2000, 4, 0xFFFFFFFF)
    assert [rig.table.read(at, 4) for at in (0, 12, 0x2000)] == [0xFFFFFFFC, 1, 0]


def test_reset_forgets_everything(rig):
    rig.program(0, 0xFEE00000, 1)
    rig.program(1, 0xFEE00000, 1, mask=1)
    rig.table.raise_vector(1)
    rig.function.reset(Reset.FLR)
    assert (rig.table.pending, rig.table.message(0), rig.table.masked(0)) == (0, (0, 0), True)


@pytest.mark.parametrize(("offset", "size"), [(48, 4), (0x1FFC, 4), (0x2008, 4), (-4, 4), (1 << 40, 8), (0, 3)])
def test_accesses_outside_are_harmless(rig, offset, size):
    rig.table.write(offset, size, 0xFFFFFFFF)
    assert rig.table.read(offset, size) in (0, 0xFFFFFFFF)
    assert rig.sent == []
