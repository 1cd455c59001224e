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
from virtfn.machine.ports import VirtfnError

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
    finished: Callable[[Report], None] | None = None,
    ready: Callable[[], None] | None = None,
) -> Report:
    """Run a lab from nothing to nothing and report.

    capture: where to record what each function sent and received. trace: where to write what happened. controlled:
    whether others can ask it while it runs. keep: whether it stays up after its work, until interrupted, and can be
    asked. save_state: where to write the state of the IOMMU at the end of the work. finished: gets the report, once: of
    a lab that is kept when the work is done, of others when they are taken down, even if that fails. ready:
    is told that a lab is kept, and that a signal ends it in good order.

    A file that the disk refuses does not end the run: the report says so (`unwritten`). Raises VirtfnError if a part
    refuses, the work gets stuck, or others can ask a lab of that name already.
    """
    tell = finished or _tell_nobody
    with Session(lab, capture=capture, trace=trace, progress=progress, controlled=controlled or keep) as session:
        session.start()
        session.work()
        report = session.report()
        if save_state is not None:
            try:
                session.save_iommu(save_state)
            except VirtfnError as error:
                session.unwritten.append(str(error))
        if keep:
            _add_unwritten(report, session)
            tell(report)
            session.keep(ready)
            session.stop()
        else:
            try:
                session.stop()
            finally:
                _add_unwritten(report, session)
                tell(report)
    late = [words for words in session.unwritten if words not in report.get("unwritten", [])]
    if late:
        raise VirtfnError("; ".join(late))
    return report


def _add_unwritten(report: Report, session: Session) -> None:
    if session.unwritten:
        report["unwritten"] = list(session.unwritten)


def _tell_nobody(report: Report) -> None:
    """Nobody wants to know before all is over."""
