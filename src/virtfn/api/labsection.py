"""What all sections of a lab file have in common, and what a guest under QEMU boots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.config import JsonDict

__all__ = ["Disk", "File", "Firmware", "Section", "or_a_file_name"]


class Section(BaseModel):
    """A mapping of a lab file: its keys have dashes, and no others are taken."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )


def _beside_the_lab(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    if not value or not value.isprintable():
        raise ValueError("is not a file name; names are relative to the lab file")
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / value


File = Annotated[Path, BeforeValidator(_beside_the_lab)]
"""A file that a lab names: relative to the lab file."""


def _known_firmware(value: object, info: ValidationInfo) -> object:
    return value if value in ("seabios", "ovmf") else _beside_the_lab(value, info)


Firmware = Annotated[Literal["seabios", "ovmf"] | Path, BeforeValidator(_known_firmware)]
"""A firmware by its name, or its file."""


def or_a_file_name(schema: JsonDict) -> None:
    """Say in the schema of a disk that the name of its file is enough."""
    forms = schema["anyOf"]
    assert isinstance(forms, list)
    forms.insert(0, {"type": "string"})


class Disk(Section):
    """A disk of a guest under QEMU: the name of its file, or a mapping."""

    file: File = Field(description="qcow2 or raw, relative to the lab file")
    format: Literal["qcow2", "raw"] | None = Field(
        default=None, description="without it, what the file is; with snapshot: false it is needed"
    )
    snapshot: bool = Field(default=True, description="what the guest writes is gone with it; false: it stays")
    boot: bool = Field(
        default=True,
        description="the guest boots from it, or its kernel finds its root there; false: it is one more disk",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_a_name(cls, value: object) -> object:
        return {"file": value} if isinstance(value, str) else value
