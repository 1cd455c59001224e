"""What a session can be asked about PFs and the policy of their VFs, in the words of `ip link`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from virtfn.api.link import LinkDocument, describe
from virtfn.api.session.asking import Answering, Params, Request, known, number, text
from virtfn.api.session.policy import Clauses, find_pf, set_policies
from virtfn.drivers.policy import VfPolicy
from virtfn.machine.ports import VirtfnError

__all__ = ["SetLinks", "ShowLinks"]

_SETTINGS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class ShowLinks(Request[list[LinkDocument]]):
    """Describe PFs, or one of them, with the policy of their VFs."""

    method: ClassVar[str] = "link.show"
    pf: str | None = None

    @classmethod
    def from_params(cls, params: Params) -> ShowLinks:
        """Make it from JSON."""
        known(params, "pf")
        return cls(text(params, "pf") if "pf" in params else None)

    def answer(self, session: Answering) -> list[LinkDocument]:
        """Read."""
        machine = session.machine
        pfs = machine.pfs if self.pf is None else [find_pf(machine, self.pf)]
        return [describe(machine, pf) for pf in pfs]


@dataclass(frozen=True, slots=True)
class SetLinks(Request[list[LinkDocument]]):
    """Change the policy of VFs of a PF: all that is asked for, or nothing. settings: clauses, by VF, in order."""

    method: ClassVar[str] = "link.set"
    pf: str
    settings: tuple[tuple[int, Clauses], ...]

    @classmethod
    def from_params(cls, params: Params) -> SetLinks:
        """Make it from JSON."""
        known(params, "pf", "settings")
        settings = params.get("settings")
        if not isinstance(settings, list) or not 1 <= len(settings) <= _SETTINGS_AT_ONCE:
            raise VirtfnError(f"settings is a list of 1 to {_SETTINGS_AT_ONCE}", errno_name="EINVAL")
        read = []
        for setting in settings:
            if not isinstance(setting, dict) or "vf" not in setting:
                raise VirtfnError("a setting is an object with vf, and clauses", errno_name="EINVAL")
            clauses = {name: value for name, value in setting.items() if name != "vf"}
            read.append((number(setting, "vf", 31), Clauses.of(clauses)))
        return cls(text(params, "pf"), tuple(read))

    def answer(self, session: Answering) -> list[LinkDocument]:
        """Change it, and return what is in force then."""
        machine = session.machine
        pf = find_pf(machine, self.pf)
        policies: dict[int, VfPolicy] = {}
        for n, clauses in self.settings:
            policies[n] = clauses.applied_to(policies[n] if n in policies else pf.driver.policy(n))
        set_policies(pf, policies)
        session.changed()
        return [describe(machine, pf)]
