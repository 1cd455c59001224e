"""Layer-2 sorting: turn filter registers into the tables that the data plane looks things up in.

A write to one of these registers marks what it concerns; the tables are made anew before the next frame moves.

    RAL/RAH            -> macs       hash table of address -> pools
    VFTA, VLVF         -> vlans      for each VLAN: pools, filter bit, local bit, VLVF entries
    VMOLR, VFRE, ...   -> port       one bitmap of pools for each property
    VMOLR, VMVIR, RTTBCNRC -> pools  what is a number, not a bit
    SCCRL, BSCTRH, MSCTRH -> port    storm control
Spec: 82576 datasheet, chapter "Virtualization".
"""

from __future__ import annotations

import numpy as np

from virtfn.devices.nic82576.registers import PortRegisters
from virtfn.hw.eth import VLAN_BYTES, as_loaded
from virtfn.hw.i82576 import Regs
from virtfn.hw.i82576.fields import CTRL, CTRL_EXT, VET, RxMode, VlanInsert
from virtfn.hw.i82576.rxtx import (
    DTXCTL,
    DTXSWC,
    DTXTCPFLGH,
    DTXTCPFLGL,
    MRQC,
    RAH,
    RCTL,
    RPLOLR,
    RTTBCNRC,
    RXCSUM,
    SCCRL,
    STORM_BITS,
    STORM_CHUNK,
    STORM_THRESHOLD,
    TCTL,
    VLVF,
    VMOLR,
    VMRCTL,
    VMVIR,
    VT_CTL,
)
from virtfn.hw.types import Mac
from virtfn.kernels.csum import toeplitz_key
from virtfn.kernels.i82576.state import DROP_WITHDRAWN, MAC_SLOTS, PLAIN_TAG_AT, POOLS
from virtfn.kernels.i82576.switch import IN_VFTA, LOCAL_VLAN, mac_slot
from virtfn.machine.netports import InForce
from virtfn.machine.regfile import Handlers, on_read, on_write

__all__ = ["L2Switch"]

STANDARD_FRAME = 1518
_ENTRIES = 24  # receive addresses
PS_PER_BIT_AT_1_MBPS = 1_000_000
_MULTICAST_SHIFTS = (36, 35, 34, 32)  # RCTL.MO: which 12 bits of the address's end
_PROPERTIES = (
    Regs.TCTL, Regs.VT_CTL, Regs.MRQC, Regs.DTXSWC, Regs.DTXCTL, Regs.RPLOLR, Regs.VMOLR, Regs.VMVIR,
    Regs.VFRE, Regs.QDE, Regs.RLPML, Regs.RXCSUM, Regs.VET, Regs.VMRCTL, Regs.VMRVLAN, Regs.VMRVM,
    Regs.DTXTCPFLGL, Regs.DTXTCPFLGH,
)  # fmt: skip


