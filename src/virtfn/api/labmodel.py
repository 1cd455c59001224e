"""The keys of a lab file: their names, types, ranges and defaults. These models are the published JSON Schema.

Lab
 |- pfs[]      Pf        name, model, link-mbps, uplink, watch (`labwatch.py`)
 |   `- sr-iov SrIov     total-vfs, mirrors[]: Mirror, storm-control: StormControl
 |       `- vfs[]        VfPolicy, in the words of `ip link set PF vf ID`, and watch; TrunkTag in those of nmstate
 |- guests[]   Guest     name, vmm, memory-mib, expect; cpus, kernel, initrd, append, firmware, iommu, agent, qemu-args
 |   |- nic    Nic       pf, io, vf, attached, map-rings
 |   `- disk   Disk      file, format, snapshot, boot
 |- workload   Workload  kind, frame-bytes, frames, pcap, rewrite, expect
 |- iommu      Iommu     iotlb-entries, ats, device-tlb-entries
 `- dom0       Dom0      memory-mib
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)

from virtfn.api.expect import DEFAULT, BySender, Expectation
from virtfn.api.labfile import KeyPath, Tree, format_key, quote
from virtfn.api.labpolicy import IdRange, Mirror, SrIov, StormControl, TrunkTag, VfPolicy
from virtfn.api.labsection import Disk, File, Firmware, Section, or_a_file_name
from virtfn.api.labwatch import Watch
from virtfn.cards import MODELS
from virtfn.hw.eth import FCS_BYTES
from virtfn.machine.ports import VirtfnError

__all__ = [
    "LINUX_MIB",
    "STACK_FRAME",
    "STACK_MIB",
    "Disk",
    "Dom0",
    "Guest",
    "IdRange",
    "Iommu",
    "Lab",
    "Mirror",
    "Nic",
    "Pf",
    "SrIov",
    "StormControl",
    "TrunkTag",
    "VfPolicy",
    "Workload",
    "find_pf",
]

STACK_FRAME = 1518
"""The longest frame of guests with io split or direct, with frame check sequence: the host has an MTU of 1500."""
STACK_MIB = 8
"""Memory of the host's own network stack on a PF, at least: its rings and buffers take 3."""
MOST_PFS = 15
"""As many as I/O space has room for: 64 KiB, but for the first 4, in windows of 4 KiB, one for each root port."""
LINUX_MIB = 256
"""Memory of a guest that boots virtfn's initramfs, at least: that takes half."""


def _whole(value: object) -> object:
    # To Python, and so to a Literal, false is 0 and 100.0 is 100.
    if isinstance(value, bool | float):
        raise ValueError(f"must be a whole number, not {quote(value)}")
    return value


def _known(value: object) -> object:
    value = _whole(value)
    if not isinstance(value, int | str) or str(value) not in MODELS:
        raise ValueError(f"must be one of {', '.join(sorted(MODELS))}, not {quote(value)}")
    return value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]


class Pf(Section):
    """A physical function."""

    name: Name
    model: Annotated[
        int | str, BeforeValidator(_known), WithJsonSchema({"const": 82576, "title": "Model", "type": "integer"})
    ] = 82576
    link_mbps: Annotated[Literal[0, 10, 100, 1000], BeforeValidator(_whole)] = Field(
        default=0,
        description="speed of the wire; 0: as fast as this machine goes. As on silicon, frames between VFs are "
        "switched inside the card and do not take it: max-tx-rate limits those",
    )
    uplink: str = Field(
        default="none",
        pattern=r"^(none|pcap:.+|tap:[^/\s:]{1,15}|stream:.+|cable:[A-Za-z0-9][A-Za-z0-9._-]{0,31})$",
        description="what the wire leads to: none, pcap:FILE, tap:NAME, stream:SOCKET, stream:listen:SOCKET or "
        "cable:PF, another PF of the lab, where it may be said as well; docs/uplinks.md has a recipe for each",
    )
    watch: Watch | None = Field(default=None, description="what its VFs are watched for")
    sr_iov: SrIov | None = None

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        most = MODELS[str(self.model)].limits.vfs
        if self.total_vfs > most:
            raise ValueError(f"has {self.total_vfs} VFs; a {self.model} has {most} at most")
        return self

    @property
    def total_vfs(self) -> int:
        """VFs of this PF; 0 without SR-IOV."""
        return self.sr_iov.total_vfs if self.sr_iov else 0

    @property
    def cable(self) -> str:
        """The PF at the other end of a cable that is said here, if one is."""
        return self.uplink.removeprefix("cable:") if self.uplink.startswith("cable:") else ""

    @property
    def leads_outside(self) -> bool:
        """Whether others may be at its uplink: a tap or a stream."""
        return self.uplink.startswith(("tap:", "stream:"))

    def policy(self, vf: int) -> VfPolicy:
        """Return the policy of VF `vf`: what the lab says, or the defaults."""
        stated = self.sr_iov.vfs if self.sr_iov else ()
        return next((p for p in stated if p.id == vf), VfPolicy.model_validate({"id": vf}))


