"""Modules of a kernel package: which ones a guest needs, to get those it asks for.

Debian runs depmod when a kernel is installed, and here nothing is: what a module needs stands in the module itself, in
its .modinfo section. The guest runs depmod on the few that it gets.
"""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from virtfn.machine.ports import VirtfnError

__all__ = ["Module", "select"]


@dataclass(frozen=True, slots=True)
class Module:
    """A module, uncompressed. path: below lib/modules/RELEASE; needs: names of the modules that come before it."""

    name: str
    path: str
    content: bytes
    needs: tuple[str, ...]


def select(folder: Path, wanted: Iterable[str]) -> dict[str, Module]:
    """Return the wanted modules and all that they need, by name.

    folder: lib/modules/RELEASE of the unpacked package. What is built into the kernel needs no module and is left out.
    Raises VirtfnError: ENOENT (the kernel has no such module), EBADMSG (not a module).
    """
    files = {_name(file.name): file for file in folder.glob("kernel/**/*.ko*")}
    builtin_list = folder / "modules.builtin"
    builtin = {_name(Path(line).name) for line in builtin_list.read_text(encoding="utf-8").splitlines()}
    selected: dict[str, Module] = {}
    pending = [_name(name) for name in wanted]
    while pending:
        name = pending.pop()
        if name in selected or name in builtin:
            continue
        if name not in files:
            raise VirtfnError(f"kernel {folder.name} has no module {name}", errno_name="ENOENT")
        selected[name] = _read(files[name], folder, files)
        pending += selected[name].needs
    return selected


def _read(file: Path, folder: Path, names: Container[str]) -> Module:
    content = file.read_bytes()
    try:
        if file.suffix == ".xz":
            content = lzma.decompress(content)
        elif file.suffix == ".gz":
            content = gzip.decompress(content)
        section = ELFFile(io.BytesIO(content)).get_section_by_name(".modinfo")
        entries = [entry.decode().partition("=") for entry in section.data().split(b"\0") if entry] if section else []
    except (OSError, EOFError, lzma.LZMAError, ELFError, UnicodeDecodeError) as error:
        raise VirtfnError(f"{file.name} is not a kernel module: {error}", errno_name="EBADMSG") from error
    needs = [_name(need) for key, _, value in entries if key == "depends" for need in value.split(",") if need]
    for key, _, value in entries:
        if key == "softdep":
            # "pre: A B post: C": wished for, and often the name of an algorithm, not of a module
            before = value.partition("pre:")[2].partition("post:")[0]
            needs += [_name(need) for need in before.split() if _name(need) in names]
    path = file.relative_to(folder).as_posix()
    return Module(_name(file.name), path[: path.index(".ko")] + ".ko", content, tuple(dict.fromkeys(needs)))


def _name(file: str) -> str:
    return file.partition(".ko")[0].replace("-", "_")
