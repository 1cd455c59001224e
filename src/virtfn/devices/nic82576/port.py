"""One port of the 82576: its registers, brought to life block by block, and its place in the data plane.

    registers.py   where registers rest            interrupts.py   causes, vectors, messages
    l2switch.py    filters and pools               stats.py        counters
    mailbox.py     PF and VF talk                  nvm.py phy.py   EEPROM, link

Reset kinds: power-on and FLR of the PF put everything back; CTRL.RST all but packet buffers, throttles and the SR-IOV
capability; a VF's reset (VTCTRL.RST or FLR) stops its queues and clears its interrupts and mailbox, the FLR its
counters too, but leaves its queues' addresses as they are. Spec: 82576 datasheet, chapter "Reset Operation" and
specification update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from virtfn.devices.nic82576.interrupts import Interrupts
from virtfn.devices.nic82576.l2switch import L2Switch
from virtfn.devices.nic82576.mailbox import Mailboxes
from virtfn.devices.nic82576.nvm import Nvm
from virtfn.devices.nic82576.phy import Phy
from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.devices.nic82576.stats import Statistics
from virtfn.hw.bits import Access
from virtfn.hw.i82576 import QUEUES, VFS, Regs, VfRegs, vf_view
from virtfn.hw.i82576.fields import CTRL, CTRL_EXT, ICR, STATUS, TCPTIMER, VTCTRL
from virtfn.hw.i82576.rxtx import DTXCTL, LVMMC, RCTL, RXDCTL, TXDCTL, WVBR
from virtfn.hw.types import Ps
from virtfn.kernels.card import CARD
from virtfn.kernels.clock import CLOCK, set_up_clock
from virtfn.kernels.i82576.doorbells import plug_in
from virtfn.kernels.i82576.port import WIRE_STALL
from virtfn.kernels.i82576.state import CHAIN, COUNTER_NAMES, GATHER_AREA, GATHER_BYTES, QUEUE, new_nic
from virtfn.kernels.i82576.words import PF_WORDS, REGISTER, VF_WORDS, WORD
from virtfn.kernels.ranges import address_of
from virtfn.kernels.vtd.iommu import Iommu
from virtfn.machine.clock import MS_PS, US_PS
from virtfn.machine.regfile import Handlers, on_read, on_write

__all__ = ["Port"]

_KEPT_BY_RST = (Regs.RXPBS, Regs.TXPBS, Regs.SWPBS, Regs.EITR, Regs.EECD)
_TIMER_TICK_PS = MS_PS
_SENT, _RECEIVED = (COUNTER_NAMES.index(name) for name in ("gptc", "gprc"))
_FORWARDED = (CARD.names or ()).index("forwarded")


_plain: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]] = {}


@functools.cache
def _windows() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return words of `words` that are windows on others, and those."""
    pairs = [(offset, decl.at(i)) for offset, (decl, i) in Regs.INDEX.items() if offset != decl.at(i)]
    ours = dict(pairs)
    for n in range(VFS):
        pairs += [(4 * (PF_WORDS + n * VF_WORDS) + offset, ours.get(at, at)) for offset, at in vf_view(n).items()]
    windows, sources = np.array(pairs).T >> 2
    return windows, sources


@functools.cache
def _read_only() -> npt.NDArray[np.int64]:
    """Return words of `words` that a VF cannot write, though the PF may."""
    offsets = [offset for offset, (decl, _) in VfRegs.INDEX.items() if decl.access is Access.RO]
    return np.array([PF_WORDS + n * VF_WORDS + (offset >> 2) for n in range(VFS) for offset in offsets])


