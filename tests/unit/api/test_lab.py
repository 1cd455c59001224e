"""Lab files: what they may say, and that each thing wrong is one line with file, line, key and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtfn.api.lab import Guest, LabError, Nic, builtin_lab, load_lab, parse_lab, refuse_unsupported, schema
from virtfn.machine.ports import VirtfnError

EXAMPLE = """\
name: two-guests
pfs:
  - name: pf0
    model: 82576
    link-mbps: 1000
    uplink: none
    sr-iov:
      total-vfs: 4
      vfs:
        - {id: 0, mac-address: "02:00:00:00:00:10", vlan-id: 10, qos: 0, spoof-check: true, trust: false,
           link-state: auto, max-tx-rate: 100, min-tx-rate: 0}
        - {mac-address: "02:00:00:00:00:11"}
guests:
  - {name: a, vmm: embedded, memory-mib: 64, nic: {pf: pf0, io: sriov, vf: 0}}
  - {name: b, vmm: embedded, memory-mib: 64, nic: {pf: pf0, io: sriov, vf: 1}}
workload:
  kind: pairs
  frame-bytes: 1518
  frames: 100000
"""


def refusal(text: str, folder: Path | None = None) -> str:
    with pytest.raises(LabError) as caught:
        parse_lab(text, "lab.yaml", folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 300
    assert caught.value.exit_status == 2
    return message


def test_the_lab_of_the_design_is_a_lab() -> None:
    lab = parse_lab(EXAMPLE)
    assert lab.pfs[0].total_vfs == 4
    assert [p.id for p in lab.pfs[0].sr_iov.vfs] == [0, 1]  # type: ignore[union-attr]
    assert lab.pf("pf0").policy(0).vlan_id == 10
    assert lab.pf("pf0").policy(3).spoof_check
    assert [g.nic.vf for g in lab.guests] == [0, 1]
    assert lab.workload.frames_each == 100000
    refuse_unsupported(lab)


SHARED = """\
name: shared  # a comment
pfs:
  - {name: pf0, sr-iov: {total-vfs: 4, vfs: [&policy {id: 0, vlan-id: 10, qos: 1}, {<<: *policy, id: 1, qos: 2}]}}
guests:
  - &guest
    name: a
    memory-mib: &memory 16
    nic: &nic {pf: pf0, vf: 0}
  - {<<: *guest, name: b, nic: {<<: *nic, vf: 1}}
  - {<<: [{memory-mib: *memory}, *guest], name: c, nic: {vf: 2, <<: *nic}}
