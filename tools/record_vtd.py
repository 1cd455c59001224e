"""Record the remapping tables that Linux writes, and what Linux itself says that it wrote: test data for the walker.

    python tools/record_vtd.py [--cache FOLDER] [--qemu PROGRAM] [NAME ...]      writes tests/vtd/NAME.npz

A guest boots in QEMU (software emulation) with an emulated VT-d unit and devices that do DMA. Probes on Linux's own
functions tell every mapping made and taken away with its domain, and every device attached; its trace of vectors tells
the interrupts. The identity domain, which Linux fills before anything can be probed, is told by Linux's list of memory
ranges. Then the machine is stopped, and the tables are read out of its memory from the registers RTADDR and IRTA on.

A recording holds: addresses (n,) uint64, of pages; words (n, 512) uint64, what they hold; meta, JSON text:

    root, irta, cap, ecap       registers of the unit: of RTADDR the address
    memory_end                  first byte after the guest's memory
    kernel, qemu, command_line  who wrote the tables
    linux                       mappings: rid, iova, hpa, bytes, read, write
                                attached: RIDs with a domain
                                passed_through: RIDs whose requests are not translated
                                interrupts: rid, vector, target (APIC ID), of the MSI and MSI-X of devices

Spec: VT-d, memory-resident structures.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from qemu.qmp.legacy import QEMUMonitorProtocol

from virtfn.vmm.qemu.image import Image, build_image

TARGET = Path(__file__).parents[1] / "tests" / "vtd"
UNIT = 0xFED90000
CAP, ECAP, RTADDR, IRTA = 0x08, 0x10, 0x20, 0xB8
PAGE = 4096
ADDRESS = (1 << 48) - PAGE
BELOW_4G, FOUR_G = 2 << 30, 4 << 30
LARGE, SMALL = 3072, 256  # MiB; of the large one, 1 GiB lies above 4 GiB

RECORDINGS = {
    "domains-3-level": (LARGE, "aw-bits=39", "intel_iommu=on iommu.passthrough=0 iommu.strict=1"),
    "domains-4-level": (LARGE, "aw-bits=48", "intel_iommu=on iommu.passthrough=0 iommu.strict=1"),
    "identity": (SMALL, "aw-bits=48,pt=off", "intel_iommu=on iommu=pt"),
    "pass-through": (SMALL, "aw-bits=48", "intel_iommu=on iommu=pt"),
}
MODULES = ("ahci", "nvme", "xhci_pci")
PROBES = ";".join(
    (
        "p:vtd/map,intel_iommu_map_pages,domain=$arg1:x64,iova=$arg2:x64,hpa=$arg3:x64,size=$arg4:x64,count=$arg5:x64,"
        "prot=$arg6:x32",
        "p:vtd/unmap,intel_iommu_unmap_pages,domain=$arg1:x64,iova=$arg2:x64,size=$arg3:x64,count=$arg4:x64",
        "p:vtd/attach,intel_iommu_attach_device,domain=$arg1:x64,device=+0(+0($arg2)):string",
    )
)
TRACING = f"trace_buf_size=8M trace_event=irq_vectors:vector_config kprobe_event={PROBES}"
TRAFFIC = (
    "ip link set eth0 up; ip link set eth1 up; for i in eth0 eth1; do ip address add 10.0.2.15/24 dev $i; "
    "sleep 3; ping -I $i -c 3 -i 0.2 -W 1 10.0.2.2; ip address flush dev $i; done; "
    "dd if=/dev/nvme0n1 of=/dev/null bs=64k count=32"
)
# Pages that a device may only read are mapped while it writes them out: this disk is made too slow to finish.
SLOW_WRITE = "dd if=/dev/zero of=/dev/nvme0n1 bs=64k count=32 conv=fsync & sleep 1"
EVENT = re.compile(r"\b(map|unmap|attach): \(.*?\) (.*)")
VECTOR = re.compile(r"vector_config: irq=(\d+) vector=(\d+) cpu=\d+ apicdest=0x([0-9a-f]+)")
MSI_IRQS = "cd /sys/bus/pci/devices; for d in *; do for i in $(ls $d/msi_irqs 2>/dev/null); do echo $d $i; done; done"
NODE_RANGE = re.compile(r"node +\d+: \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]")
READ, WRITE = 1, 2


class Guest:
    """A running guest: its agent on the second serial port, and QEMU's monitor."""

    def __init__(self, qemu: str, image: Image, folder: Path, memory_mib: int, unit: str, command_line: str) -> None:
        self.memory = folder / "memory"
        arguments = [
            qemu, "-accel", "tcg", "-cpu", "max", "-machine", "q35,kernel-irqchip=split,memory-backend=m",
            "-m", f"{memory_mib}M",
            "-object", f"memory-backend-file,id=m,size={memory_mib}M,mem-path={self.memory},share=on",
            "-device", f"intel-iommu,intremap=on,{unit}",
            "-nic", "none", "-netdev", "user,id=n0", "-device", "e1000e,netdev=n0,addr=3",
            "-netdev", "user,id=n1",
            "-device", "virtio-net-pci,netdev=n1,addr=4,iommu_platform=on,disable-legacy=on",
            "-drive", "if=none,id=d0,driver=null-co,size=64M,read-zeroes=on",
            "-device", "nvme,drive=d0,serial=1,addr=5",
            "-device", "qemu-xhci,addr=6",
            "-display", "none", "-vga", "none", "-no-reboot",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", command_line,
            "-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off",
            "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
            "-serial", f"file:{folder}/console", "-serial", "chardev:agent",
        ]  # fmt: skip
        self.program = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
        self._agent = socket.socket(socket.AF_UNIX)
        self._agent.settimeout(120)
        while not (folder / "qmp").exists():
            if self.program.poll() is not None:
                sys.exit("QEMU did not start")
            time.sleep(0.05)
        self._agent.connect(f"{folder}/agent")
        self.monitor = QEMUMonitorProtocol(f"{folder}/qmp")
        self.monitor.connect()
        self._unread = b""
        self._commands = 0
        while self._line() != b"ready":
            pass

    def _line(self) -> bytes:
        while b"\n" not in self._unread:
            self._unread += self._agent.recv(1 << 16)
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def run(self, command: str) -> str:
        """Run a command in the guest and return what it printed."""
        self._commands += 1  # an answer's file is removed after it is sent: no number is used twice
        self._agent.sendall(f"{self._commands:x} {command}\n".encode())
        size = int(self._line().split()[2])
        while len(self._unread) < size:
            self._unread += self._agent.recv(1 << 16)
        printed, self._unread = self._unread[:size], self._unread[size:]
        return printed.decode()

    def register(self, offset: int) -> int:
        """Read a 64-bit register of the VT-d unit."""
        answer = str(self.monitor.cmd("human-monitor-command", **{"command-line": f"xp /1gx {UNIT + offset:#x}"}))
        return int(answer.split()[-1], 16)

    def slow_disk(self) -> None:
        """Let the disk take a byte a second from now on."""
        limits = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        self.monitor.cmd("block_set_io_throttle", device="d0", bps=1, **limits)

    def stop(self) -> None:
        """Stop its processors and devices; its memory stays."""
        self.monitor.cmd("stop")

    def close(self) -> None:
        """End it."""
        self.program.kill()
        self.program.wait()
        self._agent.close()