class Port(Handlers):
    """A port's registers and state.

    send: carries a message, by VF number (None: the PF) and vector. now: the time. image: words of the NVM.
    vfs: whether there can be VFs.
    """

    def __init__(
        self,
        iommu: Iommu,
        image: list[int],
        send: Callable[[int | None, int], None],
        now: Callable[[], Ps],
        vfs: bool = True,
    ) -> None:
        self.now = now
        self._timer_due: int | None = None
        self._link_seen = 0
        self._pooled = False
        self.vf_resets = [0] * VFS
        self._given: tuple[object, ...] = ()
        self.block = new_nic(iommu)
        self.address = int(self.block.ctypes.data)
        self.nic: np.void = self.block[0]
        self._clock = np.zeros(1, CLOCK)
        self._counters = np.frombuffer(self.nic["counters"], np.int64).data
        self._card = np.frombuffer(self.nic["card"], np.int64).data
        self.msix = address_of(self.nic["msix"], "messages of a card")
        plug_in(self.block)
        self.registers = PortRegisters(vfs)
        self.interrupts = Interrupts(self.registers, self.nic, send)
        self.mailboxes = Mailboxes(self.registers, self._ring_pf, self.interrupts.ring_vf)
        self.l2switch = L2Switch(self.registers, self.nic)
        self.statistics = Statistics(self.registers, self.nic, self.address)
        self.nvm = Nvm(self.registers, image)
        self.phy = Phy(self.registers, self._link_changed)
        self.registers.bind(self)
        self._started_ps = now()
        self.power_on()

    def fill_words(self) -> None:
        """Tell kernels of registers that are no more than memory: the PF's, and VFs' windows on them.

        To be called when every block has said what it does.
        """
        self.registers.seal()
        words = self.nic["words"]
        at, plain = self._plain_words()
        words[at] = plain
        words["at"][at] += self.registers.region.base
        windows, sources = _windows()
        words[windows] = words[sources]
        for name in ("stores", "drops", "raises"):
            words[name][_read_only()] = 0

    def _plain_words(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]:
        """Return (words of the PF's BAR0, their WORD rows, in which addresses are positions): of all such ports."""
        kind = len(self.registers.region.bytes)
        if kind not in _plain:
            found = {at: plain for at in Regs.INDEX if (plain := self.registers.plain(at)) is not None}
            rows = [(REGISTER, plain.at, 0, *plain[1:]) for plain in found.values()]
            _plain[kind] = np.array(list(found)) >> 2, np.array(rows, WORD)
        return _plain[kind]

    def follow_time(self, limit_ps: int) -> None:
        """Let kernels see time pass while they work: the machine's, not that of a virtual clock.

        limit_ps: how long they may move frames before others have their turn.
        """
        self._clock["limit"] = limit_ps
        self.nic["card"]["clock"] = set_up_clock(self._clock)

    def _ring_pf(self) -> None:
        self.interrupts.raise_other(ICR.VMMB.mask)

    @property
    def frames(self) -> int:
        """Count the frames that have moved, from and to anyone; cheap enough to be asked all the time."""
        counters = self._counters
        return self._card[_FORWARDED] + counters[_SENT] + counters[_RECEIVED]

    # Queues: whose each is.

    def give_queues(self, pf_rid: int, pf_master: bool, vfs: Sequence[tuple[int, bool]]) -> None:
        """Give each queue to its function. vfs: (routing ID, Bus Master Enable) of each enabled VF.

        A function that may not master the bus has queues that stand still.
        """
        copies = tuple((q, rx.address, tx.address) for q, (rx, tx) in self.registers.copies.items())
        wanted = pf_rid, pf_master, tuple(vfs), copies
        if wanted == self._given:
            return
        self._given = wanted
        if len(vfs) != self.interrupts.vfs:
            self.interrupts.set_vfs(len(vfs))
            self._show_status()
        for q in range(QUEUES):
            n = q % VFS
            rid, master = vfs[n] if n < len(vfs) else (pf_rid, pf_master)
            for rows, block in ((self.nic["rx"], self.registers.rx_block), (self.nic["tx"], self.registers.tx_block)):
                rows[q]["rid"] = rid
                rows[q]["regs"] = block(q) if master else 0
        for n, row in enumerate(self.nic["pools"]):
            row["rid"] = vfs[n][0] if n < len(vfs) else pf_rid
        self._share_queues()

    def _share_queues(self) -> None:
        """Give each queue to its pool; without pools, all to the first."""
        self._pooled = self.vmdq or self.interrupts.vfs > 0
        for rows in (self.nic["rx"], self.nic["tx"]):
            rows["pool"] = np.arange(QUEUES) % VFS * self._pooled

    @property
    def vmdq(self) -> bool:
        """Whether pools are on."""
        self.l2switch.settle()
        return bool(self.nic["port"]["vmdq"])

    def settle(self) -> None:
        """Bring what the data plane looks up in line with the registers; what it remembers of them is forgotten."""
        self.nic["port"]["era"] += 1
        self.l2switch.settle()
        if self._pooled != (self.vmdq or self.interrupts.vfs > 0):
            self._share_queues()

    # Device control and status.

    @on_write(Regs.CTRL)
    def _ctrl(self, index: int, written: int, old: int) -> None:
        command = CTRL(written)
        if command.PHY_RST:
            self.phy.reset()
            self._phy_was_reset = True
        if command.RST:
            self.port_reset()
        self.l2switch.touch()
        self._loopback()
        self._note_link()

    @property
    def link(self) -> bool:
        """Whether the port has a link: the PHY has, and the driver wants one (CTRL.SLU)."""
        return self.phy.link and bool(CTRL(self.registers.peek(Regs.CTRL)).SLU)

    def _show_status(self) -> None:
        """Keep STATUS as what it tells of is: kernels read it."""
        ctrl = CTRL(self.registers.peek(Regs.CTRL))
        vfs = self.interrupts.vfs
        speed = self.phy.speed
        status = STATUS.of(
            FD=1,
            LU=int(self.link),
            SPEED=speed,
            ASDV=int(speed == 1),
            LAN_INIT_DONE=1,
            PHYRA=int(self._phy_was_reset),
            NUM_VFS=vfs,
            IOV_MODE=int(vfs > 0),
            GIO_MASTER_EN=int(not ctrl.GIO_MASTER_DISABLE),
        )
        self.registers.poke(Regs.STATUS, 0, status.value)

    @on_write(Regs.STATUS)
    def _status_written(self, index: int, written: int, old: int) -> None:
        if not STATUS(written).PHYRA:
            self._phy_was_reset = False
        self._show_status()

    @on_write(Regs.CTRL_EXT)
    def _ctrl_ext(self, index: int, written: int, old: int) -> None:
        command = CTRL_EXT(written)
        if command.PFRSTD:
            self.mailboxes.pf_reset_done()
        if command.EE_RST:
            self.nvm.reset()
            self.l2switch.reset()
        self.l2switch.touch()

    @on_read(Regs.FRTIMER)
    def _free_running(self, index: int) -> int:
        return (self.now() - self._started_ps) // US_PS & 0xFFFFFFFF

    @on_write(Regs.TCPTIMER)
    def _tcp_timer(self, index: int, written: int, old: int) -> None:
        timer = TCPTIMER(written)
        if timer.FINISH:
            self._timer_due = self.now()
        elif timer.KICKSTART and timer.ENABLE:
            self._timer_due = self.now() + timer.DURATION * _TIMER_TICK_PS
        elif not timer.ENABLE:
            self._timer_due = None

    def tick(self) -> None:
        """Let timers expire that are due."""
        if self._timer_due is not None and self.now() >= self._timer_due:
            timer = TCPTIMER(self.registers.peek(Regs.TCPTIMER))
            again = timer.LOOP and timer.DURATION
            self._timer_due = self.now() + timer.DURATION * _TIMER_TICK_PS if again else None
            self.interrupts.raise_timer()

    @on_write(Regs.RCTL)
    def _rctl(self, index: int, written: int, old: int) -> None:
        self.l2switch.touch()
        self._loopback()

    def _loopback(self) -> None:
        looped = self.phy.loopback or bool(RCTL(self.registers.peek(Regs.RCTL)).LBM)
        self.nic["port"]["self_loop"] = int(looped)

    # The wire.

    def set_wire(self, connected: bool, mbps: int) -> None:
        """Connect the port to an uplink, or not. mbps: 10, 100, 1000, or 0 for a wire without pace."""
        port = self.nic["port"]
        port["wire_up"] = int(connected)
        port["wire_ps_per_byte"] = 8_000_000 // mbps if mbps else 0
        self.l2switch.link_mbps = mbps or 1000
        self.l2switch.touch()
        self.phy.set_link(True, mbps or 1000)

    def set_carrier(self, up: bool) -> None:
        """Let whatever is at the other end of the wire come, or go."""
        self.nic["port"]["wire_up"] = int(up)
        self.nic["port"]["era"] += 1
        self.phy.set_link(up, self.phy.mbps)

    def _note_link(self) -> None:
        """Show the link; interrupt if it has come, gone, or changed its speed since it was last looked at."""
        self._show_status()
        state = self.phy.mbps if self.link else 0
        if state != self._link_seen:
            self._link_seen = state
            self.interrupts.raise_other(ICR.LSC.mask)

    def _link_changed(self) -> None:
        self._loopback()
        self._note_link()

    # Malicious drivers.

    def report_misbehaviour(self) -> None:
        """Show the transmit queues that the data plane found misbehaving in WVBR and LVMMC, and interrupt the PF."""
        port = self.nic["port"]
        queues, blocked = int(port["misbehaved"]), int(port["blocked"])
        port["misbehaved"] = 0
        if not queues:
            return
        wvbr = WVBR(self.registers.peek(Regs.WVBR))
        self.registers.poke(Regs.WVBR, 0, wvbr.value | WVBR.of(MISBEHAVED=queues, BLOCKED=queues & blocked).value)
        last = queues.bit_length() - 1
        cause = 1 if queues & blocked else 0
        self.registers.poke(Regs.LVMMC, 0, LVMMC.of(LAST_Q=last, BLOCK_CAUSE=cause).value)
        control = DTXCTL(self.registers.peek(Regs.DTXCTL))
        if control.SPOOF_INT or control.MDP_EN:
            self.interrupts.raise_other(ICR.DOUTSYNC.mask)

    # Resets.

    @on_write(Regs.VTCTRL)
    def _vtctrl(self, n: int, written: int, old: int) -> None:
        if VTCTRL(written).RST:
            self.vf_reset(n)

    def vf_reset(self, n: int) -> None:
        """Reset VF `n`: stop its queues, clear its interrupts and mailbox ownership, and tell the PF.

        Its counters run on: Linux's igbvf resets each time that it goes down, and would take zero for a wrap.
        """
        self.vf_resets[n] += 1
        self._forget_turns(n)
        self._stop_queues(n)
        for decl in (Regs.VFRE, Regs.VFTE):
            self.registers.poke(decl, 0, self.registers.peek(decl) & ~(1 << n))
        self.interrupts.reset_vf(n)
        self.mailboxes.reset_vf(n)
        self.l2switch.touch()
        self.nic["port"]["blocked"] &= ~(0x101 << n)
        self.registers.poke(Regs.VFLRE, 0, self.registers.peek(Regs.VFLRE) | 1 << n)
        self.interrupts.raise_other(ICR.VMMB.mask)

    def _forget_turns(self, n: int) -> None:
        """Forget what pool `n` has had and wanted, and the frames that its queues gathered; not what work it owes."""
        nic = self.nic
        nic["scarce"][n] = 0
        for shares in (nic["wanted"], nic["claims"], nic["had"]):
            shares[:, n] = shares[n] = 0
        for q in (n, n + VFS):
            row = nic["tx"][q]
            if row["first_word"]:
                at = GATHER_AREA + q * GATHER_BYTES
                nic["scratch"][at : at + GATHER_BYTES] = 0
                for name in CHAIN:
                    row[name] = 0

    def vf_gone(self, n: int) -> None:
        """Take VF `n` away: nothing that it or its driver left in the port's registers remains."""
        self.vf_reset(n)
        self.statistics.reset_vf(n)
        for q in (n, n + VFS):
            for decl in (Regs.RDBAL, Regs.RDBAH, Regs.RDLEN, Regs.SRRCTL, Regs.RDH, Regs.RXCTL, Regs.RDT, Regs.RXDCTL):
                self.registers.poke(decl, q, decl.reset)
            for decl in (Regs.TDBAL, Regs.TDBAH, Regs.TDLEN, Regs.TDH, Regs.TXCTL, Regs.TDT, Regs.TXDCTL):
                self.registers.poke(decl, q, decl.reset)
            self.registers.poke(Regs.TDWBAL, q, 0)
            self.registers.poke(Regs.TDWBAH, q, 0)
        for word in range(16):
            self.registers.poke(Regs.VMBMEM, 16 * n + word, 0)

    def _stop_queues(self, n: int) -> None:
        for q in (n, n + VFS):
            for decl, kind in ((Regs.RXDCTL, RXDCTL.ENABLE), (Regs.TXDCTL, TXDCTL.ENABLE)):
                self.registers.poke(decl, q, self.registers.peek(decl, q) & ~kind.mask)
            for decl in (Regs.RDH, Regs.RDT, Regs.TDH, Regs.TDT):
                self.registers.poke(decl, q, 0)
            self._forget(q)

    def _forget(self, q: int) -> None:
        """Drop what the data plane remembers of queue `q`'s ring; its wiring and its drop count stay."""
        for rows in (self.nic["rx"], self.nic["tx"]):
            kept = {name: rows[q][name] for name in ("regs", "rid", "pool", "cause", "drops", "default_bytes")}
            rows[q] = np.zeros((), QUEUE)
            for name, value in kept.items():
                rows[q][name] = value
            rows[q]["raw_control"] = -1
        for copy in self.registers.copies.get(q, ()):
            copy.restart()
        port = self.nic["port"]
        if port["stalled"] and port["stalled"] != WIRE_STALL and port["stalled"] - 1 == q:
            port["stalled"] = 0
        port["stall_pools"] &= ~(1 << q % VFS)

    def _reset(self, keep: tuple[object, ...]) -> None:
        kept = tuple(d for d in Regs.DECLS if any(d is k for k in keep))
        self.registers.reset(keep=kept)
        for q in range(QUEUES):
            self._forget(q)
        for decl in (Regs.RXDCTL, Regs.TXDCTL):
            # Queue 0 runs without being asked, for drivers from before there were more.
            self.registers.poke(decl, 0, decl.reset | RXDCTL.ENABLE.mask)
        port = self.nic["port"]
        port["stalled"] = port["stall_pools"] = port["misbehaved"] = 0
        self._timer_due = None
        self.nvm.reset()
        self.mailboxes.pf_reset()
        self.statistics.reset()
        self.l2switch.reset()
        self._loopback()
        self._link_seen = 0

    def port_reset(self) -> None:
        """Do what CTRL.RST does; it leaves CTRL_EXT.EXT_VLAN as it is."""
        double = self.registers.peek(Regs.CTRL_EXT) & CTRL_EXT.EXT_VLAN.mask
        self._reset(_KEPT_BY_RST)
        self.registers.poke(Regs.CTRL_EXT, 0, self.registers.peek(Regs.CTRL_EXT) | double)
        self.interrupts.reset(throttles=False)

    def power_on(self) -> None:
        """Put everything back as at power-on or after an FLR of the PF."""
        self._phy_was_reset = True
        self.phy.reset()
        self._reset(())
        self._show_status()
        self.interrupts.reset(throttles=True)
        self._started_ps = self.now()

    def close(self) -> None:
        """Release memory."""
        self.registers.close()
