"""Policy of VFs on a lab that is up: what it answers, and that a call holds as a whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import pytest

from unit.rig import lab_text
from virtfn.api.control import ask
from virtfn.api.lab import parse_lab
from virtfn.api.session import Clauses, Session, SetLinks, ShowLinks, set_policies
from virtfn.api.session.changes import AttachGuest, DetachGuest, SetVfs
from virtfn.api.session.events import HostWatch, VfsChanged, VfSpoofed
from virtfn.api.session.service import StartTraffic
from virtfn.api.session.watching import ListVfs, QuarantineVf, ReleaseVf
from virtfn.drivers.policy import LinkState, VfPolicy
from virtfn.hw.types import Ps, parse_mac
from virtfn.machine.clock import S_PS
from virtfn.machine.ports import VirtfnError

POLICIES = "[{id: 0, vlan-id: 10, qos: 3, max-tx-rate: 100}]"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    text = lab_text(policies=POLICIES, workload="{kind: pairs, frames: 2000}", link_mbps=1000)
    with Session(parse_lab(text)) as made:
        made.start()
        yield made


def setting(session: Session, **words: object) -> Any:
    return session.ask(SetLinks.from_params({"pf": "pf0", "settings": [{"vf": 1, **words}]}))


def vf(session: Session, n: int) -> dict[str, Any]:
    return session.ask(ShowLinks())[0]["vfinfo_list"][n]


def test_a_pf_and_its_vfs_have_the_keys_of_ip(session: Session) -> None:
    (link,) = session.ask(ShowLinks("pf0"))
    assert [link[key] for key in ("ifindex", "ifname", "operstate", "address", "parentdev", "max_mtu")] == [
        1, "pf0", "UP", "02:76:00:01:00:00", "0000:01:00.0", 9706,
    ]  # fmt: skip
    assert link["flags"] == ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"]
    first, second = link["vfinfo_list"][:2]
    assert len(link["vfinfo_list"]) == 4
    assert (first["vlan_list"], first["tx_rate"], first["rate"]) == (
        [{"vlan": 10, "qos": 3}],
        100,
        {"max_tx": 100, "min_tx": 0},
    )
    assert second == {
        "vf": 1, "link_type": "ether", "address": "02:00:00:00:00:11", "broadcast": "ff:ff:ff:ff:ff:ff",
        "vlan_list": [{}], "rate": {"max_tx": 0, "min_tx": 0}, "spoofchk": True, "link_state": "auto",
        "trust": False, "query_rss_en": False,
        "stats": {
            "rx": {"bytes": 0, "packets": 0, "multicast": 0, "broadcast": 0, "dropped": 0},
            "tx": {"tx_bytes": 0, "tx_packets": 0, "dropped": 0},
        },
    }  # fmt: skip


def test_several_clauses_hold_at_once_and_are_told(session: Session) -> None:
    (link,) = setting(
        session, mac="02:00:00:00:00:55", vlan=20, qos=1, proto="802.1Q", max_tx_rate=50, min_tx_rate=0, spoofchk=False,
        trust=True, state="disable", query_rss=False,
    )  # fmt: skip
    now = link["vfinfo_list"][1]
    assert now["address"] == "02:00:00:00:00:55"
    assert now["vlan_list"] == [{"vlan": 20, "qos": 1}]
    assert (now["tx_rate"], now["spoofchk"], now["trust"], now["link_state"]) == (50, False, True, "disable")
    setting(session, mac="00:00:00:00:00:00", vlan=0, max_tx_rate=0, spoofchk=True, trust=False, state="auto")
    assert {**vf(session, 1), "stats": None} == {
        "vf": 1, "link_type": "ether", "address": "02:00:00:00:00:11", "broadcast": "ff:ff:ff:ff:ff:ff",
        "vlan_list": [{}], "rate": {"max_tx": 0, "min_tx": 0}, "spoofchk": True, "link_state": "auto",
        "trust": False, "query_rss_en": False, "stats": None,
    }  # fmt: skip


def test_of_a_pf_that_a_guest_drives_registers_say_what_is_in_force(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    pf = session.machine.pfs[0]
    for rate in (1, 7, 333, 999):
        setting(session, mac="02:00:00:00:00:55", vlan=20, qos=1, max_tx_rate=rate, spoofchk=rate > 7)
        (driven,) = session.ask(ShowLinks())
        for each in driven["vfinfo_list"]:
            del each["trust"], each["link_state"]  # Linux's igb has neither in a register
        with monkeypatch.context() as patched:
            patched.setattr(pf, "driven", False)
            assert session.ask(ShowLinks()) == [driven]
            listed = session.ask(ListVfs())
            assert [(each["vf"], each["state"], each["watch"]) for each in listed[4:]] == [
                (n, "assigned", {}) for n in range(4)
            ]
            for refused in (
                SetLinks("pf0", ((9, Clauses(mac="nonsense")),)), SetVfs("pf0", 2), QuarantineVf("pf0", 0),
                ReleaseVf("pf0", 7),
            ):  # fmt: skip
                with pytest.raises(VirtfnError, match="pf0 is a guest's, whole") as caught:
                    session.ask(refused)
                assert caught.value.errno_name == "EBUSY"
    setting(session, mac="00:00:00:00:00:00", vlan=0, max_tx_rate=0, spoofchk=True)


def test_vfs_that_a_guest_makes_are_told_of() -> None:
    told: list[Any] = []
    card = SimpleNamespace(vfs=0, conduct=list)
    watch = HostWatch(told.append, "pf0", "host", cast(Any, card))
    for count in (0, 3, 3, 0):
        card.vfs = count
        watch.turn(Ps(0))
    assert told == [VfsChanged("pf0", 0, 3), VfsChanged("pf0", 3, 0)]
    assert watch.due() is None, "nobody is there who could spoof"


def test_what_vfs_of_a_host_spoof_is_told_of_once_a_second() -> None:
    told: list[Any] = []
    spoofed = [0, 0]
    card = SimpleNamespace(
        vfs=2, conduct=lambda: [SimpleNamespace(spoofed=n) for n in spoofed], vf_rid=lambda n: 0x180 + 2 * n
    )
    watch = HostWatch(told.append, "pf0", "host", cast(Any, card))
    watch.turn(Ps(0))
    spoofed[1] = 20
    watch.turn(Ps(1))
    assert told == []
    for s in (1, 2):
        assert watch.due() == s * S_PS
        watch.turn(Ps(s * S_PS))
    assert told == [VfSpoofed("pf0", 1, "0000:01:10.2", "host", 20)]
    for ms in range(2001, 2999, 100):
        spoofed[1] += 1
        watch.turn(Ps(ms * S_PS // 1000))
    assert len(told) == 1, "once a second, however often it does it"
    watch.turn(Ps(3 * S_PS))
    assert told[1:] == [VfSpoofed("pf0", 1, "0000:01:10.2", "host", 10)]


@pytest.mark.parametrize(
    ("words", "errno_name"),
    [
        ({"min_tx_rate": 10}, "EOPNOTSUPP"),
        ({"query_rss": True}, "EOPNOTSUPP"),
        ({"state": "enable"}, "EOPNOTSUPP"),
        ({"vlan": 5, "proto": "802.1ad"}, "EPROTONOSUPPORT"),
        ({"vlan": 4095}, "EINVAL"),
        ({"vlan": 5, "qos": 8}, "EINVAL"),
        ({"vlan": 0, "qos": 3}, "EINVAL"),
        ({"qos": 3}, "EINVAL"),
        ({"vlan": -1}, "EINVAL"),
        ({"max_tx_rate": 1001}, "EINVAL"),
        ({"mac": "01:00:00:00:00:01"}, "EINVAL"),
        ({"mac": "nonsense"}, "EINVAL"),
        ({"mac": "02:76:00:01:00:00"}, "EADDRINUSE"),
        ({"mac": "02:00:00:00:00:10"}, "EADDRINUSE"),
        ({"state": "up"}, "EINVAL"),
        ({"vlan": True}, "EINVAL"),
        ({"trust": 1}, "EINVAL"),
        ({"colour": "red"}, "EINVAL"),
    ],
)
def test_what_is_refused_takes_everything_with_it(session: Session, words: dict[str, object], errno_name: str) -> None:
    before = [vf(session, n) for n in range(4)]
    good = {"vf": 0, "vlan": 30, "qos": 2, "trust": True, "max_tx_rate": 10, "spoofchk": False}
    with pytest.raises(VirtfnError) as caught:
        session.ask(SetLinks.from_params({"pf": "pf0", "settings": [good, {"vf": 1, "trust": True, **words}]}))
    assert caught.value.errno_name == errno_name
    assert [vf(session, n) for n in range(4)] == before


@pytest.mark.parametrize(
    ("params", "errno_name"),
    [
        ({"pf": "pf0"}, "EINVAL"),
        ({"pf": "pf0", "settings": []}, "EINVAL"),
        ({"pf": "pf0", "settings": [{}]}, "EINVAL"),
        ({"pf": "pf0", "settings": [{"vf": 4, "trust": True}]}, "EINVAL"),
        ({"pf": "pf0", "settings": [{"vf": -1, "trust": True}]}, "EINVAL"),
        ({"pf": "pf0", "settings": [7]}, "EINVAL"),
        ({"pf": "pf9", "settings": [{"vf": 0, "trust": True}]}, "ENODEV"),
        ({"pf": 0, "settings": [{"vf": 0, "trust": True}]}, "EINVAL"),
        ({"pf": "pf0", "settings": [{"vf": 0, "trust": True}], "x": 1}, "EINVAL"),
    ],
)
def test_nonsense_is_refused_by_name(session: Session, params: dict[str, object], errno_name: str) -> None:
    with pytest.raises(VirtfnError) as caught:
        session.ask(SetLinks.from_params(params))
    assert caught.value.errno_name == errno_name


def test_two_vfs_change_addresses(session: Session) -> None:
    one, other = "02:00:00:00:00:61", "02:00:00:00:00:62"
    for first, second in ((one, other), (other, one), ("00:00:00:00:00:00",) * 2):
        settings = [{"vf": 2, "mac": first}, {"vf": 3, "mac": second}]
        session.ask(SetLinks.from_params({"pf": "pf0", "settings": settings}))
        if first[0:2] == "02":
            assert (vf(session, 2)["address"], vf(session, 3)["address"]) == (first, second)


def test_a_guest_that_comes_later_gets_what_was_set(session: Session) -> None:
    machine = session.machine
    pf = machine.pfs[0]
    set_policies(pf, {3: VfPolicy(vlan=77)})
    free = machine.iovm.vf(pf.nic.pf_rid, 3)
    assert machine.policy(pf, free) == VfPolicy(vlan=77)
    assert machine.policy(pf, machine.iovm.vf(pf.nic.pf_rid, 0)).vlan == 10
    set_policies(pf, {3: VfPolicy()})


def test_a_vf_without_a_guest_keeps_what_the_lab_says_of_it() -> None:
    said = '[{id: 2, vlan-id: 10, mac-address: "02:00:00:00:00:aa", max-tx-rate: 50}]'
    text = lab_text([("pf0", 0), ("pf0", 1), ("pf0", 2)], policies=said, link_mbps=1000)
    with Session(parse_lab(text.replace("vf: 2}", "vf: 2, attached: false}")), standing=True) as made:
        made.start()
        for words in ({"trust": True}, {"spoofchk": False}):  # the second leaves what the first has said
            made.ask(SetLinks.from_params({"pf": "pf0", "settings": [{"vf": 2, **words}]}))
        before = vf(made, 2)
        made.ask(AttachGuest("c"))
        assert made.machine.pf("pf0").driver.policy(2) == VfPolicy(
            mac=parse_mac("02:00:00:00:00:aa"), vlan=10, max_tx_rate=50, trust=True, spoof_check=False
        )
        assert vf(made, 2) == before
        assert (before["address"], before["vlan_list"], before["tx_rate"]) == (
            "02:00:00:00:00:aa",
            [{"vlan": 10}],
            50,
        )
        made.ask(DetachGuest("c"))
        assert {**vf(made, 2), "stats": None} == {**before, "stats": None}


def test_what_a_lab_says_of_a_free_vf_is_shown() -> None:
    said = '[{id: 3, vlan-id: 10, mac-address: "02:00:00:00:00:aa"}]'
    with Session(parse_lab(lab_text(policies=said)), standing=True) as made:
        made.start()
        assert (vf(made, 3)["address"], vf(made, 3)["vlan_list"]) == ("02:00:00:00:00:aa", [{"vlan": 10}])


def test_a_pf_that_a_guest_has_whole_is_set_there() -> None:
    text = lab_text([("pf0", 0), ("pf0", 1), ("pf1", 0)])
    text = text.replace("pf1, model: 82576, link-mbps: 0, sr-iov: {total-vfs: 4}", "pf1")
    text = text.replace("pf: pf1, io: sriov, vf: 0", "pf: pf1, io: passthrough")
    with Session(parse_lab(text, works=False), by_hand=True) as made:
        made.start()
        with pytest.raises(VirtfnError, match="is a guest's, whole") as caught:
            made.ask(SetLinks.from_params({"pf": "pf1", "settings": [{"vf": 0, "trust": True}]}))
        assert caught.value.errno_name == "EBUSY"


def test_clauses_leave_the_rest_as_it_is() -> None:
    policy = VfPolicy(vlan=5, qos=2, max_tx_rate=10, link_state=LinkState.DISABLE, trunk=frozenset())
    assert Clauses(trust=True).applied_to(policy) == VfPolicy(
        vlan=5, qos=2, max_tx_rate=10, link_state=LinkState.DISABLE, trust=True
    )
    assert Clauses(vlan=6).applied_to(policy).qos == 0, "as ip link: a VLAN without qos has priority 0"


def test_it_is_set_while_frames_move(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    text = lab_text(workload="{kind: pairs, frames: 1000}")
    with Session(parse_lab(text), controlled=True, standing=True) as made, ThreadPoolExecutor(1) as pool:
        made.start()
        made.ask(StartTraffic(rate=20_000))

        def change() -> list[float]:
            took = []
            for i in range(60):
                before = time.perf_counter()
                ask("link.set", {"pf": "pf0", "settings": [{"vf": i % 2, "trust": i % 4 < 2, "vlan": 0}]}, "rig", 10)
                took.append(time.perf_counter() - before)
            return took

        sent = made.snapshot()["guests"][0]["tx_frames"]
        asked = pool.submit(change)
        assert made.run_until(asked.done, 60 * S_PS)
        assert made.snapshot()["guests"][0]["tx_frames"] > sent + 100
        # 10 ms on a machine that does nothing else.
        assert median(asked.result()) < 0.1
        print(f"link.set: median {median(asked.result()) * 1e3:.2f} ms")
