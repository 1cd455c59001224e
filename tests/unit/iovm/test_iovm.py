"""The IOVM over a whole machine: assigning, taking back, and what of a former owner remains: nothing."""

from __future__ import annotations

import pytest

from unit.rig import BROADCAST, Rig, frame, send, take
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
COUNTED = {"gprc", "gorc", "mprc", "gptc", "gotc", "gprlbc", "gorlbc", "gptlbc", "gotlbc", "bprc"}
RUNNING_ON = {*COUNTED, "next_ps", "held_ps"}
PER_CALL = {"drops", "epoch", "win_lo", "win_hi", "win_hpa"}


@pytest.fixture
def rig():
    with Rig() as made:
        yield made


def registers(rig):
    """Every register of the port by name, but for what only observers care about, and queues of running guests."""
    peek = rig.nic.port.registers.peek
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


def snapshot(rig, n):
    """All that is known of VF `n` anywhere."""
    nic, machine = rig.nic, rig.machine
    nic.port.settle()
    state = nic.port.nic
    vectors = [vf_vector(n, v) for v in range(3)]
    own = sum(1 << v for v in vectors)
    at = BAR0_BYTES + n * RING_PAGES
    vf = rig.vf(n)
    table = nic._tables[n]
    return {
        "registers": registers(rig),
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
        "driver": (rig.igb.policies[n], rig.igb.mailbox._peers[n], rig.igb.pools._groups[n], rig.igb.pools._vlans[n]),
        "addresses": (rig.igb.addresses._offered[n], rig.igb.addresses._taken[n], dict(rig.igb.pools._extra)),
        "domain": vf.rid in machine.host.remapping._attached,
        "dma": machine.host.dma_read(vf.rid, Iova(0x1000), 64),
    }


def live_fully(rig, n, guest):
    """Do with a VF all that leaves traces."""
    driver = guest.nic(rig.vf(n).rid).driver
    driver.start()
    driver.set_mac(parse_mac("02:00:00:00:00:67"))
    driver.add_mac(parse_mac("02:00:00:00:00:68"))
    driver.set_multicast([parse_mac("01:00:5e:00:00:09")])
    driver.set_promiscuous(True, True)
    driver.set_vlan(9)
    driver.set_vlan(10)
    peer = rig.driver(0)
    send(peer, *[frame(driver.mac, peer.mac)] * 600)
    send(driver, frame(BROADCAST, driver.mac), frame(peer.mac, driver.mac, vid=9), frame(peer.mac, 0x1234))
    rig.serve()
    guest.run_interrupts()
    take(driver)
    regs = rig.registers(0)
    regs.bar._function = guest.nic(rig.vf(n).rid).function
    for offset in range(0, 0x4000, 4):
        if offset not in (VfRegs.VTCTRL.offset, VfRegs.VTCTRL.offset + 4):
            regs.bar.write(offset, 0xA5A5A5A5)
    guest.nic(rig.vf(n).rid).function.write(3, 0, 0xFFFFFFFF)
    config = guest.nic(rig.vf(n).rid).function.config
    for offset in range(0, 0x200, 4):
        value = config.read(offset, 4)
        config.write(offset, 4, value | 0x7)
    rig.nic.serve()


