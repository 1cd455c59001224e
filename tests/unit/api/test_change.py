"""A lab that is up becomes another: attach, detach, numbers of VFs, policies; all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest

from unit.rig import lab_text
from virtfn.api.lab import Lab, VfPolicy, parse_lab
from virtfn.api.labpolicy import driver_policy
from virtfn.api.machine import card_mac
from virtfn.api.running import lab_document, policy_words
from virtfn.api.session import Session
from virtfn.api.session.changes import ApplyLab, AttachGuest, DetachGuest, GetLab, SetVfs
from virtfn.api.session.difference import differences
from virtfn.api.session.policy import set_policies
from virtfn.api.session.service import StartTraffic, StopTraffic
from virtfn.drivers.policy import SwitchPolicy
from virtfn.drivers.policy import VfPolicy as DriverPolicy
from virtfn.hw.i82576 import Regs
from virtfn.hw.types import format_mac
from virtfn.machine.clock import S_PS
from virtfn.machine.ports import VirtfnError

FOUR = [("pf0", 0), ("pf0", 1), ("pf1", 0), ("pf1", 1)]
POLICIES = '[{id: 1, vlan-id: 7, qos: 3, mac-address: "02:00:00:00:00:99"}]'
PLAIN = "[{id: 1, vlan-id: 7, qos: 3}]"


@contextmanager
def up(text: str) -> Iterator[Session]:
    with Session(parse_lab(text), standing=True) as session:
        session.start()
        yield session
        session.stop()


def text_of(*guests: tuple[str, int], **options: Any) -> str:
    return lab_text(guests or [("pf0", 0), ("pf0", 1)], **options)


def apply(session: Session, lab: Lab | str, *, dry_run: bool = False) -> dict[str, tuple[object, object]]:
    wanted = parse_lab(lab) if isinstance(lab, str) else lab
    document = session.ask(ApplyLab(lab_document(wanted), dry_run))
    return {each["key"]: (each["before"], each["after"]) for each in document["changes"]}


def owners(session: Session) -> dict[str, str | None]:
    snapshot = session.snapshot()
    return {f"{pf['name']}/vf{vf['vf']}": vf["guest"] for pf in snapshot["pfs"] for vf in pf["vfs"]}


def traffic_passes(session: Session) -> bool:
    """Whether guest b reaches guest a."""
    before = {guest["name"]: guest["rx_frames"] for guest in session.snapshot()["guests"]}
    session.ask(StartTraffic(2000))
    heard = lambda: next(g["rx_frames"] for g in session.snapshot()["guests"] if g["name"] == "a")  # noqa: E731
    passed = session.run_until(lambda: heard() >= before["a"] + 20, S_PS)
    session.ask(StopTraffic())
    return passed


def test_what_it_is_can_be_applied_and_changes_nothing() -> None:
    with up(text_of(policies=POLICIES)) as session:
        last = session.events.since(0).next
        assert session.ask(ApplyLab(session.ask(GetLab())))["changes"] == []
        assert session.events.since(last).events == []
        assert json.loads(json.dumps(session.ask(GetLab()))) == session.ask(GetLab())


def test_a_vf_comes_and_goes() -> None:
    with up(text_of()) as session:
        assert traffic_passes(session)
        changes = session.ask(DetachGuest("a"))["changes"]
        assert changes == [{"key": "guests.a.nic.attached", "before": True, "after": False}]
        assert owners(session) == {"pf0/vf0": None, "pf0/vf1": "b", "pf0/vf2": None, "pf0/vf3": None}
        assert [guest["name"] for guest in session.snapshot()["guests"]] == ["b"]
        assert session.ask(ApplyLab(session.ask(GetLab())))["changes"] == []
        session.ask(AttachGuest("a", "pf0/vf3"))
        assert owners(session)["pf0/vf3"] == "a"
        assert traffic_passes(session)
        session.ask(DetachGuest("a"))
        session.ask(AttachGuest("a"))  # where it was
        assert owners(session)["pf0/vf3"] == "a"
        names = [told.event.name for told in session.events.since(0).events]
        assert names.count("GUEST_DETACHED") == names.count("GUEST_ATTACHED") == 2


def test_a_guest_may_begin_without() -> None:
    text = text_of().replace("vf: 1}", "vf: 1, attached: false}")
    with up(text) as session:
        assert owners(session)["pf0/vf1"] is None
        session.ask(AttachGuest("b"))
        assert owners(session)["pf0/vf1"] == "b"
        assert traffic_passes(session)


@pytest.mark.parametrize(
    ("guest", "vf", "errno_name"),
    [
        ("a", "pf0/vf2", "EBUSY"),
        ("b", "pf0/vf0", "EBUSY"),
        ("b", "pf0/vf7", "ENODEV"),
        ("b", "pf9/vf0", "ENODEV"),
        ("nobody", "", "ENOENT"),
    ],
)
def test_what_cannot_be_attached(guest: str, vf: str, errno_name: str) -> None:
    with up(text_of().replace("vf: 1}", "vf: 1, attached: false}")) as session:
        before = session.ask(GetLab())
        with pytest.raises(VirtfnError) as caught:
            session.ask(AttachGuest(guest, vf))
        assert caught.value.errno_name == errno_name
        assert session.ask(GetLab()) == before
        with pytest.raises(VirtfnError, match="has no VF"):
            session.ask(DetachGuest("b"))


@pytest.mark.parametrize("vf", ["pf0", "pf0/vf8", "pf0/vf-1", "pf0/1", "/vf0", "pf0/vf0\n", 3, "x" * 99 + "/vf0"])
def test_what_is_no_vf(vf: object) -> None:
    with pytest.raises(VirtfnError) as caught:
        AttachGuest.from_params({"guest": "a", "vf": vf})
    assert caught.value.errno_name == "EINVAL"


@pytest.mark.slow
def test_the_number_of_vfs_changes_while_nobody_has_one() -> None:
    with up(text_of()) as session:
        with pytest.raises(VirtfnError, match="in use by a, b") as caught:
            session.ask(SetVfs("pf0", 6))
        assert caught.value.errno_name == "EBUSY"
        session.ask(DetachGuest("a"))
        session.ask(DetachGuest("b"))
        for count in (8, 1, 2):
            session.ask(SetVfs("pf0", count))
            assert len(owners(session)) == count
        session.ask(AttachGuest("a"))
        session.ask(AttachGuest("b"))
        assert traffic_passes(session)
        for wrong, errno_name in ((0, "ERANGE"), (9, "ERANGE")):
            with pytest.raises(VirtfnError) as caught:
                session.ask(SetVfs("pf0", wrong))
            assert caught.value.errno_name == errno_name


@pytest.mark.slow
def test_all_of_it_at_once() -> None:
    with up(text_of(*FOUR, policies=PLAIN)) as session:
        after = parse_lab(
            lab_text(
                [("pf0", 0), ("pf0", 4), ("pf1", 0), ("pf1", 1)],
                total_vfs=5,
                policies="[{id: 4, vlan-id: 9, trust: true}]",
            )
        )
        changes = apply(session, after, dry_run=True)
        assert owners(session)["pf0/vf1"] == "b"
        assert apply(session, after) == changes
        assert changes["guests.b.nic.vf"] == (1, 4)
        assert changes["pfs.pf0.sr-iov.total-vfs"] == (4, 5)
        assert changes["pfs.pf0.sr-iov.vfs.1.vlan-id"] == (7, 0)
        assert changes["pfs.pf0.sr-iov.vfs.4.trust"] == (False, True)
        assert {vf: guest for vf, guest in owners(session).items() if guest} == {
            "pf0/vf0": "a",
            "pf0/vf4": "b",
            "pf1/vf0": "c",
            "pf1/vf1": "d",
        }
        assert session.machine.pf("pf0").driver.policy(4).vlan == 9
        assert apply(session, after) == {}


def test_guests_that_stay_hear_nothing_of_it() -> None:
    with up(text_of(*FOUR)) as session:
        c = session.machine.guests[2]
        apply(session, lab_text([("pf0", 1), ("pf0", 0), ("pf1", 0), ("pf1", 1)]))  # two change places
        assert session.machine.guests[2] is c
        assert owners(session)["pf0/vf0"] == "b"
        assert traffic_passes(session)


def test_policies_change_and_are_enforced() -> None:
    with up(text_of()) as session:
        assert traffic_passes(session)
        changes = apply(session, text_of(policies="[{id: 1, vlan-id: 7}]"))
        assert changes == {"pfs.pf0.sr-iov.vfs.1.vlan-id": (0, 7)}
        assert not traffic_passes(session)
        apply(session, text_of())
        assert traffic_passes(session)


def test_policies_that_others_have_set_are_seen() -> None:
    with up(text_of()) as session:
        pf = session.machine.pf("pf0")
        set_policies(pf, {1: DriverPolicy(vlan=5, trust=True)})
        assert session.ask(GetLab())["pfs"][0]["sr-iov"]["vfs"] == [{"id": 1, "vlan-id": 5, "trust": True}]
        assert apply(session, text_of())["pfs.pf0.sr-iov.vfs.1.vlan-id"] == (5, 0)
        assert pf.driver.policy(1) == DriverPolicy()


def test_limits_of_the_watch_stay_what_they_are() -> None:
    watched = "[{id: 1, watch: {resets: {per-second: 5, action: warn}}}]"
    with up(text_of(policies=watched)) as session:
        before = session.ask(GetLab())
        set_policies(session.machine.pf("pf0"), {1: DriverPolicy(vlan=5)})
        (policy,) = session.ask(GetLab())["pfs"][0]["sr-iov"]["vfs"]
        assert policy == {**before["pfs"][0]["sr-iov"]["vfs"][0], "vlan-id": 5}
        with pytest.raises(VirtfnError, match="cannot change while the lab is up") as caught:
            apply(session, text_of())
        assert "vfs.1.watch" in f"{caught.value} {caught.value.details}"


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("memory-mib: 8", "memory-mib: 16", "guests.a.memory-mib"),
        ("link-mbps: 0", "link-mbps: 1000", "pfs.pf0.link-mbps"),
        ("frames: 1000", "frames: 1001", "workload.frames"),
        ("name: b", "name: z", "guests.b"),
        ("iommu: {}", "iommu: {iotlb-entries: 64}", "iommu.iotlb-entries"),
    ],
)
def test_what_is_fixed_is_refused_as_a_whole(before: str, after: str, key: str) -> None:
    with up(text_of()) as session:
        wanted = text_of(policies="[{id: 0, vlan-id: 3}]").replace(before, after, 1)
        assert wanted != text_of(policies="[{id: 0, vlan-id: 3}]")
        with pytest.raises(VirtfnError, match="cannot change while the lab is up") as caught:
            apply(session, wanted)
        assert caught.value.errno_name == "EOPNOTSUPP"
        assert key in f"{caught.value} {caught.value.details}"
        assert session.machine.pf("pf0").driver.policy(0).vlan == 0


@pytest.mark.slow
def test_what_fails_on_the_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    with up(text_of(*FOUR, policies=PLAIN)) as session:
        before, had = session.ask(GetLab()), owners(session)
        attach, count = session.machine.attach, iter(range(100))

        def fail(guest: Any) -> None:
            if next(count) == 1:
                raise VirtfnError("no", errno_name="ENOSPC")
            attach(guest)

        monkeypatch.setattr(session.machine, "attach", fail)
        with pytest.raises(VirtfnError) as caught:
            apply(session, lab_text([("pf0", 3), ("pf0", 5), ("pf1", 0), ("pf1", 1)], total_vfs=6))
        assert (str(caught.value), caught.value.errno_name) == ("no", "ENOSPC")
        assert session.ask(GetLab()) == before
        assert owners(session) == had
        assert session.machine.pf("pf0").driver.policy(1).vlan == 7
        monkeypatch.undo()
        assert apply(session, lab_text([("pf0", 3), ("pf0", 5), ("pf1", 0), ("pf1", 1)], total_vfs=6))


SWITCHED = "mirrors: [{to: 0, vfs: [3]}], storm-control: {broadcast: 10}"


def switched(text: str) -> str:
    return text.replace("sr-iov: {", f"sr-iov: {{{SWITCHED}, ")


def test_the_switch_is_as_before_when_fewer_vfs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with up(switched(text_of(link_mbps=1000))) as session:
        driver = session.machine.pf("pf0").driver
        before = driver.switch_policy()
        assert before.mirrors
        assert before.storm.broadcast == 10
        written = switch_registers(session)

        def fail(guest: Any) -> None:
            monkeypatch.undo()
            raise VirtfnError("no", errno_name="ENOSPC")

        monkeypatch.setattr(session.machine, "attach", fail)
        with pytest.raises(VirtfnError, match="no"):
            apply(session, text_of(link_mbps=1000, total_vfs=2))
        assert driver.switch_policy() == before
        assert switch_registers(session) == written


def test_the_switch_stays_when_the_number_of_vfs_changes() -> None:
    with up(switched(text_of(link_mbps=1000))) as session:
        session.ask(DetachGuest("a"))
        session.ask(DetachGuest("b"))
        driver, written = session.machine.pf("pf0").driver, switch_registers(session)
        before = driver.switch_policy()
        session.machine.set_vfs(session.machine.pf("pf0"), 6)
        assert driver.switch_policy() == before
        assert switch_registers(session) == written
        session.machine.set_vfs(session.machine.pf("pf0"), 2)  # its mirror names VF 3
        assert driver.switch_policy() == SwitchPolicy()


def switch_registers(session: Session) -> list[int]:
    """Read what the card does with mirrors and storms."""
    regs = session.machine.pf("pf0").driver._regs
    return [regs.get(decl) for decl in (Regs.VMRCTL, Regs.VMRVM, Regs.SCCRL, Regs.BSCTRH, Regs.MSCTRH)]


def test_policies_that_the_driver_refuses_are_undone() -> None:
    with up(text_of()) as session:
        pf, taken = session.machine.pf("pf0"), format_mac(card_mac(0))
        with pytest.raises(VirtfnError) as caught:
            apply(session, text_of(policies=f'[{{id: 0, vlan-id: 3}}, {{id: 1, mac-address: "{taken}"}}]'))
        assert caught.value.errno_name == "EADDRINUSE"
        assert [pf.driver.policy(n) for n in (0, 1)] == [DriverPolicy(), DriverPolicy()]
        assert apply(session, text_of()) == {}


def test_changes_come_one_after_the_other() -> None:
    with up(text_of()) as session:
        first = DetachGuest("a").pieces(session)
        next(first)
        with pytest.raises(VirtfnError) as caught:
            session.ask(DetachGuest("b"))
        assert caught.value.errno_name == "EBUSY"
        first.close()  # who asked has gone: it is undone
        assert owners(session)["pf0/vf0"] == "a"


def test_labs_that_make_no_sense_are_refused() -> None:
    with up(text_of()) as session:
        for wrong in ({}, {"name": "rig"}, {**session.ask(GetLab()), "pfs": []}, {"name": 1.5}):
            with pytest.raises(VirtfnError) as caught:
                session.ask(ApplyLab(wrong))
            assert caught.value.errno_name == "EINVAL"


def test_a_lab_of_another_name_is_another_lab() -> None:
    found = differences(parse_lab(text_of()), parse_lab(text_of().replace("name: rig", "name: other")))
    assert [(each.key, each.fixed) for each in found] == [("name", True)]


def test_every_policy_of_a_driver_has_words_and_comes_back() -> None:
    words = VfPolicy.model_validate(
        {"id": 3, "mac-address": "02:00:00:00:00:03", "vlan-id": 9, "qos": 2, "trust": True}
    )
    assert policy_words(3, driver_policy(words)).model_dump() == words.model_dump()
    assert {field.name for field in fields(DriverPolicy)} >= {"mac", "vlan", "qos", "spoof_check", "trust"}
    assert policy_words(0, DriverPolicy()) == VfPolicy(id=0)
