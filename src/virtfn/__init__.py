"""SR-IOV in software: a NIC cut into functions, the IOMMU that makes them safe, and the drivers on both sides.

What is named here is the public API: `docs/reference/api.md`. It is loaded when it is first used; the compiler comes
along when a lab runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtfn.api.lab import (
        Disk,
        Dom0,
        Guest,
        Iommu,
        Lab,
        LabError,
        Nic,
        Pf,
        SrIov,
        VfPolicy,
        Watch,
        WatchLimit,
        Workload,
        builtin_lab,
        load_lab,
        make_lab,
        parse_lab,
    )
    from virtfn.api.report import FlowReport, GuestReport, Report, Verdict, verdict
    from virtfn.api.session import Session, Snapshot, State
    from virtfn.api.testing import FailedError, check, run
    from virtfn.machine.captures import CaptureError, Frames, read_capture
    from virtfn.machine.ports import VirtfnError

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Disk",
    "Dom0",
    "FailedError",
    "FlowReport",
    "Frames",
    "Guest",
    "GuestReport",
    "Iommu",
    "Lab",
    "LabError",
    "Nic",
    "Pf",
    "Report",
    "Session",
    "Snapshot",
    "SrIov",
    "State",
    "Verdict",
    "VfPolicy",
    "VirtfnError",
    "Watch",
    "WatchLimit",
    "Workload",
    "__version__",
    "builtin_lab",
    "check",
    "load_lab",
    "make_lab",
    "parse_lab",
    "read_capture",
    "run",
    "verdict",
]

_HOMES = {
    "virtfn.api.report": ("FlowReport", "GuestReport", "Report", "Verdict", "verdict"),
    "virtfn.api.session": ("Session", "Snapshot", "State"),
    "virtfn.api.testing": ("FailedError", "check", "run"),
    "virtfn.machine.captures": ("CaptureError", "Frames", "read_capture"),
    "virtfn.machine.ports": ("VirtfnError",),
}

if not TYPE_CHECKING:  # so that a checker knows what is here, and what is not

    def __getattr__(name: str) -> object:
        """Load a part of the API at its first use."""
        if name not in __all__:
            raise AttributeError(f"module 'virtfn' has no attribute {name!r}")
        home = next((home for home, names in _HOMES.items() if name in names), "virtfn.api.lab")
        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
