"""Where results go: output files are claimed before the work starts, and JSON is written at its end."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar, overload

import click

from virtfn import private

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["STDOUT", "claim", "console", "deliver", "json_option", "path_of", "write_json", "writing"]

_Command = TypeVar("_Command", bound=Callable[..., None])

STDOUT = "-"


def json_option(command: _Command) -> _Command:
    """Give a command its --json FILE."""
    return click.option("--json", "json_to", metavar="FILE", help="Write one JSON document; -: standard output.")(
        command
    )


def claim(outputs: dict[str, str | None], *inputs: str | Path | None) -> None:
    """Check that every output file can be written and none would destroy another or an input.

    `-` is standard output as an output, and standard input as an input. One output may have it, and then has it alone.

    Raises click.UsageError (status 2) for the first that cannot; nothing is created.
    """
    to_stdout = [option for option, name in outputs.items() if name == STDOUT]
    if len(to_stdout) > 1:
        raise click.UsageError(f"{' and '.join(to_stdout)} both want standard output; give one a file")
    taken = {os.path.realpath(path): "an input of this run" for path in inputs if path and path != STDOUT}
    for option, name in outputs.items():
        if name is None or name == STDOUT:
            continue
        reason = _unwritable(name)
        if reason:
            raise click.UsageError(f"{option} {name}: cannot be written ({reason}); choose another file")
        real = os.path.realpath(name)
        if real in taken and not _is_device(real):
            raise click.UsageError(f"{option} {name}: is {taken[real]}; choose another file")
        taken[real] = f"the file of {option}"


def _unwritable(name: str) -> str:
    if not name or "\0" in name:
        return "not a file name"
    try:
        private.check(name)
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        folder = os.path.dirname(os.path.realpath(name))
        if not os.path.isdir(folder):
            return os.strerror(errno.ENOENT)
        return "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        return error.strerror or "not a file name"
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    return "" if os.access(name, os.W_OK) else os.strerror(errno.EACCES)


def _is_device(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path)


@overload
def path_of(name: str) -> Path: ...
@overload
def path_of(name: None) -> None: ...
def path_of(name: str | None) -> Path | None:
    """Make a path of a name, in which `-` alone is standard output, and ./- a file."""
    if name is None or name == STDOUT:
        return None if name is None else Path(name)
    return Path(name).absolute() if str(Path(name)) == STDOUT else Path(name)


def write_json(name: str, document: object) -> None:
    """Write one JSON document to a file, or to standard output for `-`.

    Raises click.ClickException (status 1) when the disk refuses.
    """
    with writing(name) as file:
        file.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


@contextmanager
def writing(name: str) -> Iterator[TextIO]:
    """Open a file for text, or standard output for `-`, until the end of the block, which does nothing but write.

    Raises click.ClickException (status 1) when the disk refuses.
    """
    if name == STDOUT:
        yield sys.stdout
        return
    try:
        with open(name, "w", encoding="utf-8", opener=private.opener) as file:
            yield file
    except OSError as error:
        raise click.ClickException(f"{name}: cannot be written ({error.strerror})") from None


def console(*, stderr: bool = False) -> Console:
    """Open standard output or standard error for rich text."""
    from rich.console import Console

    opened = Console(stderr=stderr, highlight=False)
    # A log or a file has no width; tables there are as wide as they need.
    return opened if opened.is_terminal else Console(stderr=stderr, highlight=False, width=160)


def deliver(
    json_to: str | None, document: object, picture: Callable[[], RenderableType], *, stdout_taken: bool = False
) -> None:
    """Write the JSON where it was asked for, and the picture unless standard output is the JSON's, or taken.

    Raises click.ClickException if the disk refuses the JSON, once the picture is shown.
    """
    try:
        if json_to is not None:
            write_json(json_to, document)
    finally:
        if json_to != STDOUT and not stdout_taken:
            console().print(picture())
