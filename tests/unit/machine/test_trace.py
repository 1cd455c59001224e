"""The tracer's lines, and its manners with files."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtfn.hw.i82576 import Regs, VfRegs, describe_message
from virtfn.hw.types import Iova, parse_rid
from virtfn.machine.clock import NS_PS, US_PS, VirtualClock
from virtfn.machine.ports import VirtfnError
from virtfn.machine.trace import Tracer

PF, VF = parse_rid("01:00.0"), parse_rid("01:10.0")


@pytest.fixture
def clock() -> VirtualClock:
    clock = VirtualClock()
    clock.sleep(5 * US_PS)
    return clock


def test_every_kind_of_event_has_its_line(tmp_path: Path, clock: VirtualClock) -> None:
    path = tmp_path / "trace"
    with Tracer(path, clock) as tracer:
        tracer.register(VF, VfRegs, 0x2928, 0x02000008, write=True)
        clock.sleep(12 * US_PS + 504 * NS_PS)
        tracer.register(PF, Regs, 0x0C80, 0x00010001, write=False)
        tracer.register(PF, Regs, 0x3FFC, 0xAB, write=False)
        tracer.mailbox(VF, True, [0x00010004, 10], describe_message([0x00010004, 10]))
        tracer.mailbox(VF, False, [0x40000000], describe_message([0x40000000]))
        tracer.interrupt(PF, 2)
        tracer.fault(VF, Iova(0xDEAD000), "no second-level entry", write=True)
        tracer.reset(VF, "VTCTRL.RST")
        tracer.note(None, "guest a\nstarts")
    assert path.read_text().splitlines() == [
        "   # time, us function     what       event",
        "        0.000 0000:01:10.0 write      RXDCTL[1] = 0x02000008 (PTHRESH=8, ENABLE=1)",
        "       12.504 0000:01:00.0 read       MBVFICR = 0x00010001 (VFREQ=1, VFACK=1)",
        "       12.504 0000:01:00.0 undeclared read [0x3ffc] = 0x000000ab (undeclared)",
        "       12.504 0000:01:10.0 mailbox    VF to PF: SET_VLAN (add, vlan=10) [00010004 0000000a]",
        "       12.504 0000:01:10.0 mailbox    PF to VF: no opcode (NACK) [40000000]",
        "       12.504 0000:01:00.0 interrupt  vector 2",
        "       12.504 0000:01:10.0 fault      write iova 0xdead000: no second-level entry",
        "       12.504 0000:01:10.0 reset      VTCTRL.RST",
        "       12.504 machine      note       guest a starts",
    ]
    assert tracer.counts == {
        "write": 1, "read": 1, "undeclared": 1, "mailbox": 2, "interrupt": 1, "fault": 1, "reset": 1, "note": 1,
    }  # fmt: skip


def test_lines_reach_the_file_in_order_however_many_there_are(tmp_path: Path, clock: VirtualClock) -> None:
    with Tracer(tmp_path / "trace", clock) as tracer:
        for vector in range(3000):
            tracer.interrupt(PF, vector)
        tracer.flush()
        assert len((tmp_path / "trace").read_text().splitlines()) == 1 + 3000
        tracer.interrupt(PF, 3000)
    lines = (tmp_path / "trace").read_text().splitlines()[1:]
    assert [int(line.split()[-1]) for line in lines] == list(range(3001))


def test_a_closed_tracer_ignores_events_and_closes_twice(tmp_path: Path, clock: VirtualClock) -> None:
    tracer = Tracer(tmp_path / "trace", clock)
    tracer.close()
    tracer.interrupt(PF, 1)
    tracer.flush()
    tracer.close()
    assert (tmp_path / "trace").read_text() == "   # time, us function     what       event\n"
    assert not tracer.counts


def test_a_file_that_cannot_be_written_is_refused_by_name(tmp_path: Path, clock: VirtualClock) -> None:
    with pytest.raises(VirtfnError, match=r"cannot write the trace .*missing/trace: No such file or directory"):
        Tracer(tmp_path / "missing" / "trace", clock)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not run: this system has no /dev/full")
def test_a_full_disk_is_an_error_with_a_name_not_a_traceback(clock: VirtualClock) -> None:
    tracer = Tracer("/dev/full", clock)
    tracer.interrupt(PF, 1)
    for _ in range(5000):
        tracer.interrupt(PF, 1)  # whoever lets things happen hears nothing of the disk
    with pytest.raises(VirtfnError, match="/dev/full: No space left"):
        tracer.flush()
    with pytest.raises(VirtfnError, match="No space left"):
        tracer.close()
    tracer.close()
