"""A breath: guests run, the card is served, guests run again, until time is up or something needs Python.

This is where a run of the embedded world spends its time. It stands for vCPUs and card working side by side; the
guests' side and the device's meet only in memory, as their kernels do everywhere else.
"""

from __future__ import annotations

from virtfn.kernels._jit import kernel
from virtfn.kernels.card import (
    EV_CAPTURE,
    EV_IDLE,
    EV_INTERRUPT,
    EV_MORE,
    EV_PAGE,
    EV_TIMER,
    EV_UPLINK,
    call_serve,
    card_at,
)
from virtfn.kernels.clock import clock_at, read_clock
from virtfn.kernels.netdev import netdev_at
from virtfn.kernels.traffic import poll_guest, traffic_at

__all__ = ["PATIENCE", "breathe"]

PATIENCE = 32  # empty polls before a guest goes back to interrupts


@kernel
def breathe(card_address: int, traffic_address: int, now: int, rounds: int, budget: int) -> tuple[int, int]:
    """Run rounds of all guests and the card, as many as the clock allows. Returns (frames moved, events).

    card_address, traffic_address: of the CARD and TRAFFIC rows. rounds: at most. now: time in ps, where the card has no
    clock to read. budget: frames a queue and round.
    """
    card = card_at(card_address)
    traffic = traffic_at(traffic_address)
    urgent = EV_INTERRUPT | EV_CAPTURE | EV_PAGE | EV_UPLINK  # what a driver can cause at will waits for the end
    moved = 0
    events = 0
    clock = card.clock
    until = read_clock(clock) + clock_at(clock).limit if clock else now
    for _ in range(rounds):
        busy = 0
        polling = 0
        for g in range(traffic.guests):
            d = netdev_at(traffic.tasks[g].netdev)
            received, sent = poll_guest(traffic, g, d, budget)
            busy += received + sent
            polling |= d.polling
            if d.polling and d.empty_polls >= PATIENCE:
                events |= EV_IDLE
        if clock:
            now = read_clock(clock)
        frames, event = call_serve(card.serve, card_address, now, budget)
        events |= event
        moved += frames
        if events & urgent or (clock and now >= until):
            break
        events &= ~EV_MORE
        if event & (EV_MORE | EV_TIMER) == EV_MORE:
            continue
        if busy == 0 and frames == 0 and (events or not polling):
            break
    return moved, events
