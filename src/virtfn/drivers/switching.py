"""The PF driver's hand on the switch as a whole: what is mirrored to whom, and how much may go to many.

A mirror rule of the card has one receiver, and holds for frames to VFs, of VLANs, from the wire or to it. VLANs are
named by their VLVF entries, which come and go: rules follow them.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtfn.drivers.policy import Mirror, StormLimits, SwitchPolicy
from virtfn.drivers.window import Window
from virtfn.hw.bits import Decl
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.rxtx import SCCRL, STORM_BITS, STORM_CHUNK, STORM_THRESHOLD, VLVF, VMRCTL
from virtfn.machine.ports import VirtfnError

__all__ = ["Switching", "check_switch"]

_WINDOW_S = 0.1


class Switching:
    """Mirror rules and storm control of a port, as its PF driver sets them."""

    def __init__(self, regs: Window) -> None:
        self._regs = regs
        self._mirrors: tuple[Mirror, ...] = ()
        self._written: dict[int, int] = {}  # VMRVLAN of each rule

    def set(self, policy: SwitchPolicy, link: int, entries: Sequence[VLVF]) -> None:
        """Write a policy, in place of the one before. link: Mb/s; entries: VLVF as it is."""
        self._set_mirrors(policy.mirrors, entries)
        self._set_storm(policy.storm, link)

    def _set_mirrors(self, mirrors: tuple[Mirror, ...], entries: Sequence[VLVF]) -> None:
        for i in range(Regs.VMRCTL.count):
            self._regs.set(Regs.VMRCTL, 0, i)
            self._regs.set(Regs.VMRVM, sum(1 << n for n in mirrors[i].vfs) if i < len(mirrors) else 0, i)
        self._mirrors = mirrors
        self._written.clear()
        self.follow(entries)
        for i, mirror in enumerate(mirrors):
            kinds = VMRCTL.of(
                VPME=int(bool(mirror.vfs)),
                VLME=int(bool(mirror.vlans)),
                UPME=int(mirror.received),
                DPME=int(mirror.sent),
                MP=mirror.to,
            )
            self._regs.set(Regs.VMRCTL, kinds.value, i)

    def follow(self, entries: Sequence[VLVF]) -> None:
        """Let mirrors of VLANs follow the entries that these have."""
        for i, mirror in enumerate(self._mirrors):
            found = sum(1 << e for e, vlan in enumerate(entries) if vlan.VI_EN and vlan.VID in mirror.vlans)
            if self._written.get(i) != found:
                self._written[i] = found
                self._regs.set(Regs.VMRVLAN, found, i)

    def _set_storm(self, storm: StormLimits, link: int) -> None:
        units = round(_WINDOW_S * link * 1_000_000 / STORM_BITS)
        self._regs.set(Regs.SCCRL, 0)
        for decl, mbps in ((Regs.BSCTRH, storm.broadcast), (Regs.MSCTRH, storm.multicast)):
            self._set_threshold(decl, int(min(mbps, link) * 125_000 * _WINDOW_S) // STORM_CHUNK)
        sccrl = SCCRL.of(
            MDICW=int(storm.multicast > 0),
            BDICW=int(storm.broadcast > 0),
            BIDU=int(storm.unknown_unicast),
            INTERVAL=units if storm.broadcast or storm.multicast else 0,
        )
        self._regs.set(Regs.SCCRL, sccrl.value)

    def _set_threshold(self, decl: Decl, chunks: int) -> None:
        self._regs.set(decl, STORM_THRESHOLD.of(UTRESH=chunks).value)


def check_switch(policy: SwitchPolicy, vfs: int, link: int) -> None:
    """Refuse what cannot be: VirtfnError; EOPNOTSUPP for more than the card has, else EINVAL. link: Mb/s."""
    for mirror in policy.mirrors:
        _check_mirror(mirror, vfs)
    if len(policy.mirrors) > Regs.VMRCTL.count:
        words = f"{len(policy.mirrors)} mirrors: the 82576 has {Regs.VMRCTL.count} mirror rules"
        raise VirtfnError(words, errno_name="EOPNOTSUPP")
    storm = policy.storm
    if not 0 <= storm.broadcast <= link or not 0 <= storm.multicast <= link:
        raise VirtfnError(f"a limit of storms is within the link's {link} Mb/s", errno_name="EINVAL")
    if storm.unknown_unicast and not storm.broadcast:
        raise VirtfnError("unknown unicast counts as broadcast, and that has no limit", errno_name="EINVAL")


def _check_mirror(mirror: Mirror, vfs: int) -> None:
    for n in (mirror.to, *mirror.vfs):
        if not 0 <= n < vfs:
            raise VirtfnError(f"there is no VF {n} to mirror: {vfs} are enabled", errno_name="EINVAL")
    if not all(1 <= vid <= 4094 for vid in mirror.vlans):
        raise VirtfnError("a mirror is of VLANs 1 to 4094", errno_name="EINVAL")
    if not (mirror.vfs or mirror.vlans or mirror.received or mirror.sent):
        raise VirtfnError("a mirror of nothing", errno_name="EINVAL")
