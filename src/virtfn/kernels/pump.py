"""The pump's loop: cards are served, links to virtual machines answered, until something needs Python or time is up.

    serve cards -> carry by cables -> send vectors -> wait for descriptors -> take accesses -+
        ^------------------------------------------------------------------------------------+

How long it waits is what latency and processor time are made of. Tail writes to mapped pages come without a message, so
they have to be looked for:

    few frames    looked for at a distance that grows with the time since the last thing that came, up to a limit
    many frames   let come together: the guests need the processor to make them; messages are answered as they come

This is to virtual machines of other processes what `breath.py` is to guests of this one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import Row, kernel, part, row_at, row_of
from virtfn.kernels.card import EV_INTERRUPT, EV_MORE, EV_TIMER, EV_UPLINK, call_carry, call_fire, call_serve, card_at
from virtfn.kernels.link import link_at, send_vectors, take_access
from virtfn.kernels.posix import REVENTS_LSB, monotonic_ps, poll, wake_promptly

__all__ = ["NOBODY", "PUMP", "answer_at_once", "pump_at", "run_pump"]

_US = 1_000_000
_BUDGET = 64
_ACCESSES = 8  # of a link before the others have their turn
_HASTE = 8  # how many times the time since the last thing that came is longer than a rest
_REST = 20 * _US
_RECENT = 50_000 * _US  # an answer may be on its way for so long
_IDLE_REST = 400 * _US
_WINDOW = 2000 * _US
_BULK = 32  # frames in a window that say: throughput matters now, not the next frame's latency
_GATHER = 300 * _US
NOBODY = 0xFFFFFFFF  # in place of a descriptor that is not to be waited for

# when something was found last; when the window began, and the frames until then; whether frames come in bulk
PUMP = row_of("last window frames bulk")
pump_at = row_at(PUMP)


@kernel
def run_pump(
    address: int,
    scratch: int,
    cards: npt.NDArray[np.int64],
    cabled: npt.NDArray[np.int64],
    links: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    kicks: int,
    events: npt.NDArray[np.int64],
    urgent: int,
    limit_ps: int,
) -> None:
    """Serve until something needs Python, or `limit_ps` is over, and what is there now in any case.

    address: of the PUMP row. scratch: address of SCRATCH_BYTES. cards: (n,) addresses of CARD rows. cabled: (n,) the
    number of the card at the other end of each one's wire; -1: Python looks after the wire. links: (m, 2) addresses of
    LINK rows, and the number of the card of each. asked: (m + kicks + w,) what to wait for, as `poll` takes it: the
    servers of the links, kicks of front ends, then wires and what else Python looks after. events: (n,) filled with
    what each card asks Python for. urgent: those of them that Python is needed for at once.
    """
    p = pump_at(address)
    wake_promptly()
    now = monotonic_ps(scratch)
    until = now + limit_ps
    again = False
    while True:
        moved, told, total = serve_all(cards, cabled, links, events, now, scratch)
        more = told & (EV_MORE | EV_TIMER) == EV_MORE  # a turn is over, and the next is due
        if moved or more:
            p.last = now
        if now - p.window >= _WINDOW:
            p.bulk = total - p.frames >= _BULK
            p.window = now
            p.frames = total
        if told & urgent or (again and now >= until):
            return
        again = True
        since = now - p.last
        rest = _GATHER if p.bulk else min(since // _HASTE, _REST if since < _RECENT else _IDLE_REST)
        target = now if more else min(now + rest, until)
        now, needed = take_accesses(p, cards, links, asked, kicks, now, target, scratch)
        if needed:
            return


@part
def take_accesses(
    p: Row, cards: npt.NDArray[np.int64], links: npt.NDArray[np.int64], asked: npt.NDArray[np.int64], kicks: int,
    now: int, target: int, scratch: int,
) -> tuple[int, bool]:  # fmt: skip
    """Wait for descriptors until `target` and take accesses; in bulk until then, else only what comes first.

    Returns (the time, whether Python is needed).
    """
    count = len(asked)
    while True:
        ready = poll(asked.ctypes.data, count, target - now, scratch)
        now = monotonic_ps(scratch)
        if ready < 0:
            return now, True
        if ready:
            _, others = take_all(cards, links, asked, now, scratch)
            p.last = now
            if others:
                return now, True
            for i in range(len(links), len(links) + kicks):
                if asked[i] >> REVENTS_LSB:
                    return now, False  # whose it is finds out as it is served
            for i in range(len(links) + kicks, count):
                if asked[i] >> REVENTS_LSB:
                    count = len(links)  # a wire has time: frames come together there as well
                    break
        if now >= target or not p.bulk:
            return now, count < len(asked)


@part
def serve_all(
    cards: npt.NDArray[np.int64], cabled: npt.NDArray[np.int64], links: npt.NDArray[np.int64],
    events: npt.NDArray[np.int64], now: int, scratch: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Serve each card once, then carry what has left by cables.

    Returns (frames, events for Python, frames forwarded since the start).
    """
    told = 0
    moved = 0
    total = 0
    for n in range(len(cards)):
        card = card_at(cards[n])
        departed = card.departed
        frames, event = call_serve(card.serve, cards[n], now, _BUDGET)
        send_all(card, n, links, scratch)
        event = event | EV_INTERRUPT if card.fired else event & ~EV_INTERRUPT
        if cabled[n] >= 0 and card.carry:
            event &= ~EV_UPLINK
        elif card.departed != departed:
            event |= EV_UPLINK
        events[n] |= event & ~EV_MORE
        told |= event
        moved += frames
        total += card.forwarded  # segments count, not what they were cut from
    for n in range(len(cards)):
        to = cabled[n]
        card = card_at(cards[n])
        if to < 0 or card.carry == 0 or card.carry != card_at(cards[to]).carry:
            continue
        frames, event = call_carry(card.carry, cards[n], cards[to], now)
        other = card_at(cards[to])
        send_all(other, to, links, scratch)
        event = event | EV_INTERRUPT if other.fired else event & ~EV_INTERRUPT
        event &= ~EV_UPLINK
        events[to] |= event & ~EV_MORE
        told |= event
        moved += frames
    return moved, told, total


