"""Requests that change a lab that is up, and the one that tells what it is now."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from virtfn.api.lab import Lab, Nic, parse_lab, refuse_unsupported
from virtfn.api.labchange import function, with_nic, with_vfs
from virtfn.api.labfile import LabError
from virtfn.api.running import lab_document
from virtfn.api.session.asking import Answering, Params, Request, known, number
from virtfn.api.session.change import change
from virtfn.api.session.difference import DifferenceDocument, differences, refuse_fixed
from virtfn.api.session.policy import refuse_whole
from virtfn.api.session.service import standing_of
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError

__all__ = ["ApplyLab", "AttachGuest", "ChangeDocument", "DetachGuest", "GetLab", "SetVfs"]

_FUNCTION = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,31})/vf([0-7])")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class ChangeDocument(TypedDict):
    """What requests answer that change the lab. changes: keys that differed; applied: whether they do no more."""

    lab: str
    applied: bool
    changes: list[DifferenceDocument]


def _name(params: Params, key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise VirtfnError(
            f"{key} is a name of 1 to 32 letters, digits, dots, dashes or underlines", errno_name="EINVAL"
        )
    return value


def _changed(session: Answering, after: Lab, *, dry_run: bool = False) -> InPieces[ChangeDocument]:
    """Change the lab that is up into another, if nothing forbids it."""
    standing_of(session)
    found = differences(session.lab, after)
    refuse_fixed(found)
    document: ChangeDocument = {
        "lab": after.name,
        "applied": not dry_run,
        "changes": [each.document() for each in found],
    }
    if found and not dry_run:
        yield from change(session.live, after)
        session.changed()
    return document


@dataclass(frozen=True, slots=True)
class GetLab(Request[dict[str, Any]]):
    """Return the lab as it is now, with the keys of a lab file; those that have their defaults are left out."""

    method: ClassVar[str] = "lab.get"

    def answer(self, session: Answering) -> dict[str, Any]:
        """Read."""
        return lab_document(session.lab)


@dataclass(frozen=True, slots=True)
class ApplyLab(Request[ChangeDocument]):
    """Make the lab that is up like this one: all of it, or nothing. lab: with the keys of a lab file.

    dry_run: say what would change, and change nothing.
    """

    method: ClassVar[str] = "lab.apply"
    waits: ClassVar[bool] = True
    lab: dict[str, Any]
    dry_run: bool = False

    @classmethod
    def from_params(cls, params: Params) -> ApplyLab:
        """Make it from JSON."""
        known(params, "lab", "dry_run")
        lab, dry_run = params.get("lab"), params.get("dry_run", False)
        if not isinstance(lab, dict) or not isinstance(dry_run, bool):
            raise VirtfnError(
                "lab is an object with the keys of a lab file; dry_run true or false", errno_name="EINVAL"
            )
        return cls(lab, dry_run)

    def pieces(self, session: Answering) -> InPieces[ChangeDocument]:
        """Change it."""
        try:
            after = parse_lab(json.dumps(self.lab), "lab")
        except (LabError, RecursionError) as error:
            raise VirtfnError(str(error), errno_name="EINVAL") from None
        refuse_unsupported(after)
        return (yield from _changed(session, after, dry_run=self.dry_run))


def _nic_of(session: Answering, name: str) -> Nic:
    """Return the interface of a guest that can be attached. Raises VirtfnError."""
    for guest in session.lab.guests:
        if guest.name == name:
            if guest.nic.io != "sriov":
                words = f"guest {name} has io {guest.nic.io}; only a VF comes and goes"
                raise VirtfnError(words, errno_name="EOPNOTSUPP")
            return guest.nic
    there = ", ".join(guest.name for guest in session.lab.guests)
    raise VirtfnError(f"no guest is called {name}; there are {there}", errno_name="ENOENT")


@dataclass(frozen=True, slots=True)
class AttachGuest(Request[ChangeDocument]):
    """Plug a VF into a guest that has none. vf: like pf0/vf1; without it, the one that the guest had last."""

    method: ClassVar[str] = "guest.attach"
    waits: ClassVar[bool] = True
    guest: str
    vf: str = ""

    @classmethod
    def from_params(cls, params: Params) -> AttachGuest:
        """Make it from JSON."""
        known(params, "guest", "vf")
        vf = params.get("vf", "")
        if not isinstance(vf, str) or (vf and not _FUNCTION.fullmatch(vf)):
            raise VirtfnError("vf is a VF like pf0/vf1", errno_name="EINVAL")
        return cls(_name(params, "guest"), vf)

    def pieces(self, session: Answering) -> InPieces[ChangeDocument]:
        """Plug it in."""
        lab, nic = session.lab, _nic_of(session, self.guest)
        if nic.attached:
            raise VirtfnError(f"guest {self.guest} has {function(nic)}; detach it first", errno_name="EBUSY")
        pf, n = (found[1], int(found[2])) if (found := _FUNCTION.fullmatch(self.vf)) else (nic.pf, nic.vf or 0)
        there = session.machine.pf(pf)
        if not 0 <= n < len(there.vfs):
            raise VirtfnError(f"{pf} has no VF {n}: {len(there.vfs)} are enabled", errno_name="ENODEV")
        for other in lab.guests:
            if other.nic.attached and (other.nic.pf, other.nic.vf) == (pf, n):
                raise VirtfnError(f"{pf}/vf{n} is guest {other.name}'s; detach it first", errno_name="EBUSY")
        after = with_nic(lab, self.guest, nic.model_copy(update={"pf": pf, "vf": n, "attached": True}))
        return (yield from _changed(session, after))


@dataclass(frozen=True, slots=True)
class DetachGuest(Request[ChangeDocument]):
    """Unplug the VF of a guest; it is as new for whoever gets it next."""

    method: ClassVar[str] = "guest.detach"
    waits: ClassVar[bool] = True
    guest: str

    @classmethod
    def from_params(cls, params: Params) -> DetachGuest:
        """Make it from JSON."""
        known(params, "guest")
        return cls(_name(params, "guest"))

    def pieces(self, session: Answering) -> InPieces[ChangeDocument]:
        """Unplug it."""
        nic = _nic_of(session, self.guest)
        if not nic.attached:
            raise VirtfnError(f"guest {self.guest} has no VF", errno_name="EINVAL")
        after = with_nic(session.lab, self.guest, nic.model_copy(update={"attached": False}))
        return (yield from _changed(session, after))


@dataclass(frozen=True, slots=True)
class SetVfs(Request[ChangeDocument]):
    """Change the number of VFs of a PF; none of them may be a guest's, as with sriov_numvfs."""

    method: ClassVar[str] = "pf.vfs"
    waits: ClassVar[bool] = True
    pf: str
    count: int

    @classmethod
    def from_params(cls, params: Params) -> SetVfs:
        """Make it from JSON."""
        known(params, "pf", "count")
        if "count" not in params:
            raise VirtfnError("count is the number of VFs", errno_name="EINVAL")
        return cls(_name(params, "pf"), number(params, "count", 16))

    def pieces(self, session: Answering) -> InPieces[ChangeDocument]:
        """Change it."""
        pf = session.machine.pf(self.pf)
        refuse_whole(pf)
        most = pf.model.limits.vfs
        if session.lab.pf(self.pf).sr_iov is None:
            raise VirtfnError(f"{self.pf} has no SR-IOV; give it sr-iov in the lab's file", errno_name="EOPNOTSUPP")
        if not 1 <= self.count <= most:
            raise VirtfnError(f"{self.pf} has 1 to {most} VFs, not {self.count}", errno_name="ERANGE")
        users = [guest.name for guest in session.lab.guests if guest.nic.pf == self.pf and guest.nic.attached]
        if users and self.count != len(pf.vfs):
            raise VirtfnError(f"VFs of {self.pf} are in use by {', '.join(users)}; detach first", errno_name="EBUSY")
        return (yield from _changed(session, with_vfs(session.lab, self.pf, self.count)))
