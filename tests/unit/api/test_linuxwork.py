"""The work of Linux guests, with guests that answer from a list: who talks to whom, what is read, what is reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from virtfn.api.lab import parse_lab
from virtfn.api.linuxwork import LinuxWork, Ping, iperf_mbps, read_ping, read_statistics
from virtfn.api.report import Report, verdict
from virtfn.machine.meter import Meter
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Job, Outcome

SUMMARY = """\
PING 10.82.0.2 (10.82.0.2) from 10.82.0.1 eth0: 1472(1500) bytes of data.

--- 10.82.0.2 ping statistics ---
{sent} packets transmitted, {answered} received{more}, 0% packet loss, time 61ms
rtt min/avg/max/mdev = 1.100/2.250/4.000/0.300 ms, ipg/ewma 5.1/2.2 ms
"""
LINK = {"stats64": {"rx": {"packets": 100, "bytes": 9000, "errors": 0}, "tx": {"packets": 100, "bytes": 9000}}}


def test_the_summary_of_a_ping() -> None:
    assert read_ping(SUMMARY.format(sent=10, answered=9, more=", +2 duplicates")) == Ping(10, 9, 2, 2.25)
    assert read_ping(SUMMARY.format(sent=10, answered=10, more="")) == Ping(10, 10, 0, 2.25)
    assert read_ping("3 packets transmitted, 0 received, 100% packet loss, time 2031ms\n\n") == Ping(3, 0, 0, None)
    assert read_ping("ping: connect: Network is unreachable\n") is None


@pytest.mark.parametrize("times", ["1/1.2.3/", "1/./", f"1/{'9' * 400}/", f"{'9' * 5000}/1/"])
def test_numbers_of_a_ping_that_a_guest_makes_up(times: str) -> None:
    said = f"1 packets transmitted, 1 received\nrtt min/avg/max/mdev = {times}"
    assert read_ping(said) == Ping(1, 1, 0, None)
    assert read_ping(f"{'9' * 5000} packets transmitted, 1 received\n{times}") is None


def test_what_iperf3_says() -> None:
    assert iperf_mbps('{"end": {"sum_received": {"bits_per_second": 4e8}}}') == pytest.approx(400)
    with pytest.raises(VirtfnError, match="unable to connect"):
        iperf_mbps('{"error": "unable to connect to server"}')
    huge = '{"end": {"sum_received": {"bits_per_second": 1' + "0" * 400 + "}}}"
    made_up = ["[" * 100_000, huge, '{"end": {"sum_received": {"bits_per_second": 1e999}}}', '{"end": [1]}']
    for broken in ("", "sh: iperf3: not found\n", "[]", '{"end": {}}', '{"end": {"sum_received": []}}', *made_up):
        with pytest.raises(VirtfnError, match="iperf3: "):
            iperf_mbps(broken)


@pytest.mark.parametrize(
    "made_up",
    ["", "null", "[" * 100_000, "[{}]", '[{"stats64": []}]']
    + [json.dumps([LINK]).replace("9000", bad) for bad in ('"9"', "-1", "1e999", "true", str(1 << 64), "null")],
)
def test_statistics_that_a_guest_makes_up(made_up: str) -> None:
    guest = SimpleNamespace(lab=SimpleNamespace(name="g"))
    with pytest.raises(VirtfnError, match="guest g: ip -s link: "):
        read_statistics(guest, [json.dumps([LINK]), made_up])  # type: ignore[arg-type]


@dataclass
class Answers:
    """Guests that do as `answer` says. told: (guest, command) of everything started, in turns."""

    guests: list[Any] = field(default_factory=list)
    told: list[list[tuple[str, str]]] = field(default_factory=lambda: [[]])
    answer: Callable[[str, str], Outcome | None] = lambda guest, command: None

    @property
    def plain(self) -> list[Any]:
        """Those that make no VFs: all."""
        return self.guests

    def start(self, guest: str, command: str) -> Job:
        self.told[-1].append((guest, command))
        known = self.answer(guest, command)
        if known is None and " ping " in command:
            known = Outcome(0, SUMMARY.format(sent=100, answered=100, more=""))
        if known is None and "iperf3 -J" in command:
            known = Outcome(0, '{"end": {"sum_received": {"bits_per_second": 1e8}}}')
        if known is None and command.startswith("ip -s"):
            known = Outcome(0, json.dumps([LINK]))
        return Job(command, known or Outcome(0, ""))

    def wait(self, jobs: Sequence[Job], phase: str, timeout_s: float) -> list[Outcome]:
        self.told.append([])
        return [cast(Outcome, job.outcome) for job in jobs]


def work_of(
    kind: str, guests: int, drops: dict[str, int] | None = None, uplink: str = "none", **more: str
) -> tuple[LinuxWork, Answers]:
    vms = "".join(f"  - {{name: g{n}, vmm: qemu, nic: {{pf: p, vf: {n}}}}}\n" for n in range(guests))
    keys = "".join(f", {key}: {value}" for key, value in more.items())
    pfs = f"pfs: [{{name: p, uplink: '{uplink}', sr-iov: {{total-vfs: 8}}}}]\n"
    lab = parse_lab(f"name: l\n{pfs}guests:\n{vms}workload: {{kind: {kind}{keys}}}\n")
    answers = Answers()
    pf = SimpleNamespace(name="p", host_drops=dict)
    for n, guest in enumerate(lab.guests):
        vm = SimpleNamespace(messages=n, interrupts=n, meter=Meter())
        vm.meter.add("exit_bar", n)
        vm.meter.add("interrupts", n)
        plug = SimpleNamespace(
            address=f"0000:01:10.{n}", drops=lambda: drops or {}, messages=lambda: 3, claims=lambda: 0
        )
        each = SimpleNamespace(
            lab=guest, vm=vm, pf=pf, plug=plug, mac=2, ip=f"10.82.0.{n + 1}", boot_s=9.0, device="eth0"
        )
        each.start = lambda command, name=guest.name: answers.start(name, command)
        answers.guests.append(each)
    machine = SimpleNamespace(lab=lab)
    return LinuxWork(cast(Any, machine), cast(Any, answers)), answers


def talks(answers: Answers, word: str) -> list[list[tuple[str, str]]]:
    """Who talked to whom, in turns."""
    found = []
    for turn in answers.told:
        pairs = [(guest, "g" + str(int(c.partition("10.82.0.")[2][0]) - 1)) for guest, c in turn if word in c]
        if pairs:
            found.append(pairs)
    return found


def test_pairs_talk_both_ways_one_after_the_other() -> None:
    work, answers = work_of("pairs", 4)
    work.run()
    both = [[("g0", "g1"), ("g2", "g3")], [("g1", "g0"), ("g3", "g2")]]
    assert talks(answers, "ping") == both
    assert talks(answers, "iperf3 -J") == both


def test_an_odd_number_pings_in_a_ring() -> None:
    work, answers = work_of("ping", 3)
    work.run()
    assert talks(answers, "ping") == [[("g0", "g1")], [("g1", "g2")], [("g2", "g0")]]
    assert talks(answers, "iperf3 -J") == []


def test_a_guest_alone_beside_an_uplink_tests_its_link() -> None:
    work, answers = work_of("ping", 1, uplink="stream:wire")
    work.run()
    assert talks(answers, "ping") == []
    assert ("g0", "ethtool -t eth0 offline") in [told for turn in answers.told for told in turn]
    (report,) = work.reports()
    assert report["self_test"] == "passed"
    assert work.flows == []
    assert verdict(report_of(work)).passed


def test_a_guest_alone_whose_link_fails_fails_the_run() -> None:
    work, answers = work_of("ping", 1, uplink="tap:tap7")
    answers.answer = lambda guest, command: (
        Outcome(1, "The test result is FAIL\n") if command.startswith("ethtool") else None
    )
    work.run()
    assert verdict(report_of(work)).words.startswith("g0: ethtool -t: The test result is FAIL")


def test_all_send_to_the_first_at_once() -> None:
    work, answers = work_of("fan-in", 4)
    work.run()
    assert talks(answers, "iperf3 -J") == [[("g1", "g0"), ("g2", "g0"), ("g3", "g0")]]
    ports = {c.partition("-p ")[2][:4] for turn in answers.told for _, c in turn if "iperf3 -J" in c}
    assert len(ports) == 3


@pytest.mark.parametrize(
    ("frame_bytes", "count", "payload"), [("64", "5", "18"), ("1518", "1000", "1472"), ("9018", "7", "8972")]
)
def test_pings_have_the_size_and_number_that_the_lab_says(frame_bytes: str, count: str, payload: str) -> None:
    work, answers = work_of("ping", 2, **{"frame-bytes": frame_bytes, "frames": count})
    work.run()
    command = next(c for turn in answers.told for _, c in turn if " ping " in c)
    assert f" -c {count} -s {payload} " in command


def test_the_report_of_a_guest() -> None:
    work, _ = work_of("pairs", 2)
    work.run()
    first, second = work.reports()
    assert first["ping_ms"] == 2.25
    assert second["iperf_mbps"] == 100
    assert (first["vmm"], first["tx_frames"], first["rx_bytes"], first["boot_s"]) == ("qemu", 100, 9000, 9.0)
    assert "failure" not in first
    assert verdict(report_of(work)).passed


def report_of(work: LinuxWork) -> Report:
    guests = work.reports()
    switch = {"forwarded": 1, "flooded": 0, "dropped": {}}
    return cast(
        Report,
        {
            "virtfn": "0", "lab": "l", "elapsed_s": 1.0, "compile_s": 0.0, "guests": guests,
            "pfs": [{"name": "p", "model": 82576, "address": "0000:01:00.0", "vfs": 2, "switch": switch}],
            "flows": work.flows,
            "iommu": {"domains": 2, "translations": 1, "iotlb_hits": 1, "page_walks": 1, "faults": 0},
            "totals": {
                "frames": sum(g["rx_frames"] for g in guests), "bytes": 1, "mpps": 0.0, "gbps": 0.0, "moving_s": 1.0,
            },
        },
    )  # fmt: skip


def test_a_ping_that_fails_fails_the_run_in_the_guests_words() -> None:
    work, answers = work_of("pairs", 2)
    answers.answer = lambda guest, command: (
        Outcome(2, "ping: connect: Network is unreachable\n") if " ping " in command and guest == "g1" else None
    )
    work.run()
    judged = verdict(report_of(work))
    assert not judged.passed
    assert judged.words == "g1: ping g0: ping: connect: Network is unreachable"
    assert talks(answers, "iperf3 -J") == [[("g0", "g1")]]  # the other has failed already


def test_an_iperf3_that_fails_fails_the_run() -> None:
    work, answers = work_of("pairs", 2)
    answers.answer = lambda guest, command: (
        Outcome(1, '{"error": "unable to connect"}') if "iperf3 -J" in command and guest == "g0" else None
    )
    work.run()
    assert verdict(report_of(work)).words == "g0: to g1: iperf3: unable to connect"


def test_a_ping_that_is_ended_has_sent_what_it_says() -> None:
    work, answers = work_of("ping", 2)
    ended = Outcome(124, SUMMARY.format(sent=9, answered=8, more=""))
    answers.answer = lambda _, command: ended if " ping " in command else None
    work.run()
    assert [guest["lost"] for guest in work.reports()] == [1, 1]
    assert [(flow["sent"], flow["heard"]) for flow in work.flows] == [(9, 8), (9, 8)]


def test_missing_pings_are_lost_unless_a_drop_counter_explains_them() -> None:
    drops: dict[str, int] = {"no-descriptor": 4}
    work, answers = work_of("ping", 2, drops)

    def answer(guest: str, command: str) -> Outcome | None:
        if " ping " not in command:
            return None
        drops["no-descriptor"] += 1 if guest == "g0" else 0  # both guests show it here: it counts twice
        return Outcome(0, SUMMARY.format(sent=100, answered=97, more=""))

    answers.answer = answer
    work.run()
    assert [report["lost"] for report in work.reports()] == [1, 3]
    assert "lost without a reason" in verdict(report_of(work)).words


def test_linux_guests_that_do_not_hear_each_other_are_named_with_the_reason() -> None:
    drops: dict[str, int] = {"echo": 0}
    work, answers = work_of("pairs", 2, drops)

    def answer(guest: str, command: str) -> Outcome | None:
        if " ping " not in command:
            return None
        drops["echo"] += 3  # for an address that is not resolved
        return Outcome(1, SUMMARY.format(sent=100, answered=0, more=""))

    answers.answer = answer
    work.run()
    judged = verdict(report_of(work))
    assert not judged.passed
    assert judged.words == "g1 answered 0 of 100 pings of g0: echo; g0 answered 0 of 100 pings of g1: echo"
    assert talks(answers, "iperf3 -J") == []


def test_a_guest_that_cannot_tell_its_statistics_ends_the_run() -> None:
    work, answers = work_of("ping", 2)
    answers.answer = lambda guest, command: (
        Outcome(1, "Device eth0 does not exist.\n") if command.startswith("ip ") else None
    )
    with pytest.raises(VirtfnError, match="guest g0: ip -s link: Device eth0 does not exist"):
        work.run()
