"""The IOVM over a whole machine: assigning, taking back, and what of a former owner remains: nothing."""

from __future__ import annotations

import pytest

from unit.bed import BROADCAST, Bed, frame, send, take
from virtfn.devices.nic82576.registers import RING_PAGES
from virtfn.drivers.igbvf import MailboxError, State
from virtfn.drivers.policy import VfPolicy
from virtfn.hw.i82576 import BAR0_BYTES, Regs, VfRegs, vf_vector
from virtfn.hw.i82576.fields import V2PMAILBOX
from virtfn.hw.pci import Address, Type0
from virtfn.hw.types import Iova, Rid, parse_mac
from virtfn.iovm.iovm import VfState
from virtfn.machine.clock import MS_PS, S_PS
from virtfn.machine.ports import VirtfnError

MAC = parse_mac("02:00:00:00:00:66")
# What the port counts or lets run on for the PF's eyes only; VTEIMS shows the true mask, not what was written.
OBSERVED = {"VTEIMS", "ICR", "IAC", "VFLRE", "MBVFICR", "WVBR", "LVMMC", "RTTDQSEL", "RTTBCNRC", "SWSM"}
RUNNING_ON = {"gprc", "gorc", "mprc", "gptc", "gotc", "gprlbc", "gorlbc", "gptlbc", "gotlbc", "bprc", "next_ps"}
PER_CALL = {"drops", "epoch", "win_lo", "win_hi", "win_hpa"}


@pytest.fixture
def bed():
    with Bed() as made:
        yield made


def registers(bed):
    """Every register of the port by name, but for what only observers care about, and queues of running guests."""
    peek = bed.nic.port.registers.peek
    found = {}
    for decl in Regs.DECLS:
        if decl.name not in OBSERVED:
            for i in range(decl.count):
                if not (decl.name in ("RDH", "RDT", "TDH", "TDT") and i < 2):
                    found[decl.label(i)] = peek(decl, i)
    for n in range(8):  # a VF reads once that a reset of the PF is done
        label = Regs.V2PMAILBOX.label(n)
        found[label] &= ~V2PMAILBOX.RSTD.mask
    return found


def row(void, without):
    return {name: void[name].item() for name in void.dtype.names if name not in without}


def snapshot(bed, n):
    """All that is known of VF `n` anywhere."""
    nic, machine = bed.nic, bed.machine
    nic.port.settle()
    state = nic.port.nic
    vectors = [vf_vector(n, v) for v in range(3)]
    own = sum(1 << v for v in vectors)
    at = BAR0_BYTES + n * RING_PAGES
    vf = bed.vf(n)
    table = nic._tables[n]
    return {
        "registers": registers(bed),
        "ring pages": nic.port.registers.region.bytes[at : at + RING_PAGES].tobytes(),
        "queues": [row(state[kind][q], PER_CALL) for kind in ("rx", "tx") for q in (n, n + 8)],
        "pool": row(state["pools"][n], RUNNING_ON),
        "eitr": state["eitr"][vectors].tolist(),
        "causes": {name: int(state["port"][name]) & own for name in ("eicr", "eims", "eiac", "eiam", "pending")},
        "blocked": int(state["port"]["blocked"]) >> n & 0x101,
        "macs": sorted(map(tuple, state["macs"].tolist())),
        "vlans": state["vlans"].tolist(),
        "msix": [table.read(offset, 4) for offset in range(0, 0x40, 4)] + [table.pending],
        "config": [machine.host.root.config_read(vf.rid, offset, 4) for offset in range(0, 4096, 4)],
        "virtual config": [vf.config.read(offset, 4) for offset in range(0, 64, 4)],
        "statistics": [nic.bar_read(vf.rid, 0, decl.at(0), 4) for decl in VfRegs.DECLS if decl.name.startswith("VFG")],
        "queue drops": [nic.bar_read(vf.rid, 0, VfRegs.RQDPC.at(q), 4) for q in range(2)],
        "iovm": (vf.state, vf.vm, vf.policy),
        "driver": (bed.igb.policies[n], bed.igb.mailbox._peers[n], bed.igb.pools._groups[n], bed.igb.pools._vlans[n]),
        "addresses": (bed.igb.addresses._offered[n], bed.igb.addresses._taken[n], dict(bed.igb.pools._extra)),
        "domain": vf.rid in machine.host.remapping._attached,
        "dma": machine.host.dma_read(vf.rid, Iova(0x1000), 64),
    }


