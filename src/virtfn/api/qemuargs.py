"""How somebody else starts the QEMU of a lab's guest: its command line, or libvirt's domain.

The sockets are those of `virtfn serve` with the same lab and folder; all else is as if virtfn started it, but that the
console is the terminal, or libvirt's, and that there is no agent. The QEMU of a guest that is a host has a monitor for
virtfn, besides all others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from virtfn.api.boot import machine_parts
from virtfn.api.image import Platform, find_platform, require_hosts
from virtfn.api.lab import Guest, Lab
from virtfn.api.machine import guest_mac
from virtfn.api.served import protocol_of, socket_of, sockets_folder, vf_sockets
from virtfn.cards import MODELS
from virtfn.hw.types import format_mac
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Function, Machine, VirtioNic, rest
from virtfn.vmm.qemu.elsewhere import monitor_socket
from virtfn.vmm.qemu.machine import RECONNECT_MS

__all__ = ["libvirt_domain", "qemu_command"]

_NIC = "nic0"
_QEMU_XML = "http://libvirt.org/schemas/domain/qemu/1.0"


def qemu_command(lab: Lab, name: str, sockets: Path | None = None, *, platform: Platform | None = None) -> list[str]:
    """Return the command line that starts the QEMU of a guest; its console is the terminal.

    sockets: of `virtfn serve`; without it, its default. platform: to start it on; found if None. Raises VirtfnError:
    ENOENT (no such guest; what QEMU needs is not there), EINVAL (the guest is not for QEMU), EOPNOTSUPP (it is a host,
    and this QEMU cannot give it VFs to make).
    """
    guest, platform = _guest(lab, name, platform)
    machine, networks = _parts(lab, guest, sockets, platform)
    return machine.command(platform.qemu, platform.acceleration, networks)


def _guest(lab: Lab, name: str, platform: Platform | None) -> tuple[Guest, Platform]:
    guest = next((guest for guest in lab.guests if guest.name == name), None)
    if guest is None:
        there = ", ".join(guest.name for guest in lab.guests)
        raise VirtfnError(f"lab {lab.name} has no guest called {name}; there are {there}", errno_name="ENOENT")
    if guest.vmm != "qemu":
        raise VirtfnError(f"guest {name} is embedded, and no QEMU runs it; use vmm: qemu", errno_name="EINVAL")
    platform = platform or find_platform(rest, [guest])
    if guest.nic.io == "host":
        require_hosts(platform)
    return guest, platform


def _parts(lab: Lab, guest: Guest, sockets: Path | None, platform: Platform) -> tuple[Machine, list[VirtioNic]]:
    """Return the machine of a guest, and its virtio devices; plugged in from the start."""
    folder = sockets_folder(lab, sockets)
    socket = socket_of(guest, folder)
    machine = machine_parts(guest, platform)
    if guest.nic.io == "host":
        place = MODELS[str(lab.pf(guest.nic.pf).model)].vf_function
        if place is None:
            raise VirtfnError(f"a guest makes no VFs of {guest.nic.pf}", errno_name="EOPNOTSUPP")
        vfs = [Function(f"{_NIC}-vf{n}", path, place=place(n)) for n, path in enumerate(vf_sockets(lab, guest, folder))]
        return replace(machine, functions=(*vfs, Function(_NIC, socket)), monitor=monitor_socket(socket)), []
    if protocol_of(guest) == "vhost-user":
        return machine, [VirtioNic(_NIC, socket, format_mac(guest_mac(lab, guest)))]
    return replace(machine, functions=(Function(_NIC, socket),)), []


def libvirt_domain(lab: Lab, name: str, sockets: Path | None = None, *, platform: Platform | None = None) -> str:
    """Return the XML of a libvirt domain for a guest, for `virsh define`. Parameters and errors as `qemu_command`.

    What libvirt has no words for, the function over vfio-user and the lab's qemu-args, is in qemu:commandline.
    """
    guest, platform = _guest(lab, name, platform)
    machine, networks = _parts(lab, guest, sockets, platform)
    ElementTree.register_namespace("qemu", _QEMU_XML)
    domain = ElementTree.Element("domain", {"type": "kvm" if platform.acceleration.kind == "kvm" else "qemu"})
    _add(domain, "name", machine.name)
    _add(domain, "memory", str(machine.memory_mib), unit="MiB")
    backing = _add(domain, "memoryBacking")
    _add(backing, "source", type="memfd")
    _add(backing, "access", mode="shared")
    _add(domain, "vcpu", str(machine.cpus))
    _add_boot(domain, machine)
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if machine.iommu:
        _add(features, "ioapic", driver="qemu")
    _add(domain, "cpu", mode="host-passthrough" if platform.acceleration.kind == "kvm" else "maximum")
    _add(domain, "on_reboot", "restart" if machine.reboot else "destroy")
    devices = _add(domain, "devices")
    if platform.qemu.command == (
        str(platform.qemu.path),
    ):  # one that is unpacked needs a loader: libvirt finds its own
        _add(devices, "emulator", str(platform.qemu.path))
    if machine.iommu:
        _add(_add(devices, "iommu", model="intel"), "driver", intremap="on", caching_mode="on")
    _add_disk(devices, machine)
    for network in networks:
        _add_network(devices, network)
    _add(_add(devices, "serial", type="pty"), "target", type="isa-serial", port="0")
    _add(_add(devices, "console", type="pty"), "target", type="serial", port="0")
    _add(devices, "memballoon", model="none")
    _add_arguments(domain, machine)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    added = ElementTree.SubElement(parent, tag, attributes)
    added.text = text
    return added


def _add_boot(domain: ElementTree.Element, machine: Machine) -> None:
    system = _add(domain, "os")
    _add(system, "type", "hvm", arch="x86_64", machine="q35")
    if machine.firmware is not None:
        _add(system, "loader", str(machine.firmware.absolute()), readonly="yes", type="rom")
    if machine.kernel is not None:
        _add(system, "kernel", str(machine.kernel.absolute()))
        if machine.initrd is not None:
            _add(system, "initrd", str(machine.initrd.absolute()))
        _add(system, "cmdline", machine.kernel_line)
    else:
        _add(system, "boot", dev="hd")


def _add_disk(devices: ElementTree.Element, machine: Machine) -> None:
    if machine.disk is None:
        return
    disk = _add(devices, "disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type=machine.disk.format)
    _add(disk, "source", file=str(machine.disk.file.absolute()))
    _add(disk, "target", dev="vda", bus="virtio")
    if machine.disk.snapshot:
        _add(disk, "transient")


def _add_network(devices: ElementTree.Element, network: VirtioNic) -> None:
    interface = _add(devices, "interface", type="vhostuser")
    _add(interface, "mac", address=network.mac)
    source = _add(interface, "source", type="unix", path=str(network.socket), mode="client")
    _add(source, "reconnect", enabled="yes", timeout=str(max(RECONNECT_MS // 1000, 1)))
    _add(interface, "model", type="virtio")


def _add_arguments(domain: ElementTree.Element, machine: Machine) -> None:
    """Add what libvirt has no words for."""
    if arguments := [*(machine.plugged() if machine.functions else ()), *machine.extra]:
        line = _add(domain, f"{{{_QEMU_XML}}}commandline")
        for argument in arguments:
            _add(line, f"{{{_QEMU_XML}}}arg", value=argument)