class Tables:
    """The pages of the tables, as they are met."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.pages: dict[int, npt.NDArray[np.uint64]] = {}

    def page(self, address: int) -> list[int]:
        """Return the 512 words at a physical address, and keep them."""
        if address not in self.pages:
            offset = address if address < BELOW_4G else address - FOUR_G + BELOW_4G
            self.pages[address] = np.frombuffer(self._memory[offset : offset + PAGE], np.uint64)
        return [int(word) for word in self.pages[address]]

    def collect(self, root: int, irta: int) -> None:
        """Keep every page that the unit could read on its way to a mapping or an interrupt."""
        for bus in self.page(root)[::2]:
            if bus & 1:
                context = self.page(bus & ADDRESS)
                for low, high in zip(context[::2], context[1::2], strict=True):
                    if low & 1 and low >> 2 & 3 != 2:
                        self._second_stage(low & ADDRESS, (high & 7) + 2)
        for number in range((2 << (irta & 0xF)) * 16 // PAGE):
            self.page((irta & ADDRESS) + number * PAGE)

    def _second_stage(self, address: int, level: int) -> None:
        if address not in self.pages:
            for entry in self.page(address):
                if level > 1 and entry & 3 and not entry & 0x80:
                    self._second_stage(entry & ADDRESS, level - 1)


def routing_id(device: str) -> int:
    """Turn DOMAIN:BUS:DEVICE.FUNCTION into bus << 8 | device << 3 | function."""
    bus, slot, function = re.split("[:.]", device)[1:]
    return int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)


def replay(trace: str, dmesg: str, msi_irqs: str, command_line: str, pt_off: bool) -> dict[str, Any]:
    """Work out what Linux believes to be in the tables now, from what it said while it worked."""
    domains: dict[int, dict[int, tuple[int, int]]] = {}
    attached: dict[int, int] = {}
    for kind, text in EVENT.findall(trace):
        said = dict(word.split("=", 1) for word in text.split())
        domain = int(said["domain"], 16)
        pages = domains.setdefault(domain, {})
        if kind == "attach":
            attached[routing_id(said["device"].strip('"'))] = domain
            continue
        iova, length = int(said["iova"], 16), int(said["size"], 16) * int(said["count"], 16)
        for at in range(0, length, PAGE):
            if kind == "unmap":
                pages.pop(iova + at, None)
            else:
                pages[iova + at] = int(said["hpa"], 16) + at, int(said["prot"], 16) & (READ | WRITE)
    if "iommu=pt" in command_line:
        identity = {
            at: (at, READ | WRITE)
            for first, last in NODE_RANGE.findall(dmesg)
            for at in range(int(first, 16), int(last, 16) + 1, PAGE)
        }
        for domain in set(attached.values()):
            domains[domain] |= identity if pt_off else {}
    vectors = {int(irq): (int(vector), int(target, 16)) for irq, vector, target in VECTOR.findall(trace)}
    interrupts = []
    for device, irq in (line.split() for line in msi_irqs.splitlines()):
        if int(irq) in vectors:  # allocated but never activated: no vector
            vector, target = vectors[int(irq)]
            interrupts.append({"rid": routing_id(device), "vector": vector, "target": target})
    passed_through = [] if pt_off or "iommu=pt" not in command_line else sorted(attached)
    mappings = [
        {"rid": rid} | mapping
        for rid, domain in sorted(attached.items())
        if rid not in passed_through
        for mapping in ranges(domains[domain])
    ]
    return {
        "mappings": mappings,
        "attached": sorted(attached),
        "passed_through": passed_through,
        "interrupts": interrupts,
    }


def memory_end(size: int) -> int:
    """Return the first address after memory of `size` bytes, which leaves a hole below 4 GiB."""
    return size if size <= BELOW_4G else FOUR_G + size - BELOW_4G


def ranges(pages: dict[int, tuple[int, int]]) -> list[dict[str, int | bool]]:
    """Join pages that follow each other on both sides with the same rights."""
    joined: list[dict[str, int | bool]] = []
    for iova, (hpa, rights) in sorted(pages.items()):
        last = joined[-1] if joined else None
        if (
            last
            and (last["iova"] + last["bytes"], last["hpa"] + last["bytes"]) == (iova, hpa)
            and (last["read"], last["write"]) == (bool(rights & READ), bool(rights & WRITE))
        ):
            last["bytes"] += PAGE
        else:
            joined.append(
                {"iova": iova, "hpa": hpa, "bytes": PAGE, "read": bool(rights & READ), "write": bool(rights & WRITE)}
            )
    return joined


def record(name: str, qemu: str, image: Image, target: Path) -> None:
    """Boot, let devices work, stop, and write TARGET/NAME.npz."""
    memory_mib, unit, words = RECORDINGS[name]
    command_line = f"console=ttyS0 quiet panic=-1 log_buf_len=1M {words} {TRACING}"
    with tempfile.TemporaryDirectory() as scratch:
        guest = Guest(qemu, image, Path(scratch), memory_mib, unit, command_line)
        try:
            guest.run(TRAFFIC)
            guest.slow_disk()
            guest.run(SLOW_WRITE)
            dmesg, msi_irqs = guest.run("dmesg"), guest.run(MSI_IRQS)
            # In pieces: one answer of the agent is at most 1 MiB.
            guest.run("cat /sys/kernel/tracing/trace > /tmp/trace")
            size = int(guest.run("wc -c < /tmp/trace"))
            step = 1 << 19
            trace = "".join(guest.run(f"tail -c +{at + 1} /tmp/trace | head -c {step}") for at in range(0, size, step))
            lost = guest.run("grep -h overrun: /sys/kernel/tracing/per_cpu/cpu*/stats")
            guest.stop()
            if re.search(r"overrun: [1-9]", lost):
                sys.exit(f"{name}: the trace lost events: {lost}")
            meta: dict[str, Any] = {
                "root": guest.register(RTADDR) & ADDRESS,
                "remapping": True,
                "irta": guest.register(IRTA),
                "cap": guest.register(CAP),
                "ecap": guest.register(ECAP),
                "memory_end": memory_end(memory_mib << 20),
                "kernel": image.version,
                "qemu": subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.split(
                    "\n"
                )[0],
                "command_line": words,
                "linux": replay(trace, dmesg, msi_irqs, words, "pt=off" in unit),
            }
            with guest.memory.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
                tables = Tables(memory)
                tables.collect(meta["root"], meta["irta"])
        finally:
            guest.close()
    addresses = sorted(tables.pages)
    target.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        target / f"{name}.npz",
        addresses=np.array(addresses, np.uint64),
        words=np.array([tables.pages[address] for address in addresses]),
        meta=json.dumps(meta),
    )
    mappings, interrupts = len(meta["linux"]["mappings"]), len(meta["linux"]["interrupts"])
    print(f"{name}: {len(addresses)} pages, {mappings} ranges of mappings, {interrupts} interrupts")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECORDINGS)}; all if none is given")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "virtfn")
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="any QEMU from 7.2 on")
    parser.add_argument("--suite", help="Debian suite whose Linux writes the tables; this machine's if not given")
    parser.add_argument("--target", type=Path, default=TARGET)
    options = parser.parse_args()
    if unknown := set(options.names) - set(RECORDINGS):
        parser.error(f"no recording is called {', '.join(sorted(unknown))}")
    if shutil.which(options.qemu) is None:
        parser.error(f"{options.qemu} not found")
    image = build_image(cache=options.cache.expanduser(), suite=options.suite, extra_modules=MODULES)
    for name in options.names or RECORDINGS:
        record(name, options.qemu, image, options.target)


if __name__ == "__main__":
    main()
