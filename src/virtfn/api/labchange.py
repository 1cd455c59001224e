"""A lab, but for one thing."""

from __future__ import annotations

from collections.abc import Collection

from virtfn.api.lab import Lab, Nic

__all__ = ["detached", "function", "with_nic", "with_vfs"]


def function(nic: Nic) -> str:
    """Name the VF of a guest: `pf0/vf1`."""
    return f"{nic.pf}/vf{nic.vf}"


def with_nic(lab: Lab, name: str, nic: Nic) -> Lab:
    """Return a lab in which a guest has another interface."""
    guests = tuple(guest.model_copy(update={"nic": nic}) if guest.name == name else guest for guest in lab.guests)
    return lab.model_copy(update={"guests": guests})


def detached(lab: Lab, names: Collection[str]) -> Lab:
    """Return a lab in which guests of these names have their VFs no more."""
    for guest in lab.guests:
        if guest.name in names and guest.nic.io == "sriov" and guest.nic.attached:
            lab = with_nic(lab, guest.name, guest.nic.model_copy(update={"attached": False}))
    return lab


def with_vfs(lab: Lab, name: str, count: int) -> Lab:
    """Return a lab in which a PF has another number of VFs; policies of those that go are gone."""

    def changed(total: int) -> dict[str, object]:
        sr_iov = lab.pf(name).sr_iov
        assert sr_iov is not None  # who asks has seen that
        vfs = tuple(policy for policy in sr_iov.vfs if policy.id < total)
        return {"sr_iov": sr_iov.model_copy(update={"total_vfs": total, "vfs": vfs})}

    pfs = tuple(pf.model_copy(update=changed(count)) if pf.name == name else pf for pf in lab.pfs)
    return lab.model_copy(update={"pfs": pfs})
