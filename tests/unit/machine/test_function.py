import pytest

from virtfn.hw.pci import Aer, DevSta, Dsn, Pcie, Pm, Type0, UncorrectableError
from virtfn.machine.bars import BarShape
from virtfn.machine.function import Capability, Function
from virtfn.machine.ports import Reset, VirtfnError

FLR_CAPABLE = {Pcie.FLAGS: 2, Pcie.DEVCAP: 0x10000000}


def function(**extra) -> Function:
    capabilities = [
        Capability(Pm, 0x40, {Pm.PMC: 3}),
        Capability(Pcie, 0x60, FLR_CAPABLE),
        Capability(Aer, 0x100),
        Capability(Dsn, 0x180, {Dsn.LOW: 5}),
    ]
    values = {Type0.VENDOR_ID: 0x1234, Type0.DEVICE_ID: 0x5678}
    bars = {0: BarShape(0x4000), 1: BarShape(32, io=True), 2: BarShape(1 << 33, wide=True, prefetchable=True)}
    return Function(Type0, capabilities, values=values, bars=bars, rom_size=0x10000, **extra)


def test_capabilities_are_linked_in_order():
    f = function()
    assert f.config_read(0x34, 1) == 0x40
    assert f.config_read(0x40, 2) == 0x6001
    assert f.config_read(0x60, 2) == 0x0010
    assert f.config_read(0x100, 4) == 0x18010001
    assert f.config_read(0x180, 4) == 0x00010003
    assert f.config_read(0x06, 2) & 0x10


@pytest.mark.parametrize(("regs", "offset"), [(Pm, 0x42), (Pm, 0x20), (Pm, 0xFC), (Aer, 0xFE0), (Pm, -4)])
def test_a_capability_must_fit_its_region(regs, offset):
    with pytest.raises(VirtfnError, match="cannot lie"):
        Function(Type0, [Capability(regs, offset)], values={})


def test_capabilities_must_not_overlap():
    with pytest.raises(VirtfnError, match="cannot lie"):
        Function(Type0, [Capability(Pm, 0x40), Capability(Pcie, 0x44)], values={})


@pytest.mark.parametrize(
    ("offset", "sized"),
    [(0x10, 0xFFFFC000), (0x14, 0xFFFFFFE1), (0x18, 0x0000000C), (0x1C, 0xFFFFFFFE), (0x20, 0), (0x30, 0xFFFF0001)],
)
def test_ones_written_to_a_bar_read_back_its_size(offset, sized):
    f = function()
    f.config_write(offset, 4, 0xFFFFFFFF)
    assert f.config_read(offset, 4) == sized


def test_a_bar_claims_addresses_when_its_space_is_enabled():
    f = function()
    f.config_write(0x10, 4, 0xE0004000)
    f.config_write(0x14, 4, 0x1020)
    f.config_write(0x18, 4, 0)
    f.config_write(0x1C, 4, 6)
    assert f.bar_at(0xE0004010) is None
    f.config_write(0x04, 2, 2)
    assert f.bar_at(0xE0004010) == (0, 0x10)
    assert f.bar_at(0xE0008000) is None
    assert f.bar_at((6 << 32) + 5) == (2, 5)
    assert f.bar_at(0x1024, io=True) is None
    f.config_write(0x04, 2, 3)
    assert f.bar_at(0x1024, io=True) == (1, 4)


def test_the_rom_answers_only_when_enabled():
    f = function()
    f.config_write(0x04, 2, 2)
    f.config_write(0x1C, 4, 4)
    f.config_write(0x30, 4, 0xD0000000)
    assert f.bar_at(0xD0000004) is None
    f.config_write(0x30, 4, 0xD0000001)
    assert f.bar_at(0xD0000004) == (6, 4)


def test_read_only_bits_stay_and_partial_writes_touch_their_bytes_only():
    f = function()
    f.config_write(0, 4, 0)
    assert f.config_read(0, 4) == 0x56781234
    f.config_write(0x05, 1, 0xFF)
    assert f.config_read(0x04, 2) == 0x0500