class Nic(Section):
    """How a guest reaches the network."""

    pf: Name
    io: Literal["split", "direct", "passthrough", "sriov", "host"] = Field(
        default="sriov",
        description="sriov: a VF; passthrough: the PF, whole; host: the PF, whole, with its SR-IOV capability, for a "
        "Linux that is a host itself, and makes total-vfs VFs under their policies; split: a front end, whose back end "
        "is in Dom0, as the PF is; direct: a card of the guest's own, which the VMM emulates, and whose every access "
        "traps. Linux guests drive them by igbvf, igb, igb, virtio_net and igb",
    )
    vf: int | None = Field(default=None, ge=0, le=7, description="VF on that PF; io sriov needs it")
    attached: bool = Field(
        default=True,
        description="false: the guest is up without it, and is given it while the lab is up: virtfn attach; io sriov",
    )
    map_rings: bool = Field(
        default=True,
        description="io sriov with vmm qemu: let the guest reach the pages of the ring registers without an exit; "
        "false: each register access is one",
    )


class Guest(Section):
    """A virtual machine."""

    name: Name
    vmm: Literal["embedded", "qemu"] = Field(
        default="embedded",
        description="embedded: in this process, with drivers of virtfn's; qemu: Linux with its own drivers",
    )
    memory_mib: int = Field(
        default=64, ge=4, le=65536, multiple_of=2, description="for vmm qemu 256 unless given, or more"
    )
    nic: Nic
    expect: BySender | None = Field(
        default=None,
        description="what this guest is to hear of what is sent to it, if not what the workload says: a value as "
        "there, or one for each sender: {a: none, c: 90%}",
    )
    cpus: int = Field(default=1, ge=1, le=64, description="vmm qemu, as all keys below: processors of the guest")
    kernel: File | None = Field(
        default=None, description="to boot instead of that of virtfn image build; with a disk alone, the firmware boots"
    )
    initrd: File | None = Field(
        default=None, description="instead of virtfn's, which has the modules of its own kernel alone, and an agent"
    )
    append: str = Field(
        default="", max_length=1024, description="of the kernel's command line; console=ttyS0 is there already"
    )
    disk: Disk | None = Field(
        default=None, description="a file, qcow2 or raw, or a mapping", json_schema_extra=or_a_file_name
    )
    firmware: Firmware = Field(
        default="seabios", description="seabios, which QEMU brings along; ovmf, as Debian packs it; or a file"
    )
    iommu: Literal["none", "translated", "pt"] = Field(
        default="none",
        description="an IOMMU of the guest's own (QEMU's intel-iommu), and how its Linux uses it for its own drivers: "
        "translated, or pt, passed through; either way vfio-pci can have functions, each in a group of its own. append "
        "may say otherwise (iommu=pt, iommu.strict=0)",
    )
    agent: bool | None = Field(
        default=None,
        description="whether virtfn's agent runs in the guest (docs/reference/images.md): it takes commands, and does "
        "the workload; without this key it does in virtfn's initramfs, and nowhere else",
    )
    qemu_args: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="further arguments for QEMU, one a piece; what would break the lab is refused"
    )

    @property
    def boots_disk(self) -> bool:
        """Whether the firmware boots from the disk."""
        return self.disk is not None and self.disk.boot and self.kernel is None

    @property
    def own_initrd(self) -> bool:
        """Whether the initramfs is virtfn's."""
        return self.initrd is None and not (self.disk is not None and self.disk.boot)

    @property
    def has_agent(self) -> bool:
        """Whether the guest takes commands."""
        return self.own_initrd if self.agent is None else self.agent

    @model_validator(mode="before")
    @classmethod
    def _room_for_linux(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("vmm") == "qemu" and "memory_mib" not in value:
            return {"memory-mib": LINUX_MIB, **value}
        return value


class Workload(Section):
    """What the guests do."""

    kind: Literal["pairs", "fan-in", "broadcast", "pcap", "ping", "attack", "none"] = Field(
        description="none: nothing, for guests with vmm qemu whom somebody else gives work (run --keep, serve); a "
        "guest with vmm qemu that is alone on its PF needs ping, and an uplink, tap or stream: it tests its link"
    )
    frame_bytes: int = Field(
        default=1518,
        ge=64,
        le=max(model.limits.frame for model in MODELS.values()) + FCS_BYTES,
        description="with the frame check sequence, as RFC 2544 counts; for vmm qemu the size of pings, and 18 more "
        "than the MTU, which is 576 to 9216",
    )
    frames: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="for each sender; without it 100000, for ping 1000, for pcap the whole capture once, "
        "otherwise each sender's frames of it over and over; for vmm qemu "
        "the pings, without it 100, for ping 1000, and what iperf3 sends comes on top",
    )
    pcap: File | None = Field(default=None, description="kind pcap: the capture, relative to the lab file")
    rewrite: bool = Field(
        default=True, description="kind pcap: give the frames the guests' addresses; false: byte for byte"
    )
    expect: Expectation = Field(
        default=DEFAULT,
        description="what is to arrive of what guests send to each other, or to be answered of pings: all; "
        "all-but-overruns: all but what a receiver drops for want of descriptors, and something at least; none; "
        "a share, like 90% or 0.9",
    )

    @property
    def frames_each(self) -> int | None:
        """Frames of each sender; None: the whole capture once."""
        defaults: dict[str, int | None] = {"ping": 1000, "pcap": None}
        return self.frames if self.frames is not None else defaults.get(self.kind, 100_000)

    @property
    def pings_each(self) -> int:
        """Pings that a Linux guest sends."""
        return self.frames or (1000 if self.kind == "ping" else 100)


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        below = 1 << value.bit_length() - 1
        raise ValueError(f"must be a power of two, like {below} or {2 * below}, not {value}")
    return value


