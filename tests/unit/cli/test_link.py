"""`virtfn link`: its grammar and what it prints, beside what iproute2's `ip link` printed, and prints."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from virtfn.cli.linkwords import read_settings, read_shown
from virtfn.cli.render.link import chosen, render_links

DATA = Path(__file__).parents[2] / "data" / "iplink"
Command = Callable[..., tuple[int, str, str]]
VF0 = {"vf": 0}


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("pf0 vf 0 mac 02:00:00:00:00:55", [{**VF0, "mac": "02:00:00:00:00:55"}]),
        ("dev pf0 vf 0 vlan 10 qos 3 proto 802.1q", [{**VF0, "vlan": 10, "qos": 3, "proto": "802.1Q"}]),
        ("pf0 vf 0 rate 100", [{**VF0, "max_tx_rate": 100}]),
        ("pf0 vf 0 max_tx_rate 0x64 min_tx_rate 0", [{**VF0, "max_tx_rate": 100, "min_tx_rate": 0}]),
        ("pf0 vf 0 spoofchk off trust on", [{**VF0, "spoofchk": False, "trust": True}]),
        ("pf0 vf 0 query_rss off", [{**VF0, "query_rss": False}]),
        ("pf0 vf 0 state disable vf 1 state auto", [{**VF0, "state": "disable"}, {"vf": 1, "state": "auto"}]),
    ],
)  # fmt: skip
def test_sentences_of_ip_link_set(words: str, settings: list[dict[str, object]]) -> None:
    assert read_settings(words.split()) == ("pf0", settings)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "PF is missing"),
        ("dev", "PF is missing"),
        ("pf0", "what is to be set of pf0"),
        ("pf0 up", "'up': only VFs can be set"),
        ("pf0 vf", "number of a VF is missing"),
        ("pf0 vf x mac 02:00:00:00:00:55", "vf x: is no number"),
        ("pf0 vf 0", "what is to be set of VF 0"),
        ("pf0 vf 0 vf 1 trust on", "what is to be set of VF 0"),
        ("pf0 vf 0 colour red", "'colour' is no clause"),
        ("pf0 vf 0 qos 3", "'qos' is of a VLAN"),
        ("pf0 vf 0 vlan", "what follows vlan is missing"),
        ("pf0 vf 0 vlan ten", "vlan ten: is no number"),
        ("pf0 vf 0 rate -1", "rate -1: is no number"),
        ("pf0 vf 0 rate 1 max_tx_rate 2", "'max_tx_rate' is there twice"),
        ("pf0 vf 0 rate 99999999999", "is no number"),
        ("pf0 vf 0 mac 1:2", "'1:2' is not a MAC address"),
        ("pf0 vf 0 spoofchk maybe", "must be one of on, off"),
        ("pf0 vf 0 state up", "must be one of auto, enable, disable"),
        ("pf0 vf 0 vlan 1 proto 802.3", "must be one of 802.1Q, 802.1ad"),
    ],
)
def test_what_is_no_sentence_is_status_2_and_a_line(virtfn: Command, words: str, why: str) -> None:
    status, _, said = virtfn("link", "set", *words.split())
    assert status == 2
    assert why in said
    assert len(said.splitlines()) == 1


def test_what_can_be_shown(virtfn: Command) -> None:
    assert [read_shown(words) for words in ([], ["pf0"], ["dev", "pf0"])] == [None, "pf0", "pf0"]
    for words in (["dev"], ["pf0", "pf1"]):
        status, _, said = virtfn("link", "show", *words)
        assert (status, len(said.splitlines())) == (2, 1)


def as_ours(name: str) -> list:
    """What `ip` said, without the one key that nothing here has."""
    links = json.loads((DATA / f"{name}.json").read_text())
    for link in links:
        del link["txqlen"]
    return links


def as_text(name: str) -> str:
    return (DATA / f"{name}.txt").read_text().replace(" qlen 1000", "")


def test_it_prints_what_ip_prints() -> None:
    for name in ("details", "details-wide"):
        assert render_links(as_ours(name), details=True, statistics=True) == as_text(name)
    links = as_ours("details")
    assert render_links(links, details=False, statistics=False) == as_text("brief")
    assert [chosen(link, details=False, statistics=False) for link in links] == as_ours("brief")
    assert [chosen(link, details=True, statistics=True) for link in links] == links


# The kernel's answer, made here, for the `ip` of this machine to print.


def attribute(kind: int, body: bytes) -> bytes:
    return struct.pack("<HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def vf_attributes(vf: dict) -> bytes:
    n, vlan = vf["vf"], vf["vlan_list"][0]
    mac, everybody = (bytes.fromhex(vf[key].replace(":", "")) for key in ("address", "broadcast"))
    words = {4: vf["spoofchk"], 5: ("auto", "enable", "disable").index(vf["link_state"]), 7: 0, 9: vf["trust"]}
    tag = struct.pack("<III", n, vlan.get("vlan", 0), vlan.get("qos", 0))
    body = attribute(1, struct.pack("<I", n) + mac + bytes(26)) + attribute(13, everybody + bytes(26))
    body += attribute(2, tag) + attribute(6, struct.pack("<III", n, 0, vf["rate"]["max_tx"]))
    body += attribute(3, struct.pack("<II", n, vf["rate"]["max_tx"]))
    body += b"".join(attribute(kind, struct.pack("<II", n, int(value))) for kind, value in words.items())
    return attribute(1, body + attribute(12, attribute(1, tag + b"\x81\0\0\0")))


def link_message(link: dict) -> bytes:
    body = struct.pack("<BxHiII", 0, 1, link["ifindex"], 0x11043, 0)
    body += attribute(3, link["ifname"].encode() + b"\0") + attribute(4, struct.pack("<I", link["mtu"]))
    body += attribute(13, struct.pack("<I", 1000)) + attribute(16, b"\6") + attribute(6, b"noqueue\0")
    body += attribute(1, bytes.fromhex(link["address"].replace(":", ""))) + attribute(2, b"\xff" * 6)
    body += attribute(27, bytes(4)) + attribute(30, bytes(4))
    body += attribute(50, struct.pack("<I", link["min_mtu"])) + attribute(51, struct.pack("<I", link["max_mtu"]))
    vfs = link["vfinfo_list"]
    body += attribute(21, struct.pack("<I", len(vfs))) + attribute(22, b"".join(map(vf_attributes, vfs)))
    body += attribute(56, link["parentdev"].encode() + b"\0") + attribute(57, link["parentbus"].encode() + b"\0")
    return struct.pack("<IHHII", 16 + len(body), 16, 0, 0, 0) + body


@pytest.mark.skipif(shutil.which("ip") is None, reason="no iproute2 here")
def test_the_ip_of_this_machine_prints_the_same(tmp_path: Path) -> None:
    links = as_ours("details")
    (tmp_path / "message").write_bytes(link_message(links[0]))
    command = ["ip", "-d", "monitor", "link", "file", str(tmp_path / "message")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ours = render_links(links, details=True, statistics=False).splitlines()
    vfs = [line for line in ours if line.startswith("    vf ")]
    assert len(vfs) == 3
    assert [line for line in said if line.startswith("    vf ")] == vfs
