"""Where the command starts, and how signals end it: alike, at each moment, from its first line on.

    before anything is set up    at once: there is nothing to take down
    later                        as Ctrl-C: what was set up is taken down, and a second signal does not disturb that

SIGINT ends with status 130, SIGTERM with 143, SIGHUP with 129. One that whoever started us ignores stays ignored: a
shell script's `command &` ignores SIGINT, and is ended by SIGTERM.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from virtfn.api.signals import ENDING

__all__ = ["main"]


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"virtfn: interrupted\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line and exit with its status."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_at_once)
    from virtfn.cli.main import main as run

    run()
