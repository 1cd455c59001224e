"""Text of a lab file to plain values, and the line of every key.

A lab file is the part of YAML 1.2 that a person writes by hand: mappings, lists and scalars of the core schema, with
anchors, aliases and merge keys (`<<`). Aliases may add so many values and no more, since they are how a small file
becomes a large one; tags and further documents are refused. `lab.py` gives the values their meaning.

    pfs:                     ("pfs",)               -> line 1
      - name: pf0            ("pfs", 0, "name")     -> line 2
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from virtfn.machine.ports import VirtfnError

__all__ = [
    "MAX_BYTES",
    "Fault",
    "KeyPath",
    "LabError",
    "Tree",
    "decode",
    "format_key",
    "parse_text",
    "quote",
    "read_text",
]

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a lab that is well formed: which key, what, and how to mend it."""

    key: KeyPath
    message: str


MAX_BYTES = 128 << 10
MAX_DEPTH = 16
MAX_ALIASED = 8192
"""Values that aliases and merges may add to a lab."""

_MERGE = "<<"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[\w.-]{1,40}", re.ASCII)


class LabError(VirtfnError):
    """A lab file is wrong: `FILE:LINE: KEY: what is wrong; how to mend it`. The command line ends with status 2."""

    exit_status = 2

    def __init__(self, file: str, line: int, key: KeyPath, message: str) -> None:
        name = file if file.isprintable() else repr(file)
        super().__init__(": ".join(part for part in (f"{name}:{line}", format_key(key), message) if part))
        self.file = file
        self.line = line
        self.key = key


def quote(value: object) -> str:
    """Show a value from a file on one line, shortened."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    # The slice comes first: a number of a million digits must not be spelled out to be thrown away.
    text = str(value).lower() if isinstance(value, bool) else ascii(value[:41] if isinstance(value, str) else value)
    return text if len(text) <= 48 else text[:45] + "..."


def format_key(key: KeyPath) -> str:
    """Write a path of keys as `guests[1].nic.vf`."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _WORD.fullmatch(part) else quote(part))
    return text


@dataclass(slots=True)
class Tree:
    """Values of a lab file, and the line of each key and list item. folder: from where file names in it start."""

    file: str
    value: object = None
    text: str = ""
    folder: Path | None = None
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, key: KeyPath) -> int:
        """Return the line of `key`, or of the nearest key around it that is in the file."""
        while key not in self.lines and key:
            key = key[:-1]
        return self.lines.get(key, 1)

    def fail(self, key: KeyPath, message: str) -> NoReturn:
        """Raise the LabError for `key`."""
        raise LabError(self.file, self.line(key), key, message)


class _Event(Protocol):
    """What this module reads of ruamel's parser events; absent attributes do not occur for the kinds that lack them."""

    value: str
    anchor: str | None
    tag: object
    implicit: tuple[bool, bool]


def read_text(path: Path) -> str:
    """Read a lab file.

    Raises LabError when it is not a readable, reasonably small text file.
    """
    name = str(path)
    try:
        if path.is_dir():
            raise LabError(name, 1, (), "is a directory; give the lab file in it")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise LabError(name, 1, (), f"cannot be read ({reason}); check the name and the permissions") from None
    return decode(content, name)


def decode(content: bytes, name: str) -> str:
    """Decode the content of a lab file, of which MAX_BYTES and one more were read at most.

    Raises LabError for what is too large, or no text.
    """
    if len(content) > MAX_BYTES:
        raise LabError(name, 1, (), f"is larger than {MAX_BYTES >> 10} KiB; a lab file is a page or two of YAML")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LabError(name, line, (), "is not UTF-8 text; a lab file is YAML") from None


def parse_text(text: str, file: str) -> Tree:
    """Parse the text of a lab file.

    Raises LabError for everything that is not one YAML document of plain mappings, lists and scalars.
    """
    tree = Tree(file, text=text)
    _Builder(text, tree).document()
    return tree