@pytest.mark.parametrize("surprise", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_nothing_of_the_former_owner_remains(rig, n, surprise):
    with Rig() as fresh:
        before = snapshot(fresh, n)
    guest = rig.spare_guest()
    policy = VfPolicy(mac=MAC, qos=0, spoof_check=False, trust=True, max_tx_rate=10)
    rig.iovm.assign(rig.vf(n), guest, policy)
    live_fully(rig, n, guest)
    rig.iovm.take_back(rig.vf(n), surprise=surprise)
    rig.serve()
    after = snapshot(rig, n)
    for name, value in before.items():
        if isinstance(value, dict):
            assert {k: v for k, v in after[name].items() if v != value[k]} == {}, name
        else:
            assert after[name] == value, name
    assert guest.nics == []
    assert guest.dma._used == {}


def test_a_new_owner_starts_from_nothing(rig):
    first, second = rig.spare_guest("first"), rig.spare_guest("second")
    rig.iovm.assign(rig.vf(2), first, VfPolicy(vlan=30), MAC)
    live_fully_mac = first.nics[0].driver.mac
    first.nics[0].driver.start()
    rig.iovm.take_back(rig.vf(2))
    rig.iovm.assign(rig.vf(2), second, None, parse_mac("02:00:00:00:00:70"))
    driver = second.nics[0].driver
    driver.start()
    assert (live_fully_mac, driver.mac) == (MAC, parse_mac("02:00:00:00:00:70"))
    assert not any(driver.statistics().values())
    peer = rig.driver(0)
    send(peer, frame(MAC, peer.mac), frame(driver.mac, peer.mac))
    rig.serve()
    assert take(driver) == [frame(driver.mac, peer.mac)]


def test_dma_of_a_vf_ends_with_its_owner(rig):
    guest, host = rig.spare_guest(), rig.machine.host
    vf = rig.vf(2)
    assert host.dma_read(vf.rid, Iova(0), 16) is None
    rig.iovm.assign(vf, guest)
    assert host.dma_read(vf.rid, Iova(0), 16) is not None
    rig.iovm.take_back(vf)
    assert host.dma_read(vf.rid, Iova(0), 16) is None
    assert len(host.remapping.domains) == 2


def test_a_vm_has_one_domain_for_all_its_functions_until_the_last_goes(rig):
    guest, remapping = rig.spare_guest(), rig.machine.host.remapping
    rig.iovm.assign(rig.vf(2), guest)
    rig.iovm.assign(rig.vf(3), guest)
    assert len(remapping.domains) == 3
    rig.iovm.take_back(rig.vf(2))
    assert len(remapping.domains) == 3
    assert guest.nics[0].function.rid == rig.vf(3).rid
    guest.nics[0].driver.start()
    rig.iovm.take_back(rig.vf(3))
    assert len(remapping.domains) == 2


def test_two_vms_of_one_name_share_nothing(rig):
    one, two = rig.spare_guest("twin"), rig.spare_guest("twin")
    rig.iovm.assign(rig.vf(2), one)
    rig.iovm.assign(rig.vf(3), two)
    one.memory.bytes[:4] = 1
    two.memory.bytes[:4] = 2
    host = rig.machine.host
    assert host.dma_read(rig.vf(2).rid, Iova(0), 4) == b"\1\1\1\1"
    assert host.dma_read(rig.vf(3).rid, Iova(0), 4) == b"\2\2\2\2"


def test_domain_numbers_are_used_again(rig):
    guest = rig.spare_guest()
    for _ in range(20):
        rig.iovm.assign(rig.vf(2), guest)
        rig.iovm.take_back(rig.vf(2))
    assert max(rig.machine.host.remapping.domains) == 2
    assert rig.vf(2).assignments == 20


# Hot-plug under traffic.


def test_a_vf_comes_and_goes_while_traffic_flows(rig):
    engine = rig.engine("pairs", 20000, length=60)
    guest = rig.guest(0)
    for _ in range(3):
        engine.step()
        rig.iovm.assign(rig.vf(2), guest)
        added = guest.nic(rig.vf(2).rid).driver
        added.start()
        engine.step()
        send(added, frame(BROADCAST, added.mac))
        engine.step()
        rig.iovm.take_back(rig.vf(2))
        engine.step()
    assert engine.run()
    findings = engine.workload.findings()
    assert [(f.missing, f.corrupt, f.repeated, f.reordered) for f in findings] == [(0, 0, 0, 0)] * 2
    assert rig.drops(0) == rig.drops(1) == {}


@pytest.mark.parametrize("surprise", [False, True])
def test_the_vf_at_work_is_removed_and_its_peer_goes_on(rig, surprise):
    engine = rig.engine("pairs", 20000, length=60)
    engine.step()
    rig.iovm.take_back(rig.vf(1), surprise=surprise)
    assert not engine.run()
    assert engine.workload.unfinished() == [1]
    assert int(rig.driver(0).netdev["tx_frames"]) == 20000
    lost = engine.workload.findings()[1].missing
    assert lost > 0
    assert not rig.guest(1).nics
    assert lost <= sum(rig.drops(0).values()) + sum(rig.drops(1).values()) + 1024


def test_a_removed_function_reads_all_ones_and_sends_nothing(rig):
    function = rig.guest(1).nics[0].function
    driver = rig.driver(1)
    rig.iovm.take_back(rig.vf(1), surprise=True)
    assert driver.state is State.GONE
    assert function.bar(0).read(8) == function.config.read(0, 4) == 0xFFFFFFFF
    driver.interrupt(1)
    driver.idle()
    before = rig.machine.host.iommu.stats()
    rig.nic._tables[1]._send(0xFEE00000, 0x20)
    after = rig.machine.host.iommu.stats()
    assert (after["blocked"] - before["blocked"], after["delivered"]) == (1, before["delivered"])


# What is refused.


def refusal(call) -> str:
    with pytest.raises(VirtfnError) as caught:
        call()
    assert str(caught.value)
    return caught.value.errno_name


def test_refusals_name_their_reason(rig):
    iovm, pf, spare = rig.iovm, rig.nic.pf_rid, rig.spare_guest()
    assert refusal(lambda: iovm.assign(rig.vf(0), spare)) == "EBUSY"
    assert refusal(lambda: iovm.take_back(rig.vf(3))) == "EINVAL"
    assert refusal(lambda: iovm.take_back(rig.vf(0), rig.vf(3))) == "EINVAL"
    assert rig.driver(0).state is State.RUNNING
    assert refusal(lambda: iovm.destroy(pf)) == "EBUSY"
    assert refusal(lambda: iovm.create(pf, 2)) == "EBUSY"
    assert refusal(lambda: iovm.create(Rid(0x0F00), 2)) == "ENODEV"
    assert refusal(lambda: rig.vf(4)) == "ENODEV"
    assert refusal(lambda: iovm.quarantine(rig.vf(3))) == "EINVAL"
    assert refusal(lambda: iovm.release(rig.vf(0))) == "EINVAL"
    assert refusal(lambda: iovm.assign(rig.vf(3), spare, VfPolicy(max_tx_rate=2000))) == "EINVAL"
    assert refusal(lambda: iovm.assign(rig.vf(3), spare, VfPolicy(mac=BROADCAST))) == "EINVAL"
    assert rig.vf(3).state is VfState.FREE
    assert rig.igb.policies[3] == VfPolicy()
    assert spare.nics == []


def test_too_many_vfs_are_refused_and_none_is_left(rig):
    iovm, pf = rig.iovm, rig.nic.pf_rid
    iovm.take_back(*(rig.vf(n) for n in range(2)))
    stale = rig.vf(2)
    iovm.destroy(pf)
    assert refusal(lambda: iovm.create(pf, 9)) == "ERANGE"
    assert refusal(lambda: iovm.create(pf, 0)) == "EINVAL"
    assert iovm.inventory() == []
    assert refusal(lambda: iovm.assign(stale, rig.spare_guest())) == "ENODEV"
    assert refusal(lambda: rig.igb.set_mac(0, MAC)) == "EINVAL"
    assert len(iovm.create(pf, 3)) == 3
    guest = rig.spare_guest("again")
    iovm.assign(rig.vf(2), guest, None, MAC)
    guest.nics[0].driver.start()
    assert guest.nics[0].driver.link


def test_a_guest_whose_driver_cannot_probe_leaves_the_vf_free(rig):
    rig.igb._regs.set(Regs.EIMC, 1)  # the PF hears nothing
    guest = rig.spare_guest()
    with pytest.raises(MailboxError):
        rig.iovm.assign(rig.vf(2), guest)
    assert guest.nics == []
    assert rig.vf(2).state is VfState.FREE
    assert len(rig.machine.host.remapping.domains) == 2
    rig.igb._regs.set(Regs.EIMS, 1)
    rig.iovm.assign(rig.vf(2), guest)


def test_a_guest_with_an_impossible_driver_leaves_no_interrupts(rig):
    entries = rig.machine.host.interrupt_table.entries()
    with pytest.raises(VirtfnError, match="a ring has"):
        rig.iovm.assign(rig.vf(2), rig.spare_guest(ring=7))
    assert rig.machine.host.interrupt_table.entries() == entries


def test_a_vm_that_lost_its_function_does_not_keep_the_vf(rig):
    rig.guest(1).unplug(rig.vf(1).rid, surprise=True)
    rig.iovm.take_back(rig.vf(1), rig.vf(1))
    assert rig.vf(1).state is VfState.FREE


def test_one_that_cannot_be_reset_does_not_keep_the_others(rig, monkeypatch):
    remapping = rig.machine.host.remapping
    gone, read = rig.vf(0).rid, rig.nic.config_read
    monkeypatch.setattr(
        rig.nic, "config_read", lambda rid, at, size: (1 << 8 * size) - 1 if rid == gone else read(rid, at, size)
    )
    flr = []
    rig.nic.on_reset = lambda rid, how: flr.append(rid)
    with pytest.raises(VirtfnError, match=r"0000:02:10\.0 cannot be reset") as caught:
        rig.iovm.take_back(rig.vf(0), rig.vf(1), surprise=True)
    assert caught.value.errno_name == "EIO"
    assert rig.vf(1).rid in flr
    assert [rig.vf(n).state for n in (0, 1)] == [VfState.FREE] * 2
    assert not remapping.domains


@pytest.mark.parametrize("surprise", [False, True])
def test_many_owners_leave_nothing_behind(rig, surprise):
    host, guest = rig.machine.host, rig.spare_guest()

    def left() -> tuple[object, ...]:
        pages = host.remapping.pages.count(), len(host.memory._chunks), len(host.memory._pages)
        messages = host.interrupt_table.entries(), len(host.interrupts._waiting), len(host._vectors)
        return pages, messages, len(host.remapping.domains), int(host.iommu.iommu.unit[0]["cached"])

    for cycle in range(24):
        rig.iovm.assign(rig.vf(2), guest)
        rig.iovm.take_back(rig.vf(2), surprise=surprise)
        if cycle == 1:
            before = left()
    assert left() == before


# Quarantine.


def test_quarantine_stops_everything_and_release_lets_it_run(rig):
    a, b = rig.driver(0), rig.driver(1)
    rig.iovm.quarantine(rig.vf(0))
    send(b, frame(a.mac, b.mac))
    send(a, frame(b.mac, a.mac))
    a.recover()
    send(a, frame(b.mac, a.mac))
    rig.serve()
    assert take(a) == take(b) == []
    assert rig.drops(1) == {"rx-disabled": 1}
    rig.igb.reset()
    a.recover()
    b.recover()
    send(a, frame(b.mac, a.mac))
    rig.serve()
    assert take(b) == []
    rig.iovm.release(rig.vf(0))
    rig.serve()
    assert len(take(b)) == 1


def test_a_quarantined_vf_is_taken_back_and_free_of_it(rig):
    rig.iovm.quarantine(rig.vf(0))
    assert refusal(lambda: rig.iovm.destroy(rig.nic.pf_rid)) == "EBUSY"
    rig.iovm.take_back(rig.vf(0))
    guest = rig.spare_guest()
    rig.iovm.assign(rig.vf(0), guest, None, MAC)
    guest.nics[0].driver.start()
    send(guest.nics[0].driver, frame(rig.driver(1).mac, MAC))
    rig.serve()
    assert len(take(rig.driver(1))) == 1


def test_one_wait_serves_all(rig):
    start = rig.clock.now()
    rig.iovm.take_back(rig.vf(0), rig.vf(1))
    assert 100 * MS_PS <= rig.clock.now() - start < 150 * MS_PS
    start = rig.clock.now()
    rig.iovm.destroy(rig.nic.pf_rid)
    assert rig.clock.now() - start >= S_PS


def test_the_guest_places_its_bars_where_it_likes(rig):
    config = rig.guest(0).nics[0].function.config
    assert Address(config.read(Type0.BAR.at(0), 4)).MEM_TYPE == 2
    first = config.read(Type0.BAR.at(0), 4) & ~0xF
    third = config.read(Type0.BAR.at(3), 4) & ~0xF
    assert first >= 0xE0000000
    assert third >= first + 0x4000


def test_a_policy_is_what_the_driver_enforces_whoever_changed_it():
    with Rig() as rig:
        vf = rig.vf(0)
        rig.igb.set_vlan(0, 7, 3)
        rig.igb.set_rate(0, 50)
        assert (vf.policy.vlan, vf.policy.qos, vf.policy.max_tx_rate) == (7, 3, 50)
        vf.policy.vlan = 9
        assert vf.policy.vlan == 7, "a copy: the driver alone changes it"
        rig.iovm.take_back(vf)
        assert vf.policy == VfPolicy()
