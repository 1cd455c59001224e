import json

from unit.slotrig import build
from virtfn.iovm import lspci


def test_the_tree_hangs_vfs_under_their_pf():
    rig = build()
    rig.pcim.enable_vfs(rig.pf, 2)
    lines = [line.partition(" Intel")[0] for line in lspci.tree(rig.pcim).splitlines()]
    assert lines == [
        "[0000:00]",
        " +- 00:00.0",
        " +- 00:01.0",
        " |   \\- 01:00.0",
        " |       +- 02:10.0",
        " |       \\- 02:10.2",
        " \\- 00:02.0",
    ]
    assert "-[01-02]" in lspci.tree(rig.pcim)


def test_the_list_names_and_measures():
    rig = build()
    rig.pcim.enable_vfs(rig.pf, 1)
    text = lspci.listing(rig.pcim)
    assert "0000:01:00.0 Ethernet controller: Intel Corporation 82576 Gigabit Network Connection (rev 01)" in text
    assert "[size=128K]" in text
    assert "Expansion ROM at" in text
    assert "SR-IOV: 1 of 8 VFs, device 10ca" in text
    assert "VF 0 of 0000:01:00.0" in text
    assert "primary=00, secondary=01, subordinate=02" in text


def test_the_values_are_json():
    rig = build(total_vfs=4)
    rig.pcim.enable_function(rig.pf)
    rig.pcim.enable_vfs(rig.pf, 2)
    entries = {e["address"]: e for e in json.loads(json.dumps(lspci.decode(rig.pcim)))}
    pf, vf = entries["0000:01:00.0"], entries["0000:02:10.2"]
    assert (pf["vendor"], pf["device"], pf["command"]) == ("8086", "10c9", ["IO", "MEM", "BME"])
    assert pf["sriov"] == {
        "total_vfs": 4, "num_vfs": 2, "enabled": True, "first_vf_offset": 384, "stride": 2, "vf_device": "10ca",
    }  # fmt: skip
    assert [c["name"] for c in vf["capabilities"]] == ["MSI-X", "PCIe", "AER", "ARI"]
    assert (vf["physfn"], vf["vf"], vf["device"]) == ("0000:01:00.0", 1, "10ca")
    found = rig.pcim.functions[rig.pf]
    assert [r["address"] for r in vf["regions"]] == [b.address for b in found.vfs[1].bars]
    assert [r["address"] for r in pf["regions"]] == [b.address for b in found.bars]


def test_the_dump_changes_nothing():
    rig = build()
    rig.pcim.enable_vfs(rig.pf, 2)
    before = [bytes(f.bytes) for f in (rig.card.pfs[0].function, *rig.card.pfs[0].vfs)]
    first = lspci.dump(rig.pcim)
    assert lspci.dump(rig.pcim) == first
    assert [bytes(f.bytes) for f in (rig.card.pfs[0].function, *rig.card.pfs[0].vfs)] == before


def test_the_dump_shows_vfs_with_their_synthesized_header():
    rig = build()
    vf = rig.pcim.enable_vfs(rig.pf, 1)[0]
    block = lspci.dump(rig.pcim).split("\n\n")[4].splitlines()
    assert block[0].startswith("0000:02:10.0 Ethernet controller")
    assert len(block) == 1 + 256
    assert block[1].startswith("00: 86 80 ca 10 02 00 10 00 01 00 00 02")
    low = (vf.bars[0].address | 4).to_bytes(4, "little").hex(" ")
    assert block[2].startswith(f"10: {low} 00 00 00 00")
