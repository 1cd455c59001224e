"""Every way a lab can be wrong, in words that say how to mend it.

`put_in_words` says what the models found in the words of the lab file; `find_faults` holds what a schema cannot say:
clashes, unknown names, numbers that do not fit each other; `refuse_unsupported` names what is understood but not
enforced.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from virtfn.api.labfile import Fault, KeyPath, quote
from virtfn.api.labhosts import cable_faults, host_faults, senders_to_host
from virtfn.api.labimages import image_faults
from virtfn.api.labmodel import (
    STACK_FRAME,
    STACK_MIB,
    Disk,
    Dom0,
    Guest,
    IdRange,
    Iommu,
    Lab,
    Mirror,
    Nic,
    Pf,
    SrIov,
    StormControl,
    TrunkTag,
    VfPolicy,
    Workload,
)
from virtfn.api.labpolicyfaults import no_such_vf, policy_faults, switch_faults, twice
from virtfn.api.labwatch import Watch, WatchLimit
from virtfn.cards import MODELS
from virtfn.iomodels.plan import plan
from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

__all__ = ["LINUX_WORK", "Fault", "find_faults", "put_in_words", "refuse_unsupported"]

LINUX_WORK = ("pairs", "fan-in", "ping", "none")
"""Kinds of work that Linux guests do."""
_WHOLE = ("passthrough", "host")


def find_faults(lab: Lab, *, works: bool = True) -> Iterator[Fault]:
    """List what is wrong between the keys of a lab: clashes, unknown names, numbers that do not fit each other.

    works: whether its guests do its workload; what that needs is nothing to others.
    """
    yield from twice([(("pfs", i, "name"), pf.name) for i, pf in enumerate(lab.pfs)], "PF name")
    yield from twice([(("guests", i, "name"), guest.name) for i, guest in enumerate(lab.guests)], "guest name")
    macs: list[tuple[KeyPath, str]] = []
    for i, pf in enumerate(lab.pfs):
        vfs = pf.sr_iov.vfs if pf.sr_iov else ()
        yield from policy_faults(("pfs", i, "sr-iov", "vfs"), pf, vfs)
        yield from switch_faults(("pfs", i, "sr-iov"), pf)
        if pf.watch is not None and not pf.total_vfs:
            yield Fault(("pfs", i, "watch"), f"is about VFs, and {pf.name} has none; leave it out")
        macs += [
            (("pfs", i, "sr-iov", "vfs", j, "mac-address"), p.mac_address) for j, p in enumerate(vfs) if p.mac_address
        ]
    yield from twice(macs, "MAC address")
    yield from _nic_faults(lab)
    yield from _stack_faults(lab)
    yield from _owner_faults(lab)
    found = (*image_faults(lab), *cable_faults(lab), *host_faults(lab, works=works))
    yield from (Fault(key, message) for key, message in found)
    if works:
        yield from _workload_faults(lab)
        yield from _expect_faults(lab)


def _nic_faults(lab: Lab) -> Iterator[Fault]:
    pfs = {pf.name: pf for pf in lab.pfs}
    owners: dict[tuple[str, int], str] = {}
    users: dict[str, int] = {}
    for i, guest in enumerate(lab.guests):
        key: KeyPath = ("guests", i, "nic")
        nic = guest.nic
        if "map_rings" in nic.model_fields_set and (nic.io != "sriov" or guest.vmm != "qemu"):
            yield Fault((*key, "map-rings"), "is for VFs of Linux guests; leave it out, or use io: sriov and vmm: qemu")
        if not nic.attached and nic.io != "sriov":
            yield Fault((*key, "attached"), "only a VF is attached later; leave it out, or use io: sriov")
        pf = pfs.get(nic.pf)
        if pf is None:
            yield Fault((*key, "pf"), f"no PF is named {nic.pf}; there are {', '.join(pfs)}")
            continue
        if nic.io == "sriov" and nic.attached:
            users[pf.name] = users.get(pf.name, 0) + 1
            if users[pf.name] == pf.total_vfs + 1 and pf.total_vfs:
                yield Fault(
                    key, f"more guests than the {pf.total_vfs} VFs of {pf.name}; raise total-vfs or drop a guest"
                )
        if nic.vf is None:
            if nic.io == "sriov":
                yield Fault(key, f"io {nic.io} needs a VF; add vf: N")
            continue
        if not nic.attached:
            continue
        if nic.vf >= pf.total_vfs:
            yield Fault((*key, "vf"), no_such_vf(nic.vf, pf))
        owner = owners.setdefault((nic.pf, nic.vf), guest.name)
        if owner != guest.name:
            yield Fault((*key, "vf"), f"VF {nic.vf} of {nic.pf} belongs to guest {owner} already; take another VF")


def _stack_faults(lab: Lab) -> Iterator[Fault]:
    """List what keeps the host from a network stack on a PF, where split or direct guests need one."""
    for i, guest in enumerate(lab.guests):
        nic = guest.nic
        if nic.io not in ("split", "direct"):
            continue
        if nic.vf is not None:
            yield Fault(("guests", i, "nic", "vf"), f"io {nic.io} takes no VF; leave vf out")
        for j, pf in enumerate(lab.pfs):
            if pf.name == nic.pf and pf.total_vfs == MODELS[str(pf.model)].limits.vfs:
                yield Fault(
                    ("pfs", j, "sr-iov", "total-vfs"),
                    f"with {pf.total_vfs} VFs no pool of {pf.name} is left for the host, as io {nic.io} of guest "
                    f"{guest.name} needs; use {pf.total_vfs - 1} or fewer",
                )
        if lab.dom0.memory_mib < STACK_MIB:
            yield Fault(
                ("dom0", "memory-mib"),
                f"io {nic.io} of guest {guest.name} needs {STACK_MIB} or more for the host's rings, not "
                f"{lab.dom0.memory_mib}; raise it",
            )


def _owner_faults(lab: Lab) -> Iterator[Fault]:
    """List what is wrong with PFs that are given whole."""
    for i, guest in enumerate(lab.guests):
        if guest.nic.io not in _WHOLE:
            continue
        if guest.nic.vf is not None and guest.nic.io == "passthrough":
            yield Fault(("guests", i, "nic", "vf"), "io passthrough gives the PF whole; leave vf out")
        for j, pf in enumerate(lab.pfs):
            if pf.name == guest.nic.pf and pf.sr_iov is not None and guest.nic.io == "passthrough":
                yield Fault(("pfs", j, "sr-iov"), f"{pf.name} is given whole to guest {guest.name}; leave sr-iov out")
        for j, other in enumerate(lab.guests):
            if other.nic.pf == guest.nic.pf and j != i and (j > i or other.nic.io not in _WHOLE):
                owner = "its host, which gives VFs out itself" if guest.nic.io == "host" else "whole"
                yield Fault(
                    ("guests", j, "nic", "pf"),
                    f"{guest.nic.pf} belongs to guest {guest.name}, {owner}; take another PF",
                )


def _teams(lab: Lab) -> Iterator[tuple[str, int, str]]:
    """List who works together, embedded guests and the Linux guests of each PF: (in words, how many, what to add).

    A guest that has a PF whole, or that pings and is alone on a PF that leads outside, works alone.
    """
    if lab.workload.kind == "none":
        return
    embedded = sum(guest.vmm == "embedded" for guest in lab.guests)
    if embedded == len(lab.guests):
        yield "guests", embedded, "a guest"
        return
    if embedded:
        yield "embedded guests", embedded, "a guest"
    for pf in lab.pfs:
        on_pf = [guest for guest in lab.guests if guest.nic.pf == pf.name and guest.vmm == "qemu"]
        if not on_pf or on_pf[0].nic.io in _WHOLE:
            continue
        if len(on_pf) > 1 or lab.workload.kind != "ping" or not pf.leads_outside:
            yield f"qemu guests on {pf.name}", len(on_pf), "a guest, or give it an uplink, tap or stream, and use ping"


def _workload_faults(lab: Lab) -> Iterator[Fault]:
    work = lab.workload
    kind: KeyPath = ("workload", "kind")
    for who, guests, more in _teams(lab):
        if guests < 2:
            yield Fault(kind, f"{work.kind} needs two {who} or more, here is {guests}; add {more}")
        elif work.kind == "pairs" and guests % 2:
            yield Fault(kind, f"pairs needs an even number of {who}, here are {guests}; add or drop one")
    yield from _lonely_faults(lab)
    if work.kind == "attack" and len(lab.guests) > 1:
        yield from _attack_faults(lab)
    given = work.model_fields_set
    if work.kind == "pcap":
        if work.pcap is None:
            yield Fault(kind, "pcap needs a capture; add pcap: FILE")
        elif not work.pcap.is_file():
            yield Fault(("workload", "pcap"), f"no file {quote(str(work.pcap))}; names are relative to the lab file")
        for i, pf in enumerate(lab.pfs):
            if pf.leads_outside:
                yield Fault(("pfs", i, "uplink"), "a replay knows every frame; use uplink: none or pcap:FILE")
        if "frame_bytes" in given:
            yield Fault(("workload", "frame-bytes"), "the capture decides the sizes of frames; leave this key out")
    else:
        for name in ("pcap", "rewrite"):
            if name in given:
                yield Fault(("workload", name), f"means nothing to kind {work.kind}; leave it out, or use kind: pcap")


def _expect_faults(lab: Lab) -> Iterator[Fault]:
    """List what is expected of senders that are none."""
    for i, guest in enumerate(lab.guests):
        if guest.expect is None:
            continue
        key: KeyPath = ("guests", i, "expect")
        senders = _senders_to(lab, guest)
        if not senders:
            yield Fault(key, f"nobody sends to {guest.name} in {lab.workload.kind}; leave it out")
        elif isinstance(guest.expect, dict):
            for name in guest.expect:
                if name not in senders:
                    yield Fault(
                        (*key, name), f"{quote(name)} does not send to {guest.name}; who does: {', '.join(senders)}"
                    )


def _senders_to(lab: Lab, guest: Guest) -> list[str]:
    """Name the guests that send to a guest in the lab's work, or may; of a host, VFs."""
    team = [other for other in lab.guests if other.nic.pf == guest.nic.pf and other.vmm == guest.vmm]
    place = team.index(guest)
    if lab.workload.kind == "none":
        return []
    if guest.nic.io == "host":
        return senders_to_host(lab, guest)
    if lab.workload.kind == "pcap":
        return [other.name for other in team if other is not guest]
    if guest.vmm == "qemu" and lab.workload.kind != "fan-in":
        around = [team[place - 1]] if len(team) % 2 else [team[place ^ 1]]
        return [other.name for other in around if other is not guest]
    targets = plan(lab.workload.kind, len(team))
    return [other.name for n, other in enumerate(team) if n != place and (place in targets[n] or None in targets[n])]


