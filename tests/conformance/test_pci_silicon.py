"""The 82576's configuration space against real silicon: byte for byte, and as pciutils decodes it.

Silicon's side is a full dump of one port of a dual-port card, taken under Linux with one VF enabled. It is not part of
this repository; without it these tests are not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from unit.slotrig import Rig, build
from virtfn.hw.types import Rid
from virtfn.iovm import lspci

MSIX_CONTROL, DEVCTL, LNKCTL = 0x72, 0xA8, 0xB0
BARS = [range(0x10, 0x28), range(0x30, 0x34), range(0x184, 0x19C)]


def silicon_dump() -> str:
    roots = [Path(__file__).parents[3] / "shared/data"]
    if os.environ.get("VIRTFN_DATA"):
        roots.insert(0, Path(os.environ["VIRTFN_DATA"]))
    for root in roots:
        path = root / "silicon/82576-pf-lspci.txt"
        if path.is_file():
            return path.read_text()
    pytest.skip("not run: no dump of real silicon here (set VIRTFN_DATA)")


def hex_lines(text: str) -> bytes:
    rows = re.findall(r"^[0-9a-f]{2,3}: ((?:[0-9a-f]{2} ?){16})$", text, re.MULTILINE)
    return b"".join(bytes.fromhex(row) for row in rows)


def as_linux_left_it() -> Rig:
    """Do what software had done when the dump was taken: Linux's scan and link set-up, igb's probe, one VF."""
    rig = build(ports=2)
    pf, write = rig.pf, rig.root.config_write
    rig.pcim.enable_vfs(pf, 1)
    write(pf, 0x04, 2, 0x0407)
    write(pf, 0x0C, 1, 0x10)
    write(pf, 0x3C, 1, 0x0B)
    write(pf, MSIX_CONTROL, 2, 0x8000)
    write(pf, DEVCTL, 2, rig.root.config_read(pf, DEVCTL, 2) | 0x0020)
    write(pf, LNKCTL, 2, 0x0042)
    return rig


def test_the_configuration_space_is_silicons_byte_for_byte():
    golden = hex_lines(silicon_dump())
    rig = as_linux_left_it()
    ours = bytes(rig.root.config_read(rig.pf, at, 1) for at in range(4096))
    assert len(golden) == 4096
    placed = {at for span in BARS for at in span}
    differing = [f"{at:03x}: {ours[at]:02x}, silicon {golden[at]:02x}" for at in range(4096) if ours[at] != golden[at]]
    outside = [line for line in differing if int(line[:3], 16) not in placed]
    assert outside == []


def test_bar_kinds_and_alignment_are_silicons():
    """With silicon's addresses written into our BARs, they too read back as there."""
    golden = hex_lines(silicon_dump())
    rig = as_linux_left_it()
    for span in BARS:
        for at in range(span.start, span.stop, 4):
            rig.root.config_write(rig.pf, at, 4, int.from_bytes(golden[at : at + 4], "little"))
    ours = bytes(rig.root.config_read(rig.pf, at, 1) for at in range(4096))
    assert ours == golden


def test_reads_of_all_widths_agree():
    rig = as_linux_left_it()
    for at in range(0, 4096, 4):
        word = rig.root.config_read(rig.pf, at, 4)
        assert word == sum(rig.root.config_read(rig.pf, at + i, 1) << 8 * i for i in range(4))
        assert word == sum(rig.root.config_read(rig.pf, at + i, 2) << 8 * i for i in (0, 2))


def pciutils(rig: Rig, tmp_path: Path) -> dict[str, str]:
    """Let Debian's lspci decode our dump; the text of each function by address."""
    program = shutil.which("lspci") or shutil.which("lspci", path="/usr/sbin:/sbin:/usr/bin")
    if program is None:
        pytest.skip("not run: lspci is not installed (Debian package pciutils)")
    path = tmp_path / "dump"
    path.write_text(lspci.dump(rig.pcim))
    done = subprocess.run([program, "-F", str(path), "-n", "-vvv"], capture_output=True, text=True, check=True)
    # Where no kernel modules are installed lspci says so, which is not about the dump.
    assert [line for line in done.stderr.splitlines() if "libkmod" not in line] == []
    return {block.split(" ", 1)[0]: block for block in done.stdout.strip().split("\n\n")}


