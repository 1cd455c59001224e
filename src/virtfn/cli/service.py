"""`virtfn up`, `down`, `status`, `traffic`: labs as services."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import click

from virtfn import private
from virtfn.cli.inputs import lab_of, lab_option
from virtfn.cli.outputs import STDOUT, claim, console, deliver, json_option, write_json

if TYPE_CHECKING:
    from virtfn.api.lab import Lab
    from virtfn.api.service import StatusEntry
    from virtfn.api.session.standing import TrafficCounts

__all__ = ["down", "require_web", "status", "traffic", "up"]

MAX_RATE = 100_000  # MAX_RATE of api.session.standing; the machine would come along
_CHILD = "from virtfn.cli.start import main; main()"


@click.command()
@click.argument("lab_file", metavar="[LAB.yaml]", required=False)
@click.option("--again", metavar="NAME", help="Bring a lab that was lost up again, as it was.")
@click.option("--foreground", is_flag=True, help="Stay, until a signal or virtfn down; for systemd and containers.")
@click.option(
    "--traffic",
    "rate",
    metavar="RATE",
    type=click.IntRange(1, MAX_RATE),
    help="Let embedded guests send, so many frames a second each, over and over.",
)
@click.option(
    "--http",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="Serve HTTP on this port of loopback, too; 0: any that is free.",
)
@json_option
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--called", hidden=True)
@click.option("--folder", hidden=True)
def up(
    lab_file: str | None,
    again: str | None,
    foreground: bool,
    rate: int | None,
    http: int | None,
    json_to: str | None,
    ready_fd: int | None,
    called: str | None,
    folder: str | None,
) -> None:
    """Bring a lab up as a service, and return when it is ready.

    Its guests rest, and can be changed, until virtfn down. Without a file: the built-in lab; -: standard input.
    --json writes its entry of virtfn status, as soon as it is ready.
    """
    if again is not None and lab_file is not None:
        raise click.UsageError("--again names a lab that was; leave LAB.yaml out")
    claim({"--json": json_to}, lab_file)
    lab = _lab(lab_file, again, called, folder)
    if again is not None:
        rate, http = _as_it_was(again, rate, http)
    if http is not None:
        require_web("--http")
    if ready_fd is None:
        _say_what_was_lost(lab.name)
    if ready_fd is not None or foreground:
        _hold(lab, rate or 0, http, ready_fd, json_to)
        return
    from virtfn.api.control import running_labs
    from virtfn.api.lab import refuse_unsupported
    from virtfn.api.service import find_lab

    refuse_unsupported(lab)
    if lab.name in running_labs():
        raise click.ClickException(f"a lab called {lab.name} is up (EADDRINUSE); virtfn down {lab.name}, or apply -f")
    options = ["--traffic", str(rate)] if rate else []
    options += ["--http", str(http)] if http is not None else []
    _start(lab, options)
    if json_to is not None:
        write_json(json_to, find_lab(lab.name))
    if json_to != STDOUT:
        click.echo(f"ready: {lab.name} is up")
        _say_where(lab.name)


def _say_what_was_lost(name: str) -> None:
    """Say what was lost with the lab of that name that was there before, if one was."""
    from virtfn.api.service import describe_loss, find_kept

    before = find_kept(name)
    if before is not None and not before.alive:
        click.echo(f"lab {name} was lost: {describe_loss(before)}", err=True)


def require_web(what: str) -> None:
    """Refuse what needs HTTP where its libraries are missing: click.ClickException."""
    from importlib.util import find_spec

    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise click.ClickException(f"{what} needs FastAPI and uvicorn; pip install 'virtfn[web]'")


def _lab(lab_file: str | None, again: str | None, called: str | None, folder: str | None) -> Lab:
    """Read a lab. called, folder: of the file from which this process was handed it."""
    from pathlib import Path

    from virtfn.api.lab import parse_lab, read_lab

    if again is not None:
        from virtfn.api.service import find_kept

        kept = find_kept(again)
        if kept is None:
            raise click.UsageError(f"--again {again}: no lab of that name was up; give its file")
        return parse_lab(kept.lab, f"lab {again} as it was")
    if called is not None and folder is not None:
        return read_lab(sys.stdin.buffer, called, Path(folder))
    return lab_of(lab_file)


def _as_it_was(name: str, rate: int | None, http: int | None) -> tuple[int | None, int | None]:
    """Return the traffic and the port that a lab had, but for what is asked for now."""
    from virtfn.api.service import find_kept

    kept = find_kept(name)
    if kept is None:
        return rate, http
    port = int(kept.http.rpartition(":")[2]) if kept.http else None
    return rate or kept.rate or None, port if http is None else http


def _hold(lab: Lab, rate: int, http: int | None, ready_fd: int | None, json_to: str | None) -> None:
    """Hold a lab in this process until it is told to end."""
    from virtfn.api.service import serve_lab
    from virtfn.cli.progress import Watcher

    def ready(entry: StatusEntry) -> None:
        if json_to is not None:
            write_json(json_to, entry)
        if ready_fd is not None:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)
        elif json_to != STDOUT:
            click.echo(f"ready: {lab.name} is up")
            _say_where(lab.name)
        sys.stdout.flush()

    with Watcher(console(stderr=True), quiet=ready_fd is not None) as watcher:
        serve_lab(lab, rate=rate, http=http, progress=watcher, ready=ready)


def _start(lab: Lab, options: list[str]) -> None:
    """Let a process of its own hold a lab; wait until it is ready. Its errors are this command's."""
    from virtfn.api.service import log_file

    log = log_file(lab.name)
    come, go = os.pipe()
    options += ["--ready-fd", str(go), "--called", lab.file, "--folder", str(lab.folder.absolute())]
    command = [sys.executable, "-P", "-c", _CHILD, "up", STDOUT, *options]
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            pass_fds=[go],
            start_new_session=True,
            cwd="/",
            env=private.environment(),
        )
    os.close(go)
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(lab.text.encode())
        ready = os.read(come, 16)
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        os.close(come)
    if not ready:
        code = process.wait()
        words = log.read_text(encoding="utf-8", errors="replace").strip()
        log.unlink(missing_ok=True)
        click.echo(words or f"virtfn: the process of lab {lab.name} has ended", err=True)
        raise click.exceptions.Exit(code if code > 0 else 1)
    process.returncode = 0  # it goes on, and is nobody's to wait for