class _Builder:
    """Turns parser events into values, refusing what a lab file may not hold."""

    def __init__(self, text: str, tree: Tree) -> None:
        self._tree = tree
        self._events = self._parse(text)
        self._line = 1
        self._anchors: dict[str, tuple[object, KeyPath]] = {}
        self._aliased = 0

    def _fail(self, key: KeyPath, message: str) -> NoReturn:
        raise LabError(self._tree.file, self._line, key, message)

    def _parse(self, text: str) -> Iterator[tuple[str, _Event]]:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError

        try:
            for event in YAML(typ="safe", pure=True).parse(text):
                self._line = event.start_mark.line + 1
                yield type(event).__name__.removesuffix("Event"), event
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._line = mark.line + 1 if mark else self._line
            problem = " ".join(str(error.problem or error.context or "broken").split())
            self._fail((), f"is not YAML ({problem[:80]}); check indentation, colons and quotes")
        except LabError:
            raise
        except (
            Exception
        ) as error:  # ruamel answers hostile text with ValueError, OverflowError and others besides its own
            detail = " ".join(ascii(str(error)).strip("'\"").split())[:60]
            self._fail((), f"is not YAML ({detail}); a lab file is printable UTF-8 text")

    def document(self) -> None:
        """Read the one document of the stream into the tree."""
        for kind, event in self._events:
            match kind:
                case "StreamStart" | "StreamEnd" | "DocumentEnd":
                    continue
                case "DocumentStart":
                    if self._tree.value is not None:
                        self._fail((), "holds a second document; keep one lab in a file")
                case _:
                    self._tree.lines[()] = self._line
                    self._tree.value = self._node(kind, event, ())
        if self._tree.value is None:
            self._line = 1
            self._fail((), "is empty; write at least pfs, guests and workload")

    def _node(self, kind: str, event: _Event, key: KeyPath) -> object:
        if len(key) > MAX_DEPTH:
            self._fail(key[:4], f"is nested deeper than {MAX_DEPTH} levels; no key of a lab is")
        if kind == "Alias":
            return self._copy(*self._anchored(event, key), key)
        value = self._plain_node(kind, event, key)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, key
        return value

    def _anchored(self, event: _Event, key: KeyPath) -> tuple[object, KeyPath]:
        """Find what an alias stands for: its value, and where that is."""
        name = event.anchor or ""
        if name not in self._anchors:
            self._fail(key, f"{quote(name)} is the name of no value above; write & and that name before one")
        return self._anchors[name]

    def _copy(self, value: object, source: KeyPath, key: KeyPath) -> object:
        """Copy a value to another key; lines within are those of where it is written."""
        self._aliased += 1
        if self._aliased > MAX_ALIASED:
            self._fail(key[:4], f"aliases add more than {MAX_ALIASED} values; no lab is so large")
        if len(key) > MAX_DEPTH:
            self._fail(key[:4], f"is nested deeper than {MAX_DEPTH} levels; no key of a lab is")
        self._tree.lines.setdefault(key, self._tree.lines.get(source, self._line))
        if isinstance(value, dict):
            return {k: self._copy(v, (*source, k), (*key, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self._copy(v, (*source, i), (*key, i)) for i, v in enumerate(value)]
        return value

    def _plain_node(self, kind: str, event: _Event, key: KeyPath) -> object:
        if event.tag is not None:
            self._fail(key, "carries a YAML tag; write the plain value")
        match kind:
            case "Scalar":
                return _scalar(event.value) if event.implicit[0] else event.value
            case "SequenceStart":
                return self._sequence(key)
            case _:
                return self._mapping(key)

    def _sequence(self, key: KeyPath) -> list[object]:
        values: list[object] = []
        for kind, event in self._events:
            if kind == "SequenceEnd":
                break
            item = (*key, len(values))
            self._tree.lines[item] = self._line
            values.append(self._node(kind, event, item))
        return values

    def _mapping(self, key: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        merged: list[tuple[object, KeyPath]] = []
        for kind, event in self._events:
            if kind == "MappingEnd":
                break
            if kind != "Scalar" or event.tag is not None or event.anchor is not None:
                self._fail(key, "has a key that is not a plain word; keys are words like total-vfs")
            item = (*key, event.value)
            if event.value in values or (event.value == _MERGE and merged):
                self._fail(item, f"is given twice (first on line {self._tree.lines[item]}); keep one")
            self._tree.lines[item] = self._line
            value = self._node(*next(self._events), item)
            if event.value == _MERGE and event.implicit[0]:
                if isinstance(value, list):
                    merged += [(each, (*item, i)) for i, each in enumerate(value)]
                else:
                    merged.append((value, item))
            else:
                values[event.value] = value
        for value, source in merged:
            if not isinstance(value, dict):
                self._tree.fail(source, "merges what is no mapping; give the alias of one, or a list of them")
            for name in value:
                if name not in values:
                    values[name] = self._copy(value[name], (*source, name), (*key, name))
        return values


def _scalar(text: str) -> object:
    """Resolve a plain scalar by the core schema of YAML 1.2."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if len(text) <= 40:
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text, 10)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text
