"""VFs in quarantine, as they are kept while no process holds their lab."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Stopped"]


@dataclass(frozen=True, slots=True)
class Stopped:
    """A VF that is stopped until somebody releases it. guest: who has it; why: in words."""

    pf: str
    vf: int
    guest: str
    why: str

    def __str__(self) -> str:
        return f"{self.pf}/vf{self.vf} of {self.guest} ({self.why})"

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Stopped:
        """Read one from JSON. Raises TypeError for what is none."""
        made = cls(**fields)  # type: ignore[arg-type]  # checked below
        if type(made.vf) is not int or not all(isinstance(word, str) for word in (made.pf, made.guest, made.why)):
            raise TypeError("a VF that is stopped has a number, and three texts")
        return made