def _lonely_faults(lab: Lab) -> Iterator[Fault]:
    """List embedded guests that have a PF to themselves: guests of different PFs do not reach each other."""
    on_pf: dict[str, list[int]] = {}
    if lab.workload.kind == "attack" or not {guest.nic.pf for guest in lab.guests} <= {pf.name for pf in lab.pfs}:
        return  # that has faults of its own
    for i, guest in enumerate(lab.guests):
        if guest.vmm == "embedded":
            on_pf.setdefault(guest.nic.pf, []).append(i)
    for pf, places in on_pf.items():
        if len(places) == 1 and len(on_pf) > 1:
            name, kind = lab.guests[places[0]].name, lab.workload.kind
            yield Fault(
                ("guests", places[0], "nic", "pf"),
                f"{name} is the only embedded guest on {pf}, and {kind} needs two there; give it the PF of another",
            )


def _attack_faults(lab: Lab) -> Iterator[Fault]:
    first = lab.guests[0].nic.pf
    if len(lab.guests) < 3:
        yield Fault(("workload", "kind"), "attack needs an attacker, the first guest, and two victims; add a guest")
    for i, guest in enumerate(lab.guests):
        if guest.nic.pf != first:
            yield Fault(("guests", i, "nic", "pf"), f"the victims of an attack are on the attacker's PF; use {first}")
        if guest.vmm != "embedded":
            yield Fault(("guests", i, "vmm"), "the guests of an attack are embedded; use vmm: embedded")
        if guest.nic.io != "sriov":
            yield Fault(("guests", i, "nic", "io"), "the guests of an attack have VFs; use io: sriov")
    for i, pf in enumerate(lab.pfs):
        if pf.uplink != "none":
            yield Fault(("pfs", i, "uplink"), "an attacker's accomplice has the wire; use uplink: none")


