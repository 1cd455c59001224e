"""What differs between two labs, key by key, and what of it can change while the lab is up.

    pfs.NAME.sr-iov.total-vfs, pfs.NAME.sr-iov.vfs.N.KEY      the number of VFs, and their policies
    guests.NAME.nic.pf, .vf, .attached, .map-rings            who has which, of guests with io sriov

All else is fixed: it is named, and refused as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypedDict

from virtfn.api.lab import Lab
from virtfn.api.running import lab_document
from virtfn.machine.ports import VirtfnError

__all__ = ["Difference", "DifferenceDocument", "differences", "refuse_fixed"]

_NIC_KEYS = ("pf", "vf", "attached", "map-rings")


class DifferenceDocument(TypedDict):
    """One key that differs. before, after: null where it is not there."""

    key: str
    before: object
    after: object


class Difference(NamedTuple):
    """One key that differs. path: its parts. fixed: whether it cannot change while the lab is up."""

    path: tuple[str, ...]
    before: object
    after: object
    fixed: bool

    @property
    def key(self) -> str:
        """The key, in one word."""
        return ".".join(self.path)

    def document(self) -> DifferenceDocument:
        """Return it as JSON can hold it."""
        return {"key": self.key, "before": self.before, "after": self.after}


def differences(before: Lab, after: Lab) -> list[Difference]:
    """List what differs, in the order of the keys."""
    old, new = (dict(_flat(_by_name(lab, _most_vfs(before, after)))) for lab in (before, after))
    movable = {guest.name for guest in before.guests if guest.nic.io == "sriov"}
    keys = dict.fromkeys([*old, *new])
    return [
        Difference(key, old.get(key), new.get(key), not _may_change(key, movable))
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _may_change(path: tuple[str, ...], movable: set[str]) -> bool:
    if path[0] == "guests":
        return len(path) == 4 and path[1] in movable and path[2] == "nic" and path[3] in _NIC_KEYS
    if path[0] != "pfs" or len(path) < 4 or "watch" in path[4:]:  # whose limits were read when the lab came up
        return False
    return path[2] == "sr-iov" and path[3] in ("total-vfs", "vfs")


def _most_vfs(*labs: Lab) -> dict[str, int]:
    """Return how many VFs each PF has in one lab or the other."""
    return {
        pf.name: max(each.total_vfs for lab in labs for each in lab.pfs if each.name == pf.name) for pf in labs[0].pfs
    }


def _by_name(lab: Lab, vfs: dict[str, int]) -> dict[str, Any]:
    """Return a lab with what is in lists by its name, and every VF with all of its policy, those too that are not."""
    whole = lab_document(lab, defaults=True)
    for pf, section in zip(lab.pfs, whole["pfs"], strict=True):
        if pf.sr_iov is not None:
            section["sr-iov"]["vfs"] = {
                str(n): {k: v for k, v in pf.policy(n).model_dump(mode="json", by_alias=True).items() if k != "id"}
                for n in range(vfs[pf.name])
            }
    for part in ("pfs", "guests"):
        whole[part] = {section.pop("name"): section for section in whole[part]}
    return whole


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, (*path, str(key)))
    else:
        yield path, value


def refuse_fixed(found: list[Difference]) -> None:
    """Refuse what cannot change while a lab is up. Raises VirtfnError (EOPNOTSUPP) with each key in its details."""
    fixed = [each for each in found if each.fixed]
    if fixed:
        error = VirtfnError(
            f"{fixed[0].key} and {len(fixed) - 1} more cannot change while the lab is up"
            if len(fixed) > 1
            else f"{fixed[0].key} cannot change while the lab is up",
            errno_name="EOPNOTSUPP",
        )
        error.details = "\n".join(f"{each.key}: {each.before} -> {each.after}" for each in fixed)
        raise error
