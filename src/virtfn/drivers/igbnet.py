"""The network device of a PF: rings on the card itself, without a VF.

    whole card     the ordinary driver of a NIC: in a guest that has the card to itself
    host's stack   the PF's own pool of a card that is cut into VFs, or the card if it is not: who bridges gets all
                   frames that no VF has the address of

Vector 0 is everything but queues, and the PF driver's; vector 1 is reception. Frames move by the kernels of
`kernels/i82576/netdev.py`. Spec: 82576 datasheet, chapters "Initialization" and "Software use of virtualization".
"""

from __future__ import annotations

from virtfn.drivers.igb import Igb
from virtfn.drivers.rings import RingDriver, Rings
from virtfn.drivers.window import Window
from virtfn.hw.eth import FCS_BYTES
from virtfn.hw.i82576 import VFS, Regs, multicast_hash
from virtfn.hw.i82576.fields import EITR, IVAR
from virtfn.hw.types import Mac, format_mac
from virtfn.machine.ports import Bar, Clock, DmaMemory, VirtfnError

__all__ = ["RX_VECTOR", "IgbNet"]

RX_VECTOR = 1
_DEFAULT_EITR_US = 122


class IgbNet(RingDriver):
    """A network device made of a PF; a `NetDriver`.

    pf: its driver. bar: BAR0. ring: descriptors of each ring. mtu: bytes of payload. host: the PF is the host's own and
    probed already, perhaps with VFs; else all of it is this driver's.
    """

    def __init__(
        self, pf: Igb, bar: Bar, dma: DmaMemory, clock: Clock, *, ring: int = 512, mtu: int = 1500, host: bool = False
    ) -> None:
        self.mac = Mac(0)
        self.interrupts = 0
        self.eitr_us = _DEFAULT_EITR_US
        self._pf = pf
        self._regs = Window(bar, clock)
        self._host = host
        self._mtu = mtu
        self._up = False
        self._resets = pf.resets
        queue = pf.vfs if host else 0
        if queue >= VFS:
            raise VirtfnError(f"with {VFS} VFs, no pool is left for the PF itself", errno_name="ENOSPC")
        self.rings = Rings(self._regs, dma, ring, mtu, names=Regs, queue=queue)
        self._queue = queue

    @classmethod
    def whole(cls, bar: Bar, dma: DmaMemory, clock: Clock, *, ring: int = 512, mtu: int = 1500) -> IgbNet:
        """Make the driver of a card that is all the guest's."""
        return cls(Igb(bar, clock), bar, dma, clock, ring=ring, mtu=mtu)

    # Start and stop.

    def probe(self) -> None:
        """Reset the port and learn the address. Raises VirtfnError as the PF's driver does."""
        if not self._host:
            self._pf.probe()
        self.mac = self._pf.mac

    def start(self) -> None:
        """Bring the interface up: filters, rings, interrupts.

        Raises VirtfnError if memory is exhausted, DeviceTimeoutError if a queue does not start.
        """
        self.rings.allocate()
        self._resets = self._pf.resets
        if not self._pf.vfs:
            self._pf.start(0)
        self._pf.open_stack(self._mtu + 14 + 4 + FCS_BYTES, everything=self._host)
        self.rings.start_transmit()
        self.rings.start_receive()
        self._start_interrupts()
        self._up = True
        self.netdev["up"] = 1

    def _start_interrupts(self) -> None:
        regs, q = self._regs, self._queue
        regs.set(Regs.IVAR, IVAR.of(RX_LOW=RX_VECTOR, RX_LOW_VALID=1).value, q)
        regs.set(Regs.EITR, EITR.of(INTERVAL=self.eitr_us).value, RX_VECTOR)
        both = 1 | 1 << RX_VECTOR
        regs.set(Regs.EIAC, both)
        regs.set(Regs.EIAM, both)
        regs.set(Regs.EIMS, both)

    def stop(self) -> None:
        """Bring the interface down. Raises DeviceTimeoutError if the device does not answer."""
        self._down()
        self.rings.stop()
        self._regs.set(Regs.EIMC, 1 << RX_VECTOR)
        self._pf.close_stack()
        if not self._host:
            self._pf.stop()
        self.rings.give_up()
        self.rings.free()

    def _down(self) -> None:
        self._up = False
        self.netdev["up"] = self.netdev["polling"] = self.netdev["empty_polls"] = 0

    def remove(self) -> None:
        """Forget a device that is no longer there; no register is touched."""
        self._down()
        self.rings.give_up()
        self.rings.free()

    @property
    def broken(self) -> bool:
        """Whether the port was reset under the rings."""
        return self._up and self._pf.resets != self._resets

    def recover(self) -> None:
        """Start again. Raises VirtfnError as `start` does."""
        self._down()
        self.rings.give_up()
        self.start()

    # Settings.

    def set_promiscuous(self, unicast: bool, multicast: bool) -> None:
        """Take frames to any address. A PF needs nobody's leave for it."""
        self._regs.update(Regs.RCTL, UPE=int(unicast), MPE=int(multicast))

    def set_multicast(self, groups: list[Mac]) -> None:
        """Take frames to these groups, and to others of the same hash."""
        words = [0] * Regs.MTA.count
        for group in groups:
            number = multicast_hash(group)
            words[number >> 5] |= 1 << (number & 31)
        for i, word in enumerate(words):
            self._regs.set(Regs.MTA, word, i)

    def set_vlan(self, vid: int, member: bool = True) -> None:
        """Join or leave a VLAN."""
        word, bit = self._regs.get(Regs.VFTA, vid >> 5), 1 << (vid & 31)
        self._regs.set(Regs.VFTA, word | bit if member else word & ~bit, vid >> 5)

    # Interrupts.

    def interrupt(self, vector: int) -> None:
        """Handle an interrupt: the device has masked its vector (EIAM) and cleared its cause (EIAC)."""
        self.interrupts += 1
        if vector != RX_VECTOR:
            self._pf.interrupt(vector)
        elif self.netdev["up"]:
            self.netdev["polling"] = 1
            self.netdev["empty_polls"] = 0

    def idle(self) -> None:
        """Polling found nothing for a while: wait for the next interrupt."""
        self.netdev["polling"] = 0
        self.netdev["empty_polls"] = 0
        self._regs.set(Regs.EIMS, 1 << RX_VECTOR)

    def statistics(self) -> dict[str, int]:
        """Read the port's counters of good frames and bytes; reading clears them."""
        return {name: self._regs.get(getattr(Regs, name)) for name in ("GPRC", "GPTC", "BPRC", "MPRC", "MPC")}

    def __repr__(self) -> str:
        return f"IgbNet({format_mac(self.mac)}, {'up' if self._up else 'down'})"
