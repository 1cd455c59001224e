"""The command line: `virtfn COMMAND`. Parses, calls `virtfn.api`, and turns what goes wrong into one line and a status.

    0    done
    1    the work failed, or a device refused; the line names the errno
    2    the input is wrong: where, what, and how to mend it
    130  interrupted

Only click is imported here; everything else when a command runs, so that `virtfn --help` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from virtfn import __version__
from virtfn.api.signals import Ended, ended_by_signals
from virtfn.cli.capture import capture
from virtfn.cli.changes import apply, attach, detach, get
from virtfn.cli.dashboard import dashboard
from virtfn.cli.events import events
from virtfn.cli.explain import explain, metrics
from virtfn.cli.image import exec_in_guest, image, shell
from virtfn.cli.inputs import lab_of
from virtfn.cli.iommu import iommu
from virtfn.cli.link import link
from virtfn.cli.outputs import STDOUT, claim, console, deliver, json_option, path_of, write_json
from virtfn.cli.serve import qemu_args, serve
from virtfn.cli.service import down, status, traffic, up
from virtfn.cli.top import top
from virtfn.cli.watch import quarantine, release, watch

__all__ = ["cli", "main"]

_Command = TypeVar("_Command", bound=Callable[..., None])
SIGPIPE_STATUS = 141
INTERRUPTED = 130
MAX_FRAME_BYTES = 9728  # MAX_FRAME + FCS_BYTES of hw; every register of the card would come along


def lab_argument(command: _Command) -> _Command:
    """Give a command its optional LAB."""
    return click.argument("lab_file", metavar="[LAB.yaml]", required=False)(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="virtfn %(version)s")
def cli() -> None:
    """SR-IOV in software: an Intel 82576 cut into virtual functions, each driven by its own guest."""


@cli.command()
@lab_argument
@json_option
@click.option("--capture", metavar="FILE.pcapng", help="Record what each function sends and receives.")
@click.option("--trace", metavar="FILE", help="Write register accesses, mailbox messages, interrupts and faults.")
@click.option("--keep", is_flag=True, help="Keep the lab up after its work, until Ctrl-C.")
@click.option("--save-iommu", metavar="FILE.npz", help="Save the IOMMU's tables and counters at the end of the work.")
def run(
    lab_file: str | None,
    json_to: str | None,
    capture: str | None,
    trace: str | None,
    keep: bool,
    save_iommu: str | None,
) -> None:
    """Bring a lab up, run its workload, take it down, report.

    Without a file: the built-in lab, two guests with a VF each; -: standard input. For outputs, - is standard output,
    which one of them then has alone. While it runs, other commands can ask it.
    With --keep, report and JSON are written when the work is done; then standard output says "ready: NAME is kept up".
    """
    outputs = {"--json": json_to, "--capture": capture, "--trace": trace, "--save-iommu": save_iommu}
    claim(outputs, lab_file)
    stdout_taken = STDOUT in outputs.values()
    lab = lab_of(lab_file)
    claim(outputs, lab_file, lab.workload.pcap)
    from virtfn.api.lab import refuse_unsupported

    refuse_unsupported(lab)
    from virtfn.api.report import Report, verdict
    from virtfn.api.run import run_lab
    from virtfn.cli.progress import Watcher
    from virtfn.cli.render.report import render_report

    def tell(report: Report) -> None:
        watcher.rest()
        deliver(json_to, report, lambda: render_report(report), stdout_taken=stdout_taken)
        sys.stdout.flush()

    def say_ready() -> None:
        if not stdout_taken:
            click.echo(f"ready: {lab.name} is kept up")

    with Watcher(console(stderr=True), quiet=stdout_taken) as watcher:
        report = run_lab(
            lab,
            capture=path_of(capture),
            trace=path_of(trace),
            progress=watcher,
            controlled=True,
            keep=keep,
            save_state=path_of(save_iommu),
            finished=tell,
            ready=say_ready,
        )
    judged = verdict(report)
    wrong = [*([] if judged.passed else [judged.words]), *report.get("unwritten", [])]
    if wrong:
        raise click.ClickException("; ".join(wrong))


@cli.command()
@lab_argument
@json_option
@click.option("--dump", is_flag=True, help="Print hexadecimal that pciutils' lspci -F reads.")
def lspci(lab_file: str | None, json_to: str | None, dump: bool) -> None:
    """Show the machine's PCI tree in the manner of lspci."""
    if dump and json_to == STDOUT:
        raise click.UsageError("--dump and --json - both want standard output; give --json a file")
    claim({"--json": json_to}, lab_file)
    lab = lab_of(lab_file)
    from virtfn.api.run import machine_for

    with machine_for(lab) as machine:
        document, text = machine.json(), machine.dump() if dump else machine.tree()
    if json_to is not None:
        write_json(json_to, document)
    if json_to != STDOUT:
        sys.stdout.write(text.rstrip("\n") + "\n")


@cli.command()
@json_option
@click.option(
    "--frame-bytes",
    type=click.IntRange(64, MAX_FRAME_BYTES),
    multiple=True,
    help="Frame size with FCS; may be given several times.",
)
@click.option("--vfs", type=click.IntRange(2, 8), default=2, show_default=True, help="VFs in use.")
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Time of each measurement, 0.1 to 600.")
def bench(json_to: str | None, frame_bytes: tuple[int, ...], vfs: int, seconds: float) -> None:
    """Measure data-plane rates against this machine's copy limit."""
    if not 0.1 <= seconds <= 600:  # refuses not-a-number too, which a range type lets through
        raise click.UsageError(f"--seconds {seconds}: is not in the range 0.1 to 600")
    claim({"--json": json_to})
    from virtfn.api.bench import run_bench
    from virtfn.cli.progress import Watcher
    from virtfn.cli.render.report import render_bench

    with Watcher(console(stderr=True), quiet=json_to == STDOUT) as watcher:
        report = run_bench(list(frame_bytes), vfs, seconds, watcher)
    deliver(json_to, report, lambda: render_bench(report))


