"""Questions about watched VFs to a lab that runs, for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from virtfn.api.control import ask

if TYPE_CHECKING:
    from virtfn.api.session.watching import VfDocument

__all__ = ["ask_quarantine", "ask_release", "ask_vfs"]


def ask_vfs(pf: str | None, lab: str | None) -> list[VfDocument]:
    """Ask how VFs are; pf: those of one PF. Raises VirtfnError if there is no such lab or PF."""
    return cast("list[VfDocument]", ask("vf.list", {} if pf is None else {"pf": pf}, lab))


def ask_quarantine(pf: str, vf: int, why: str, lab: str | None) -> VfDocument:
    """Have a VF stopped. Raises VirtfnError if there is none, or nobody has it."""
    return cast("VfDocument", ask("vf.quarantine", {"pf": pf, "vf": vf, "why": why}, lab))


def ask_release(pf: str, vf: int, lab: str | None) -> VfDocument:
    """Let a VF run again. Raises VirtfnError if there is none, or it is not stopped."""
    return cast("VfDocument", ask("vf.release", {"pf": pf, "vf": vf}, lab))