Entries = Annotated[int, Field(ge=1, le=16384), AfterValidator(_power_of_two)]


class Dom0(Section):
    """The host's own network stack, where guests with io split or direct need one. All keys are optional."""

    memory_mib: int = Field(
        default=16, ge=2, le=1024, multiple_of=2, description="of Dom0, or the VMM, for each PF; 8 at least"
    )


class Iommu(Section):
    """The remapping unit, and what devices cache of it. All keys are optional."""

    iotlb_entries: Entries = Field(default=1024, description="translations that the unit caches; a power of two")
    ats: bool = Field(
        default=False,
        description="give the NICs address translation services, which a real 82576 has not: a device TLB each",
    )
    device_tlb_entries: Entries = Field(
        default=64, description="translations that a NIC caches, with ats; a power of two"
    )


class Lab(Section):
    """A lab: NICs, guests, and what they do."""

    name: Name
    pfs: tuple[Pf, ...] = Field(
        min_length=1,
        max_length=MOST_PFS,
        description="15 at most: each card has an I/O BAR, a port's I/O window is 4 KiB at least, and PCI has 64 KiB",
    )
    guests: tuple[Guest, ...] = Field(min_length=1, max_length=64)
    workload: Workload
    iommu: Iommu = Iommu()
    dom0: Dom0 = Dom0()

    _tree: Tree = PrivateAttr(default_factory=lambda: Tree("lab"))

    @property
    def folder(self) -> Path:
        """Where file names in the lab start from."""
        return self._tree.folder or Path(self._tree.file).parent

    @property
    def file(self) -> str:
        """The name of its file, as it was given."""
        return self._tree.file

    @property
    def text(self) -> str:
        """The text of its file, as it was; empty for a lab of objects."""
        return self._tree.text

    def pf(self, name: str) -> Pf:
        """Return the PF of that name. Raises VirtfnError (ENODEV) if there is none."""
        return find_pf(self.pfs, name)

    def host_of(self, name: str) -> str:
        """Return the guest that is the host of a PF, and makes its VFs; empty if it is virtfn's own."""
        return next((guest.name for guest in self.guests if guest.nic.io == "host" and guest.nic.pf == name), "")

    def cable_of(self, name: str) -> str:
        """Return the PF at the other end of the cable of a PF, whichever of the two says so; empty if it has none."""
        ends = [pf.name for pf in self.pfs if pf.cable == name]
        return self.pf(name).cable or (ends[0] if ends else "")

    def expected(self, sender: str, receiver: str) -> str | float:
        """Return what is to arrive of what one guest sends to another: `expect.py` says what the values mean."""
        stated = next((guest.expect for guest in self.guests if guest.name == receiver), None)
        if isinstance(stated, dict):
            stated = stated.get(sender)
        return self.workload.expect if stated is None else stated

    def kept_apart(self, sender: str, receiver: str) -> str:
        """Say what keeps two guests apart by the lab itself: their port VLANs; empty if nothing does."""
        vlans = {}
        for guest in self.guests:
            if guest.name in (sender, receiver) and guest.nic.vf is not None:
                vlans[guest.name] = self.pf(guest.nic.pf).policy(guest.nic.vf).vlan_id
        if len(set(vlans.values())) < 2:
            return ""
        return ", ".join(f"{name} is in {f'VLAN {vid}' if vid else 'no VLAN'}" for name, vid in vlans.items())

    def where(self, key: KeyPath) -> str:
        """Say where a key stands: `FILE:LINE: KEY`."""
        return f"{self._tree.file}:{self._tree.line(key)}: {format_key(key)}"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Pf = TypeVar("_Pf", bound=_Named)


def find_pf(pfs: Iterable[_Pf], name: str) -> _Pf:
    """Find a PF by its name, of a lab or of a machine. Raises VirtfnError (ENODEV) if there is none."""
    there = {pf.name: pf for pf in pfs}
    if name not in there:
        raise VirtfnError(f"no PF is named {name[:64]}; there are {', '.join(there)}", errno_name="ENODEV")
    return there[name]
