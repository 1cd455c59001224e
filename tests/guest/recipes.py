"""Recipes of docs/uplinks.md, as people type them: lines for several terminals, one after the other."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

PAGE = Path(__file__).parents[2] / "docs" / "uplinks.md"
PATIENCE_S = 180.0
_LINE = re.compile(r"    (\d)([$#]) (.+)")
_STAYS = re.compile(r"^(passt|qemu-system|python3 -m http)|--keep\b")


def read_recipes(text: str) -> dict[str, list[tuple[int, str, str]]]:
    """Read the recipes of a page: title of their sections to lines: (terminal, prompt, what is typed)."""
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = re.sub(r" \\\n +", " ", section).partition("\n")
        lines = [_LINE.fullmatch(line) for line in body.splitlines() if line.startswith("    ")]
        assert None not in lines, title
        if lines:
            found[title] = [(int(line[1]), line[2], line[3]) for line in lines if line is not None]
    return found


@dataclass
class _Stays:
    """A program that stays in a terminal. said: the file of its output."""

    command: str
    process: subprocess.Popen[str]
    said: Path


@dataclass
class Terminals:
    """Where a recipe is typed. folder: the working folder."""

    folder: Path
    environ: Mapping[str, str]
    logs: Path
    replaced: Mapping[str, str] = field(default_factory=dict)
    outputs: list[tuple[str, str]] = field(default_factory=list)
    _staying: dict[int, _Stays] = field(default_factory=dict)

    def type(self, lines: list[tuple[int, str, str]]) -> None:
        """Type all lines; what ends must end well."""
        for terminal, prompt, line in lines:
            for old, new in self.replaced.items():
                line = line.replace(old, new)
            if prompt == "#":
                self._type_in_console(self._staying[terminal], line)
            elif _STAYS.search(line):
                self._start(terminal, line)
            else:
                self._run(line)

    def _start(self, terminal: int, line: str) -> None:
        assert terminal not in self._staying, f"terminal {terminal} is taken"
        said = self.logs / f"{terminal}.log"
        with said.open("w") as out:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {line}"],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                text=True,
            )
        stays = self._staying[terminal] = _Stays(line, process, said)
        if line.startswith("passt") or "stream:listen" in self._lab(line):
            self._until(stays, lambda: (self.folder / "wire").exists(), "a socket")
        elif line.startswith("python3"):
            self._until(stays, partial(_says, said, "Serving HTTP"), "a server")

    def _lab(self, line: str) -> str:
        name = next((word for word in shlex.split(line) if word.endswith(".yaml")), None)
        return (self.folder / name).read_text() if name is not None and line.startswith("virtfn run") else ""

    def _run(self, line: str) -> None:
        if line.startswith("virtfn exec"):
            for stays in [stays for stays in self._staying.values() if "--keep" in stays.command]:
                self._until(stays, partial(_says, stays.said, "\nready: "), "a lab that is ready")
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{self._all_said()}"
        self.outputs.append((line, done.stdout))

    def _type_in_console(self, stays: _Stays, line: str) -> None:
        self._until(stays, lambda: re.search(r"[#$] (\x1b\[6n)?$", stays.said.read_text()) is not None, "a prompt")
        before = len(stays.said.read_text())
        console: IO[str] | None = stays.process.stdin
        assert console is not None
        console.write(line + "\n")
        console.flush()
        self._until(stays, lambda: len(stays.said.read_text()) > before + len(line), "an echo")

    def _until(self, stays: _Stays, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert stays.process.poll() is None, f"{stays.command} has ended\n{self._all_said()}"
            assert time.monotonic() < end, f"{stays.command}: {what} does not come\n{self._all_said()}"
            time.sleep(0.05)

    def _all_said(self) -> str:
        return "\n".join(f"{s.command}\n{s.said.read_text()[-3000:]}" for s in self._staying.values())

    def kept(self) -> list[str]:
        """Return what labs that are kept up have said."""
        return [stays.said.read_text() for stays in self._staying.values() if "--keep" in stays.command]

    def close(self) -> None:
        """Press Ctrl-C in each terminal, the last first."""
        for stays in reversed(self._staying.values()):
            if stays.command.startswith("qemu"):
                stays.process.kill()
            stays.process.send_signal(signal.SIGINT)
            try:
                stays.process.wait(60)
            except subprocess.TimeoutExpired:
                stays.process.kill()
                stays.process.wait()
            assert stays.process.stdin is not None
            stays.process.stdin.close()


def _says(said: Path, words: str) -> bool:
    return words in said.read_text()


@contextmanager
def terminals(folder: Path, environ: Mapping[str, str], logs: Path, **replaced: str) -> Iterator[Terminals]:
    """Open terminals in a folder; programs that stay end with the block."""
    opened = Terminals(folder, environ, logs, replaced)
    try:
        yield opened
    finally:
        opened.close()