@cli.command()
@lab_argument
@json_option
@click.option("--report", "page_to", metavar="FILE.html", help="Write a page with plots, which needs nothing else.")
@click.option("--guests", metavar="N,N,...", help="How many guests, 1 to 8 each. [1,2,4, or 1 and the lab's]")
@click.option("--prices", metavar="FILE.yaml", help="Cycles of events, instead of the published ones.")
def compare(
    lab_file: str | None, json_to: str | None, page_to: str | None, guests: str | None, prices: str | None
) -> None:
    """Compare Split, Direct, Passthrough and SR-IOV: one workload, one NIC, what each costs.

    Without a file: frames of 1518 bytes between each guest and a partner at the other end of the wire.
    """
    outputs = {"--json": json_to, "--report": page_to}
    claim(outputs, lab_file, prices)
    numbers = _numbers(guests)
    from virtfn.api.compare import run_compare
    from virtfn.api.comparepage import require_plots, write_page
    from virtfn.api.comparerig import Plan
    from virtfn.api.prices import load_prices
    from virtfn.cli.progress import Watcher
    from virtfn.cli.render.compare import render_compare
    from virtfn.sim.costs import PRICES

    if page_to is not None:
        require_plots()
    plan = Plan(guests=numbers or Plan().guests) if lab_file is None else Plan.of(lab_of(lab_file), numbers)
    price_list = PRICES if prices is None else load_prices(Path(prices))
    with Watcher(console(stderr=True), quiet=STDOUT in outputs.values()) as watcher:
        document = run_compare(plan, prices=price_list, progress=watcher)
    if page_to is not None:
        write_page(document, path_of(page_to))
    deliver(json_to, document, lambda: render_compare(document), stdout_taken=page_to == STDOUT)
    broken = [held["name"] for held in document["properties"] if not held["holds"] and not held["timed"]]
    unaccounted = sum(model["corrupt"] + model["lost"] for run in document["runs"] for model in run["models"].values())
    if unaccounted:
        raise click.ClickException(f"{unaccounted:,} frames did not arrive as they were sent")
    if broken:
        raise click.ClickException(f"does not hold here: {', '.join(broken)}")


def _numbers(words: str | None) -> tuple[int, ...]:
    """Read numbers of guests. Raises click.UsageError."""
    numbers = () if words is None else tuple(words.split(","))
    if not all(number in tuple("12345678") for number in numbers):
        raise click.UsageError(f"--guests {words}: give numbers from 1 to 8, like 1,2,4")
    return tuple(sorted({int(number) for number in numbers}))


@cli.command()
@json_option
def doctor(json_to: str | None) -> None:
    """Say what this machine can do, and what is missing for the rest."""
    claim({"--json": json_to})
    from virtfn.api.doctor import examine
    from virtfn.cli.render.doctor import render_doctor

    document = examine()
    deliver(json_to, document, lambda: render_doctor(document))


_COMMANDS = (up, down, status, attach, detach, apply, get, link, traffic, events, iommu, image, shell, exec_in_guest)
for _each in (*_COMMANDS, watch, quarantine, release, serve, qemu_args, capture, explain, metrics, dashboard, top):
    cli.add_command(_each)


def _fail(message: str, status: int, details: str = "") -> int:
    """Say what is wrong in a line, and below it the lines that go with it."""
    click.echo("virtfn: " + _printable(" ".join(message.split())), err=True)
    for line in details.splitlines():
        click.echo("  " + _printable(line), err=True)
    return status


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _unexpected(error: Exception) -> int:
    # A VirtfnError exists only if its module was loaded; asking sys.modules spares --help the import.
    ports = sys.modules.get("virtfn.machine.ports")
    if ports is not None and isinstance(error, ports.VirtfnError):
        name = error.errno_name
        words = f"{error} ({name})" if name and name not in str(error) else str(error)
        return _fail(words, getattr(error, "exit_status", 1), error.details)
    if isinstance(error, MemoryError):
        return _fail("this machine's memory is exhausted; use fewer guests or a smaller memory-mib", 1)
    if os.environ.get("VIRTFN_DEBUG"):
        traceback.print_exception(error)
    hint = "set VIRTFN_DEBUG=1 for the traceback, and report it"
    return _fail(f"this is a bug in virtfn: {type(error).__name__}: {str(error)[:200]}; {hint}", 1)


def _quiet_stdout() -> None:
    """Let what is still buffered for a reader that has gone away vanish."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _serve(arguments: Sequence[str]) -> int:
    try:
        with cli.make_context("virtfn", list(arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.exceptions.Exit as error:
        sys.stdout.flush()
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "virtfn"
        return _fail(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open until exit
    if "_VIRTFN_COMPLETE" in os.environ:
        cli.main(prog_name="virtfn")
    try:
        with ended_by_signals():
            status = _serve(sys.argv[1:] if arguments is None else arguments)
    except (KeyboardInterrupt, click.Abort) as interrupt:
        status = _fail("interrupted", interrupt.status if isinstance(interrupt, Ended) else INTERRUPTED)
    except BrokenPipeError:
        _quiet_stdout()
        status = SIGPIPE_STATUS
    except OSError as error:
        status = _fail(f"standard output: {error.strerror}", 1) if error.filename is None else _unexpected(error)
    except Exception as error:
        status = _unexpected(error)
    sys.exit(status)
