"""What can be wrong with guests that are hosts, and with cables, in words that say how to mend it."""

from __future__ import annotations

from collections.abc import Iterator

from virtfn.api.labfile import KeyPath
from virtfn.api.labmodel import Guest, Lab, Pf
from virtfn.cards import MODELS

__all__ = ["cable_faults", "host_faults", "senders_to_host", "vf_name"]

_HOST_WORK = ("pairs", "ping", "none")


def vf_name(host: str, n: int) -> str:
    """Return what a VF is called that a host makes."""
    return f"{host} vf{n}"


def senders_to_host(lab: Lab, host: Guest) -> list[str]:
    """Name the VFs that send to those of a host: its own, or where a cable leads to another host, that one's."""
    pf = lab.pf(host.nic.pf)
    other = lab.host_of(cable := lab.cable_of(pf.name))
    if not other:
        return [vf_name(host.name, n) for n in range(pf.total_vfs)]
    return [vf_name(other, n) for n in range(min(pf.total_vfs, lab.pf(cable).total_vfs))]


def host_faults(lab: Lab, *, works: bool = True) -> Iterator[tuple[KeyPath, str]]:
    """List what is wrong with guests that are hosts: (key, words). works: as of `find_faults`."""
    for i, guest in enumerate(lab.guests):
        if guest.nic.io != "host":
            continue
        key: KeyPath = ("guests", i)
        if guest.vmm != "qemu":
            yield (*key, "vmm"), "io host needs a Linux that makes VFs; use vmm: qemu"
        if guest.nic.vf is not None:
            yield (*key, "nic", "vf"), "io host gives the PF, whole, and the guest makes the VFs; leave vf out"
        if works and lab.workload.kind not in _HOST_WORK:
            what = f"the VFs of guest {guest.name}, a host, talk in twos"
            yield ("workload", "kind"), f"{what}; use pairs, ping or none"
        for j, pf in enumerate(lab.pfs):
            if pf.name == guest.nic.pf and pf.total_vfs:
                yield from _vf_faults(lab, ("pfs", j, "sr-iov", "total-vfs"), pf, works=works)


def _vf_faults(lab: Lab, key: KeyPath, pf: Pf, *, works: bool) -> Iterator[tuple[KeyPath, str]]:
    """List what is wrong with the number of VFs of a host's PF."""
    most = MODELS[str(pf.model)].limits.vfs - 1  # Linux's driver keeps a pool for itself
    if pf.total_vfs > most:
        yield key, f"Linux's own driver makes {most} VFs of a {pf.model} at most; use {most} or fewer"
    if lab.workload.kind == "none":
        return
    if not lab.host_of(lab.cable_of(pf.name)) and (
        pf.total_vfs < 2 or (lab.workload.kind == "pairs" and pf.total_vfs % 2)
    ):
        wanted = "an even number of VFs" if lab.workload.kind == "pairs" else "two VFs or more"
        yield key, f"{lab.workload.kind} on one card needs {wanted}, here are {pf.total_vfs}; add one, or lay a cable"


def cable_faults(lab: Lab) -> Iterator[tuple[KeyPath, str]]:
    """List what is wrong with cables between PFs: (key, words)."""
    names = [pf.name for pf in lab.pfs]
    for i, pf in enumerate(lab.pfs):
        key: KeyPath = ("pfs", i, "uplink")
        if not pf.cable:
            continue
        others = [name for name in names if name != pf.name]
        if pf.cable not in others:
            there = f"there are {', '.join(others)}" if others else "there is no other"
            yield key, f"no other PF is named {pf.cable}; {there}"
            continue
        if lab.pf(pf.cable).uplink not in ("none", f"cable:{pf.name}"):
            yield key, f"{pf.cable} has another uplink, {lab.pf(pf.cable).uplink}; a cable has the wires of two PFs"
        if any(other.cable == pf.cable for other in lab.pfs[:i]):
            yield key, f"{pf.cable} has a cable already; each PF has one wire"
        for guest in lab.guests:
            if guest.vmm != "qemu" and guest.nic.pf in (pf.name, pf.cable):
                yield key, f"guest {guest.name} is embedded; a cable joins the cards of Linux guests"
                break
