"""The 82576's PHY and link: MDIC, what a driver reads at probe, link down and up, loopback."""

from __future__ import annotations

import pytest

from conformance.rig import BROADCAST, PF, Rig, data_descriptor, ethernet
from virtfn.hw.i82576 import Regs, VfRegs
from virtfn.hw.i82576.fields import CTRL, ICR, IVAR_MISC, MDIC, MdiOp
from virtfn.hw.i82576.rxtx import RCTL, TCTL

LSC = ICR.LSC.mask
BMCR, BMSR, PAGE = 0, 1, 31
LINK, AN_DONE = 0x04, 0x20
POWER_DOWN, LOOPBACK, PHY_RESET, AN_RESTART = 0x0800, 0x4000, 0x8000, 0x0200


@pytest.fixture
def rig():
    rig = Rig(1)
    rig.use_msix(PF, 0)
    rig.link_up()
    rig.set(Regs.IVAR_MISC, IVAR_MISC.of(OTHER=1, OTHER_VALID=1).value)
    rig.set(Regs.EIAC, 2)
    rig.set(Regs.EIMS, 2)
    rig.get(Regs.ICR)
    rig.set(Regs.IMS, LSC)
    rig.take()
    yield rig
    rig.close()


def mdio(rig: Rig, op: MdiOp, number: int, value: int = 0, phy: int = 1) -> MDIC:
    rig.set(Regs.MDIC, MDIC.of(OP=op, REG=number, PHY=phy, DATA=value).value)
    done = MDIC(rig.get(Regs.MDIC))
    assert done.READY
    return done


def read(rig: Rig, number: int) -> int:
    done = mdio(rig, MdiOp.READ, number)
    assert not done.ERROR
    return done.DATA


def write(rig: Rig, number: int, value: int) -> None:
    assert not mdio(rig, MdiOp.WRITE, number, value).ERROR


def fall_and_rise(rig: Rig, connected: bool, mbps: int = 1000) -> list[tuple[int | None, int]]:
    rig.nic.port.phy.set_link(connected, mbps)
    return rig.pass_time(0)


def test_the_identity_that_drivers_look_for(rig):
    assert read(rig, 2) == 0x02A8
    assert read(rig, 3) & 0xFFF0 == 0x0390
    for number, value in ((0, 0x1140), (4, 0x01E1), (5, 0x45E1), (6, 1), (9, 0x0300), (10, 0x3C00), (15, 0x3000)):
        assert read(rig, number) == value


def test_only_phy_1_answers_and_only_reads_and_writes_are_operations(rig):
    for phy in (0, 2, 31):
        assert mdio(rig, MdiOp.READ, 2, phy=phy).ERROR
    rig.set(Regs.MDIC, MDIC.of(OP=3, REG=2, PHY=1).value)
    assert MDIC(rig.get(Regs.MDIC)).ERROR
    assert read(rig, 2) == 0x02A8, "an error is not remembered"


def test_read_only_registers_keep_their_value(rig):
    for number in (1, 2, 3, 5, 6, 10, 15):
        before = read(rig, number)
        write(rig, number, before ^ 0xFFFF)
        assert read(rig, number) == before


def test_registers_above_15_are_reached_by_page(rig):
    write(rig, PAGE, 0x11B1)
    assert read(rig, PAGE) == 0x11B1
    assert read(rig, 17) == 0x1400, "gain of pair A"
    write(rig, PAGE, 0xB4)
    write(rig, 20, 0x8004)
    assert read(rig, 20) == 0x8004
    write(rig, PAGE, 0)
    assert read(rig, 20) == 0
    assert read(rig, 16) == 0x0120


def test_reset_and_restart_clear_themselves(rig):
    write(rig, 4, 0x0DE1)
    write(rig, BMCR, 0x1140 | AN_RESTART)
    assert read(rig, BMCR) == 0x1140
    assert read(rig, BMSR) & (LINK | AN_DONE) == LINK | AN_DONE, "negotiated at once"
    write(rig, BMCR, PHY_RESET | 0x0100)
    assert read(rig, BMCR) == 0x1140
    assert read(rig, 4) == 0x01E1


def test_an_access_that_names_no_register_of_the_map_reads_0(rig):
    assert read(rig, 14) == 0
    write(rig, 14, 0xFFFF)
    assert read(rig, 14) == 0


# Link.


def test_a_lost_link_interrupts_and_shows_everywhere(rig):
    assert rig.get(Regs.STATUS) & 2
    assert fall_and_rise(rig, False) == [(PF, 1)]
    assert rig.get(Regs.ICR) & LSC
    assert rig.get(Regs.STATUS) & 2 == 0
    assert rig.get(VfRegs.VTSTATUS, vf=0) & 2 == 0, "the VF sees it too"
    assert read(rig, BMSR) & (LINK | AN_DONE) == 0
    assert fall_and_rise(rig, True) == [(PF, 1)]
    assert rig.get(Regs.STATUS) & 2
    assert rig.get(VfRegs.VTSTATUS, vf=0) & 2
    assert read(rig, BMSR) & LINK == 0, "a loss stays visible until read"
    assert read(rig, BMSR) & LINK


