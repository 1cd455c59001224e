"""Explain what becomes of a frame at a card: of a lab that runs, or of a state that was saved.

The card's state is read once, and its model explains it here: the lab does nothing but answer.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from virtfn.api.control import ask
from virtfn.cards import MODELS
from virtfn.machine.captures import CaptureError, read_capture
from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:
    from virtfn.api.session.captures import CardDocument

__all__ = ["ExplainDocument", "StateError", "explain", "frame_of_capture", "frame_of_hex", "load_state", "read_state"]

_SOURCE = re.compile(r"([^/]{1,64})(?:/(?:vf([0-9]{1,3})|(wire)))?")
_MOST = 16 << 10
_MAX_STATE = 16 << 20


class StateError(VirtfnError):
    """What was given is no state, frame or source. The command line ends with status 2."""

    exit_status = 2


class StepDocument(TypedDict):
    """A decision: at which stage, the register that makes it (or none), and in words."""

    stage: str
    register: str
    words: str


class TargetDocument(TypedDict):
    """Who gets the frame: by which queue, in how many descriptors, whether without its tag."""

    interface: str
    queue: int
    descriptors: int
    stripped: bool


class LossDocument(TypedDict):
    """Where it goes no further, and the reason, as drops are counted."""

    interface: str
    reason: str


class ExplainDocument(TypedDict):
    """What `virtfn explain --json` writes. frame: as it is in the switch; outcome: forwarded, dropped or waits.

    unknown: what only shows when it moves, in words.
    """

    lab: str
    source: str
    frame: str
    steps: list[StepDocument]
    outcome: str
    words: str
    to: list[TargetDocument]
    wire: bool
    dropped: list[LossDocument]
    unknown: list[str]


def read_state(source: str, lab: str | None = None) -> CardDocument:
    """Read the state of the card that `source` names, of a lab that runs. Raises VirtfnError."""
    pf, _ = _parse(source)
    return cast("CardDocument", ask("card.state", {"pf": pf}, lab))


def load_state(path: Path) -> CardDocument:
    """Read a state that was saved. Raises StateError for what is none."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_STATE + 1)
        if len(text) > _MAX_STATE:
            raise ValueError
        document = json.loads(text.decode())
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise StateError(f"{path}: is no state of a card; save one with virtfn explain --save-state") from None
    keys = {"lab": str, "pf": str, "model": str, "vfs": int, "state": dict}
    if not isinstance(document, dict) or not all(isinstance(document.get(key), kind) for key, kind in keys.items()):
        raise StateError(f"{path}: is no state of a card; save one with virtfn explain --save-state")
    return cast("CardDocument", document)


def frame_of_hex(text: str) -> bytes:
    """Read a frame in hexadecimal, with or without spaces and colons. Raises StateError."""
    try:
        frame = bytes.fromhex(text.replace(":", " "))
    except ValueError:
        raise StateError(f"{text[:40]!r} is no frame in hexadecimal, like 0200000000110200000000100800...") from None
    if not 0 < len(frame) <= _MOST:
        raise StateError(f"a frame has 1 to {_MOST} bytes, not {len(frame)}")
    return frame


def frame_of_capture(path: Path, number: int) -> bytes:
    """Read the frame of a capture that has a number, from 1. Raises CaptureError."""
    frames = read_capture(path)
    if not 1 <= number <= len(frames):
        raise CaptureError(f"{path}: has no frame {number}; it has {len(frames)}, from 1 on")
    return frames.frame(number - 1).tobytes()


def explain(card: CardDocument, source: str, frame: bytes) -> ExplainDocument:
    """Explain a frame that a source sends: `PF`, `PF/vfN`, or `PF/wire`, from where it comes then.

    Raises StateError for a source or a state that makes no sense, VirtfnError for a model that nobody explains.
    """
    pf, place = _parse(source)
    if pf != card["pf"]:
        raise StateError(f"the state is that of {card['pf']}, not of {pf}")
    vfs = card["vfs"]
    if isinstance(place, int) and place >= vfs:
        raise VirtfnError(f"{pf} has {vfs} VFs, from 0 on; there is no vf{place}", errno_name="ENODEV")
    model = MODELS.get(card["model"])
    if model is None or model.explain is None:
        raise VirtfnError(f"nobody can explain a {card['model'][:64]}", errno_name="EOPNOTSUPP")
    pool = None if place == "wire" else place if isinstance(place, int) else vfs
    try:
        told = model.explain(card["state"], pool, frame)
    except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError):
        raise StateError("the state of the card makes no sense; save it again") from None

    def name(n: int | None) -> str:
        return f"{pf}/wire" if n is None else f"{pf}/vf{n}" if n < vfs else pf

    return {
        "lab": card["lab"],
        "source": name(pool),
        "frame": told["frame"],
        "steps": told["steps"],
        "outcome": told["outcome"],
        "words": told["words"],
        "to": [
            {
                "interface": name(target["pool"]),
                "queue": target["queue"],
                "descriptors": target["descriptors"],
                "stripped": target["stripped"],
            }
            for target in told["to"]
        ],
        "wire": told["wire"],
        "dropped": [{"interface": name(lost["interface"]), "reason": lost["reason"]} for lost in told["dropped"]],
        "unknown": told["unknown"],
    }


def _parse(source: str) -> tuple[str, int | str | None]:
    form = _SOURCE.fullmatch(source)
    if form is None:
        raise StateError(f"{source[:64]!r} is no source like pf0/vf1, pf0, or pf0/wire")
    return form[1], int(form[2]) if form[2] else form[3]