def live_fully(bed, n, guest):
    """Do with a VF all that leaves traces."""
    driver = guest.nic(bed.vf(n).rid).driver
    driver.start()
    driver.set_mac(parse_mac("02:00:00:00:00:67"))
    driver.add_mac(parse_mac("02:00:00:00:00:68"))
    driver.set_multicast([parse_mac("01:00:5e:00:00:09")])
    driver.set_promiscuous(True, True)
    driver.set_vlan(9)
    driver.set_vlan(10)
    peer = bed.driver(0)
    send(peer, *[frame(driver.mac, peer.mac)] * 600)
    send(driver, frame(BROADCAST, driver.mac), frame(peer.mac, driver.mac, vid=9), frame(peer.mac, 0x1234))
    bed.serve()
    guest.run_interrupts()
    take(driver)
    regs = bed.registers(0)
    regs.bar._function = guest.nic(bed.vf(n).rid).function
    for offset in range(0, 0x4000, 4):
        if offset not in (VfRegs.VTCTRL.offset, VfRegs.VTCTRL.offset + 4):
            regs.bar.write(offset, 0xA5A5A5A5)
    guest.nic(bed.vf(n).rid).function.write(3, 0, 0xFFFFFFFF)
    config = guest.nic(bed.vf(n).rid).function.config
    for offset in range(0, 0x200, 4):
        value = config.read(offset, 4)
        config.write(offset, 4, value | 0x7)
    bed.nic.serve()