def _say_where(name: str) -> None:
    """Say where HTTP is, and the token, once."""
    from virtfn.api.service import find_kept, read_token

    kept = find_kept(name)
    if kept is not None and kept.http is not None:
        click.echo(f"http: {kept.http}, Authorization: Bearer {read_token(name)}")


@click.command()
@click.argument("lab", metavar="[LAB]", required=False)
@json_option
def down(lab: str | None, json_to: str | None) -> None:
    """Take a lab down that is up, in good order; forget one that was lost.

    --json writes the entry of virtfn status that it had last.
    """
    claim({"--json": json_to})
    from virtfn.api.control import only_lab
    from virtfn.api.service import bring_down, find_lab

    last = find_lab(lab or only_lab(None)) if json_to is not None else None
    name = bring_down(lab)
    if json_to is not None:
        write_json(json_to, last)
    if json_to != STDOUT:
        click.echo(f"{name} is down")


@click.command()
@click.argument("lab", metavar="[LAB]", required=False)
@json_option
def status(lab: str | None, json_to: str | None) -> None:
    """Show the labs that are up, and those that were lost."""
    claim({"--json": json_to})
    from virtfn.api.service import list_labs
    from virtfn.cli.render.service import render_status

    found = [entry for entry in list_labs() if lab is None or entry["lab"] == lab]
    if lab is not None and not found:
        raise click.ClickException(f"no lab called {lab} is up, or was lost")
    deliver(json_to, {"labs": found}, lambda: render_status(found))


@click.group()
def traffic() -> None:
    """Let the embedded guests of a lab that is up do its work over and over, or rest."""


@traffic.command()
@click.argument("rate", type=click.IntRange(1, MAX_RATE), default=1000)
@lab_option
@json_option
def start(rate: int, lab: str | None, json_to: str | None) -> None:
    """Begin: RATE frames a second from each sender."""
    claim({"--json": json_to})
    from virtfn.api.control import ask

    counts = ask("traffic.start", {"rate": rate}, lab)
    if json_to is not None:
        write_json(json_to, counts)


@traffic.command()
@lab_option
@json_option
def stop(lab: str | None, json_to: str | None) -> None:
    """End, and show what came of it."""
    claim({"--json": json_to})
    from virtfn.api.control import ask
    from virtfn.cli.render.service import render_traffic

    counts = cast("TrafficCounts", ask("traffic.stop", {}, lab))
    deliver(json_to, counts, lambda: render_traffic(counts))