def test_status_bits_are_cleared_by_writing_one():
    f = function()
    f.header.poke(Type0.STATUS, 0, 0xF910)
    f.config_write(0x06, 2, 0x8000)
    assert f.config_read(0x06, 2) == 0x7910
    f.config_write(0x06, 2, 0)
    assert f.config_read(0x06, 2) == 0x7910


@pytest.mark.parametrize(("offset", "size"), [(0, 3), (0, 8), (2, 4), (3, 2), (4096, 4), (-4, 4)])
def test_accesses_that_no_bus_can_carry_read_ones_and_write_nothing(offset, size):
    f = function()
    before = bytes(f.bytes)
    f.config_write(offset, size, 0)
    assert bytes(f.bytes) == before
    assert f.config_read(offset, size) in (0xFFFF, 0xFFFFFFFF)


def test_flr_resets_the_function_and_tells_the_owner():
    f, heard = function(), []
    f.on_reset.append(heard.append)
    f.config_write(0x04, 2, 7)
    f.config_write(0x10, 4, 0xE0000000)
    f.config_write(0x68, 2, 0x0020)
    f[Aer].poke(Aer.CE_STATUS, 0, 0x2000)
    f.config_write(0x68, 2, 0x8020)
    assert heard == [Reset.FLR]
    assert f.config_read(0x04, 2) == 0
    assert f.config_read(0x10, 4) == 0
    assert f.config_read(0x68, 2) == 0x0020, "FLR reads 0; the payload size belongs to the link"
    assert f.config_read(0x110, 4) == 0x2000, "sticky"
    assert f.config_read(0x100, 4) == 0x18010001, "links are made anew"


def test_power_on_leaves_nothing():
    f = function()
    f[Aer].poke(Aer.CE_STATUS, 0, 0x2000)
    f.reset(Reset.POWER_ON)
    assert f.config_read(0x110, 4) == 0


def test_a_function_in_d3hot_answers_configuration_only_and_wakes_reset():
    f, heard = function(), []
    f.on_reset.append(heard.append)
    f.config_write(0x04, 2, 6)
    f.config_write(0x44, 2, 3)
    assert (f.memory_enabled, f.bus_master, f.power_state) == (False, False, 3)
    f.config_write(0x44, 2, 0)
    assert heard == [Reset.WAKE]
    assert f.config_read(0x04, 2) == 0


def test_unsupported_power_states_are_discarded():
    f = function()
    f.config_write(0x44, 2, 1)
    assert f.power_state == 0


def test_no_soft_reset_keeps_the_configuration():
    f = Function(Type0, [Capability(Pm, 0x40, {Pm.PMCSR: 8})], values={})
    f.config_write(0x04, 2, 6)
    f.config_write(0x44, 2, 3)
    f.config_write(0x44, 2, 0)
    assert f.config_read(0x04, 2) == 6


def test_an_unsupported_request_is_an_advisory_error_by_default():
    f = function()
    f.unsupported_request()
    assert f[Pcie].peek(Pcie.DEVSTA) == DevSta.of(CORRECTABLE=1, UNSUPPORTED_REQUEST=1).value
    assert (f[Aer].peek(Aer.CE_STATUS), f[Aer].peek(Aer.UE_STATUS)) == (0x2000, 0)
    f.config_write(0x6A, 2, 0xFFFF)
    assert f[Pcie].peek(Pcie.DEVSTA) == 0


def test_an_unsupported_request_of_fatal_severity_is_fatal():
    f = function()
    f.config_write(0x10C, 4, UncorrectableError.UNSUPPORTED_REQUEST.mask)
    f.unsupported_request()
    assert f[Pcie].peek(Pcie.DEVSTA) == DevSta.of(FATAL=1, UNSUPPORTED_REQUEST=1).value
    assert f[Aer].peek(Aer.UE_STATUS) == UncorrectableError.UNSUPPORTED_REQUEST.mask


@pytest.mark.parametrize(
    "shape", [{"size": 48}, {"size": 8}, {"size": 2, "io": True}, {"size": 64, "io": True, "wide": True}]
)
def test_impossible_bars_are_refused(shape):
    with pytest.raises(VirtfnError, match="no BAR"):
        BarShape(**shape)
