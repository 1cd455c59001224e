"""What a guest's virtual machine is made of, as arguments for QEMU.

    pcie.0 --+-- rp0 (slot 1) -- a function over vfio-user, plugged at start or at any time later; or a virtio
             |                   network device, whose back end is at a vhost-user socket
             +-- rp1 (slot 2) -- ...
             +-- whatever `extra` asks for

Guest memory is a shared memfd, so that QEMU can hand it to the vfio-user server; what is not shared is reached by
messages, slowly. There is no display and no default device, and a disk only where one is given; the two serial ports
are the console and the agent.

    argv      QEMU as virtfn starts it: QMP, console and agent at sockets that it inherits
    command   QEMU as somebody else starts it: its console is the terminal; no agent; QMP at a path, for a host
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu.acceleration import Acceleration
from virtfn.vmm.qemu.find import Qemu

__all__ = ["Disk", "Function", "Machine", "VirtioNic", "port_function", "port_name", "root_port"]

MAX_SLOTS = 14
MIN_MEMORY_MIB = 64
MAX_MEMORY_MIB = 1 << 20
MESSAGE_TIMEOUT_MS = 600_000  # QEMU drops the connection for good after an answer later than this
RECONNECT_MS = 500  # between attempts of QEMU's to find a back end that has gone
_FIRST_PORT = 0x10
_DISK_AT = 0xF
_IOMMU = "intel-iommu,caching-mode=on"  # caching: the guest tells of what it maps, too, and so QEMU tells us
_QMP = "qmp"
_RING = 1024  # the most that QEMU gives a virtio network device

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")


def port_function(slot: int) -> int:
    """Return the function number on bus 0 of the root port of a slot."""
    return _FIRST_PORT + slot << 3


def port_name(slot: int) -> str:
    """Return the id of the root port of a slot, which is the bus to plug into."""
    return f"rp{slot}"


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function served over vfio-user. id: its name in QEMU; socket: where its server listens already.

    place: where in its slot, as a function number of a card: FUNCTION + 8 * DEVICE. properties: further properties of
    QEMU's vfio-user-pci, such as {"bootindex": 1}.
    """

    id: str
    socket: Path
    properties: dict[str, str | int | bool] = field(default_factory=dict)
    place: int = 0

    def __post_init__(self) -> None:
        """Refuse names that QEMU would refuse."""
        if not _ID.fullmatch(self.id) or re.fullmatch(r"rp\d+|ram", self.id):
            raise VirtfnError(f"'{self.id}' is not a name for a device of QEMU", errno_name="EINVAL")

    def device(self, slot: int) -> dict[str, object]:
        """Return the arguments of device_add (or of -device) that plug it into a slot."""
        where: dict[str, object] = {}
        if self.place:  # QEMU wants to be told of a first function that others may follow; the card's own comes last
            where = {"addr": f"{self.place // 8:x}.{self.place % 8}", "multifunction": self.place % 8 == 0}
        return {
            "driver": "vfio-user-pci",
            "id": self.id,
            "bus": port_name(slot),
            **where,
            "socket": {"type": "unix", "path": str(self.socket.absolute())},
            "x-msg-timeout": MESSAGE_TIMEOUT_MS,
            **self.properties,
        }


