"""Draw docs/explain/models.svg, the four I/O models along one frame; with --check tell whether it is up to date.

    Split    Direct    Passthrough    SR-IOV         each column a model: guest above, who works for it below, the card,
                                                     the wire; numbers are the steps of models.md

As in `draw_frame.py`, whose drawing this uses, what is named must be defined, and text must fit.
"""

from __future__ import annotations

import sys
from pathlib import Path

from draw_frame import Drawing, deliver

TARGET = Path(__file__).resolve().parents[1] / "docs" / "explain" / "models.svg"
LEFTS = (20, 292, 564, 836)
WIDE = 264
GUEST, HOST, CARD = (70, 210), (236, 470), (512, 640)


def column(d: Drawing, left: int, title: str, guests: str) -> None:
    """Draw what all columns have: title, guest, card, wire."""
    right = left + WIDE
    d.box(left, 44, right, 700, "world", 10)
    d.text(left + 12, 62, title, "head ink", WIDE - 24)
    d.box(left + 10, GUEST[0], right - 10, GUEST[1], "box")
    d.text(left + 20, GUEST[0] + 19, guests, "head ink", WIDE - 40)
    d.box(left + 10, CARD[0], right - 10, CARD[1], "card")
    d.arrow([(left + 132, CARD[1]), (left + 132, 672)])
    d.text(left + 146, 664, "the wire", "small dim", 60)


def lines(d: Drawing, x: int, y: int, words: tuple[str, ...], room: int, kind: str = "ink") -> None:
    """Write lines below each other."""
    for i, line in enumerate(words):
        d.text(x, y + 16 * i, line, kind, room)


def draw_split(d: Drawing) -> None:
    """Draw Split I/O."""
    x, room = LEFTS[0] + 20, WIDE - 40
    column(d, LEFTS[0], "Split: front end and back end", "guest, changed")
    d.names(x, 112, "kernels/virtio/frontend.py", ["tx_send"], room)
    d.labelled(x + 8, 136, 1, "descriptor, available ring", room - 14)
    d.labelled(x + 8, 160, 2, "a kick, if one is wanted", room - 14)
    d.text(x, 196, "drivers/virtio_net.py", "small dim", room)
    d.arrow([(LEFTS[0] + 132, GUEST[1]), (LEFTS[0] + 132, HOST[0])], "call")
    d.text(LEFTS[0] + 142, 227, "event channel", "small dim", 100)
    d.box(LEFTS[0] + 10, HOST[0], LEFTS[0] + WIDE - 10, HOST[1], "shared")
    d.text(x, 256, "Dom0, a guest of its own", "head ink", room)
    d.names(x, 280, "kernels/virtio/bridge.py", ["serve_bridge"], room)
    d.labelled(x + 8, 304, 3, "each address through its gate", room - 14)
    d.names(x + 22, 322, "kernels/virtio/memory.py", ["translate"], room - 22)
    d.labelled(x + 8, 346, 4, "where to, by learned addresses", room - 14)
    d.names(x + 22, 364, "kernels/virtio/bridge.py", ["forward"], room - 22)
    d.labelled(x + 8, 388, 5, "one copy, the grant's", room - 14)
    d.names(x + 22, 406, "kernels/virtio/bridge.py", ["fill_buffer"], room - 22)
    d.labelled(x + 8, 430, 6, "the PF's rings, its tail", room - 14)
    d.text(x, 458, "iomodels/split.py, hoststack.py", "small dim", room)
    tail(d, LEFTS[0], "by the PF, from Dom0's memory")


def draw_direct(d: Drawing) -> None:
    """Draw Direct I/O."""
    x, room = LEFTS[1] + 20, WIDE - 40
    column(d, LEFTS[1], "Direct: trap and emulate", "guest, as it is")
    d.names(x, 112, "kernels/i82576/netdev.py", ["tx_send"], room)
    d.labelled(x + 8, 136, 1, "descriptor, buffer", room - 14)
    d.labelled(x + 8, 160, 2, "tail: a trap, as each access", room - 14)
    d.text(x, 196, "drivers/igbnet.py, the NIC's own", "small dim", room)
    d.arrow([(LEFTS[1] + 132, GUEST[1]), (LEFTS[1] + 132, HOST[0])], "call")
    d.text(LEFTS[1] + 142, 227, "exit", "small dim", 100)
    d.box(LEFTS[1] + 10, HOST[0], LEFTS[1] + WIDE - 10, HOST[1], "shared")
    d.text(x, 256, "VMM", "head ink", room)
    d.names(x, 280, "kernels/traps.py", ["serve_trapped"], room)
    d.labelled(x + 8, 304, 3, "a card of the guest's own", room - 14)
    d.names(x + 22, 322, "kernels/i82576/port.py", ["serve_port"], room - 22)
    d.labelled(x + 8, 346, 4, "its addresses mapped, checked", room - 14)
    d.names(x + 22, 364, "kernels/vtd/dma.py", ["translate"], room - 22)
    d.labelled(x + 8, 388, 5, "copied out, copied over", room - 14)
    d.names(x + 22, 406, "kernels/i82576/farend.py", ["far_take"], room - 22)
    d.labelled(x + 8, 430, 6, "bridge, the PF's rings, its tail", room - 14)
    d.text(x, 458, "iomodels/direct.py, vmm/emulated.py", "small dim", room)
    tail(d, LEFTS[1], "by the PF, from VMM memory")


