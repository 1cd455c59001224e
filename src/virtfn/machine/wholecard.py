"""A card that a guest has whole, with VFs that the guest itself makes: what who plugs it in has to know of it.

The guest's kernel enables VFs, and finds them where the PF's capability says. Somebody has to see to it that they are
there: whoever is between the guest's configuration accesses and the card (`vmm/hostcard.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from virtfn.hw.pci import Command
from virtfn.hw.types import Rid
from virtfn.machine.bars import BarShape
from virtfn.machine.ports import ConfigSpace, DmaDomain

__all__ = ["CardPf", "CardVf", "PfSpace", "VfSpace"]


class PfSpace(ConfigSpace, Protocol):
    """Configuration space of such a PF.

    on_change: called after each write; on_vfs: with the number of VFs whenever that changes.
    """

    on_change: list[Callable[[], None]]
    on_vfs: list[Callable[[int], None]]

    def vf_bar(self, n: int, bar: int) -> int:
        """Return the address that the guest gave a BAR of VF `n`; 0 before it gave one."""

    def vf_memory(self, n: int) -> bool:
        """Tell whether the BARs of VF `n` are to answer: it is enabled, and memory space with it."""


class VfSpace(ConfigSpace, Protocol):
    """Configuration space of such a VF: its BARs and Memory Space Enable are what its VMM was told last.

    function: where the guest looks for it, its function number on the PF's bus. told: its Command as the VMM has it.
    ours: a Command that is being written for the guest, -1 for none. on_change: called after each write.
    """

    function: int
    told: Command
    ours: int
    on_change: list[Callable[[], None]]

    @property
    def bars(self) -> Mapping[int, BarShape]:
        """The BARs by number."""

    @property
    def memory_enabled(self) -> bool:
        """Whether the VMM lets the BARs answer."""

    def bar_address(self, bar: int) -> int:
        """Address of a BAR; 0 before it is placed."""

    def reset(self) -> None:
        """Forget all that was told, as the VMM does when the machine is reset."""


class CardPf(NamedTuple):
    """The PF, with the domain that its DMA is in."""

    rid: Rid
    config: PfSpace
    domain: DmaDomain


class CardVf(NamedTuple):
    """A VF that may come, with the domain that its DMA is in."""

    rid: Rid
    config: VfSpace
    domain: DmaDomain