@dataclass(frozen=True, slots=True)
class VirtioNic:
    """A virtio network device. id: its name in QEMU; socket: where its back end listens already; mac: in text."""

    id: str
    socket: Path
    mac: str

    def commands(self, slot: int) -> list[tuple[str, dict[str, object]]]:
        """Return the QMP commands that plug it into a slot, in order."""
        address = {"type": "unix", "data": {"path": str(self.socket.absolute())}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        return [
            ("chardev-add", {"id": self._channel, "backend": backend}),
            ("netdev_add", {"type": "vhost-user", "id": self._net, "chardev": self._channel}),
            ("device_add", self._device(slot)),
        ]

    def arguments(self, slot: int) -> list[str]:
        """Return the arguments of QEMU that plug it into a slot; it connects anew if the back end goes and comes."""
        path = _escaped(self.socket.absolute())
        return [
            *("-chardev", f"socket,id={self._channel},path={path},reconnect-ms={RECONNECT_MS}"),
            *("-netdev", f"vhost-user,id={self._net},chardev={self._channel}"),
            *("-device", json.dumps(self._device(slot))),
        ]

    @property
    def _channel(self) -> str:
        return f"{self.id}-channel"

    @property
    def _net(self) -> str:
        return f"{self.id}-net"

    def _device(self, slot: int) -> dict[str, object]:
        device = {"driver": "virtio-net-pci", "id": self.id, "bus": port_name(slot), "netdev": self._net}
        return {**device, "mac": self.mac, "disable-legacy": "on", "romfile": "", "rx_queue_size": _RING}


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the guest's. snapshot: what the guest writes is gone with QEMU. boot: the firmware boots from it."""

    file: Path
    format: Literal["qcow2", "raw"]
    snapshot: bool = True
    boot: bool = True

    def arguments(self) -> list[str]:
        """Return the arguments of QEMU that attach it."""
        snapshot = "on" if self.snapshot else "off"
        drive = f"if=none,id=disk,file={_escaped(self.file.absolute())},format={self.format},snapshot={snapshot}"
        boot = ",bootindex=0" if self.boot else ""
        return ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk,bus=pcie.0,addr={_DISK_AT:#x}{boot}"]


@dataclass(frozen=True, slots=True)
class Machine:
    """A guest to be started. append: the kernel's command line, after the console; slots: hot-plug slots.

    kernel: without one, the firmware boots from the disk. firmware: a file in place of QEMU's own, SeaBIOS.
    functions: plugged in from the start, into slots 0, 1, ...; those of a card share one, that at place 0 the last of
    them. extra: further arguments for QEMU as they are; those of a -device may name bus pcie.0 with addr 1 to 0xe.
    reboot: whether a guest's reboot restarts it or ends QEMU. shared: whether others can map its memory.
    native_hotplug: let the root ports do hot-plug, as the guest's PCI Express driver knows it, and not firmware, which
    takes out no function beyond the first eight of a slot. iommu: the guest has one. monitor: where a QEMU that
    somebody else starts listens for QMP of virtfn's.
    """

    name: str
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    memory_mib: int = 512
    cpus: int = 1
    slots: int = 4
    functions: tuple[Function, ...] = ()
    extra: tuple[str, ...] = ()
    reboot: bool = False
    shared: bool = True
    disk: Disk | None = None
    firmware: Path | None = None
    native_hotplug: bool = False
    iommu: bool = False
    monitor: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work; raise VirtfnError."""
        if not _NAME.fullmatch(self.name):
            raise VirtfnError(
                f"guest name '{self.name}': letters, digits, '_', '.', '-', at most 32", errno_name="EINVAL"
            )
        never_runs = "-S" in self.extra and self.disk is None
        if self.kernel is None and not never_runs and (self.disk is None or self.initrd is not None or self.append):
            raise VirtfnError(f"guest {self.name}: there is no kernel to boot", errno_name="EINVAL")
        for file in (self.kernel, self.initrd, self.firmware, self.disk.file if self.disk else None):
            if file is not None and not file.is_file():
                raise VirtfnError(f"guest {self.name}: no file {file}", errno_name="ENOENT")
        for what, value, low, high in (
            ("memory-mib", self.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB),
            ("cpus", self.cpus, 1, 255),
            ("slots", self.slots, self.taken_slots, MAX_SLOTS),
        ):
            if not low <= value <= high:
                raise VirtfnError(f"guest {self.name}: {what} {value} is not in {low}..{high}", errno_name="EINVAL")
        if len({function.id for function in self.functions}) < len(self.functions):
            raise VirtfnError(f"guest {self.name}: two functions of one name", errno_name="EEXIST")

    def argv(self, qemu: Qemu, acceleration: Acceleration, *, qmp: int, console: int, agent: int) -> list[str]:
        """Return the command line. qmp, console, agent: file descriptors of connected sockets that QEMU inherits."""
        channels = [
            "-chardev", f"socket,id={_QMP},fd={qmp}", "-qmp", f"chardev:{_QMP}",
            "-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console",
            "-chardev", f"socket,id=agent,fd={agent}", "-serial", "chardev:agent",
        ]  # fmt: skip
        return [*qemu.command, *self._board(acceleration), *channels, *self._boot(), *self.plugged(), *self.extra]

    def command(self, qemu: Qemu, acceleration: Acceleration, networks: Sequence[VirtioNic] = ()) -> list[str]:
        """Return the command line for whoever starts QEMU; its console is the terminal, Ctrl-A X ends it.

        networks: virtio network devices, in the slots after those of functions.
        """
        environ = [f"{name}={value}" for name, value in qemu.environ.items()]
        plugged = [word for n, nic in enumerate(networks) for word in nic.arguments(self.taken_slots + n)]
        return [
            *(["env", *environ] if environ else []), *qemu.command, *self._board(acceleration),
            "-serial", "mon:stdio", *self._boot(), *self.plugged(), *plugged, *self.extra,
        ]  # fmt: skip

    def _board(self, acceleration: Acceleration) -> list[str]:
        backend = "memory-backend-memfd" if self.shared else "memory-backend-ram"
        share = ",share=on" if self.shared else ""
        return [
            "-name", self.name, "-nodefaults", "-no-user-config", "-vga", "none", "-display", "none",
            *acceleration.arguments(), "-smp", str(self.cpus), "-m", f"{self.memory_mib}M",
            "-M", "q35,memory-backend=ram,sata=off,smbus=off" + (",kernel-irqchip=split" if self.iommu else ""),
            "-object", f"{backend},id=ram,size={self.memory_mib}M{share}",
            *(["-device", _IOMMU] if self.iommu else []),
        ]  # fmt: skip

    def _boot(self) -> list[str]:
        argv = []
        if self.firmware is not None:
            argv += ["-bios", str(self.firmware.absolute())]
        if self.kernel is not None:
            argv += ["-kernel", str(self.kernel.absolute()), "-append", self.kernel_line]
        if self.initrd is not None:
            argv += ["-initrd", str(self.initrd.absolute())]
        if self.disk is not None:
            argv += self.disk.arguments()
        return argv if self.reboot else [*argv, "-no-reboot"]

    @property
    def kernel_line(self) -> str:
        """The kernel's command line."""
        # Linux gives up if its timer does not tick in time, as it may not on a busy machine.
        return f"console=ttyS0 panic=-1 no_timer_check {self.append}".rstrip()

    def placed(self) -> Iterator[tuple[int, Function]]:
        """List the functions with their slots."""
        slot = 0
        for function in self.functions:
            yield slot, function
            slot += function.place == 0

    @property
    def taken_slots(self) -> int:
        """How many slots the functions take."""
        return sum(function.place == 0 for function in self.functions)

    def plugged(self) -> list[str]:
        """Return the arguments of QEMU for slots and functions, with the monitor that a card of a host needs."""
        argv = []
        if self.monitor is not None:
            channel = f"socket,id={_QMP},path={_escaped(self.monitor.absolute())},server=on,wait=off"
            argv += ["-chardev", channel, "-qmp", f"chardev:{_QMP}"]
        if self.native_hotplug:
            argv += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
        for slot in range(self.slots):
            argv += ["-device", root_port(slot)]
        for slot, function in self.placed():
            argv += ["-device", json.dumps(function.device(slot))]
        return argv


def root_port(slot: int) -> str:
    """Return the arguments of -device that make the root port of a slot."""
    # No I/O window: only sixteen would fit, and none of our functions has I/O space.
    place = f"bus=pcie.0,addr={_FIRST_PORT + slot:#x},chassis={slot + 1},slot={slot + 1},io-reserve=0"
    return f"pcie-root-port,id={port_name(slot)},{place}"


def _escaped(path: Path) -> str:
    """Write a path as a value of QEMU's options, in which a comma ends a value."""
    return str(path).replace(",", ",,")
