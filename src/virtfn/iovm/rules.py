"""What VFs are watched for: kinds of what is counted, limits, and what is done about a VF that is over one."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from virtfn.machine.clock import S_PS

__all__ = ["Action", "Kind", "Limit", "Rules"]


class Kind(enum.Enum):
    """What is counted. Interrupts are those of the whole VM that has the VF."""

    SPOOF = "spoof"
    DMA_FAULTS = "dma-faults"
    MAILBOX = "mailbox"
    INTERRUPTS = "interrupts"
    DESCRIPTORS = "descriptors"
    RESETS = "resets"


class Action(enum.Enum):
    """What is done about a VF that is over a limit."""

    NONE = "none"
    WARN = "warn"
    THROTTLE = "throttle"
    QUARANTINE = "quarantine"


class Limit(NamedTuple):
    """How many of a kind are allowed in a second, on average over the window, and what is done beyond."""

    per_second: int
    action: Action


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of a VF. throttle_mbps: what it may send when it is throttled."""

    limits: Mapping[Kind, Limit]
    window_ps: int = S_PS
    throttle_mbps: int = 10
