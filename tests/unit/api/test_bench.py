"""The bench: what its frames look like, and that what it measures arrives."""

from __future__ import annotations

import random

import pytest

from reference import csum as twin
from virtfn.api.bench import run_bench
from virtfn.api.frames import IMIX, TRAFFIC, make_frame
from virtfn.hw.types import Mac

SOURCE, TARGET = Mac(0x100000000002), Mac(0x110000000002)


@pytest.mark.parametrize("name", ["ipv4-udp", "ipv6-tcp", "tagged", "imix"])
@pytest.mark.parametrize("size", [78, 79, 594, 1518])
def test_checksums_of_frames_are_right(name: str, size: int) -> None:
    traffic = TRAFFIC[name]
    frame = make_frame(traffic, size, 7, SOURCE, TARGET, random.Random(1))
    packet = frame.arrives[18 if traffic.tag else 14 :]
    assert len(frame.arrives) == size - 4
    if traffic.name == "ipv6-tcp":
        addresses, segment = packet[8:40], packet[40:]
        protocol, length = packet[6], int.from_bytes(packet[4:6], "big")
    else:
        addresses, segment = packet[12:20], packet[20:]
        protocol, length = packet[9], int.from_bytes(packet[2:4], "big") - 20
        assert twin.ones_sum(packet[:20]) % 0xFFFF == 0
    assert length == len(segment)
    pseudo = addresses + protocol.to_bytes(2, "big") + length.to_bytes(2, "big")
    assert twin.ones_sum(pseudo + segment + bytes(len(segment) & 1)) % 0xFFFF == 0


def test_flows_differ_and_frames_of_a_flow_do_not() -> None:
    rng = random.Random(1)
    ports = [make_frame(TRAFFIC["imix"], 64, flow, SOURCE, TARGET, rng).given[26:38] for flow in (0, 1, 0)]
    assert ports[0] == ports[2] != ports[1]


def test_imix_is_seven_to_four_to_one() -> None:
    assert [IMIX.count(size) for size in (64, 594, 1518)] == [7, 4, 1]


def test_each_kind_of_traffic_is_measured() -> None:
    report = run_bench(seconds=0.1)
    found = [(p["traffic"], p["frame_bytes"]) for p in report["points"]]
    assert found == [
        *(("like", size) for size in (64, 1518)),
        *(("receivers", size) for size in (64, 1518)),
        *(("ipv4-udp", size) for size in (64, 1518)),
        *(("ipv6-tcp", size) for size in (78, 1518)),
        *(("tagged", size) for size in (64, 1518)),
        ("imix", 362),
    ]
    keys = {"path", "traffic", "frame_bytes", "mpps", "gbps", "copy_ratio", "vfs"}
    assert all(set(p) == keys and p["mpps"] > 0 and p["path"] == "vf-to-vf" for p in report["points"])
    assert set(report["copy_gbps"]) == {"64", "78", "362", "1518"}


def test_sizes_that_are_asked_for_are_measured() -> None:
    report = run_bench([128], seconds=0.1, traffic=["ipv6-tcp"])
    assert [p["frame_bytes"] for p in report["points"]] == [128]


@pytest.mark.parametrize("traffic", ["like", "tagged", "receivers"])
def test_the_largest_frames_are_measured(traffic: str) -> None:
    report = run_bench([9728], seconds=0.1, traffic=[traffic])
    assert [p["frame_bytes"] for p in report["points"]] == [9728]
