"""What the host decides about each VF and about the switch: the PF's driver enforces it, its mailbox answers by it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from virtfn.hw.types import Mac

__all__ = ["Claim", "LinkState", "Mirror", "StormLimits", "SwitchPolicy", "VfPolicy"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A guest asked for an address that is another's, and was refused. holder: a VF; None: the PF."""

    vf: int
    mac: Mac
    holder: int | None


class LinkState(enum.Enum):
    """The link that a VF sees: the wire's, one whatever the wire does, or none."""

    AUTO = "auto"
    ENABLE = "enable"
    DISABLE = "disable"


@dataclass(slots=True)
class VfPolicy:
    """What the host decides about a VF.

    mac: 0 leaves it at what was offered. max_tx_rate: Mb/s, 0 without limit. trunk: the VLANs that its guest may join;
    without any, all.
    """

    mac: Mac = field(default=Mac(0))
    vlan: int = 0
    qos: int = 0
    spoof_check: bool = True
    trust: bool = False
    max_tx_rate: int = 0
    link_state: LinkState = LinkState.AUTO
    trunk: frozenset[int] = frozenset()

    @property
    def running(self) -> bool:
        """Whether frames may move, as far as the policy goes."""
        return self.link_state is not LinkState.DISABLE


@dataclass(frozen=True, slots=True)
class Mirror:
    """Frames that a VF gets besides its own.

    to: the VF. vfs: frames for these VFs; vlans: frames of these VLANs; received, sent: all that the wire brings, or
    takes.
    """

    to: int
    vfs: tuple[int, ...] = ()
    vlans: tuple[int, ...] = ()
    received: bool = False
    sent: bool = False


@dataclass(frozen=True, slots=True)
class StormLimits:
    """Most of what goes to many, of all senders together, in Mb/s; 0: no limit.

    unknown_unicast: frames to addresses that nobody here has count as broadcasts.
    """

    broadcast: int = 0
    multicast: int = 0
    unknown_unicast: bool = False


@dataclass(frozen=True, slots=True)
class SwitchPolicy:
    """What the host decides about a port's switch."""

    mirrors: tuple[Mirror, ...] = ()
    storm: StormLimits = StormLimits()

    def named(self) -> frozenset[int]:
        """Return the VFs that mirrors are to, or of."""
        return frozenset(n for mirror in self.mirrors for n in (mirror.to, *mirror.vfs))
