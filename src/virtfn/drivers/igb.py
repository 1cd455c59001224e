"""The PF driver: the host's side of the 82576. Cuts the port into pools, sets policy, serves the mailbox.

    start      reset, check the NVM, pools and switching on, mailbox on, tell the VFs that the reset is done
    VF n       pool n; its address in receive address 23 - n; started by its RESET message, stopped by the host
    policy     of each VF: in registers at once, so that what is set is enforced (`policing.py`)
    events     to the guests: reset pending, link change, going away

Spec: 82576 datasheet, chapter "Software use of virtualization"; mailbox protocol of `hw/i82576/mailbox.py`.
"""

from __future__ import annotations

import secrets

from virtfn.drivers.addresses import Addresses
from virtfn.drivers.pfmailbox import PfMailbox
from virtfn.drivers.policing import Policing
from virtfn.drivers.policy import SwitchPolicy, VfPolicy
from virtfn.drivers.pools import Pools
from virtfn.drivers.restraint import Restraint
from virtfn.drivers.switching import Switching
from virtfn.drivers.window import Window
from virtfn.hw.i82576 import Regs, checksum_ok
from virtfn.hw.i82576.fields import CTRL, EECD, EERD, GPIE, ICR, IOVCTL, IVAR_MISC, MBVFICR, STATUS, RxMode
from virtfn.hw.i82576.rxtx import MRQC, RAH, RCTL, RXCSUM, TCTL, VT_CTL
from virtfn.hw.types import Mac
from virtfn.machine.clock import MS_PS
from virtfn.machine.ports import Bar, Clock, VirtfnError

__all__ = ["Igb"]

OTHER_VECTOR = 0


