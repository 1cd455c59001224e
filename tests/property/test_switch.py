"""Layer-2 sorting against its twin: the same registers, the same pools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reference.switch import BROADCAST, Switch, members
from unit.nicrig import Rig, mac
from virtfn.devices.nic82576.l2switch import L2Switch
from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.i82576 import Regs
from virtfn.kernels._jit import kernel
from virtfn.kernels.i82576.state import DROP_NAMES, MAC_SLOTS, nic_at
from virtfn.kernels.i82576.switch import find_pools, mac_slot, switch_receive, switch_transmit

UNICAST = [bytes.fromhex(text) for text in ("020000000010", "020000000011", "1e0000000ff0", "020000000ff0")]
GROUP = [bytes.fromhex(text) for text in ("01005e000001", "333300000ff0", "01005e7ffffa")]
MACS = [*UNICAST, *GROUP, BROADCAST]
VIDS = [0, 1, 31, 32, 4095]


@kernel
def receive_at(address: int, mac: int, vid: int) -> tuple[int, int]:
    return switch_receive(nic_at(address), mac, vid)


@kernel
def transmit_at(address: int, source: int, mac: int, vid: int) -> tuple[int, bool, int]:
    return switch_transmit(nic_at(address), source, mac, vid)


class Port:
    """Registers, what the device makes of them, and the twin."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.registers = PortRegisters()
        self.l2switch = L2Switch(self.registers, self.rig.nic)
        self.twin = Switch(lambda name, index: self.registers.peek(getattr(Regs, name), index))

    def load(self, values: dict[tuple[str, int], int]) -> None:
        self.registers.reset(keep=())
        for (name, index), value in values.items():
            self.registers.poke(getattr(Regs, name), index, value)
        self.l2switch.reset()
        self.l2switch.settle()


@pytest.fixture(scope="module")
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.rig.close()
    made.registers.close()


def number(address: bytes) -> int:
    return int.from_bytes(address, "little")


def _hash_word(address: bytes, offset: int) -> tuple[int, int]:
    bits = number(address) >> 32 >> offset & 0xFFF
    return bits // 32, 1 << bits % 32


def _bits(*fields: tuple[int, int]) -> st.SearchStrategy[int]:
    """Draw a register of (width, shift) fields."""
    return st.tuples(*(st.integers(0, (1 << width) - 1).map(lambda v, s=shift: v << s) for width, shift in fields)).map(
        sum
    )


_few = st.sampled_from([0, 1, 2, 6, 0x80, 0xFF])