def test_an_interrupt_for_each_change_and_none_without(rig):
    assert fall_and_rise(rig, True) == []
    assert fall_and_rise(rig, False) == [(PF, 1)]
    rig.get(Regs.ICR)
    assert fall_and_rise(rig, False) == []


@pytest.mark.parametrize(("mbps", "bits", "igp"), [(10, 0x000, 1), (100, 0x140, 2), (1000, 0x080, 3)])
def test_the_speed_is_where_drivers_read_it(rig, mbps, bits, igp):
    fall_and_rise(rig, True, mbps)
    assert rig.get(Regs.STATUS) & 0x1C0 == bits, "SPEED, ASDV"
    assert rig.get(VfRegs.VTSTATUS, vf=0) & 0xC3 == bits & 0xC0 | 3
    assert read(rig, 17) >> 14 == igp


def test_the_link_is_up_only_when_the_driver_wants_it(rig):
    rig.set(Regs.CTRL, CTRL.of(FD=1).value)
    assert rig.get(Regs.STATUS) & 2 == 0
    assert rig.take() == [(PF, 1)]
    rig.get(Regs.ICR)
    rig.link_up()
    assert rig.get(Regs.STATUS) & 2
    assert rig.take() == [(PF, 1)]


def test_powering_the_phy_down_takes_the_link(rig):
    write(rig, BMCR, 0x1140 | POWER_DOWN)
    assert rig.get(Regs.STATUS) & 2 == 0
    assert rig.take() == [(PF, 1)]
    rig.get(Regs.ICR)
    write(rig, BMCR, 0x1140)
    assert rig.get(Regs.STATUS) & 2
    assert rig.take() == [(PF, 1)]


def test_phy_rst_of_the_port_resets_the_phy(rig):
    write(rig, 4, 0x0DE1)
    rig.set(Regs.CTRL, CTRL.of(FD=1, SLU=1, PHY_RST=1).value)
    assert read(rig, 4) == 0x01E1


def test_the_master_goes_quiet_when_told_to(rig):
    assert rig.get(Regs.STATUS) & 0x80000
    rig.set(Regs.CTRL, CTRL.of(FD=1, SLU=1, GIO_MASTER_DISABLE=1).value)
    assert rig.get(Regs.STATUS) & 0x80000 == 0


@pytest.mark.parametrize("how", ["phy", "mac"])
def test_a_loop_brings_frames_back_to_queue_0(how):
    """As the driver's self-test has it: PHY register 0 = 4140, or RCTL.LBM; 64 frames a round, polled."""
    rig = Rig()
    base = rig.domain(1, PF)
    rig.set(Regs.CTRL, CTRL.of(FD=1, SLU=1, SPEED=2, FRCSPD=1, FRCDPLX=1).value)
    for i in range(128):
        rig.words(base + 0x1000 + 16 * i, 0x40000 + 2048 * i, 0)
    for decl, value in (
        (Regs.RDBAL, 0x1000), (Regs.RDLEN, 2048), (Regs.SRRCTL, 0x02000002), (Regs.RXDCTL, 1 << 25), (Regs.RDT, 127),
        (Regs.TDBAL, 0x2000), (Regs.TDLEN, 2048), (Regs.TXDCTL, 1 << 25),
    ):  # fmt: skip
        rig.set(decl, value)
    rig.set(Regs.RCTL, RCTL.of(RXEN=1, BAM=1, UPE=1, LBM=3 if how == "mac" else 0).value)
    rig.set(Regs.TCTL, TCTL.of(EN=1, PSP=1).value)
    if how == "phy":
        rig.set(Regs.MDIC, MDIC.of(OP=MdiOp.WRITE, REG=0, PHY=1, DATA=0x4140).value)
    sent = [ethernet(BROADCAST, 256 - 4) + bytes([0, 0, 0, i]) for i in range(64)]
    for i, frame in enumerate(sent):
        rig.store(base + 0x80000 + 2048 * i, frame)
        rig.words(base + 0x2000 + 16 * i, *data_descriptor(0x80000 + 2048 * i, 256))
    rig.set(Regs.TDT, 64)
    rig.pass_time(1000)
    rig.pass_time(1000)
    back = [rig.load(base + 0x40000 + 2048 * i, 256) for i in range(64)]
    assert back == sent
    done = [int.from_bytes(rig.load(base + 0x1000 + 16 * i + 8, 8), "little") for i in range(65)]
    assert all(word & 3 == 3 and word >> 32 & 0xFFFF == 256 for word in done[:64])
    assert done[64] & 1 == 0
    rig.close()
