"""Run a lab: bring it up, let its guests work, take it down, and account for every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from virtfn.api.lab import Lab, refuse_unsupported
from virtfn.api.machine import Machine
from virtfn.api.progress import Progress
from virtfn.api.report import Report
from virtfn.api.session import Session
from virtfn.machine.clock import WallClock

__all__ = ["machine_for", "run_lab"]


@contextmanager
def machine_for(lab: Lab) -> Iterator[Machine]:
    """Bring the machine of a lab up, without running its workload.

    Raises VirtfnError as the lab's parts do.
    """
    refuse_unsupported(lab)
    with Machine(lab, WallClock()) as machine:
        yield machine


def run_lab(
    lab: Lab,
    *,
    capture: Path | None = None,
    trace: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    controlled: bool = False,
    keep: bool = False,
    save_state: Path | None = None,
) -> Report:
    """Run a lab from nothing to nothing and report.

    capture: where to record what each function sent and received. trace: where to write what happened. controlled:
    whether others can ask it while it runs. keep: whether it stays up after its work, until interrupted, and can be
    asked. save_state: where to write the state of the IOMMU at the end of the work.

    Raises VirtfnError if a part refuses, the work gets stuck, or others can ask a lab of that name already.
    """
    with Session(lab, capture=capture, trace=trace, progress=progress, controlled=controlled or keep) as session:
        session.start()
        session.work()
        report = session.report()
        if save_state is not None:
            session.save_iommu(save_state)
        if keep:
            session.keep()
        session.stop()
    return report
