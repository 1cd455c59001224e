"""What QEMU's igb leaves out of the 82576, or does otherwise: the same registers and frames, on it and on this card.

    python benchmarks/gaps.py [card|qemu]

Each probe has a fresh card, and tells what it saw in a line; the datasheet's answer stands beside it. The gaps are
those of docs/qemu-igb.md. Ends with 1 if this card answers otherwise than the datasheet, or a probe could not be run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import closing

from probes import Probe, frames, registers
from probes.bench import Bench
from probes.boards import Board, CardBoard, QemuBoard

from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import find_qemu


def ask(question: Probe, start: Callable[[], Board]) -> str:
    """Run a probe on a fresh board; say why if it cannot be run."""
    try:
        with closing(start()) as board:
            return question.run(Bench(board, question.layout))
    except VirtfnError as error:
        return f"not run: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("only", nargs="?", choices=("card", "qemu"), help="one of the two alone")
    only = parser.parse_args().only
    boards: dict[str, Callable[[], Board]] = {}
    if only != "card":
        try:
            qemu = find_qemu()
        except VirtfnError as error:
            sys.exit(str(error))
        boards[f"igb of QEMU {'.'.join(map(str, qemu.version))}"] = lambda: QemuBoard(qemu)
    if only != "qemu":
        boards["this card"] = CardBoard
    print(f"| gap | asked | {' | '.join(boards)} | datasheet |")
    print(f"| --- | --- | {'--- | ' * len(boards)}--- |")
    found = [thing for module in (registers, frames) for thing in vars(module).values() if isinstance(thing, Probe)]
    wrong = False
    for question in sorted(found, key=lambda question: question.gap):
        answers = {name: ask(question, start) for name, start in boards.items()}
        print(f"| {question.gap} | {question.asked} | {' | '.join(answers.values())} | {question.wanted} |", flush=True)
        wrong |= answers.get("this card", question.wanted) != question.wanted
        wrong |= any(answer.startswith("not run") for answer in answers.values())
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