class L2Switch(Handlers):
    """Filters and pools of one port. nic: the NIC row of the data plane."""

    def __init__(self, registers: PortRegisters, nic: np.void) -> None:
        self._registers = registers
        self._nic = nic
        self._rates = [0] * POOLS
        self._tables = {
            self._settle_macs,
            self._settle_vlans,
            self._settle_properties,
            self._settle_hash,
            self._settle_storm,
        }
        self._stale = set(self._tables)
        self.link_mbps = 1000
        registers.bind(self)

    @on_write(Regs.RAL, Regs.RAH, Regs.RALX, Regs.RAHX)
    def _address(self, index: int, written: int, old: int) -> None:
        self._stale.add(self._settle_macs)

    @on_write(Regs.VFTA, Regs.VLVF)
    def _vlan(self, index: int, written: int, old: int) -> None:
        self._stale.add(self._settle_vlans)

    @on_write(*_PROPERTIES)
    def _property(self, index: int, written: int, old: int) -> None:
        self._stale.add(self._settle_properties)

    @on_write(Regs.VFTE)
    def _transmit_enable(self, index: int, written: int, old: int) -> None:
        self._stale.add(self._settle_properties)
        # A pool that is switched off and on again has been dealt with: its blocked queues run.
        cleared = old & ~self._registers.peek(Regs.VFTE)
        self._nic["port"]["blocked"] &= ~(cleared | cleared << 8)

    @on_write(Regs.MTA, Regs.UTA, Regs.RETA, Regs.RSSRK)
    def _hashed(self, index: int, written: int, old: int) -> None:
        self._stale.add(self._settle_hash)

    @on_write(Regs.SCCRL, Regs.BSCTRH, Regs.MSCTRH)
    def _storm(self, index: int, written: int, old: int) -> None:
        self._stale.add(self._settle_storm)

    @on_write(Regs.RTTBCNRC)
    def _rate(self, index: int, written: int, old: int) -> None:
        """Limit the pool of the selected queue: link rate over limit, in 14.14 fixed point."""
        rate = RTTBCNRC(written)
        factor = rate.RF_INT << 14 | rate.RF_DEC
        pool = self._registers.peek(Regs.RTTDQSEL) % POOLS
        self._rates[pool] = factor if rate.RS_ENA else 0
        self._stale.add(self._settle_properties)

    @on_read(Regs.RTTBCNRC)
    def _rate_read(self, index: int) -> int:
        factor = self._rates[self._registers.peek(Regs.RTTDQSEL) % POOLS]
        return RTTBCNRC.of(RS_ENA=int(factor > 0), RF_INT=factor >> 14, RF_DEC=factor & 0x3FFF).value

    def touch(self) -> None:
        """Look at the properties of port and pools again before the next frame."""
        self._stale |= {self._settle_properties, self._settle_storm}

    def reset(self) -> None:
        """Follow registers that went back to their reset values."""
        self._rates = [0] * POOLS
        self._stale = set(self._tables)
        self._nic["port"]["blocked"] = 0

    def address(self, entry: int) -> tuple[int, RAH]:
        """Read receive address `entry`, 0..23: (address, RAH)."""
        low, high = (Regs.RAL, Regs.RAH) if entry < 16 else (Regs.RALX, Regs.RAHX)
        rah = RAH(self._registers.peek(high, entry % 16))
        return self._registers.peek(low, entry % 16) | rah.RAH << 32, rah

    def in_force(self, n: int | None) -> InForce:
        """Read what is in force for the VF that has pool `n`; of the PF (None), its address alone.

        Of several receive addresses of a pool the last is the VF's own, as PF drivers give them out: 23 - n.
        """
        if n is None:
            return InForce(Mac(self.address(0)[0]))
        peek = self._registers.peek
        entries = (self.address(entry) for entry in reversed(range(_ENTRIES)))
        mac = next((mac for mac, rah in entries if rah.AV and rah.POOLSEL >> n & 1), 0)
        vmvir, factor = VMVIR(peek(Regs.VMVIR, n)), self._rates[n]
        tag = vmvir.PORT_VLAN if vmvir.VLANA == VlanInsert.ALWAYS else 0
        checked = bool(DTXSWC(peek(Regs.DTXSWC)).MACAS >> n & 1)
        rate = round(self.link_mbps * (1 << 14) / factor) if factor else 0
        return InForce(Mac(mac), tag & 0xFFF, tag >> 13, checked, rate)

    def settle(self) -> None:
        """Make stale tables anew; called before frames move."""
        if not self._stale:
            return
        for make_anew in self._stale:
            make_anew()
        self._stale.clear()

    def _settle_macs(self) -> None:
        table = self._nic["macs"]
        table[:] = -1
        for entry in range(_ENTRIES):
            mac, rah = self.address(entry)
            if not rah.AV:
                continue
            slot = int(mac_slot(mac))
            while table[slot, 0] not in (-1, mac):
                slot = (slot + 1) % MAC_SLOTS
            pools = rah.POOLSEL or 1
            table[slot] = mac, pools | (int(table[slot, 1]) if table[slot, 0] == mac else 0)

    def _settle_vlans(self) -> None:
        table = self._nic["vlans"]
        bits = np.unpackbits(self._registers.words(Regs.VFTA).view(np.uint8), bitorder="little")
        table[:] = bits.astype(np.int64) * IN_VFTA
        for entry in range(Regs.VLVF.count):
            vlan = VLVF(self._registers.peek(Regs.VLVF, entry))
            if vlan.VI_EN:
                local = LOCAL_VLAN if vlan.LVLAN else 0
                table[vlan.VID] |= vlan.POOLSEL | local | 1 << (16 + entry)

    def _settle_hash(self) -> None:
        self._nic["multicast"][:] = self._registers.words(Regs.MTA)
        self._nic["unicast"][:] = self._registers.words(Regs.UTA)
        self._nic["reta"][:] = self._registers.words(Regs.RETA).view(np.uint8)
        self._nic["rss_key"][:] = toeplitz_key(self._registers.words(Regs.RSSRK).tobytes())

    def _settle_properties(self) -> None:
        peek, port = self._registers.peek, self._nic["port"]
        rctl, tctl, vt_ctl = RCTL(peek(Regs.RCTL)), TCTL(peek(Regs.TCTL)), VT_CTL(peek(Regs.VT_CTL))
        mrqc, dtxswc, dtxctl = MRQC(peek(Regs.MRQC)), DTXSWC(peek(Regs.DTXSWC)), DTXCTL(peek(Regs.DTXCTL))
        rxcsum = RXCSUM(peek(Regs.RXCSUM))
        vmolr = [VMOLR(peek(Regs.VMOLR, n)) for n in range(POOLS)]

        def pools(name: str) -> int:
            return sum(1 << n for n in range(POOLS) if VMOLR.field(name).get(vmolr[n].value))

        # A port that was told to stay off the bus moves nothing.
        master = not CTRL(peek(Regs.CTRL)).GIO_MASTER_DISABLE
        port["rx_enable"], port["tx_enable"], port["pad"] = rctl.RXEN and master, tctl.EN and master, tctl.PSP
        port["bam"], port["upe"], port["mpe"], port["vfe"] = rctl.BAM, rctl.UPE, rctl.MPE, rctl.VFE
        port["multicast_shift"] = _MULTICAST_SHIFTS[rctl.MO]
        port["vmdq"] = int(mrqc.MODE in (RxMode.VMDQ, RxMode.VMDQ_RSS))
        port["rss"] = int(mrqc.MODE in (RxMode.RSS, RxMode.VMDQ_RSS))
        port["rss_fields"] = mrqc.value >> 16
        port["rss_in_descriptor"] = rxcsum.PCSD
        port["rx_ip_checksum"], port["rx_l4_checksum"] = rxcsum.IPOFLD, rxcsum.TUOFLD
        port["ign_mac"], port["replicate"] = vt_ctl.IGN_MAC, vt_ctl.RPL_EN
        port["default_pool"] = -1 if vt_ctl.DIS_DEF_POOL else vt_ctl.DEF_PL
        port["loopback"] = dtxswc.LOOPBACK_EN
        port["mac_spoof_pools"], port["vlan_spoof_pools"] = dtxswc.MACAS, dtxswc.VLANAS
        port["lle_pools"], port["strip_replicated"] = dtxswc.LLE, RPLOLR(peek(Regs.RPLOLR)).STRVLAN
        port["mdp"], port["spoof_int"] = dtxctl.MDP_EN, dtxctl.SPOOF_INT
        port["drop_queues"] = peek(Regs.QDE)
        port["rx_pools"], port["tx_pools"] = peek(Regs.VFRE), peek(Regs.VFTE)
        port["bam_pools"], port["rompe_pools"], port["rope_pools"] = pools("BAM"), pools("ROMPE"), pools("ROPE")
        port["mpme_pools"], port["aupe_pools"] = pools("MPME"), pools("AUPE")
        if not port["vmdq"]:
            port["rx_pools"] = port["tx_pools"] = (1 << POOLS) - 1
        standard = self._settle_tags()
        port["max_frame"] = peek(Regs.RLPML) if rctl.LPE else standard
        port["max_tagged"] = peek(Regs.RLPML) if rctl.LPE else standard + VLAN_BYTES
        for n, row in enumerate(self._nic["pools"]):
            row["rsse"] = vmolr[n].RSSE
            row["max_frame"] = vmolr[n].RLPML if vmolr[n].LPE else standard
            row["max_tagged"] = vmolr[n].RLPML if vmolr[n].LPE else standard + VLAN_BYTES
            row["ps_per_byte"] = (8_000_000 // self.link_mbps) * self._rates[n] >> 14
        self._settle_segments()
        self._settle_mirrors()
        buffer = 2048 >> rctl.BSIZE
        for row in self._nic["rx"]:
            row["default_bytes"] = buffer
            row["layout_raw"] = -1

    def _settle_storm(self) -> None:
        """Settle storm control; its windows begin anew if it has changed. The link takes as long for so many bits."""
        peek, port = self._registers.peek, self._nic["port"]
        sccrl = SCCRL(peek(Regs.SCCRL))
        drops = (sccrl.MDIPW, sccrl.MDICW, sccrl.BDIPW, sccrl.BDICW, sccrl.BIDU)
        limited = sccrl.INTERVAL and (sccrl.MDIPW or sccrl.MDICW or sccrl.BDIPW or sccrl.BDICW)
        settings = {
            "storm": sum(int(on) << i for i, on in enumerate(drops)) if limited else 0,
            "storm_ps": sccrl.INTERVAL * (STORM_BITS * PS_PER_BIT_AT_1_MBPS // self.link_mbps),
            "storm_most_broadcasts": STORM_THRESHOLD(peek(Regs.BSCTRH)).UTRESH * STORM_CHUNK,
            "storm_most_multicasts": STORM_THRESHOLD(peek(Regs.MSCTRH)).UTRESH * STORM_CHUNK,
        }
        if all(port[name] == value for name, value in settings.items()):
            return
        for name, value in settings.items():
            port[name] = value
        for name in ("storm_end", "storm_broadcasts", "storm_multicasts", "storm_over", "storm_before"):
            port[name] = 0

    def _settle_tags(self) -> int:
        """Settle where tags are, and who strips and inserts them: pool by pool, or CTRL.VME if there are no pools.

        Returns the longest standard frame without the tag that is stripped.
        """
        peek, port = self._registers.peek, self._nic["port"]
        vet, double = VET(peek(Regs.VET)), CTRL_EXT(peek(Regs.CTRL_EXT)).EXT_VLAN
        port["tag_at"] = PLAIN_TAG_AT + VLAN_BYTES * double
        port["tag_kind"] = as_loaded(vet.OUTER if double else vet.INNER)
        port["inner_kind"] = as_loaded(vet.INNER)
        vlan_mode = CTRL(peek(Regs.CTRL)).VME
        for n, row in enumerate(self._nic["pools"]):
            vmvir = VMVIR(peek(Regs.VMVIR, n))
            if port["vmdq"]:
                row["strip"] = VMOLR(peek(Regs.VMOLR, n)).STRVLAN
                if (row["vlan_mode"], row["vlan_tag"]) != (vmvir.VLANA, vmvir.PORT_VLAN):
                    self._forget_gathered(n)
                row["vlan_mode"], row["vlan_tag"] = vmvir.VLANA, vmvir.PORT_VLAN
            else:
                row["strip"] = vlan_mode
                row["vlan_mode"] = VlanInsert.BY_DESCRIPTOR if vlan_mode else VlanInsert.NEVER
        return STANDARD_FRAME + VLAN_BYTES * double

    def _forget_gathered(self, n: int) -> None:
        """Forget what pool `n`'s queues gathered whole, with the tag of before; what is left of one is dropped."""
        for q in (n, n + POOLS):
            t = self._nic["tx"][q]
            if t["whole"] and t["segments_done"]:
                gone = t["chain_header"] + t["segments_done"] * t["chain_mss"]
                if gone < t["chain_bytes"]:
                    t["chain_bytes"] = gone
                    self._nic["drops"][n, DROP_WITHDRAWN] += 1
            elif t["whole"]:
                for name in ("walked", "gathered", "whole"):
                    t[name] = 0

    def _settle_segments(self) -> None:
        """Settle which TCP flags segments keep; what is in front of them, the data offset, all keep."""
        port, offset = self._nic["port"], 0xF000
        low = DTXTCPFLGL(self._registers.peek(Regs.DTXTCPFLGL))
        last = DTXTCPFLGH(self._registers.peek(Regs.DTXTCPFLGH)).LAST
        port["tcp_first"], port["tcp_middle"] = as_loaded(offset | low.FIRST), as_loaded(offset | low.MIDDLE)
        port["tcp_last"], port["tcp_only"] = as_loaded(offset | last), as_loaded(offset | low.FIRST | last)

    def _settle_mirrors(self) -> None:
        peek, rules = self._registers.peek, self._nic["mirrors"]
        for i in range(4):
            rule = VMRCTL(peek(Regs.VMRCTL, i))
            kinds = rule.VPME | rule.UPME << 1 | rule.DPME << 2 | rule.VLME << 3
            rules[i] = kinds, 1 << rule.MP, peek(Regs.VMRVLAN, i), peek(Regs.VMRVM, i)
        self._nic["port"]["mirror"] = int(rules[:, 0].any())
