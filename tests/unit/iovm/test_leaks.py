"""A VF goes from one guest to another: what the second can read, and what stands for it in the card, the drivers and
the IOMMU, is what it was when the VF was new.

Nothing here is a list of what to look at: registers come from the register maps, tables from the data plane's rows,
policy from its dataclass, messages from their enumeration. What is left out is named, with the reason.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np
import pytest

from unit.rig import BROADCAST, Rig, frame, send, take
from virtfn.devices.nic82576.config import BAR_CSR, BAR_MSIX, VF_BAR_SIZE
from virtfn.drivers.igb import Igb
from virtfn.drivers.policy import VfPolicy
from virtfn.hw.bits import Access
from virtfn.hw.i82576 import MAILBOX_WORDS, QUEUES, VFS, Message, Opcode, Regs, VfRegs, vf_vector, vf_view
from virtfn.hw.i82576.counters import Counters
from virtfn.hw.i82576.fields import V2PMAILBOX, VTCTRL
from virtfn.hw.pci import CONFIG_SIZE, Command, DevCtl, Pcie, Type0
from virtfn.hw.types import Mac, parse_mac
from virtfn.kernels.i82576.state import COUNTER_NAMES, GATHER_AREA, GATHER_BYTES, NIC, POOLS
from virtfn.machine.function import all_ones
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.assign import AssignedFunction
from virtfn.vmm.guest import Guest

MARKS = 0xFFFFFFFF, 0xA5A5A5A5
MAC = parse_mac("02:00:00:00:00:66")
N = 2
OWN_QUEUES = [q for q in range(QUEUES) if q % VFS == N]
OWN_VECTORS = [vf_vector(N, v) for v in range(3)]

TIME = {"FRTIMER", "VTFRTIMER"}
# Registers of the PF: what it counts of the whole port, causes that its driver reads, the queue it last spoke of.
OF_THE_PORT = {decl.name for decl in vars(Counters).values() if hasattr(decl, "offset")} | {
    *("ICR", "EICR", "EIMS", "IAC", "MBVFICR", "VFLRE", "WVBR", "LVMMC", "RTTDQSEL", "SWSM"),
    *(name for name in ("VTEIMS", "VTEICR", "VTEIAC", "VTEIAM")),  # rest in the port's row, which is compared
}
# Rows of the data plane that no register of a VF leads to.
OF_NO_GUEST = {
    "card": "what Python is to do; the count of all frames",
    "turn": "whose turn it is: a number of calls",
    "counters": "of the port, for the host",
    "drops": "for the host: they go on, whoever has the VF",
    "credit": "work that a pool still owes: it must not be had anew by a new owner",
    "routes": "of one call",
    "scratch": "private copies; what a queue has gathered is looked at by itself",
    "capture": "for the host",
    "captured": "for the host",
    "departed": "frames on the wire",
    "seen": "of the frame under way, for captures",
    "taps": "captures, for the host",
    "to_wire": "for the host",
    "dropped_bytes": "for the host",
}
IN_PORT = {"now", "epoch", "era", "wire_next_ps", "wire_rx_next_ps", "stall_epoch", "departed_head", "departed_tail"}
CAUSES = "eicr", "eims", "eiac", "eiam", "pending"  # bits of other functions beside the VF's
IN_POOL = {*COUNTER_NAMES, "gprlbc", "gorlbc", "gptlbc", "gotlbc", "next_ps", "held_ps"}  # the host's
IN_QUEUE = {"drops", "epoch", "win_lo", "win_hi", "win_hpa", "near", "near_hpa", "near_bytes"}  # of one call


class Looker(Guest):
    """A guest that does nothing with a function but look at it, before any driver could have reset it."""

    function: AssignedFunction

    def plug(self, device, rid, config, domain=None, *, mapped=True, emulation=None):
        self.function = AssignedFunction(device, rid, config, self, msix_bar=BAR_MSIX, vectors=3, meter=self.meter)
        self.seen = self.look()

    def unplug(self, rid, *, surprise=False):
        self.function.release()

    def look(self) -> dict[str, int]:
        """Read all that there is to read: BARs and configuration space, word by word."""
        seen = {}
        for offset in range(0, CONFIG_SIZE, 4):
            seen[f"config {offset:03x}"] = self.function.config.read(offset, 4)
        for bar in (BAR_CSR, BAR_MSIX):
            for offset in range(0, VF_BAR_SIZE, 4):
                name = f"BAR{bar} {offset:04x}"
                if bar == BAR_CSR and offset in VfRegs.INDEX:
                    decl, i = VfRegs.INDEX[offset]
                    if decl.name in TIME:
                        continue
                    name = f"{name} {decl.label(i)}"
                seen[name] = self.function.read(bar, offset)
        return seen


def flat(name: str, value: Any, without: set[str] = frozenset()) -> dict[str, object]:
    """Name each number of a row, or of an array of rows."""
    if isinstance(value, np.ndarray) and value.dtype.names:
        return {k: v for i, row in enumerate(value) for k, v in flat(f"{name}[{i}]", row, without).items()}
    if isinstance(value, np.void):
        return {f"{name}.{part}": value[part].item() for part in value.dtype.names if part not in without}
    return {name: value.tolist()}


def in_the_data_plane(rig: Rig) -> dict[str, object]:
    """Read every row of the card's state that is, or may be, about the VF."""
    rig.nic.port.settle()
    state, seen = rig.nic.port.nic, {}
    own = {"pools": [N], "rx": OWN_QUEUES, "tx": OWN_QUEUES, "eitr": OWN_VECTORS, "msix": [N]}
    without = {"port": IN_PORT, "pools": IN_POOL, "rx": IN_QUEUE, "tx": IN_QUEUE}
    for name in NIC.names:
        if name in OF_NO_GUEST:
            continue
        if name == "macs":  # a hash table: where an entry lies depends on who came first
            seen[name] = sorted(map(tuple, state["macs"].tolist()))
        elif name in ("wanted", "claims", "had"):
            seen |= {f"{name} by": state[name][:, N].tolist(), f"{name} of": state[name][N].tolist()}
        elif name == "scarce":
            seen[name] = int(state[name][N])
        elif name in own:
            for i in own[name]:
                seen |= flat(f"{name}[{i}]", state[name][i], without.get(name, set()))
        else:
            seen |= flat(name, state[name], without.get(name, set()))
    own_vectors = sum(1 << v for v in OWN_VECTORS)
    seen |= {f"port.{name}": int(state["port"][name]) & own_vectors for name in CAUSES}
    for q in OWN_QUEUES:
        at = GATHER_AREA + q * GATHER_BYTES
        seen[f"gathered by {q}"] = bool(state["scratch"][at : at + GATHER_BYTES].any())
    return seen