workload: {kind: fan-in}
"""


def test_anchors_aliases_and_merges_are_what_they_are_in_yaml() -> None:
    lab = parse_lab(SHARED)
    assert [(g.name, g.memory_mib, g.nic.pf, g.nic.vf) for g in lab.guests] == [
        ("a", 16, "pf0", 0),
        ("b", 16, "pf0", 1),
        ("c", 16, "pf0", 2),
    ]
    assert [(p.id, p.vlan_id, p.qos) for p in lab.pfs[0].sr_iov.vfs] == [(0, 10, 1), (1, 10, 2)]  # type: ignore[union-attr]


def test_a_fault_in_what_is_merged_is_told_where_it_is_written() -> None:
    assert refusal(SHARED.replace("&memory 16", "&memory 15")).startswith("lab.yaml:7: guests[0].memory-mib: must be a")
    text = SHARED.replace("nic: &nic {pf: pf0, vf: 0}", "nic: &nic {pf: pf0, vf: 0}\n    zzz: 1")
    assert refusal(text).startswith("lab.yaml:9: guests[0].zzz: is not a key here")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: &a [*a]\n", "'a' is the name of no value above"),
        ("*\ud7fc", "'\\ud7fc' is the name of no value above; write & and that name before one"),
        ("<<: &x {a: 1}\n<<: *x\n", "is given twice"),
        ("a: &a " + "[" * 9 + "x" + "]" * 9 + "\nb: [[[[[[[[[*a]]]]]]]]]\n", "is nested deeper than 16 levels"),
    ],
)
def test_aliases_have_bounds(text: str, complaint: str) -> None:
    assert complaint in refusal(text)


def test_a_small_file_does_not_become_a_large_one() -> None:
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "aliases add more than 8192 values; no lab is so large" in refusal("\n".join(laughs) + "\n")
    merges = ["a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(200)) + "}"]
    merges += [f"b{n}: {{<<: [{', '.join(['*a0'] * 50)}]}}" for n in range(50)]
    assert "aliases add more than 8192 values" in refusal("\n".join(merges) + "\n")


def test_a_guest_alone_on_its_pf_is_named() -> None:
    text = EXAMPLE.replace("guests:", "  - {name: pf1, sr-iov: {total-vfs: 1}}\nguests:").replace(
        "{pf: pf0, io: sriov, vf: 1}", "{pf: pf1, vf: 0}"
    )
    said = "guests[0].nic.pf: a is the only embedded guest on pf0, and pairs needs two there; give it the PF of another"
    assert said in refusal(text)


def test_what_a_model_cannot_have_is_named_with_its_remedy() -> None:
    whole = EXAMPLE.replace("io: sriov, vf: 1", "io: passthrough")
    assert "pfs[0].sr-iov: pf0 is given whole to guest b; leave sr-iov out" in refusal(whole)
    two = "name: x\npfs: [{name: p}]\nguests:\n" + "".join(
        f"  - {{name: {name}, nic: {{pf: p, io: passthrough}}}}\n" for name in "ab"
    )
    said = "guests[1].nic.pf: p belongs to guest a, whole; take another PF"
    assert said in refusal(two + "workload: {kind: pairs}\n")
    split = EXAMPLE.replace("io: sriov, vf: 1", "io: split")
    refuse_unsupported(parse_lab(split))
    with pytest.raises(VirtfnError, match=r"frame-bytes: 9000 for guests with io split is not supported .* use 1518"):
        refuse_unsupported(parse_lab(split.replace("frame-bytes: 1518", "frame-bytes: 9000")))
    assert "guests[1].nic.vf: io split takes no VF; leave vf out" in refusal(
        split.replace("io: split", "io: split, vf: 1")
    )
    said = "dom0.memory-mib: io split of guest b needs 8 or more for the host's rings, not 4; raise it"
    assert said in refusal(split + "dom0: {memory-mib: 4}\n")
    full = lab_of(2).replace("io: sriov, vf: 1", "io: direct").replace("vf: 1", "io: direct")
    assert "no pool of pf0 is left for the host, as io direct of guest g1 needs; use 7 or fewer" in refusal(full)


@pytest.mark.parametrize(
    ("text", "value"),
    [("all", "all"), ("none", "none"), ("90%", 0.9), ("0.25", 0.25), ("1", 1.0), ("0", 0.0), ("12.5 %", 0.125)],
)
def test_what_is_expected_of_a_pair_is_the_receivers_before_the_workloads(text: str, value: str | float) -> None:
    lab = parse_lab(EXAMPLE.replace("name: b,", f"name: b, expect: {text},"))
    assert lab.expected("a", "b") == value
    assert lab.expected("b", "a") == "all-but-overruns"
    lab = parse_lab(EXAMPLE.replace("name: b,", f"name: b, expect: {{a: {text}}},"))
    assert lab.expected("a", "b") == value
    lab = parse_lab(EXAMPLE.replace("frames: 100000", f"expect: {text}"))
    assert lab.expected("b", "a") == value


@pytest.mark.parametrize(
    ("kind", "guest", "refused"),
    [
        ("broadcast", "a", "nobody sends to a in broadcast; leave it out"),
        ("fan-in", "b", "nobody sends to b in fan-in; leave it out"),
        ("ping", "a", "nobody sends to a in ping; leave it out"),
    ],
)
def test_who_hears_nobody_expects_nothing(kind: str, guest: str, refused: str) -> None:
    text = EXAMPLE.replace("pairs", kind).replace(f"name: {guest},", f"name: {guest}, expect: none,")
    assert refused in refusal(text)


def test_the_builtin_lab_is_a_lab() -> None:
    lab = builtin_lab()
    assert len(lab.guests) == 2
    refuse_unsupported(lab)


# What is replaced, by what, and how the refusal begins and what it holds.
_VALUES = "must be all, all-but-overruns, none, or a share such as 90% or 0.9, not"
WRONG = [
    ("frames: 100000", "expect: some", f"lab.yaml:19: workload.expect: {_VALUES} 'some'"),
    ("frames: 100000", "expect: 90", f"lab.yaml:19: workload.expect: {_VALUES} 90"),
    ("frames: 100000", "expect: 101%", f"lab.yaml:19: workload.expect: {_VALUES} '101%'"),
    ("frames: 100000", "expect: true", f"lab.yaml:19: workload.expect: {_VALUES} true"),
    ("frames: 100000", "expect: {a: all}", f"lab.yaml:19: workload.expect: {_VALUES} a mapping"),
    ("name: b,", "name: b, expect: {a: -1},", f"lab.yaml:15: guests[1].expect: of a sender {_VALUES} -1"),
    ("name: b,", "name: b, expect: {c: all},", "lab.yaml:15: guests[1].expect.c: 'c' does not send to b; who does: a"),
    ("model: 82576", "model: 82599", "lab.yaml:4: pfs[0].model: must be one of 82576, not 82599"),
    ("model: 82576", "model: i40e", "lab.yaml:4: pfs[0].model: must be one of 82576, not 'i40e'"),
    ("model: 82576", "modell: 82576", "lab.yaml:4: pfs[0].modell: is not a key here; did you mean model?"),
    ("model: 82576", "zzz: 1", "lab.yaml:4: pfs[0].zzz: is not a key here; keys are name, model, link-mbps"),
    ("link-mbps: 1000", "link_mbps: 1000", "lab.yaml:5: pfs[0].link_mbps: is not a key here; did you mean link-mbps?"),
    ("link-mbps: 1000", "link-mbps: 100.0", "lab.yaml:5: pfs[0].link-mbps: must be a whole number, not 100.0"),
    ("link-mbps: 1000", "link-mbps: 2500", "lab.yaml:5: pfs[0].link-mbps: must be one of 0, 10, 100 or 1000"),
    ("link-mbps: 1000", "link-mbps: false", "lab.yaml:5: pfs[0].link-mbps: must be a whole number, not false"),
    (
        "uplink: none",
        "uplink: eth0",
        "lab.yaml:6: pfs[0].uplink: must be none, pcap:FILE, tap:NAME, stream:SOCKET or cab",
    ),
    ("uplink: none", "uplink: tap:a/b", "lab.yaml:6: pfs[0].uplink: must be none, pcap:FILE, tap:NAME"),
    ("uplink: none", "uplink: 'pcap:'", "lab.yaml:6: pfs[0].uplink: must be none, pcap:FILE, tap:NAME"),
    ("uplink: none", "uplink: [none]", "lab.yaml:6: pfs[0].uplink: must be text, not a list"),
    ("total-vfs: 4", "total-vfs: 9", "lab.yaml:8: pfs[0].sr-iov.total-vfs: must be at most 8, not 9"),
    ("total-vfs: 4", "total-vfs: 0", "lab.yaml:8: pfs[0].sr-iov.total-vfs: must be at least 1, not 0"),
    ("total-vfs: 4", "total-vfs: '4'", "lab.yaml:8: pfs[0].sr-iov.total-vfs: must be a whole number, not '4'"),
    ("total-vfs: 4", "total-vfs: true", "lab.yaml:8: pfs[0].sr-iov.total-vfs: must be a whole number, not true"),
    ("total-vfs: 4", "total-vfs:", "lab.yaml:8: pfs[0].sr-iov.total-vfs: must be a whole number, not nothing"),
    ("      total-vfs: 4\n", "", "lab.yaml:7: pfs[0].sr-iov.total-vfs: is required; add it"),
    ("id: 0", "id: 4", "lab.yaml:10: pfs[0].sr-iov.vfs[0].id: VF 4 is not among the 4 of pf0 (0..3); raise total-vfs"),
    ("id: 0", "id: 1", "lab.yaml:12: pfs[0].sr-iov.vfs[1].id: VF 1 of pf0 is taken already"),
    ("00:10", "00:1g", "lab.yaml:10: pfs[0].sr-iov.vfs[0].mac-address: '02:00:00:00:00:1g' is not a MAC address"),
    ("02:00:00:00:00:10", "01:00:5e:00:00:10", "lab.yaml:10: pfs[0].sr-iov.vfs[0].mac-address: 01:00:5e:00:00:10 is a"),
    ("02:00:00:00:00:10", "00:00:00:00:00:00", "lab.yaml:10: pfs[0].sr-iov.vfs[0].mac-address: is the zero address"),
    ("00:11", "00:10", "lab.yaml:12: pfs[0].sr-iov.vfs[1].mac-address: MAC address 02:00:00:00:00:10 is taken already"),
    ("vlan-id: 10", "vlan-id: 4095", "lab.yaml:10: pfs[0].sr-iov.vfs[0].vlan-id: must be at most 4094, not 4095"),
    ("qos: 0", "qos: 8", "lab.yaml:10: pfs[0].sr-iov.vfs[0].qos: must be at most 7, not 8"),
    ("qos: 0", "qos: -1", "lab.yaml:10: pfs[0].sr-iov.vfs[0].qos: must be at least 0, not -1"),
    ("check: true", "check: yes", "lab.yaml:10: pfs[0].sr-iov.vfs[0].spoof-check: must be true or false, not 'yes'"),
    ("state: auto", "state: up", "lab.yaml:11: pfs[0].sr-iov.vfs[0].link-state: must be one of 'auto', 'enable' or"),
    ("tx-rate: 100", "tx-rate: 1001", "lab.yaml:11: pfs[0].sr-iov.vfs[0].max-tx-rate: must be at most 1000, not 1001"),
    ("min-tx-rate: 0", "min-tx-rate: 101", "lab.yaml:11: pfs[0].sr-iov.vfs[0].min-tx-rate: is more than max-tx-rate"),
    (
        "link-mbps: 1000",
        "link-mbps: 10",
        "lab.yaml:11: pfs[0].sr-iov.vfs[0].max-tx-rate: 100 is more than link-mbps 10",
    ),
    ("name: b", "name: a", "lab.yaml:15: guests[1].name: guest name a is taken already"),
    ("name: b", "name: 'a b'", "lab.yaml:15: guests[1].name: must be 1 to 32 letters"),
    ("name: b", "name: 5", "lab.yaml:15: guests[1].name: must be text, not 5; put it in quotes"),
    ("name: b, vmm: embedded", "name: b, vmm: xen", "lab.yaml:15: guests[1].vmm: must be one of 'embedded' or 'qemu'"),
    (
        "64, nic: {pf: pf0, io: sriov, vf: 1}",
        "63, nic: {pf: pf0, vf: 1}",
        "lab.yaml:15: guests[1].memory-mib: must be a multiple of 2",
    ),
    (
        "64, nic: {pf: pf0, io: sriov, vf: 1}",
        "2, nic: {pf: pf0, vf: 1}",
        "lab.yaml:15: guests[1].memory-mib: must be at least 4",
    ),
    ("pf: pf0, io: sriov, vf: 1", "pf: pf1, vf: 1", "lab.yaml:15: guests[1].nic.pf: no PF is named pf1; there are pf0"),
    (
        "pf: pf0, io: sriov, vf: 1",
        "pf: pf0, vf: 0",
        "lab.yaml:15: guests[1].nic.vf: VF 0 of pf0 belongs to guest a already",
    ),
    ("pf: pf0, io: sriov, vf: 1", "pf: pf0, vf: 5", "lab.yaml:15: guests[1].nic.vf: VF 5 is not among the 4 of pf0"),
    ("pf: pf0, io: sriov, vf: 1", "pf: pf0", "lab.yaml:15: guests[1].nic: io sriov needs a VF; add vf: N"),
    (
        "pf: pf0, io: sriov, vf: 1",
        "pf: pf0, io: magic, vf: 1",
        "lab.yaml:15: guests[1].nic.io: must be one of 'split', ",
    ),
    (
        "kind: pairs",
        "kind: storm",
        "lab.yaml:17: workload.kind: must be one of 'pairs', 'fan-in', 'broadcast', 'pcap', 'ping', 'attack' or 'none'",
    ),
    ("frame-bytes: 1518", "frame-bytes: 63", "lab.yaml:18: workload.frame-bytes: must be at least 64, not 63"),
    ("frame-bytes: 1518", "frame-bytes: 9729", "lab.yaml:18: workload.frame-bytes: must be at most 9728, not 9729"),
    ("frame-bytes: 1518", "frame-bytes: 1e3", "lab.yaml:18: workload.frame-bytes: must be a whole number, not 1000.0"),
    ("frames: 100000", "frames: 0", "lab.yaml:19: workload.frames: must be at least 1, not 0"),
    ("frames: 100000", "pcap: x.pcap", "lab.yaml:19: workload.pcap: means nothing to kind pairs"),
    ("frames: 100000", "rewrite: false", "lab.yaml:19: workload.rewrite: means nothing to kind pairs"),
    ("frames: 100000", "frames: 1\n  frames: 2", "lab.yaml:20: workload.frames: is given twice (first on line 19)"),
    ("kind: pairs", "kind: pcap", "lab.yaml:17: workload.kind: pcap needs a capture; add pcap: FILE"),
    (
        "frames: 100000",
        "frames: *x",
        "lab.yaml:19: workload.frames: 'x' is the name of no value above; write & and that name",
    ),
    (
        "frames: 100000",
        "<<: 5",
        "lab.yaml:19: workload.'<<': merges what is no mapping; give the alias of one, or a list",
    ),
    ("frames: 100000", "frames: !!int 7", "lab.yaml:19: workload.frames: carries a YAML tag"),
    ("frames: 100000", "frames: 100000\n---\nname: x", "lab.yaml:20: holds a second document"),
    ("frames: 100000", "? [a]\n  : 1", "lab.yaml:19: workload: has a key that is not a plain word"),
    ("frames: 100000", "frames: 1\niommu: {ats: 1}", "lab.yaml:20: iommu.ats: must be true or false, not 1"),
    ("frames: 100000", "frames: 1\niommu: {atc: true}", "lab.yaml:20: iommu.atc: is not a key here; did you mean ats?"),
    ("frames: 100000", "frames: 1\niommu: {iotlb-entries: 0}", "lab.yaml:20: iommu.iotlb-entries: must be at least 1"),
    (
        "frames: 100000",
        "frames: 1\niommu: {iotlb-entries: 100}",
        "lab.yaml:20: iommu.iotlb-entries: must be a power of two, like 64 or 128, not 100",
    ),
    (
        "frames: 100000",
        "frames: 1\niommu: {device-tlb-entries: 32768}",
        "lab.yaml:20: iommu.device-tlb-entries: must be at most 16384, not 32768",
    ),
    ("workload:", "workload: {", "lab.yaml:18: is not YAML ("),
    ("pfs:", "pfs: ]", "lab.yaml:2: is not YAML ("),
    ("name: two-guests\n", "", "lab.yaml:1: name: is required; add it"),
    ("name: two-guests", "name: two guests", "lab.yaml:1: name: must be 1 to 32"),
]


@pytest.mark.parametrize(("old", "new", "expected"), WRONG, ids=[w[1].strip()[:40] for w in WRONG])
def test_a_wrong_lab_is_refused_with_line_and_key(old: str, new: str, expected: str) -> None:
    assert EXAMPLE.count(old) >= 1
    message = refusal(EXAMPLE.replace(old, new, 1))
    assert message.startswith(expected)


def guests(count: int, start: int = 0) -> str:
    return "".join(f"  - {{name: g{i}, nic: {{pf: pf0, vf: {i + start}}}}}\n" for i in range(count))


def lab_of(count: int, kind: str = "pairs", total: int = 8) -> str:
    pfs = f"[{{name: pf0, sr-iov: {{total-vfs: {total}}}}}]"
    return f"name: x\npfs: {pfs}\nguests:\n{guests(count)}workload: {{kind: {kind}}}\n"


def test_an_attack_needs_victims_on_one_pf_and_the_wire() -> None:
    assert "attack needs an attacker, the first guest, and two victims; add a guest" in refusal(lab_of(2, "attack"))
    parse_lab(lab_of(3, "attack"))
    two = lab_of(3, "attack").replace("pfs: [", "pfs: [{name: pf9, sr-iov: {total-vfs: 8}}, ")
    other = two.replace("pf: pf0, vf: 2", "pf: pf9, vf: 2")
    assert other != two
    assert "guests[2].nic.pf: the victims of an attack are on the attacker's PF; use pf0" in refusal(other)
    assert "guests[1].vmm: the guests of an attack are embedded" in refusal(
        lab_of(3, "attack").replace("name: g1,", "name: g1, vmm: qemu,")
    )
    assert "guests[2].nic.io: the guests of an attack have VFs; use io: sriov" in refusal(
        lab_of(3, "attack", total=4).replace("vf: 2", "io: split")
    )
    wired = lab_of(3, "attack").replace("name: pf0,", 'name: pf0, uplink: "pcap:x",')
    assert "pfs[0].uplink: an attacker's accomplice has the wire; use uplink: none" in refusal(wired)


def test_numbers_of_guests_that_do_not_fit() -> None:
    assert "needs two guests or more, here is 1; add a guest" in refusal(lab_of(1))
    assert refusal(lab_of(3)).startswith("lab.yaml:7: workload.kind: pairs needs an even number of guests, here are 3")
    parse_lab(lab_of(3, "fan-in"))
    assert refusal(lab_of(4, total=2)).startswith("lab.yaml:6: guests[2].nic: more guests than the 2 VFs of pf0")
    assert "VF 8 is not among" in refusal(lab_of(9)) or "must be at most 7" in refusal(lab_of(9))
    assert "guests: needs at least 1" in refusal("name: x\npfs: [{name: p}]\nguests: []\nworkload: {kind: ping}\n")
    assert "has no VFs; give it sr-iov" in refusal(lab_of(2).replace(", sr-iov: {total-vfs: 8}", ""))


def test_ping_and_pcap_have_their_own_number_of_frames(tmp_path: Path) -> None:
    assert parse_lab(lab_of(2, "ping")).workload.frames_each == 1000
    (tmp_path / "x.pcap").write_bytes(b"")
    lab = parse_lab(lab_of(2, "pcap, pcap: x.pcap"), folder=tmp_path)
    assert lab.workload.pcap == tmp_path / "x.pcap"
    assert lab.workload.frames_each is None
    missing = refusal(lab_of(2, "pcap, pcap: y.pcap"), tmp_path)
    assert missing.startswith("lab.yaml:6: workload.pcap: no file")
    assert "leave this key out" in refusal(lab_of(2, "pcap, pcap: x.pcap, frame-bytes: 64"), tmp_path)
    assert "is not a file name" in refusal(lab_of(2, 'pcap, pcap: "a\\0b"'), tmp_path)


def test_files_that_are_no_labs(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(LabError) as caught:
            load_lab(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is a directory" in refused(tmp_path)
    assert "cannot be read (No such file or directory)" in refused(tmp_path / "none.yaml")
    assert "not a file name" in refused(tmp_path / "a\0b")
    assert "cannot be read (File name too long)" in refused(tmp_path / ("x" * 5000))
    lab = tmp_path / "lab.yaml"
    lab.write_bytes(b"")
    assert refused(lab) == f"{lab}:1: is empty; write at least pfs, guests and workload"
    lab.write_bytes(b"# only a comment\n---\n...\n")
    assert "is empty" in refused(lab) or "holds nothing" in refused(lab)
    lab.write_bytes(b"a: 1\n\xff\xfe\n")
    assert refused(lab) == f"{lab}:2: is not UTF-8 text; a lab file is YAML"
    lab.write_bytes(b"\x00\x01\x02")
    assert "is not YAML" in refused(lab)
    lab.write_bytes(b"a" * 200_000)
    assert "is larger than 128 KiB" in refused(lab)
    lab.write_text("- a\n- b\n")
    assert "holds a list; a lab is a mapping" in refused(lab)
    lab.write_text("just words\n")
    assert "holds 'just words'" in refused(lab)
    lab.write_text("a:\n  " + "- " * 50_000)
    assert "nested deeper than 16" in refused(lab)
    lab.write_text("a: " + "[" * 100_000)
    assert "nested deeper than 16" in refused(lab)
    lab.write_text("a: " + "[\n" * 20_000)
    assert "nested deeper than 16" in refused(lab)
    lab.write_text("a: &a [x, x]\nb: &b [*a, *a]\n")
    assert "name: is required; add it" in refused(lab)


UNSUPPORTED = [
    (
        "state: auto",
        "state: enable",
        "lab.yaml:11: pfs[0].sr-iov.vfs[0].link-state: VFs of an 82576 see the link bit of the port",
    ),
    (
        "min-tx-rate: 0",
        "min-tx-rate: 5",
        "lab.yaml:11: pfs[0].sr-iov.vfs[0].min-tx-rate: an 82576 limits what",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), UNSUPPORTED, ids=[w[1] for w in UNSUPPORTED])
def test_what_is_not_enforced_is_refused(old: str, new: str, expected: str) -> None:
    lab = parse_lab(EXAMPLE.replace(old, new, 1), "lab.yaml")
    with pytest.raises(VirtfnError) as caught:
        refuse_unsupported(lab)
    assert str(caught.value).startswith(expected)
    assert caught.value.errno_name == "EOPNOTSUPP"
    assert not isinstance(caught.value, LabError)


LINUX = """\
name: l
pfs:
  - {name: pf0, sr-iov: {total-vfs: 5}}
  - {name: pf1}
