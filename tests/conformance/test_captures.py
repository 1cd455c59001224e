"""Real captures through the NIC, and what tcpdump's and Wireshark's readers say of the recordings."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import dpkt
import numpy as np
import pytest

from virtfn.api.lab import parse_lab
from virtfn.api.run import run_lab
from virtfn.hw.types import parse_mac
from virtfn.machine.captures import read_capture

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("VIRTFN_DATA") or ROOT.parent / "shared" / "data") / "pcap"
OWN = sorted((ROOT / "tests" / "captures").glob("*.pcap"))
REAL = sorted(DATA.glob("*.pcap"))


def lab(capture: Path, guests: int) -> str:
    functions = "".join(f"  - {{name: g{n}, memory-mib: 32, nic: {{pf: pf0, vf: {n}}}}}\n" for n in range(guests))
    vfs = ", ".join(f"{{id: {n}, trust: true}}" for n in range(guests))  # they hear every group
    return (
        f"name: replay\npfs: [{{name: pf0, sr-iov: {{total-vfs: {guests}, vfs: [{vfs}]}}}}]\nguests:\n{functions}"
        f"workload: {{kind: pcap, pcap: {capture}}}\n"
    )


def dealt(frames: list[bytes], guests: int) -> tuple[list[int], dict[bytes, int]]:
    """Say who sends each frame, and whose each address is: the n-th address that appears is guest n's, and around."""
    owners: dict[bytes, int] = {}
    senders, nameless = [], 0
    for frame in frames:
        source = frame[6:12]
        if len(source) < 6 or source == bytes(6) or source[0] & 1:
            senders.append(nameless % guests)
            nameless += 1
        else:
            senders.append(owners.setdefault(source, len(owners) % guests))
    return senders, owners


def replay(capture: Path, guests: int, to: Path) -> None:
    """Send a capture through the NIC, and compare what each function received with what it had to."""
    report = run_lab(parse_lab(lab(capture, guests)), capture=to)
    source = read_capture(capture)
    macs = [parse_mac(g["mac"]).to_bytes(6, "little") for g in report["guests"]]
    expected: list[list[bytes]] = [[] for _ in macs]
    frames = [source.frame(k).tobytes() for k in range(len(source))]
    senders, owners = dealt(frames, guests)
    for sender, frame in zip(senders, frames, strict=True):
        if not 14 <= len(frame) <= 9724:
            continue
        target = None if frame[0] & 1 else owners.get(frame[:6], sender)
        if target == sender:
            target = (sender + 1) % guests
        rewritten = (frame[:6] if target is None else macs[target]) + macs[sender] + frame[12:]
        for n in range(guests):
            if n == target or (target is None and n != sender):
                expected[n].append(rewritten + bytes(max(0, 60 - len(rewritten))))
    received: list[list[bytes]] = [[] for _ in macs]
    for interface, outbound, frame in recorded(to):
        if interface < guests and not outbound:
            received[interface].append(frame)
    assert not any(g["lost"] or g["corrupt"] or g["reordered"] for g in report["guests"])
    for n in range(guests):
        # Each sender's frames arrive in its own order; the guests' turns may shift against each other.
        for mac in macs:
            assert [f for f in received[n] if f[6:12] == mac] == [f for f in expected[n] if f[6:12] == mac]


def recorded(path: Path) -> list[tuple[int, bool, bytes]]:
    """Read a recording by the block: (interface, outbound, bytes)."""
    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        kind, size = np.frombuffer(content, "<u4", 2, at).tolist()
        if kind == 6:
            interface, _, _, captured, _ = np.frombuffer(content, "<u4", 5, at + 8).tolist()
            block = dpkt.pcapng.EnhancedPacketBlockLE(content[at : at + size])
            flags = next(o.data for o in block.opts if o.code == 2)
            found.append((interface, flags[0] & 3 == 2, content[at + 28 : at + 28 + captured]))
        at += size
    return found


@pytest.mark.parametrize("capture", OWN, ids=lambda p: p.name)
def test_our_own_captures_arrive(capture: Path, tmp_path: Path) -> None:
    replay(capture, 3, tmp_path / "out.pcapng")


@pytest.mark.skipif(not REAL, reason="not run: no captures of other people here (set VIRTFN_DATA)")
@pytest.mark.parametrize("capture", REAL, ids=lambda p: p.name)
def test_every_frame_of_real_captures_arrives(capture: Path, tmp_path: Path) -> None:
    replay(capture, 2, tmp_path / "out.pcapng")


def test_tshark_reads_a_recording_without_a_warning(tmp_path: Path) -> None:
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("not run: tshark is not installed")
    to = tmp_path / "out.pcapng"
    report = run_lab(parse_lab(lab(OWN[0], 2)), capture=to)
    command = [tshark, "-r", str(to), "-T", "fields", "-e", "frame.interface_name", "-e", "frame.len"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    noise = [line for line in run.stderr.splitlines() if "Running as user" not in line]
    assert noise == []
    names = {line.split("\t")[0] for line in run.stdout.splitlines()}
    assert {f"vf{n} {g['address']}" for n, g in enumerate(report["guests"])} <= names
    frames = sum(g["tx_frames"] + g["rx_frames"] for g in report["guests"])
    assert sum(not line.startswith("pf0") for line in run.stdout.splitlines()) == frames


def test_tcpdump_reads_a_recording(tmp_path: Path) -> None:
    tcpdump = shutil.which("tcpdump")
    if tcpdump is None:
        pytest.skip("not run: tcpdump is not installed")
    to = tmp_path / "out.pcapng"
    run_lab(parse_lab(lab(OWN[0], 2)), capture=to)
    run = subprocess.run([tcpdump, "-n", "-r", str(to)], capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") == len(recorded(to))