def sriov_fields(text: str) -> list[str]:
    block = text[text.index("Single Root I/O Virtualization") :]
    names = "IOVCap|IOVCtl|IOVSta|Initial VFs|VF offset|Supported Page Size|VF Migration"
    return [line.strip() for line in block.splitlines() if re.match(rf"\s*({names})\b", line)]


def test_pciutils_decodes_the_sriov_block_as_on_silicon(tmp_path):
    golden = silicon_dump()
    ours = pciutils(as_linux_left_it(), tmp_path)["01:00.0"]
    assert len(sriov_fields(golden)) == 7
    assert sriov_fields(ours) == sriov_fields(golden)


def test_pciutils_decodes_silicon_and_model_alike(tmp_path):
    """The same pciutils over silicon's bytes and over ours: every line but addresses, which software sets."""
    golden = silicon_dump()
    rig = as_linux_left_it()
    raw = tmp_path / "silicon"
    rows = [line for line in golden.splitlines() if re.match(r"^[0-9a-f]{2,3}: ", line)]
    raw.write_text("\n".join(["01:00.0 Ethernet controller", *rows, ""]))
    ours = pciutils(rig, tmp_path)["01:00.0"]
    done = subprocess.run(["lspci", "-F", str(raw), "-n", "-vvv"], capture_output=True, text=True, check=True)

    def without_addresses(text: str) -> list[str]:
        text = re.sub(r"(Memory at|I/O ports at|Expansion ROM at) [0-9a-f]+", r"\1", text)
        return text.strip().splitlines()

    assert without_addresses(ours) == without_addresses(done.stdout)


def test_pciutils_decodes_a_vf(tmp_path):
    rig = build()
    vfs = rig.pcim.enable_vfs(rig.pf, 8)
    text = pciutils(rig, tmp_path)
    assert {"02:10.0", "02:10.2", "02:11.6", "01:00.0", "00:01.0"} <= text.keys()
    for n, address in ((0, "02:10.0"), (7, "02:11.6")):
        block = text[address]
        assert "0200: 8086:10ca (rev 01)" in block
        assert "Control: I/O- Mem+ BusMaster-" in block
        assert f"Region 0: Memory at {vfs[n].bars[0].address:x} (64-bit, non-prefetchable)" in block
        assert f"Region 3: Memory at {vfs[n].bars[1].address:x} (64-bit, non-prefetchable)" in block
        assert "Capabilities: [70] MSI-X: Enable- Count=3 Masked-" in block
        assert "Vector table: BAR=3 offset=00000000" in block
        assert "PBA: BAR=3 offset=00002000" in block
        assert "Capabilities: [a0] Express (v2) Endpoint" in block
        assert "FLReset+" in block
        assert "Capabilities: [100 v1] Advanced Error Reporting" in block
        assert "Capabilities: [150 v1] Alternative Routing-ID Interpretation (ARI)" in block
        assert "Single Root" not in block


def test_pciutils_decodes_the_port_and_its_buses(tmp_path):
    text = pciutils(build(), tmp_path)["00:01.0"]
    assert "Bus: primary=00, secondary=01, subordinate=02" in text
    assert "Express (v2) Root Port" in text
    assert "ARIFwd+" in text
    assert "Access Control Services" in text


def test_the_second_port_differs_where_it_must():
    rig = build(ports=2)
    second = Rid(rig.pf + 1)
    first = [rig.root.config_read(rig.pf, at, 1) for at in range(4096)]
    other = [rig.root.config_read(second, at, 1) for at in range(4096)]
    placed = {at for span in BARS for at in span}
    differing = {at for at in range(4096) if first[at] != other[at]} - placed
    assert differing == {0x3D, 0x155, 0x172}, "interrupt pin, next function, function dependency link"
