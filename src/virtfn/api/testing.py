"""What a test needs in a few lines: run a lab from text or objects, and raise if it is not as it expects."""

from __future__ import annotations

from pathlib import Path

from virtfn.api.lab import Lab, builtin_lab, load_lab, parse_lab
from virtfn.api.report import Report, verdict
from virtfn.api.run import run_lab
from virtfn.machine.ports import VirtfnError

__all__ = ["FailedError", "check", "run"]


class FailedError(VirtfnError, AssertionError):
    """A run is not as its lab expects; the words are those of its verdict. report: of the run."""

    def __init__(self, words: str, report: Report) -> None:
        super().__init__(words)
        self.report = report


def run(
    lab: Lab | str | Path | None = None, *, capture: str | Path | None = None, trace: str | Path | None = None
) -> Report:
    """Run a lab from nothing to nothing, and return its report, whatever the verdict.

    lab: a lab, the text of a lab file, the path of one, or nothing for the built-in lab. capture: the pcapng file to
    write; trace: the text file. Raises LabError for a lab that is wrong, VirtfnError if a part refuses, the work gets
    stuck, or a file cannot be written.
    """
    report = run_lab(_lab(lab), capture=_path(capture), trace=_path(trace))
    if unwritten := report.get("unwritten"):
        raise VirtfnError("; ".join(unwritten))
    return report


def check(report: Report) -> Report:
    """Return the report of a run that passed.

    Raises FailedError, which is an AssertionError too, for one that did not.
    """
    judged = verdict(report)
    if not judged.passed:
        raise FailedError(judged.words, report)
    return report


def _lab(lab: Lab | str | Path | None) -> Lab:
    match lab:
        case None:
            return builtin_lab()
        case str():
            return parse_lab(lab)
        case Path():
            return load_lab(lab)
    return lab


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)