def in_registers(rig: Rig) -> dict[str, object]:
    """Read every register of the port, by name, and the rate of every queue."""
    peek, seen = rig.nic.port.registers.peek, {}
    for decl in Regs.DECLS:
        if decl.name not in TIME | OF_THE_PORT:
            shown = OWN_QUEUES if decl.count == QUEUES else range(decl.count)  # the peers go on working
            seen |= {decl.label(i): peek(decl, i) for i in shown}
    return seen | {"rates": list(rig.nic.port.l2switch._rates)}


def in_drivers(rig: Rig) -> dict[str, object]:
    """What the PF's driver knows of the VF."""
    igb: Igb = rig.igb
    return {
        "policy": dataclasses.asdict(igb.policy(N)),
        "peer": dataclasses.asdict(igb.mailbox._peers[N]),
        "misbehaved": igb.misbehaved.get(N, 0),
        "claims": igb.claims(N),
        **{f"pools.{name}": repr(value) for name, value in vars(igb.pools).items() if name != "_regs"},
        **{f"addresses.{name}": repr(value) for name, value in vars(igb.addresses).items() if name[1:] in LISTS},
    }


LISTS = {"own", "offered", "taken"}


def in_the_iommu(rig: Rig) -> dict[str, object]:
    """What the remapping unit, its tables, and the card's device TLB hold of the VF, while nobody has it."""
    host, rid = rig.machine.host, rig.vf(N).rid
    seen: dict[str, object] = {"attached": rid in host.remapping._attached}
    for i, row in enumerate(host.iommu.rows):
        context = row.contexts[rid]
        seen[f"context[{i}]"] = int(context["limit"]), int(context["device_tlb"])  # limit 0: nothing is cached
        unit = row.unit[0]
        seen[f"messages[{i}]"] = int(unit["message_tail"] - unit["message_head"])
        entries = row.iotlb[row.iotlb["rights"] != 0]
        seen[f"iotlb[{i}]"] = sorted({int(key) >> 6 for key in entries["key"] if key} - set(host.remapping.domains))
    if rig.nic.ats is not None:
        entries = rig.nic.ats._tlb["entries"]
        seen["device TLB"] = int(((entries["rid"] == rid) & (entries["rights"] != 0)).sum())
    seen["interrupts"] = [entry for entry in host.interrupt_table.entries() if entry[1] == rid]
    return seen