@pytest.mark.parametrize("surprise", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_nothing_of_the_former_owner_remains(bed, n, surprise):
    with Bed() as fresh:
        before = snapshot(fresh, n)
    guest = bed.spare_guest()
    policy = VfPolicy(mac=MAC, qos=0, spoof_check=False, trust=True, max_tx_rate=10)
    bed.iovm.assign(bed.vf(n), guest, policy)
    live_fully(bed, n, guest)
    bed.iovm.take_back(bed.vf(n), surprise=surprise)
    bed.serve()
    after = snapshot(bed, n)
    for name, value in before.items():
        if isinstance(value, dict):
            assert {k: v for k, v in after[name].items() if v != value[k]} == {}, name
        else:
            assert after[name] == value, name
    assert guest.nics == []
    assert guest.dma._used == {}


def test_a_new_owner_starts_from_nothing(bed):
    first, second = bed.spare_guest("first"), bed.spare_guest("second")
    bed.iovm.assign(bed.vf(2), first, VfPolicy(vlan=30), MAC)
    live_fully_mac = first.nics[0].driver.mac
    first.nics[0].driver.start()
    bed.iovm.take_back(bed.vf(2))
    bed.iovm.assign(bed.vf(2), second, None, parse_mac("02:00:00:00:00:70"))
    driver = second.nics[0].driver
    driver.start()
    assert (live_fully_mac, driver.mac) == (MAC, parse_mac("02:00:00:00:00:70"))
    assert not any(driver.statistics().values())
    peer = bed.driver(0)
    send(peer, frame(MAC, peer.mac), frame(driver.mac, peer.mac))
    bed.serve()
    assert take(driver) == [frame(driver.mac, peer.mac)]


def test_dma_of_a_vf_ends_with_its_owner(bed):
    guest, host = bed.spare_guest(), bed.machine.host
    vf = bed.vf(2)
    assert host.dma_read(vf.rid, Iova(0), 16) is None
    bed.iovm.assign(vf, guest)
    assert host.dma_read(vf.rid, Iova(0), 16) is not None
    bed.iovm.take_back(vf)
    assert host.dma_read(vf.rid, Iova(0), 16) is None
    assert len(host.remapping.domains) == 2


def test_a_vm_has_one_domain_for_all_its_functions_until_the_last_goes(bed):
    guest, remapping = bed.spare_guest(), bed.machine.host.remapping
    bed.iovm.assign(bed.vf(2), guest)
    bed.iovm.assign(bed.vf(3), guest)
    assert len(remapping.domains) == 3
    bed.iovm.take_back(bed.vf(2))
    assert len(remapping.domains) == 3
    assert guest.nics[0].function.rid == bed.vf(3).rid
    guest.nics[0].driver.start()
    bed.iovm.take_back(bed.vf(3))
    assert len(remapping.domains) == 2


def test_two_vms_of_one_name_share_nothing(bed):
    one, two = bed.spare_guest("twin"), bed.spare_guest("twin")
    bed.iovm.assign(bed.vf(2), one)
    bed.iovm.assign(bed.vf(3), two)
    one.memory.bytes[:4] = 1
    two.memory.bytes[:4] = 2
    host = bed.machine.host
    assert host.dma_read(bed.vf(2).rid, Iova(0), 4) == b"\1\1\1\1"
    assert host.dma_read(bed.vf(3).rid, Iova(0), 4) == b"\2\2\2\2"


def test_domain_numbers_are_used_again(bed):
    guest = bed.spare_guest()
    for _ in range(20):
        bed.iovm.assign(bed.vf(2), guest)
        bed.iovm.take_back(bed.vf(2))
    assert max(bed.machine.host.remapping.domains) == 2
    assert bed.vf(2).assignments == 20


# Hot-plug under traffic.


def test_a_vf_comes_and_goes_while_traffic_flows(bed):
    engine = bed.engine("pairs", 20000, length=60)
    guest = bed.guest(0)
    for _ in range(3):
        engine.step()
        bed.iovm.assign(bed.vf(2), guest)
        added = guest.nic(bed.vf(2).rid).driver
        added.start()
        engine.step()
        send(added, frame(BROADCAST, added.mac))
        engine.step()
        bed.iovm.take_back(bed.vf(2))
        engine.step()
    assert engine.run()
    findings = engine.workload.findings()
    assert [(f.missing, f.corrupt, f.repeated, f.reordered) for f in findings] == [(0, 0, 0, 0)] * 2
    assert bed.drops(0) == bed.drops(1) == {}


@pytest.mark.parametrize("surprise", [False, True])
def test_the_vf_at_work_is_removed_and_its_peer_goes_on(bed, surprise):
    engine = bed.engine("pairs", 20000, length=60)
    engine.step()
    bed.iovm.take_back(bed.vf(1), surprise=surprise)
    assert not engine.run()
    assert engine.workload.unfinished() == [1]
    assert int(bed.driver(0).netdev["tx_frames"]) == 20000
    lost = engine.workload.findings()[1].missing
    assert lost > 0
    assert not bed.guest(1).nics
    assert lost <= sum(bed.drops(0).values()) + sum(bed.drops(1).values()) + 1024


def test_a_removed_function_reads_all_ones_and_sends_nothing(bed):
    function = bed.guest(1).nics[0].function
    driver = bed.driver(1)
    bed.iovm.take_back(bed.vf(1), surprise=True)
    assert driver.state is State.GONE
    assert function.bar(0).read(8) == function.config.read(0, 4) == 0xFFFFFFFF
    driver.interrupt(1)
    driver.idle()
    before = bed.machine.host.iommu.stats()
    bed.nic._tables[1]._send(0xFEE00000, 0x20)
    after = bed.machine.host.iommu.stats()
    assert (after["blocked"] - before["blocked"], after["delivered"]) == (1, before["delivered"])


# What is refused.


def refusal(call) -> str:
    with pytest.raises(VirtfnError) as caught:
        call()
    assert str(caught.value)
    return caught.value.errno_name


def test_refusals_name_their_reason(bed):
    iovm, pf, spare = bed.iovm, bed.nic.pf_rid, bed.spare_guest()
    assert refusal(lambda: iovm.assign(bed.vf(0), spare)) == "EBUSY"
    assert refusal(lambda: iovm.take_back(bed.vf(3))) == "EINVAL"
    assert refusal(lambda: iovm.take_back(bed.vf(0), bed.vf(3))) == "EINVAL"
    assert bed.driver(0).state is State.RUNNING
    assert refusal(lambda: iovm.destroy(pf)) == "EBUSY"
    assert refusal(lambda: iovm.create(pf, 2)) == "EBUSY"
    assert refusal(lambda: iovm.create(Rid(0x0F00), 2)) == "ENODEV"
    assert refusal(lambda: bed.vf(4)) == "ENODEV"
    assert refusal(lambda: iovm.quarantine(bed.vf(3))) == "EINVAL"
    assert refusal(lambda: iovm.release(bed.vf(0))) == "EINVAL"
    assert refusal(lambda: iovm.assign(bed.vf(3), spare, VfPolicy(max_tx_rate=2000))) == "EINVAL"
    assert refusal(lambda: iovm.assign(bed.vf(3), spare, VfPolicy(mac=BROADCAST))) == "EINVAL"
    assert bed.vf(3).state is VfState.FREE
    assert bed.igb.policies[3] == VfPolicy()
    assert spare.nics == []


def test_too_many_vfs_are_refused_and_none_is_left(bed):
    iovm, pf = bed.iovm, bed.nic.pf_rid
    iovm.take_back(*(bed.vf(n) for n in range(2)))
    stale = bed.vf(2)
    iovm.destroy(pf)
    assert refusal(lambda: iovm.create(pf, 9)) == "ERANGE"
    assert refusal(lambda: iovm.create(pf, 0)) == "EINVAL"
    assert iovm.inventory() == []
    assert refusal(lambda: iovm.assign(stale, bed.spare_guest())) == "ENODEV"
    assert refusal(lambda: bed.igb.set_mac(0, MAC)) == "EINVAL"
    assert len(iovm.create(pf, 3)) == 3
    guest = bed.spare_guest("again")
    iovm.assign(bed.vf(2), guest, None, MAC)
    guest.nics[0].driver.start()
    assert guest.nics[0].driver.link


def test_a_guest_whose_driver_cannot_probe_leaves_the_vf_free(bed):
    bed.igb._regs.set(Regs.EIMC, 1)  # the PF hears nothing
    guest = bed.spare_guest()
    with pytest.raises(MailboxError):
        bed.iovm.assign(bed.vf(2), guest)
    assert guest.nics == []
    assert bed.vf(2).state is VfState.FREE
    assert len(bed.machine.host.remapping.domains) == 2
    bed.igb._regs.set(Regs.EIMS, 1)
    bed.iovm.assign(bed.vf(2), guest)


def test_a_guest_with_an_impossible_driver_leaves_no_interrupts(bed):
    entries = bed.machine.host.interrupt_table.entries()
    with pytest.raises(VirtfnError, match="a ring has"):
        bed.iovm.assign(bed.vf(2), bed.spare_guest(ring=7))
    assert bed.machine.host.interrupt_table.entries() == entries


def test_a_vm_that_lost_its_function_does_not_keep_the_vf(bed):
    bed.guest(1).unplug(bed.vf(1).rid, surprise=True)
    bed.iovm.take_back(bed.vf(1), bed.vf(1))
    assert bed.vf(1).state is VfState.FREE


def test_one_that_cannot_be_reset_does_not_keep_the_others(bed, monkeypatch):
    remapping = bed.machine.host.remapping
    gone, read = bed.vf(0).rid, bed.nic.config_read
    monkeypatch.setattr(
        bed.nic, "config_read", lambda rid, at, size: (1 << 8 * size) - 1 if rid == gone else read(rid, at, size)
    )
    flr = []
    bed.nic.on_reset = lambda rid, how: flr.append(rid)
    with pytest.raises(VirtfnError, match=r"0000:02:10\.0 cannot be reset") as caught:
        bed.iovm.take_back(bed.vf(0), bed.vf(1), surprise=True)
    assert caught.value.errno_name == "EIO"
    assert bed.vf(1).rid in flr
    assert [bed.vf(n).state for n in (0, 1)] == [VfState.FREE] * 2
    assert not remapping.domains


@pytest.mark.parametrize("surprise", [False, True])
def test_many_owners_leave_nothing_behind(bed, surprise):
    host, guest = bed.machine.host, bed.spare_guest()

    def left() -> tuple[object, ...]:
        pages = host.remapping.pages.count(), len(host.memory._chunks), len(host.memory._pages)
        messages = host.interrupt_table.entries(), len(host.interrupts._waiting), len(host._vectors)
        return pages, messages, len(host.remapping.domains), int(host.iommu.iommu.unit[0]["cached"])

    for cycle in range(24):
        bed.iovm.assign(bed.vf(2), guest)
        bed.iovm.take_back(bed.vf(2), surprise=surprise)
        if cycle == 1:
            before = left()
    assert left() == before


# Quarantine.


def test_quarantine_stops_everything_and_release_lets_it_run(bed):
    a, b = bed.driver(0), bed.driver(1)
    bed.iovm.quarantine(bed.vf(0))
    send(b, frame(a.mac, b.mac))
    send(a, frame(b.mac, a.mac))
    a.recover()
    send(a, frame(b.mac, a.mac))
    bed.serve()
    assert take(a) == take(b) == []
    assert bed.drops(1) == {"rx-disabled": 1}
    bed.igb.reset()
    a.recover()
    b.recover()
    send(a, frame(b.mac, a.mac))
    bed.serve()
    assert take(b) == []
    bed.iovm.release(bed.vf(0))
    bed.serve()
    assert len(take(b)) == 1


def test_a_quarantined_vf_is_taken_back_and_free_of_it(bed):
    bed.iovm.quarantine(bed.vf(0))
    assert refusal(lambda: bed.iovm.destroy(bed.nic.pf_rid)) == "EBUSY"
    bed.iovm.take_back(bed.vf(0))
    guest = bed.spare_guest()
    bed.iovm.assign(bed.vf(0), guest, None, MAC)
    guest.nics[0].driver.start()
    send(guest.nics[0].driver, frame(bed.driver(1).mac, MAC))
    bed.serve()
    assert len(take(bed.driver(1))) == 1


def test_one_wait_serves_all(bed):
    start = bed.clock.now()
    bed.iovm.take_back(bed.vf(0), bed.vf(1))
    assert 100 * MS_PS <= bed.clock.now() - start < 150 * MS_PS
    start = bed.clock.now()
    bed.iovm.destroy(bed.nic.pf_rid)
    assert bed.clock.now() - start >= S_PS


def test_the_guest_places_its_bars_where_it_likes(bed):
    config = bed.guest(0).nics[0].function.config
    assert Address(config.read(Type0.BAR.at(0), 4)).MEM_TYPE == 2
    first = config.read(Type0.BAR.at(0), 4) & ~0xF
    third = config.read(Type0.BAR.at(3), 4) & ~0xF
    assert first >= 0xE0000000
    assert third >= first + 0x4000