guests:
  - {name: a, vmm: qemu, nic: {pf: pf0, vf: 0}}
  - {name: b, vmm: qemu, nic: {pf: pf0, vf: 1, map-rings: false}}
  - {name: c, vmm: qemu, nic: {pf: pf1, io: passthrough}}
  - {name: d, nic: {pf: pf0, vf: 2}}
  - {name: e, nic: {pf: pf0, vf: 3}}
workload: {kind: pairs}
"""


def test_linux_guests_beside_embedded_ones() -> None:
    lab = parse_lab(LINUX, "lab.yaml")
    refuse_unsupported(lab)
    assert [guest.memory_mib for guest in lab.guests] == [256, 256, 256, 64, 64]
    assert lab.workload.pings_each == 100
    assert parse_lab(LINUX.replace("kind: pairs", "kind: ping"), "l").workload.pings_each == 1000


@pytest.mark.parametrize("io", ["split", "direct"])
def test_linux_guests_have_split_and_direct_io(io: str) -> None:
    refuse_unsupported(parse_lab(LINUX.replace("vf: 1, map-rings: false", f"io: {io}")))
    full = LINUX.replace("vf: 1, map-rings: false", f"io: {io}").replace("total-vfs: 5", "total-vfs: 8")
    with pytest.raises(LabError, match=f"with 8 VFs no pool of pf0 is left for the host, as io {io} of guest b needs"):
        parse_lab(full)


LINUX_FAULTS = [
    ("{name: a,", "{name: a, memory-mib: 128,", "guests[0].memory-mib: Linux needs 256 or more, not 128"),
    ("vf: 1, map", "map", "guests[1].nic: io sriov needs a VF"),
    ("map-rings: false", "map-rings: 0", "guests[1].nic.map-rings: must be true or false, not 0"),
    (
        "vf: 1, map",
        "io: direct, map",
        "guests[1].nic.map-rings: is for VFs of Linux guests; leave it out, or use io: sr",
    ),
    ("passthrough}", "passthrough, map-rings: true}", "guests[2].nic.map-rings: is for VFs of Linux guests; leave it"),
    ("vf: 2}", "vf: 2, map-rings: false}", "guests[3].nic.map-rings: is for VFs of Linux guests; leave it out, or use"),
    ("io: passthrough", "io: passthrough, vf: 0", "guests[2].nic.vf: "),
    ("{name: pf1}", "{name: pf1, sr-iov: {total-vfs: 1}}", "pfs[1].sr-iov: pf1 is given whole to guest c"),
    ("{name: d, nic: {pf: pf0, vf: 2}}", "{name: d, vmm: qemu, nic: {pf: pf1, io: passthrough}}", "guests[3].nic.pf: "),
    ("pf1, io: passthrough", "pf0, io: passthrough", "pfs[0].sr-iov: pf0 is given whole"),
    ("  - {name: e, nic: {pf: pf0, vf: 3}}\n", "", "workload.kind: pairs needs two embedded guests or more"),
    ("  - {name: b, vmm: qemu, nic: {pf: pf0, vf: 1, map-rings: false}}\n", "", "needs two qemu guests on pf0 or more"),
    (
        "guests:\n",
        "guests:\n  - {name: f, vmm: qemu, nic: {pf: pf0, vf: 4}}\n",
        "qemu guests on pf0, here are 3",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), LINUX_FAULTS, ids=[w[2] for w in LINUX_FAULTS])
def test_a_linux_guest_that_cannot_be(old: str, new: str, expected: str) -> None:
    assert old in LINUX
    with pytest.raises(LabError) as caught:
        parse_lab(LINUX.replace(old, new, 1), "lab.yaml")
    assert expected in str(caught.value)


def alone(uplink: str, kind: str) -> str:
    pf = f"{{name: pf0, uplink: '{uplink}', sr-iov: {{total-vfs: 1}}}}"
    guest = "{name: a, vmm: qemu, nic: {pf: pf0, vf: 0}}"
    return f"name: l\npfs: [{pf}]\nguests: [{guest}]\nworkload: {{kind: {kind}}}\n"


@pytest.mark.parametrize("uplink", ["tap:tap7", "stream:wire", "stream:listen:wire"])
def test_a_linux_guest_alone_beside_an_uplink_is_a_lab(uplink: str) -> None:
    refuse_unsupported(parse_lab(alone(uplink, "ping")))
    both = LINUX.replace("name: pf0,", f"name: pf0, uplink: '{uplink}',").replace("kind: pairs", "kind: ping")
    refuse_unsupported(parse_lab(both.replace("  - {name: a, vmm: qemu, nic: {pf: pf0, vf: 0}}\n", "")))


@pytest.mark.parametrize(
    ("uplink", "kind"), [("none", "ping"), ("pcap:x", "ping"), ("stream:wire", "pairs"), ("tap:tap7", "fan-in")]
)
def test_a_linux_guest_alone_needs_an_uplink_and_ping(uplink: str, kind: str) -> None:
    said = "needs two qemu guests on pf0 or more, here is 1; add a guest, or give it an uplink, tap or stream, and use"
    with pytest.raises(LabError) as caught:
        parse_lab(alone(uplink, kind), "lab.yaml")
    assert str(caught.value) == f"lab.yaml:4: workload.kind: {kind} {said} ping"


def test_an_embedded_guest_alone_is_no_lab_beside_an_uplink_either() -> None:
    text = alone("stream:wire", "ping").replace("vmm: qemu, ", "")
    with pytest.raises(LabError, match=r"ping needs two guests or more, here is 1; add a guest$"):
        parse_lab(text)


LINUX_UNSUPPORTED = [
    ("kind: pairs", "kind: broadcast", "workload.kind: broadcast by qemu guests is not supported"),
    (
        "{name: pf1}",
        "{name: pf1, uplink: 'pcap:x.pcap'}",
        "pfs[1].uplink: a capture as the uplink of qemu guests alone is",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), LINUX_UNSUPPORTED, ids=[w[1] for w in LINUX_UNSUPPORTED])
def test_what_linux_guests_do_not_do_is_refused(old: str, new: str, expected: str) -> None:
    lab = parse_lab(LINUX.replace(old, new, 1), "lab.yaml")
    with pytest.raises(VirtfnError) as caught:
        refuse_unsupported(lab)
    assert expected in str(caught.value)
    assert caught.value.errno_name == "EOPNOTSUPP"


def test_plain_scalars_follow_the_core_schema() -> None:
    text = lab_of(2).replace("total-vfs: 8", "total-vfs: 0x4")
    assert parse_lab(text).pfs[0].total_vfs == 4
    assert parse_lab(lab_of(2).replace("total-vfs: 8", "total-vfs: 0o7")).pfs[0].total_vfs == 7
    digits = "9" * 5000
    assert "must be" in refusal(EXAMPLE.replace("total-vfs: 4", f"total-vfs: {digits}"))
    mac = EXAMPLE.replace('"02:00:00:00:00:10"', "02:00:00:00:00:AB")
    assert parse_lab(mac).pf("pf0").policy(0).mac_address == "02:00:00:00:00:ab"


def test_the_committed_schemas_are_fresh() -> None:
    root = Path(__file__).parents[3]
    for path in (root / "docs/reference/lab.schema.json", root / "src/virtfn/api/lab.schema.json"):
        assert json.loads(path.read_text(encoding="utf-8")) == schema(), "run tools/gen_schema.py"


def test_the_schema_has_every_key_of_the_lab() -> None:
    definitions = schema()["$defs"]
    assert isinstance(definitions, dict)
    assert set(definitions["VfPolicy"]["properties"]) == {
        "id", "mac-address", "vlan-id", "vlan-proto", "qos", "trunk-tags", "spoof-check", "trust", "link-state",
        "max-tx-rate", "min-tx-rate", "watch",
    }  # fmt: skip
    assert "required" not in definitions["VfPolicy"]
    assert all(definition["additionalProperties"] is False for definition in definitions.values())


def attempt(text: str) -> None:
    message = ""
    try:
        parse_lab(text, "lab.yaml")
    except LabError as error:
        message = str(error)
    assert not message or message.isprintable()
    assert len(message) < 400


@given(st.text(max_size=200))
def test_any_text_gives_a_lab_or_a_lab_error(text: str) -> None:
    attempt(text)


_TOKENS = [
    "\n",
    "  ",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "!!int ",
    "'",
    '"',
    "|\n",
    "? ",
    "---\n",
    "%YAML 1.1\n",
]
_PIECES = [
    "pfs",
    "guests",
    "nic",
    "vf",
    "kind",
    "pairs",
    "0",
    "1e999",
    "-.inf",
    "~",
    "\\U00110000",
    "\x85",
    "<<",
    "#",
    "\t",
]


@given(st.lists(st.sampled_from(_TOKENS + _PIECES), max_size=40).map("".join))
def test_any_yaml_gives_a_lab_or_a_lab_error(text: str) -> None:
    attempt(text)


_LINES = EXAMPLE.splitlines(keepends=True)
_VALUES = st.one_of(st.integers(), st.booleans(), st.none(), st.floats(), st.text(max_size=8), st.just([]), st.just({}))


@given(st.integers(0, len(_LINES) - 1), st.integers(0, 120), st.integers(0, 12), _VALUES)
def test_a_damaged_lab_gives_a_lab_or_a_lab_error(line: int, at: int, cut: int, value: object) -> None:
    lines = list(_LINES)
    lines[line] = lines[line][:at] + str(value) + lines[line][at + cut :]
    attempt("".join(lines))


def test_a_linux_guest_made_as_an_object_has_the_memory_that_it_is_given() -> None:
    nic = Nic(pf="pf0", vf=0)
    assert Guest(name="a", vmm="qemu", nic=nic).memory_mib == 256
    assert Guest(name="a", vmm="qemu", nic=nic, memory_mib=512).memory_mib == 512