def talk(function: AssignedFunction, words: list[int]) -> None:
    """Send a message to the PF, as a driver does, and take the answer."""
    function.write(BAR_CSR, VfRegs.V2PMAILBOX.offset, V2PMAILBOX.VFU.mask)
    for i, word in enumerate(words):
        function.write(BAR_CSR, VfRegs.VMBMEM.at(i), word)
    function.write(BAR_CSR, VfRegs.V2PMAILBOX.offset, V2PMAILBOX.REQ.mask)


def other(value: object, name: str) -> object:
    """Choose another value than this of a policy."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return {"mac": MAC, "vlan": 30, "qos": 3}.get(name, 10)
    if isinstance(value, enum.Enum):
        return list(type(value))[-1]
    return frozenset({7}) if isinstance(value, frozenset) else value


def live(rig: Rig, guest: Guest) -> None:
    """Do what an ordinary owner does: groups, addresses, VLANs, promiscuous modes, frames out and in."""
    driver, peer = guest.nic(rig.vf(N).rid).driver, rig.driver(0)
    driver.start()
    driver.add_mac(parse_mac("02:00:00:00:00:68"))
    driver.set_multicast([parse_mac("01:00:5e:00:00:09"), parse_mac("33:33:00:00:00:01")])
    driver.set_vlan(9)
    driver.set_vlan(10)
    driver.set_promiscuous(True, True)
    send(peer, *[frame(driver.mac, peer.mac)] * 300)
    send(driver, frame(BROADCAST, driver.mac), frame(peer.mac, driver.mac, vid=9), frame(peer.mac, Mac(0x1234)))
    rig.serve()
    guest.run_interrupts()
    take(driver)


def fill(rig: Rig, guest: Guest, mark: int) -> dict[str, int]:
    """Leave a mark in all that a guest can write; return the registers where none stuck."""
    function = guest.nic(rig.vf(N).rid).function
    for opcode in Opcode:
        for info in range(4):
            word = Message.of(OPCODE=opcode, INFO=info).value
            talk(function, [word, *[mark & 0x00FFFFFE] * (MAILBOX_WORDS - 1)])
    policy = rig.igb.policy(N)
    for part in dataclasses.fields(VfPolicy):
        changed = dataclasses.replace(policy, **{part.name: other(getattr(VfPolicy(), part.name), part.name)})
        try:
            rig.igb.set_policy(N, changed)
            policy = changed
        except VirtfnError as refused:
            if refused.errno_name not in ("EOPNOTSUPP", "EINVAL"):  # the card cannot, or not beside the others
                raise
    devctl = next(at for at in range(0x40, 0x100, 4) if function.config.read(at, 1) == 0x10) + Pcie.DEVCTL.offset
    for offset in range(0, CONFIG_SIZE, 4):
        function.config.write(offset, 4, mark)  # an FLR among it
    for offset in range(0, CONFIG_SIZE, 4):
        function.config.write(offset, 4, mark & ~DevCtl.FLR.mask if offset == devctl else mark)
    function.config.write(Type0.COMMAND.offset, 2, Command.of(MEM=1, BME=1).value)
    for offset in range(0, VF_BAR_SIZE, 4):
        function.write(BAR_MSIX, offset, mark)
    function.write(BAR_CSR, VfRegs.VTCTRL.offset, VTCTRL.RST.mask)
    for offset in sorted(VfRegs.INDEX, key=lambda at: VfRegs.INDEX[at][0].name != "V2PMAILBOX"):  # its answer, first
        reset = VTCTRL.RST.mask if VfRegs.INDEX[offset][0].name == "VTCTRL" else 0
        function.write(BAR_CSR, offset, mark & ~reset)
    view, peek = vf_view(N), rig.nic.port.registers.peek
    without = {}
    for offset, (decl, i) in VfRegs.INDEX.items():
        if decl.access is Access.RW and decl.write_mask and offset in view:
            source, k = Regs.INDEX[view[offset]]
            if peek(source, k) & decl.write_mask != mark & decl.write_mask:
                without[decl.label(i)] = peek(source, k)
    return without


def differences(before: dict[str, object], after: dict[str, object]) -> dict[str, tuple[object, object]]:
    return {name: (value, after[name]) for name, value in before.items() if after[name] != value}


@pytest.fixture(params=["{}", "{ats: true}"], ids=["plain", "ats"])
def rig(request):
    with Rig(guests=[("pf0", 0), ("pf0", 1)], iommu=request.param) as made:
        yield made


@pytest.mark.parametrize("mark", MARKS)
def test_the_next_owner_finds_a_vf_as_new(rig, mark):
    looker = Looker(rig.machine.host, "looker", 4 << 20)
    rig.spares = [looker]

    def seen_by_the_next() -> dict[str, dict[str, object]]:
        rig.serve()
        free = in_the_iommu(rig)
        rig.iovm.assign(rig.vf(N), looker, VfPolicy(), MAC)
        found = {
            "guest": dict(looker.seen),
            "data plane": in_the_data_plane(rig),
            "registers": in_registers(rig),
            "drivers": in_drivers(rig),
            "iommu": free,
        }
        rig.iovm.take_back(rig.vf(N), surprise=True)
        return found

    seen_by_the_next()  # who looks reads what is cleared by reading, once and for all
    before = seen_by_the_next()
    owner = rig.spare_guest("owner")
    rig.iovm.assign(rig.vf(N), owner, VfPolicy(trust=True, spoof_check=False), parse_mac("02:00:00:00:00:67"))
    live(rig, owner)
    marked = fill(rig, owner, mark)
    assert set(marked) <= {"V2PMAILBOX"}, "marks did not stick"
    filled = in_registers(rig), in_the_data_plane(rig), in_drivers(rig)
    for part, name in zip(filled, ("registers", "data plane", "drivers"), strict=True):
        assert differences(before[name], part), f"{name}: nothing was marked"
    for _ in range(4):  # let the card latch, walk and cache all that
        rig.serve()
    rig.iovm.take_back(rig.vf(N), surprise=True)
    after = seen_by_the_next()
    for name in before:
        assert differences(before[name], after[name]) == {}, name
    assert rig.machine.host.dma_read(rig.vf(N).rid, 0x1000, 16) is None
    owner.close()


def test_nothing_is_left_out_by_mistake():
    assert set(OF_NO_GUEST) <= set(NIC.names)
    assert set(NIC["port"].names) >= IN_PORT
    assert set(NIC["rx"].base.names) >= IN_QUEUE
    assert all_ones(4) in MARKS
    assert POOLS == VFS
