"""The keys of a lab file about VFs and the switch between them, and what the PF's driver makes of them.

SrIov        total-vfs, mirrors[]: Mirror, storm-control: StormControl
 `- vfs[]    VfPolicy, in the words of `ip link set PF vf ID`, and TrunkTag in those of nmstate
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from virtfn.api.labsection import Section
from virtfn.api.labwatch import Watch
from virtfn.drivers.policy import LinkState, StormLimits, SwitchPolicy
from virtfn.drivers.policy import Mirror as DriverMirror
from virtfn.drivers.policy import VfPolicy as DriverPolicy
from virtfn.hw.types import Mac, parse_mac

__all__ = [
    "IdRange",
    "Mirror",
    "SrIov",
    "StormControl",
    "TrunkTag",
    "VfPolicy",
    "driver_policy",
    "switch_policy",
    "trunk_tags",
]


def _nothing_required(schema: JsonDict) -> None:
    schema.pop("required", None)


Vid = Annotated[int, Field(ge=1, le=4094)]


class IdRange(Section):
    """VLANs from one number to another, both included."""

    min: Vid
    max: Vid

    @model_validator(mode="after")
    def _upwards(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"goes from {self.min} down to {self.max}; exchange them")
        return self


class TrunkTag(Section):
    """VLANs of a trunk: one, or a range."""

    id: Vid | None = Field(default=None, description="one VLAN")
    id_range: IdRange | None = Field(default=None, description="VLANs from min to max")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.id is None) == (self.id_range is None):
            raise ValueError("is one VLAN or a range of them; give id: 10, or id-range: {min: 10, max: 20}")
        return self

    @property
    def vlans(self) -> range:
        """Its VLANs."""
        if self.id_range is not None:
            return range(self.id_range.min, self.id_range.max + 1)
        return range(self.id or 0, (self.id or 0) + 1)


class Mirror(Section):
    """Frames that a VF gets besides its own. At least one of the other keys is needed."""

    to: int = Field(ge=0, le=7, description="the VF that gets them")
    vfs: tuple[Annotated[int, Field(ge=0, le=7)], ...] = Field(
        default=(), max_length=8, description="frames that are for these VFs"
    )
    vlans: tuple[Vid, ...] = Field(default=(), max_length=32, description="frames of these VLANs")
    uplink: Literal["none", "received", "sent", "both"] = Field(
        default="none", description="frames that the wire brings, or takes"
    )

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if not self.vfs and not self.vlans and self.uplink == "none":
            raise ValueError("mirrors nothing; give vfs, vlans or uplink")
        return self


class StormControl(Section):
    """Most of what goes to many, from all senders together. All keys are optional."""

    broadcast: int = Field(default=0, ge=0, le=1000, description="Mb/s; 0: no limit")
    multicast: int = Field(default=0, ge=0, le=1000, description="Mb/s; 0: no limit")
    unknown_unicast: bool = Field(
        default=False,
        description="count as broadcast, too, what VFs get that none of them has the address of: by promiscuity",
    )


class VfPolicy(Section):
    """Policy of one VF, in the words of `ip link set PF vf ID`. All keys are optional."""

    model_config = ConfigDict(json_schema_extra=_nothing_required)

    id: int = Field(ge=0, le=7, description="number of the VF on its PF; without it the place in the list")
    mac_address: str | None = Field(
        default=None, description="administrative MAC address; without it the PF driver chooses one"
    )
    vlan_id: int = Field(default=0, ge=0, le=4094, description="port VLAN; 0: none")
    vlan_proto: Literal["802.1q", "802.1ad"] = Field(
        default="802.1q", description="the kind of its tag; an 82576 refuses 802.1ad"
    )
    qos: int = Field(default=0, ge=0, le=7, description="priority in the port VLAN's tag")
    trunk_tags: tuple[TrunkTag, ...] = Field(
        default=(),
        max_length=64,
        description="VLANs that the guest may join, tagged; without it any. Not with vlan-id",
    )
    spoof_check: bool = Field(default=True, description="drop frames whose source is not the VF's own")
    trust: bool = Field(default=False, description="let the VF ask for promiscuous modes and another MAC address")
    link_state: Literal["auto", "enable", "disable"] = Field(
        default="auto",
        description="link that the VF sees: auto, the wire's; disable, none, and nothing goes in or out. An 82576 "
        "refuses enable, a link whatever the wire does",
    )
    max_tx_rate: int = Field(default=0, ge=0, le=1000, description="Mb/s; 0: no limit")
    min_tx_rate: int = Field(default=0, ge=0, le=1000, description="Mb/s; 0: no guarantee. An 82576 refuses others")
    watch: Watch | None = Field(default=None, description="limits of this VF, where they are not its PF's")

    @field_validator("mac_address")
    @classmethod
    def _unicast(cls, value: str | None) -> str | None:
        if value is not None:
            mac = parse_mac(value)
            if mac == 0:
                raise ValueError("is the zero address; give a unicast address like 02:00:00:00:00:10")
            if mac & 1:
                raise ValueError(f"{value} is a multicast address; a VF needs a unicast one, with an even first byte")
        return value.lower() if value is not None else None


class SrIov(Section):
    """The SR-IOV capability of a PF."""

    total_vfs: int = Field(ge=1, le=8, description="VFs to enable; an 82576 has at most 8")
    vfs: tuple[VfPolicy, ...] = Field(default=(), max_length=8, description="policy of single VFs")
    mirrors: tuple[Mirror, ...] = Field(
        default=(), max_length=4, description="what VFs get besides their own; an 82576 has 4 rules"
    )
    storm_control: StormControl = Field(
        default=StormControl(), description="how much may go to many, of all senders together"
    )

    @field_validator("vfs", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        if not isinstance(value, tuple):
            return value
        return tuple({"id": i, **policy} if isinstance(policy, dict) else policy for i, policy in enumerate(value))


def driver_policy(policy: VfPolicy) -> DriverPolicy:
    """Return what a lab says of a VF, for the PF's driver."""
    mac = parse_mac(policy.mac_address) if policy.mac_address else Mac(0)
    return DriverPolicy(
        mac,
        policy.vlan_id,
        policy.qos,
        policy.spoof_check,
        policy.trust,
        policy.max_tx_rate,
        LinkState(policy.link_state),
        frozenset(vid for tag in policy.trunk_tags for vid in tag.vlans),
    )


def switch_policy(sr_iov: SrIov) -> SwitchPolicy:
    """Return what a lab says of the switch of a PF, for its driver."""
    storm = sr_iov.storm_control
    mirrors = [
        DriverMirror(
            mirror.to,
            mirror.vfs,
            mirror.vlans,
            received=mirror.uplink in ("received", "both"),
            sent=mirror.uplink in ("sent", "both"),
        )
        for mirror in sr_iov.mirrors
    ]
    return SwitchPolicy(tuple(mirrors), StormLimits(storm.broadcast, storm.multicast, storm.unknown_unicast))


def trunk_tags(vlans: frozenset[int]) -> tuple[TrunkTag, ...]:
    """Put the VLANs of a trunk into the words of a lab file, neighbours as a range."""
    tags: list[TrunkTag] = []
    first = last = 0
    for vid in (*sorted(vlans), 0):  # 0 ends the last
        if vid == last + 1 and first:
            last = vid
            continue
        if first == last and first:
            tags.append(TrunkTag(id=first))
        elif first:
            tags.append(TrunkTag(id_range=IdRange(min=first, max=last)))
        first = last = vid
    return tuple(tags)