class Igb(Policing):
    """The driver of a PF. bar: BAR0."""

    def __init__(self, bar: Bar, clock: Clock) -> None:
        self.mac = Mac(0)
        self.vfs = 0
        self.interrupts = 0
        self.resets = 0
        self._stack: tuple[int, bool] | None = None  # longest frame, and whether it takes any address
        self.misbehaved: dict[int, int] = {}
        self.policies: list[VfPolicy] = []
        self._regs = Window(bar, clock)
        self._clock = clock
        self.switching = Switching(self._regs)
        self.pools = Pools(self._regs, self.switching.follow)
        self._switch = SwitchPolicy()
        self.restraint = Restraint(self._regs)
        self.addresses = Addresses(self.pools, self.policies)
        self.mailbox = PfMailbox(self._regs, self.pools, self.addresses, self.policies, clock)

    # Start and stop.

    def probe(self) -> None:
        """Reset the port and read its identity.

        Raises VirtfnError if the NVM's checksum is wrong, DeviceTimeoutError if the port does not come out of reset.
        """
        self._reset()
        image = [self._nvm(address) for address in range(64)]
        if not checksum_ok(image):
            raise VirtfnError("the NVM checksum is not valid", errno_name="EIO")
        self.mac = Mac(self._regs.get(Regs.RAL, 0) | RAH(self._regs.get(Regs.RAH, 0)).RAH << 32)

    def _reset(self) -> None:
        regs = self._regs
        self.resets += 1
        regs.update(Regs.CTRL, GIO_MASTER_DISABLE=1)
        regs.wait(Regs.STATUS, STATUS.GIO_MASTER_EN.mask, 0, 80 * MS_PS)
        regs.set(Regs.IMC, 0xFFFFFFFF)
        regs.set(Regs.RCTL, 0)
        regs.set(Regs.TCTL, TCTL.of(PSP=1).value)
        regs.set(Regs.CTRL, CTRL.of(FD=1, RST=1).value)
        self._clock.sleep(MS_PS)
        regs.wait(Regs.EECD, EECD.AUTO_RD.mask, EECD.AUTO_RD.mask, 10 * MS_PS)
        regs.set(Regs.IMC, 0xFFFFFFFF)
        regs.get(Regs.ICR)

    def _nvm(self, address: int) -> int:
        self._regs.set(Regs.EERD, EERD.of(START=1, ADDR=address).value)
        value = self._regs.wait(Regs.EERD, EERD.DONE.mask, EERD.DONE.mask, 10 * MS_PS)
        return EERD(value).DATA

    def start(self, vfs: int) -> None:
        """Switch pools, forwarding and the mailbox on for `vfs` VFs, in pools 0..vfs-1; they may talk from now on."""
        if not 0 <= vfs <= 8:
            raise VirtfnError(f"the 82576 has 0 to 8 VFs, not {vfs}", errno_name="ERANGE")
        self.vfs = vfs
        self.policies[:] = [VfPolicy() for _ in range(vfs)]
        self.set_switch(SwitchPolicy())
        self.addresses.start(self.mac, vfs)
        self.mailbox.start(vfs)
        self.restraint.start()
        self._configure()
        self._open()

    def _configure(self) -> None:
        """Set pools and switching up, with every VF stopped."""
        regs = self._regs
        regs.set(Regs.VFRE, 0)
        regs.set(Regs.VFTE, 0)
        self.pools.start(self.vfs)
        # Without VFs it is an ordinary card, of one queue and no pools.
        regs.set(Regs.MRQC, MRQC.of(MODE=RxMode.VMDQ).value if self.vfs else 0)
        # Unless the host runs a network stack on the PF, a frame that no VF takes has no default pool to go to.
        regs.set(Regs.VT_CTL, VT_CTL.of(RPL_EN=1, DIS_DEF_POOL=1).value if self.vfs else 0)
        regs.set(Regs.QDE, 0xFFFF)
        regs.set(Regs.RXCSUM, RXCSUM.of(IPOFLD=1, TUOFLD=1).value)
        regs.update(Regs.DTXCTL, SPOOF_INT=1, MDP_EN=1)

    def open_stack(self, max_frame: int, *, everything: bool) -> None:
        """Let the host run a network stack on the PF: in the pool after the VFs', or on the card if it has none.

        max_frame: bytes with frame check sequence. everything: it takes frames to any address that no VF has.
        """
        self._stack = max_frame, everything
        regs, pool = self._regs, self.vfs
        regs.set(Regs.RLPML, max_frame)
        if not self.vfs:
            regs.update(Regs.RCTL, UPE=int(everything), MPE=int(everything))
            return
        regs.update(Regs.VT_CTL, DEF_PL=pool, DIS_DEF_POOL=0)
        self.pools.open_own(pool, max_frame, everything=everything)

    def close_stack(self) -> None:
        """End that: what is for the PF goes nowhere from now on."""
        self._stack = None
        if self.vfs:
            self._regs.update(Regs.VT_CTL, DIS_DEF_POOL=1)
            self.pools.enable(self.vfs, False)

    def hash_flows(self) -> None:
        """Let the card hash the flows of IP frames for the VFs; all of them stay in a VF's first queue."""
        fields = MRQC.of(MODE=RxMode.VMDQ_RSS, RSS_TCP4=1, RSS_IPV4=1, RSS_IPV6=1, RSS_TCP6=1, RSS_UDP4=1, RSS_UDP6=1)
        for i in range(Regs.RSSRK.count):
            self._regs.set(Regs.RSSRK, secrets.randbits(32), i)  # whoever knows the key can choose who collides
        for vf in range(self.vfs):
            self._regs.update(Regs.VMOLR, vf, RSSE=1)
        self._regs.set(Regs.MRQC, fields.value)

    def _open(self) -> None:
        """Let frames move, and tell the VFs that the reset is done."""
        regs = self._regs
        regs.update(Regs.CTRL, SLU=1, GIO_MASTER_DISABLE=0)
        regs.get(Regs.ICR)  # a link that comes as it is asked for is no news
        self._start_interrupts()
        regs.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1, VFE=1, LPE=1, SECRC=1).value)
        regs.update(Regs.TCTL, EN=1, PSP=1)
        regs.update(Regs.CTRL_EXT, DRV_LOAD=1, PFRSTD=1, EXT_VLAN=0)

    def _start_interrupts(self) -> None:
        regs = self._regs
        regs.set(Regs.GPIE, GPIE.of(NSICR=1, MULTIPLE_MSIX=1, EIAME=1, PBA_SUPPORT=1).value)
        regs.set(Regs.IVAR_MISC, IVAR_MISC.of(OTHER=OTHER_VECTOR, OTHER_VALID=1).value)
        regs.set(Regs.EIAC, 1 << OTHER_VECTOR)
        regs.set(Regs.EIAM, 1 << OTHER_VECTOR)
        self.restraint.open_mailboxes()
        regs.set(Regs.EIMS, 1 << OTHER_VECTOR)
        regs.set(Regs.IMS, ICR.of(LSC=1, VMMB=1, DOUTSYNC=1).value)

    def stop(self) -> None:
        """Go away: tell the guests, and leave the port quiet; `reset` comes back, with the policies of before."""
        self.announce()
        regs = self._regs
        regs.set(Regs.VFRE, 0)
        regs.set(Regs.VFTE, 0)
        regs.set(Regs.IMC, 0xFFFFFFFF)
        regs.set(Regs.EIMC, 0xFFFFFFFF)
        regs.update(Regs.RCTL, RXEN=0)
        regs.update(Regs.TCTL, EN=0)
        regs.update(Regs.CTRL_EXT, DRV_LOAD=0)

    def reset(self) -> None:
        """Reset the port under running VFs: they see RSTI, then RSTD, and recover. Policy holds before they move.

        Raises DeviceTimeoutError if the port does not come out of reset.
        """
        self.announce()
        self._reset()
        self._configure()
        for n, policy in enumerate(self.policies):
            self.addresses.apply(n)
            self._apply(n, policy)
        self._write_switch()
        self._open()
        if self._stack is not None:
            self.open_stack(self._stack[0], everything=self._stack[1])

    def end_vfs(self) -> None:
        """Take note that the VFs are gone: pools off, policies forgotten, their queues the PF's again."""
        self.vfs = 0
        self.policies.clear()
        self.set_switch(SwitchPolicy())
        self.addresses.start(self.mac, 0)
        self.mailbox.start(0)
        self.restraint.start()
        self._regs.set(Regs.VFRE, 0)
        self._regs.set(Regs.VFTE, 0)
        self._regs.set(Regs.IOVCTL, IOVCTL.of(REUSE_VFQ=1).value)

    # VFs.

    def start_vf(self, n: int) -> None:
        """Let VF `n` receive and transmit again.

        Raises VirtfnError if there is no such VF.
        """
        self._check(n)
        self.mailbox.allow(n, True)

    def stop_vf(self, n: int) -> None:
        """Stop VF `n`: nothing goes in or out, and it has no link, whatever its driver does, until `start_vf`.

        Raises VirtfnError if there is no such VF.
        """
        self._check(n)
        self.mailbox.allow(n, False)

    def throttle(self, n: int, mbps: int | None) -> None:
        """Hold VF `n` back: to so many Mb/s, and in interrupts and messages; None: no more.

        Raises VirtfnError if there is no such VF, or for a rate of nothing.
        """
        self._check(n)
        if mbps is None:
            self.restraint.let_go(n)
        elif mbps < 1:
            raise VirtfnError(f"a VF that is held back has 1 Mb/s at least, not {mbps}", errno_name="EINVAL")
        else:
            self.restraint.hold(n, mbps)
        self._limit(n, self._link_mbps())
        self.serve()

    def attend(self, n: int) -> None:
        """Look after VF `n`, if it is held back: several times a second, by whoever watches."""
        if self.restraint.attend(n):
            self.serve()

    def start_vfs(self) -> None:
        """Let every VF receive and transmit again."""
        for n in range(self.vfs):
            self.start_vf(n)

    def release_vf(self, n: int) -> None:
        """Forget everything about VF `n`'s driver, after its function level reset: filters, rings' write-back, mailbox.

        Raises VirtfnError if there is no such VF.
        """
        self._check(n)
        self.policies[n] = VfPolicy()
        self.misbehaved.pop(n, None)
        self.restraint.forget(n)
        self.mailbox.forget(n)
        self.addresses.forget(n)
        self.pools.forget(n)

    # Events.

    def announce(self) -> None:
        """Tell every VF that the PF is about to reset or to go: their drivers must introduce themselves again."""
        self._recall(list(range(self.vfs)))

    def link_changed(self) -> None:
        """Keep the limits of VFs what they are at the speed of now, and tell every VF to look at the link."""
        link = self._link_mbps()
        for n in range(self.vfs):
            self._limit(n, link)
            self.mailbox.ping(n)
        self._write_switch()

    @property
    def link_up(self) -> bool:
        """Whether the port has a link."""
        return bool(STATUS(self._regs.get(Regs.STATUS)).LU)

    def interrupt(self, vector: int) -> None:
        """Handle the PF's interrupt: causes are read once, then every VF that rang is served."""
        self.interrupts += 1
        causes = ICR(self._regs.get(Regs.ICR))
        if causes.DOUTSYNC:
            self._misbehaviour()
        # Messages first: a ping takes the buffer that one may wait in.
        self.serve()
        if causes.LSC:
            self.link_changed()
        self._regs.set(Regs.EIMS, 1 << OTHER_VECTOR)

    def serve(self) -> None:
        """Handle function level resets and mailbox requests until there are none."""
        regs = self._regs
        resets = regs.get(Regs.VFLRE)
        regs.set(Regs.VFLRE, resets)
        for n in range(8):
            if resets >> n & 1 and n < self.vfs:
                self.mailbox.was_reset(n)
        deaf = self.restraint.deaf_to
        causes = MBVFICR(regs.get(Regs.MBVFICR) & ~MBVFICR.of(VFREQ=deaf, VFACK=deaf).value)
        regs.set(Regs.MBVFICR, causes.value)
        for n in range(self.vfs):
            if (causes.VFREQ | causes.VFACK) >> n & 1:
                self.restraint.note_message(n)
            if causes.VFREQ >> n & 1:
                self.mailbox.serve(n)
            elif causes.VFACK >> n & 1:
                self.mailbox.acknowledged(n)

    def _misbehaviour(self) -> None:
        """Note which VFs misbehaved; one whose queue the device blocked stays so until its driver resets."""
        wrong = self._regs.get(Regs.WVBR) & 0xFFFF
        self._regs.get(Regs.LVMMC)
        for n in range(8):
            if (wrong | wrong >> 8) >> n & 1:
                self.misbehaved[n] = self.misbehaved.get(n, 0) + 1