def refuse_unsupported(lab: Lab) -> None:
    """Refuse what a lab may ask for but this version does not do.

    Raises VirtfnError (EOPNOTSUPP) for the first such key: a setting is enforced or refused, never stored and ignored.
    """
    for i, pf in enumerate(lab.pfs):
        for j, policy in enumerate(pf.sr_iov.vfs if pf.sr_iov else ()):
            key: KeyPath = ("pfs", i, "sr-iov", "vfs", j)
            if policy.link_state == "enable":
                why = "VFs of an 82576 see the link bit of the port itself (VTSTATUS); use auto or disable"
                _refuse_by_card(lab, (*key, "link-state"), why)
            if policy.min_tx_rate:
                why = "an 82576 limits what VFs send, and guarantees nothing; use 0"
                _refuse_by_card(lab, (*key, "min-tx-rate"), why)
            if policy.vlan_proto != "802.1q":
                _refuse_by_card(lab, (*key, "vlan-proto"), "an 82576 inserts 802.1Q tags alone; use 802.1q")
    for io in ("split", "direct"):
        if any(guest.nic.io == io for guest in lab.guests) and lab.workload.frame_bytes > STACK_FRAME:
            what = f"{lab.workload.frame_bytes} for guests with io {io} is"
            _refuse(lab, ("workload", "frame-bytes"), what, str(STACK_FRAME))
    _refuse_for_linux(lab)


