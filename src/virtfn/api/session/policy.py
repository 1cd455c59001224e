"""Policy of VFs on a lab that is up: all of a call holds when it returns, or none of it."""

from __future__ import annotations

from collections.abc import Mapping

from virtfn.api.machine import LabPf
from virtfn.drivers.policy import VfPolicy
from virtfn.machine.ports import VirtfnError

__all__ = ["set_policies"]


def set_policies(pf: LabPf, policies: Mapping[int, VfPolicy]) -> None:
    """Enforce policies, by VF: all of them, or none. They hold for guests that get these VFs later, too.

    Raises VirtfnError: EOPNOTSUPP for a PF that a guest has whole; as the PF's driver refuses them.
    """
    if not pf.driven:
        raise VirtfnError(f"{pf.name} is a guest's, whole: its driver is there", errno_name="EOPNOTSUPP")
    before = {n: pf.driver.policy(n) for n in policies}
    try:
        for n, policy in policies.items():
            pf.driver.set_policy(n, policy)
    except VirtfnError:
        for n, policy in before.items():
            pf.driver.set_policy(n, policy)
        raise
    pf.policies.update(policies)
