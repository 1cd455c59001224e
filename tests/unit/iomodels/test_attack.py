"""Each attempt is stopped with remapping and succeeds without; where a guard is broken, the report says so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from unit.rig import Rig
from virtfn.api.attack import attack, attack_unprotected, compare
from virtfn.drivers.addresses import Addresses
from virtfn.drivers.igb import Igb
from virtfn.drivers.pools import Pools
from virtfn.hw.vtd.interrupts import IRTE_SVT_LSB
from virtfn.iomodels.attack import Attempt, Finding, Region, Result, Stage
from virtfn.iomodels.attempts import ATTEMPTS, moving
from virtfn.iomodels.attempts import interrupts as on_interrupts
from virtfn.iomodels.attempts import memory as on_memory
from virtfn.iomodels.attempts import policy as on_policy
from virtfn.machine.clock import VirtualClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.hostaddresses import HostAddresses

GUESTS = (("pf0", 0), ("pf0", 1), ("pf0", 2))
ATTACKER_MAC = '[{id: 0, mac-address: "02:00:00:00:00:66"}]'
OF_TABLES = ("dma-write-tables", "dma-write-interrupt-table")


def rig(policies: str = ATTACKER_MAC) -> Rig:
    return Rig(GUESTS, ring=128, policies=policies, workload="{kind: attack, frames: 20000, frame-bytes: 256}")


def findings(on: Rig, attempts: Sequence[Attempt] = ATTEMPTS) -> dict[str, Finding]:
    engine = on.engine("attack", frames=20000, length=252)
    return {f.attempt.name: f for f in attack(on.machine, engine, attempts)}


@pytest.fixture(scope="module")
def protected() -> dict[str, Finding]:
    with rig() as on:
        engine = on.engine("attack", frames=20000, length=252)
        found = {f.attempt.name: f for f in attack(on.machine, engine)}
        assert engine.run(), "the victims finish their work"
        assert all(f.missing == f.corrupt == f.reordered == f.repeated == 0 for f in engine.workload.findings())
        on.machine.stop()
        return found


@pytest.fixture(scope="module")
def unprotected() -> dict[str, Finding]:
    return {f.attempt.name: f for f in attack_unprotected(rig().machine.lab, VirtualClock())}


def test_names_differ_and_descriptions_say_something() -> None:
    assert len({a.name for a in ATTEMPTS}) == len(ATTEMPTS) >= 20
    assert all(len(a.description) > 20 for a in ATTEMPTS)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda a: a.name)
def test_an_attempt_is_stopped(attempt: Attempt, protected: dict[str, Finding]) -> None:
    found = protected[attempt.name]
    assert found.outcome == ("harmless" if attempt.name == "interrupt-flood" else "stopped"), found
    assert found.evidence["harm"] == 0
    assert found.evidence["victim_frames"] > 0, "the victims work meanwhile"
    if not attempt.same_without:
        assert found.evidence["faults"] > 0
        assert "remapping: " in found.stopped_by
        assert "(fault 0x" in found.stopped_by


@pytest.mark.parametrize("attempt", [a for a in ATTEMPTS if not a.same_without], ids=lambda a: a.name)
def test_an_attempt_succeeds_without_remapping(attempt: Attempt, unprotected: dict[str, Finding]) -> None:
    found = unprotected[attempt.name]
    assert found.outcome == "succeeded", found
    assert found.evidence["harm"] > 0
    assert found.evidence["faults"] == 0
    assert found.stopped_by == ""


def test_what_remapping_plays_no_role_in_says_why(
    protected: dict[str, Finding], unprotected: dict[str, Finding]
) -> None:
    reports = {r["name"]: r for r in compare(list(protected.values()), list(unprotected.values()))}
    assert list(reports) == [a.name for a in ATTEMPTS]
    for attempt in ATTEMPTS:
        report = reports[attempt.name]
        assert (report["without_remapping"] is None) == bool(attempt.same_without)
        assert report.get("reason", "") == attempt.same_without


def test_reasons_are_those_of_the_unit(protected: dict[str, Finding]) -> None:
    assert "fault 0x25" in protected["forged-compatibility-message"].stopped_by
    assert "fault 0x26" in protected["forged-handle"].stopped_by
    assert "fault 0x5" in protected["dma-write-host"].stopped_by
    assert "fault 0x6" in protected["dma-read-guest"].stopped_by
    assert "fault 0x2)" in protected["taken-away-in-flight"].stopped_by
    own = protected["forged-handle"].evidence
    assert own["reached_itself"] == 3, "its own entries are its own to use"
    flood = protected["interrupt-flood"].evidence
    assert flood["victim_frames_meanwhile"] >= flood["victim_frames_before"] / 2 > 0


# Guards that are broken on purpose: each time the report must say so.


def test_a_unit_that_maps_everything_is_found_out() -> None:
    with rig() as on:
        rid = on.vf(0).rid
        on.machine.host.remapping.detach(rid)
        on.machine.host.remapping.pass_through(rid)
        # The attacker knows where its memory is, as it would have to.
        guest = on.guest(0)
        guest.nics[0].driver.stop()
        guest.dma = HostAddresses(guest.memory)
        guest.nics[0].driver.rings._dma = guest.dma
        guest.nics[0].driver.start()
        attempts = [a for a in on_memory.ATTEMPTS if a.name not in OF_TABLES]
        attempts += [moving.changing_descriptors, moving.foreign_in_bursts]
        assert {f.outcome for f in findings(on, attempts).values()} == {"succeeded"}


def test_one_page_too_many_in_a_domain_is_found_out() -> None:
    with rig() as on:
        stage_page: list[Region] = []
        secret_of = Stage.secret_of

        def leak(stage: Stage, guest) -> Region:
            region = secret_of(stage, guest)
            (domain,) = (d for d in stage.host.remapping.domains.values() if stage.vf.rid in d.rids)
            domain.map(region.address, region.address, 4096, write=False)
            stage_page.append(region)
            return region

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stage, "secret_of", leak)
            found = findings(on, [on_memory.read_guest, on_memory.write_guest, on_memory.read_host])
        assert stage_page
        assert {n: f.outcome for n, f in found.items()} == {
            "dma-read-guest": "succeeded",
            "dma-write-guest": "stopped",
            "dma-read-host": "stopped",
        }


def test_an_interrupt_table_that_checks_no_source_is_found_out() -> None:
    with rig() as on:
        table = on.machine.host.interrupt_table
        assert table is not None
        for index, _, _ in table.entries():
            table._entries[2 * index + 1] &= ~(3 << IRTE_SVT_LSB) & (1 << 64) - 1
        on.machine.host.remapping.invalidate_interrupts(0, 16)
        found = findings(on, [on_interrupts.forged_handle, on_interrupts.forged_compatibility])
        assert found["forged-handle"].outcome == "succeeded"
        assert found["forged-compatibility-message"].outcome == "stopped"


@pytest.mark.parametrize("policies", ["[{id: 0}]", "[{id: 0, trust: true}]", "[{id: 0, vlan-id: 7}]"])
def test_a_guest_whose_address_was_only_offered_gets_no_other_ones(policies: str) -> None:
    with rig(policies) as on:
        found = findings(on, [on_policy.address_of_another, on_policy.spoofed_source, on_policy.all_vlans])
        assert {f.outcome for f in found.values()} == {"stopped"}
        assert "the PF answers NACK, 6 times" in found["address-of-another"].stopped_by
        assert found["address-of-another"].evidence["dropped_mac-spoof"] == 24


def test_a_host_that_checks_no_source_is_found_out() -> None:
    with rig("[{id: 0, spoof-check: false}]") as on:
        found = findings(on, [on_policy.spoofed_source])
        assert found["spoofed-source"].outcome == "succeeded"
        assert found["spoofed-source"].evidence["frames_arrived"] == 8


def test_a_pf_that_gives_an_address_twice_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Addresses, "_may_have", lambda *_: True)
    with rig() as on:
        found = findings(on, [on_policy.address_of_another, on_policy.address_of_the_gateway])
        assert {f.outcome for f in found.values()} == {"succeeded"}
        for name, addresses in (("address-of-another", 3), ("address-of-the-gateway", 1)):
            assert found[name].evidence["frames_overheard"] >= addresses
            assert found[name].evidence["frames_in_their_name"] == 8 * addresses


def test_a_table_of_vlans_without_shares_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def admit(pools: Pools, n: int, vid: int) -> bool:
        try:
            pools._join(n, vid)
        except StopIteration:
            return False
        return True

    def set_vlan(igb: Igb, n: int, vlan: int, qos: int = 0) -> None:
        if vlan and not admit(igb.pools, n, vlan):
            raise VirtfnError("full")

    monkeypatch.setattr(Pools, "admit", admit)
    monkeypatch.setattr(Igb, "set_vlan", set_vlan)
    with rig() as on:
        found = findings(on, [on_policy.all_vlans])
        assert found["all-vlans"].outcome == "succeeded"
        assert found["all-vlans"].evidence["crowded_out"] == 4


def test_a_trusted_guest_hears_everything_and_is_found_out() -> None:
    with rig("[{id: 0, trust: true}]") as on:
        found = findings(on, [on_policy.promiscuous])
        assert found["promiscuous"].outcome == "succeeded"


def test_an_attacker_in_a_vlan_of_its_own_gets_as_far() -> None:
    with rig('[{id: 0, mac-address: "02:00:00:00:00:66", vlan-id: 7, qos: 3}]') as on:
        found = findings(on, [moving.changing_descriptors, on_memory.write_host, on_interrupts.forged_in_frame])
        assert {f.outcome for f in found.values()} == {"stopped"}
        assert found["changing-descriptors"].evidence["frames_old"] > 0


def test_a_device_that_caches_translations_gets_none_for_what_is_not_its_own() -> None:
    work = "{kind: attack, frames: 20000, frame-bytes: 256}"
    with Rig(GUESTS, ring=128, policies=ATTACKER_MAC, workload=work, iommu="{ats: true}") as on:
        found = findings(on, [*on_memory.ATTEMPTS, *moving.ATTEMPTS, *on_interrupts.ATTEMPTS])
        assert {f.outcome for name, f in found.items() if name != "interrupt-flood"} == {"stopped"}
        assert found["use-after-unmap"].evidence["frames_while_mapped"] == 1
        assert found["use-after-unmap"].evidence["translations_denied"] > 0


def test_victims_that_have_finished_are_not_slowed_down() -> None:
    with rig() as on:
        (found,) = attack(on.machine, on.engine("attack", frames=60), [on_interrupts.interrupt_flood])
        assert found.outcome == "harmless"


def test_harm_beside_the_aim_is_harm() -> None:
    with rig() as on:

        def clumsy(stage: Stage):
            stage.victim_page.now[7] ^= 1
            return Result(0)

        found = findings(on, [Attempt("clumsy", "hits something else", clumsy)])
        assert found["clumsy"].outcome == "succeeded"


def test_the_machine_is_left_as_it_was() -> None:
    with rig() as on:
        findings(on, [on_memory.read_host])
        port = on.nic.port.nic["port"]
        assert not port["wire_up"]
        assert not port["capture"]
        assert on.machine.host.iommu.on_fault is None
        assert on.nic.take_capture() == []


def test_a_region_counts_what_changed_and_what_was_stolen() -> None:
    memory = np.random.default_rng(1).integers(0, 256, 4096, np.uint8)
    region = Region(0, memory)
    secret = memory.tobytes()
    assert region.changed() == 0
    assert region.stolen([b"nothing of it"]) == 0
    assert region.stolen([b"x" * 14 + secret[64:96], secret[:16]]) == 48
    memory[5:8] ^= 0xFF
    assert region.changed() == 3
    region.restore()
    assert memory.tobytes() == secret