def draw_own(d: Drawing, left: int, sriov: bool) -> None:
    """Draw Passthrough, or SR-IOV, which differ in what the guest has."""
    x, room = left + 20, WIDE - 40
    title = "SR-IOV: a VF for each guest" if sriov else "Passthrough: the card, whole"
    column(d, left, title, "guest, as it is" if sriov else "one guest, as it is")
    d.names(x, 112, "kernels/i82576/netdev.py", ["tx_send"], room)
    d.labelled(x + 8, 136, 1, "descriptor, buffer", room - 14)
    d.labelled(x + 8, 160, 2, "tail: a store, no exit", room - 14)
    d.text(x, 196, "drivers/igbvf.py, the VF's" if sriov else "drivers/igbnet.py, the NIC's own", "small dim", room)
    d.box(left + 10, HOST[0], left + 226, HOST[0] + 96, "shared")
    words = ("IOVM: gave the VF, sets policy", "by the PF's driver") if sriov else ("VMM: gave the card away",)
    d.text(x, 256, "beside the way of the frame", "small dim", room)
    lines(d, x, 278, words, room)
    d.text(x, 324, "iomodels/sriov.py" if sriov else "iomodels/passthrough.py", "small dim", room)
    d.arrow([(left + 6 + 240, GUEST[1]), (left + 6 + 240, CARD[0])])
    d.box(left + 10, 372, left + 226, HOST[1], "gate")
    d.labelled(x + 8, 396, 3, "IOMMU: this function may", 180)
    d.text(x + 22, 412, "reach this guest's memory", "ink", 190)
    d.names(x + 22, 432, "kernels/vtd/dma.py", ["translate"], 180)
    d.text(x, 458, "interrupts: remapped, posted", "small dim", 200)
    y = CARD[0]
    d.text(x, y + 20, "82576: pools, one a guest" if sriov else "82576, without VFs", "head ink", room)
    d.labelled(x + 8, y + 44, 4, "descriptor, then the frame: DMA", room - 14)
    words = ("checked, sorted by address", "and VLAN: to a VF, or out") if sriov else ("out, as from any card",)
    lines(d, x + 22, y + 66, words, room - 22)
    d.names(x, y + 116, "kernels/i82576/local.py" if sriov else "kernels/i82576/wire.py",
            ["move_frame"] if sriov else ["leave"], room)  # fmt: skip


def tail(d: Drawing, left: int, words: str) -> None:
    """Draw the card of a model whose PF is the host's."""
    x, room = left + 20, WIDE - 40
    d.arrow([(left + 132, HOST[1]), (left + 132, CARD[0])])
    d.text(left + 142, 495, "DMA by the IOMMU", "small dim", 110)
    d.text(x, CARD[0] + 20, "82576: the PF's own pool", "head ink", room)
    d.labelled(x + 8, CARD[0] + 44, 7, "descriptor, then the frame", room - 14)
    d.text(x + 22, CARD[0] + 66, words, "small ink", room - 22)
    d.names(x, CARD[0] + 92, "kernels/i82576/port.py", ["serve_port"], room)


def draw() -> str:
    """Draw it all."""
    d = Drawing(
        "Four I/O models along one frame",
        "Four columns, a guest above, the card and the wire below. Split: the front end puts the frame into a ring and "
        "kicks; Dom0 checks, bridges and copies it into the rings of the PF. Direct: each register access traps; the "
        "VMM emulates a card, copies the frame out and over into the PF's rings. Passthrough and SR-IOV: the guest's "
        "store reaches the card, which fetches the frame through the IOMMU; no processor of the host takes part.",
        (1120, 716),
    )
    d.box(0, 0, 1120, 716, "ground", 12)
    d.text(20, 30, "One frame, from a guest to the wire, by four models", "title ink", 700)
    draw_split(d)
    draw_direct(d)
    draw_own(d, LEFTS[2], sriov=False)
    draw_own(d, LEFTS[3], sriov=True)
    return d.finish()


def main(arguments: list[str], target: Path = TARGET) -> int:
    """Write the drawing, or compare it."""
    return deliver(draw(), arguments, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