@st.composite
def registers(draw: st.DrawFn) -> dict[tuple[str, int], int]:
    """Filters over a handful of addresses and VLANs, so that they meet the frames; RCTL.RXEN mostly on."""
    values: dict[tuple[str, int], int] = {}
    offset = draw(st.sampled_from([0, 1, 2, 3]))
    values["RCTL", 0] = (
        draw(st.sampled_from([2, 2, 2, 0])) | offset << 12 | draw(_bits((1, 3), (1, 4), (1, 15), (1, 18)))
    )
    values["VT_CTL", 0] = draw(_bits((3, 7), (1, 28), (1, 29), (1, 30))) & ~(draw(st.sampled_from([1, 1, 1, 0])) << 28)
    values["DTXSWC", 0] = draw(_few) << 16 | draw(st.sampled_from([1, 1, 1, 0])) << 31
    values["VFRE", 0] = draw(st.sampled_from([0xFF, 0xFF, 0x7E, 0]))
    for i in range(8):
        values["VMOLR", i] = 1 << 31 | draw(_bits((5, 24)))
    for entry in draw(st.sets(st.integers(0, 23), max_size=6)):
        address = number(draw(st.sampled_from(MACS)))
        low, high = ("RAL", "RAH") if entry < 16 else ("RALX", "RAHX")
        values[low, entry % 16] = address & 0xFFFFFFFF
        values[high, entry % 16] = address >> 32 | draw(_few) << 18 | draw(st.sampled_from([1, 1, 0])) << 31
    for entry in draw(st.sets(st.integers(0, 31), max_size=4)):
        vid, flags = draw(st.sampled_from(VIDS)), draw(st.sampled_from([2, 2, 3, 0, 1]))
        values["VLVF", entry] = vid | draw(_few) << 12 | (flags & 1) << 20 | flags >> 1 << 31
    for vid in draw(st.sets(st.sampled_from(VIDS))):
        values["VFTA", vid // 32] = values.get(("VFTA", vid // 32), 0) | 1 << vid % 32
    for table in ("MTA", "UTA"):
        for address in draw(st.sets(st.sampled_from(MACS), max_size=3)):
            shift = {0: 4, 1: 3, 2: 2, 3: 0}[draw(st.sampled_from([offset, offset, offset, 0, 3]))]
            word, bit = _hash_word(address, shift)
            values[table, word] = values.get((table, word), 0) | bit
    for i in draw(st.sets(st.integers(0, 3), max_size=2)):
        values["VMRCTL", i] = draw(_bits((4, 0), (3, 8)))
        values["VMRVM", i] = draw(_few)
        values["VMRVLAN", i] = draw(st.sampled_from([0, 1, 3, 0xFFFFFFFF]))
    return values


_frames = st.lists(
    st.tuples(st.sampled_from(MACS), st.sampled_from([None, None, *VIDS]), st.integers(0, 7)), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(values=registers(), mode=st.sampled_from([3, 5]), frames=_frames)
def test_pools(
    port: Port, values: dict[tuple[str, int], int], mode: int, frames: list[tuple[bytes, int | None, int]]
) -> None:
    port.load({**values, ("MRQC", 0): mode})
    for address, vid, source in frames:
        number_vid = -1 if vid is None else vid
        pools, why = receive_at(port.rig.address, number(address), number_vid)
        wanted, reason = port.twin.receive(address, vid)
        assert members(pools) == wanted
        assert wanted or DROP_NAMES[why] == reason
        pools, wire, why = transmit_at(port.rig.address, source, number(address), number_vid)
        assert (members(pools), wire) == port.twin.transmit(source, address, vid)
        assert 0 <= why < len(DROP_NAMES)


@settings(max_examples=150, deadline=None)
@given(values=registers(), mode=st.sampled_from([0, 2]), frames=_frames)
def test_without_pools(
    port: Port, values: dict[tuple[str, int], int], mode: int, frames: list[tuple[bytes, int | None, int]]
) -> None:
    port.load({**values, ("MRQC", 0): mode})
    for address, vid, source in frames:
        pools, _ = receive_at(port.rig.address, number(address), -1 if vid is None else vid)
        assert pools == int(port.twin.accept(address, vid))
        pools, wire, _ = transmit_at(port.rig.address, source, number(address), -1 if vid is None else vid)
        assert (pools, wire) == (0, True)


@settings(max_examples=100, deadline=None)
@given(
    table=st.dictionaries(st.integers(0, (1 << 48) - 1), st.integers(1, 255), max_size=24),
    other=st.integers(0, (1 << 48) - 1),
)
@example(table={n << 40: 1 for n in range(MAC_SLOTS)}, other=1)  # a full table ends the search as well
def test_address_table(port: Port, table: dict[int, int], other: int) -> None:
    port.rig.set_macs(table)
    macs = port.rig.nic["macs"]
    for address, pools in table.items():
        assert find_pools(macs, address) == pools
    assert find_pools(macs, other) == table.get(other, 0)
    assert all(0 <= mac_slot(address) < MAC_SLOTS for address in (other, mac(0), *table))


def test_unknown_vlan_never_reaches_the_default_pool(port: Port) -> None:
    vfe, rxen = 1 << 18, 2
    port.load({("RCTL", 0): rxen | vfe, ("MRQC", 0): 3, ("VT_CTL", 0): 1 << 30 | 2 << 7, ("VFRE", 0): 0xFF})
    assert receive_at(port.rig.address, number(UNICAST[0]), 7) == (0, DROP_NAMES.index("vlan-filter"))
    port.load(
        {
            ("RCTL", 0): rxen | vfe,
            ("MRQC", 0): 3,
            ("VT_CTL", 0): 1 << 30 | 2 << 7,
            ("VFRE", 0): 0xFF,
            ("VFTA", 0): 1 << 7,
        }
    )
    assert receive_at(port.rig.address, number(UNICAST[0]), 7)[0] == 1 << 2


def test_promiscuous_pool_does_not_swallow_traffic_to_the_wire(port: Port) -> None:
    everything = {("UTA", i): 0xFFFFFFFF for i in range(128)}
    port.load(
        {**everything, ("RCTL", 0): 2, ("MRQC", 0): 3, ("DTXSWC", 0): 1 << 31, ("VFRE", 0): 0xFF, ("VMOLR", 7): 1 << 26}
    )
    pools, wire, _ = transmit_at(port.rig.address, 0, number(UNICAST[0]), -1)
    assert (members(pools), wire) == ({7}, True)
