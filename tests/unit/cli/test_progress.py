"""What progress looks like."""

from __future__ import annotations

import io

from rich.console import Console

from virtfn.api.progress import Progress
from virtfn.cli.progress import plain_progress, render_progress


def drawn(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render_progress(progress))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_counts_steps_before_there_are_frames():
    shown = drawn(Progress("compiling kernels (first run only)", 4.2, steps=6, total_steps=12))
    assert "compiling kernels (first run only)  4.2 s  ============------------  50 %  6 of 12" in shown
    assert plain_progress(Progress("compiling", steps=6, total_steps=12)) == "compiling"


def test_a_bar_of_frames_ends_at_all_of_them():
    shown = drawn(Progress("running", 1.0, 12, 10, 1.5, 2.0, (("a", 3, 2, 1),)))
    assert "======================== 100 %" in shown
    assert "12 frames, 1.50 Mpps, 2.00 Gb/s" in shown
    assert "dropped 1" in shown