def _refuse_for_linux(lab: Lab) -> None:
    """Refuse what Linux guests, or PFs without embedded guests, do not do."""
    if all(guest.vmm == "embedded" for guest in lab.guests):
        return
    if lab.workload.kind not in LINUX_WORK:
        _refuse(lab, ("workload", "kind"), f"{lab.workload.kind} by qemu guests is", " or ".join(LINUX_WORK))
    driven = {guest.nic.pf for guest in lab.guests if guest.vmm == "embedded"}
    for i, pf in enumerate(lab.pfs):
        if pf.uplink.startswith("pcap:") and pf.name not in driven:
            what = "a capture as the uplink of qemu guests alone is"
            _refuse(lab, ("pfs", i, "uplink"), what, "none, tap:NAME, stream:SOCKET or cable:PF")


def _refuse_by_card(lab: Lab, key: KeyPath, why: str) -> NoReturn:
    raise VirtfnError(f"{lab.where(key)}: {why}", errno_name="EOPNOTSUPP")


def _refuse(lab: Lab, key: KeyPath, what: str, instead: str) -> NoReturn:
    raise VirtfnError(f"{lab.where(key)}: {what} not supported by this version; use {instead}", errno_name="EOPNOTSUPP")


_WORDS = {
    "missing": "is required; add it",
    "int_type": "must be a whole number, not {value}",
    "int_from_float": "must be a whole number, not {value}",
    "int_parsing_size": "is out of range",
    "bool_type": "must be true or false, not {value}",
    "string_type": "must be text, not {value}; put it in quotes",
    "string_too_short": "must not be empty",
    "string_too_long": "is longer than {max_length} characters",
    "tuple_type": "must be a list, not {value}; start each item with a dash",
    "model_type": "must be a mapping of keys, not {value}",
    "greater_than_equal": "must be at least {ge}, not {value}",
    "less_than_equal": "must be at most {le}, not {value}",
    "multiple_of": "must be a multiple of {multiple_of}, not {value}",
    "too_short": "needs at least {min_length}, here are {actual_length}",
    "too_long": "holds more than {max_length}; an 82576 lab has no more",
    "literal_error": "must be one of {expected}, not {value}",
    "is_instance_of": "must be the name of a file, not {value}",
}
_PATTERNS = {
    "uplink": "must be none, pcap:FILE, tap:NAME, stream:SOCKET or cable:PF, not {value}",
    "name": "must be 1 to 32 letters, digits, dots, dashes or underlines, not {value}",
}


def put_in_words(error: ValidationError) -> list[Fault]:
    """Say what the models found in the words of the lab file."""
    found = error.errors(include_url=False)
    # An item that is wrong itself also makes its list count as too short; only a list that is short in the file is.
    return [_say(d) for d in found if d["type"] != "too_short" or len(d["input"]) < d["ctx"]["min_length"]]


def _say(details: ErrorDetails) -> Fault:
    key: KeyPath = details["loc"]
    kind, value = details["type"], quote(details["input"])
    if kind == "extra_forbidden":
        return Fault(key, _unknown_key(key))
    if kind == "value_error":
        return Fault(key, str(details["ctx"]["error"]))
    if kind == "string_pattern_mismatch":
        return Fault(key, _PATTERNS.get(str(key[-1]), _PATTERNS["name"]).format(value=value))
    words = _WORDS.get(kind, "is wrong: {value}")
    return Fault(key, words.format(value=value, **details.get("ctx", {})))


def _unknown_key(key: KeyPath) -> str:
    """Name the keys that may stand where an unknown one does."""
    section: type[BaseModel] = Lab
    for part in key[:-1]:
        if isinstance(part, str):
            section = _SECTIONS[part]
    known = [field.alias or name for name, field in section.model_fields.items()]
    close = difflib.get_close_matches(str(key[-1]), known, n=1)
    return (
        f"is not a key here; did you mean {close[0]}?" if close else f"is not a key here; keys are {', '.join(known)}"
    )


_SECTIONS: dict[str, type[BaseModel]] = {
    "pfs": Pf,
    "sr-iov": SrIov,
    "vfs": VfPolicy,
    "trunk-tags": TrunkTag,
    "id-range": IdRange,
    "mirrors": Mirror,
    "storm-control": StormControl,
    "guests": Guest,
    "nic": Nic,
    "disk": Disk,
    "workload": Workload,
    "iommu": Iommu,
    "dom0": Dom0,
    "watch": Watch,
    **{field.alias or name: WatchLimit for name, field in Watch.model_fields.items()},
}