@kernel
def answer_at_once(
    cards: npt.NDArray[np.int64], links: npt.NDArray[np.int64], asked: npt.NDArray[np.int64], limit_ps: int,
    patience_ps: int, scratch: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Answer one link as long as more comes within `patience_ps`, until there is something else, or `limit_ps` is over.

    cards, links, asked: as `run_pump` has them, of that link alone. Returns (accesses, whether something else came,
    whether Python has to send interrupts).
    """
    accesses = 0
    others = 0
    now = monotonic_ps(scratch)
    until = now + limit_ps
    while now < until and others == 0 and poll(asked.ctypes.data, 1, min(patience_ps, until - now), scratch) > 0:
        now = monotonic_ps(scratch)
        taken, others = take_all(cards, links, asked, now, scratch)
        accesses += taken
        if card_at(cards[0]).fired:
            return accesses, 1, 1
    return accesses, others, 0


@kernel
def take_all(
    cards: npt.NDArray[np.int64], links: npt.NDArray[np.int64], asked: npt.NDArray[np.int64], now: int, scratch: int
) -> tuple[int, int]:
    """Take the accesses of links that can be read, and send what they enable.

    Returns (accesses, links with other messages).
    """
    answered = 0
    others = 0
    for i in range(len(links)):
        if not asked[i] >> REVENTS_LSB:
            continue
        link = link_at(links[i, 0])
        taken = 0
        if link.link.fd >= 0:
            address = cards[links[i, 1]]
            card = card_at(address)
            while taken < _ACCESSES and not card.fired and take_access(address, link, scratch):
                taken += 1
                call_fire(card.fire, address, now)
                send_all(card, links[i, 1], links, scratch)
        if taken == 0:
            others += 1
        answered += taken
    return answered, others


@kernel
def send_all(card: Row, n: int, links: npt.NDArray[np.int64], scratch: int) -> None:
    """Send the vectors of card `n` that fired, by its links: first those of guests that have something to receive."""
    for wanted in (card.received, -1):
        for i in range(len(links)):
            if card.fired & wanted and links[i, 1] == n:
                link = link_at(links[i, 0])
                if link.link.fd >= 0:
                    send_vectors(card, link, wanted, scratch)
