"""How the policy of VFs, and of the switch between them, can be wrong, in words that say how to mend it."""

from __future__ import annotations

from collections.abc import Iterator

from virtfn.api.labfile import Fault, KeyPath
from virtfn.api.labmodel import Pf, VfPolicy

__all__ = ["no_such_vf", "policy_faults", "switch_faults", "twice"]


def twice(values: list[tuple[KeyPath, str]], what: str) -> Iterator[Fault]:
    """List what is there twice, of values by their keys."""
    seen: set[str] = set()
    for key, value in values:
        if value in seen:
            yield Fault(key, f"{what} {value} is taken already; give each its own")
        seen.add(value)


def policy_faults(key: KeyPath, pf: Pf, vfs: tuple[VfPolicy, ...]) -> Iterator[Fault]:
    """List what is wrong with the policies of a PF's VFs."""
    yield from twice([((*key, j, "id"), f"{p.id} of {pf.name}") for j, p in enumerate(vfs)], "VF")
    for j, policy in enumerate(vfs):
        if policy.id >= pf.total_vfs:
            yield Fault((*key, j, "id"), no_such_vf(policy.id, pf))
        if pf.link_mbps and policy.max_tx_rate > pf.link_mbps:
            yield Fault(
                (*key, j, "max-tx-rate"), f"{policy.max_tx_rate} is more than link-mbps {pf.link_mbps}; lower it"
            )
        if policy.qos and not policy.vlan_id:
            yield Fault((*key, j, "qos"), "is the priority of a port VLAN; give vlan-id, or leave qos out")
        if policy.trunk_tags and policy.vlan_id:
            yield Fault((*key, j, "trunk-tags"), f"are no use with vlan-id {policy.vlan_id}; give one of both")
        if policy.max_tx_rate and policy.min_tx_rate > policy.max_tx_rate:
            yield Fault((*key, j, "min-tx-rate"), f"is more than max-tx-rate {policy.max_tx_rate}; lower it")


def switch_faults(key: KeyPath, pf: Pf) -> Iterator[Fault]:
    """List what is wrong with the mirrors and limits of a PF's switch."""
    if pf.sr_iov is None:
        return
    for j, mirror in enumerate(pf.sr_iov.mirrors):
        for name, vfs in (("to", (mirror.to,)), ("vfs", mirror.vfs)):
            for vf in vfs:
                if vf >= pf.total_vfs:
                    yield Fault((*key, "mirrors", j, name), no_such_vf(vf, pf))
    storm = pf.sr_iov.storm_control
    for name, mbps in (("broadcast", storm.broadcast), ("multicast", storm.multicast)):
        if pf.link_mbps and mbps > pf.link_mbps:
            words = f"{mbps} is more than link-mbps {pf.link_mbps}; lower it"
            yield Fault((*key, "storm-control", name), words)
    if storm.unknown_unicast and not storm.broadcast:
        words = "counts as broadcast, and that has no limit; give broadcast one"
        yield Fault((*key, "storm-control", "unknown-unicast"), words)


def no_such_vf(vf: int, pf: Pf) -> str:
    """Say that a PF has no such VF, and how to mend that."""
    if not pf.total_vfs:
        return f"{pf.name} has no VFs; give it sr-iov: {{total-vfs: {vf + 1}}}"
    return (
        f"VF {vf} is not among the {pf.total_vfs} of {pf.name} (0..{pf.total_vfs - 1}); raise total-vfs or take another"
    )
