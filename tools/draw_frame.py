"""Draw docs/explain/one-frame.svg, the way of one frame in both worlds; with --check tell whether it is up to date.

    guests of this process      guest a    breathe     guest b         each column is a side, each row a world;
    what everybody shares       memory  -> the card -> memory          the numbers are the steps of one-frame.md
    guests in QEMU              guest a    run_pump    guest b

A function that is named must be defined in the file that it is said to be in, and text must fit into its box: otherwise
nothing is drawn.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "virtfn"
TARGET = ROOT / "docs" / "explain" / "one-frame.svg"

WIDTH, HEIGHT = 1120, 846
MONO, SANS = 0.602, 0.54  # width of a character, in sizes of its font, at most

# What a class of elements looks like on light and on dark ground: property -> (light, dark).
COLOURS = {
    ".ground": {"fill": ("#ffffff", "#0d1117")},
    ".world": {"fill": ("#f3f6fa", "#161b22"), "stroke": ("#d0d7de", "#30363d")},
    ".shared": {"fill": ("#fbf7ec", "#1d1a12"), "stroke": ("#d9c88f", "#5c4f26")},
    ".card": {"fill": ("#eef6ef", "#12201a"), "stroke": ("#8fbf9b", "#2f6b43")},
    ".box": {"fill": ("#ffffff", "#0d1117"), "stroke": ("#afb8c1", "#484f58")},
    ".gate": {"fill": ("#fdeeee", "#2a1517"), "stroke": ("#cf222e", "#f85149")},
    ".way": {"stroke": ("#0969da", "#58a6ff")},
    ".tip": {"fill": ("#0969da", "#58a6ff")},
    ".call": {"stroke": ("#6e7781", "#8b949e")},
    ".calltip": {"fill": ("#6e7781", "#8b949e")},
    ".dot": {"fill": ("#0969da", "#1f6feb")},
    ".ink": {"fill": ("#1f2328", "#e6edf3")},
    ".dim": {"fill": ("#59636e", "#9198a1")},
}
FIXED = """
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12px; }
.mono { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 12px; }
.small { font-size: 10.5px; }
.head { font-weight: 600; font-size: 13px; }
.title { font-weight: 600; font-size: 17px; }
.number { font-weight: 600; font-size: 11px; fill: #ffffff; text-anchor: middle; }
.middle { text-anchor: middle; }
.way { stroke-width: 2; fill: none; }
.call { stroke-width: 1.3; fill: none; stroke-dasharray: 4 3; }
.gate { stroke-dasharray: 5 3; }
"""


def style() -> str:
    """Write the style sheet."""

    def rules(dark: bool) -> str:
        lines = []
        for name, properties in COLOURS.items():
            lines.append(f"{name} {{ " + " ".join(f"{p}: {c[dark]};" for p, c in properties.items()) + " }")
        return "\n".join(lines)

    return f"{FIXED}{rules(False)}\n@media (prefers-color-scheme: dark) {{\n{rules(True)}\n}}\n"


def defined(module: str) -> set[str]:
    """Name the functions and methods that a file of virtfn defines."""
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


class Drawing:
    """An SVG that grows. All coordinates are whole pixels, y downwards."""

    def __init__(self, title: str, about: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        width, height = size
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(about)}</desc>",
            f"<style>{style()}</style>",
        ]

    def box(self, x: int, y: int, right: int, bottom: int, kind: str, radius: int = 6) -> None:
        """Draw a box of a class of COLOURS."""
        self.parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{right - x}" height="{bottom - y}" rx="{radius}"/>'
        )

    def text(self, x: int, y: int, words: str, kind: str = "ink", room: int | None = None) -> None:
        """Write a line. kind: classes. Raises ValueError if it is wider than `room`."""
        classes = kind.split()
        size = 17 if "title" in classes else 13 if "head" in classes else 10.5 if "small" in classes else 12
        width = len(words) * size * (MONO if "mono" in classes else SANS)
        if room is not None and width > room:
            raise ValueError(f"{words!r} takes {width:.0f} pixels, and there are {room}")
        self.parts.append(f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>')

    def names(self, x: int, y: int, module: str, names: Iterable[str], room: int) -> int:
        """Write functions of a file below each other; return where the next line goes.

        Raises ValueError if the file defines no such function.
        """
        known = defined(module)
        for name in names:
            if name not in known:
                raise ValueError(f"{module} defines no {name}")
            self.text(x, y, name, "mono ink", room)
            y += 17
        return y

    def arrow(self, points: list[tuple[int, int]], kind: str = "way") -> None:
        """Draw a line from point to point, along the axes, with a tip at its end."""
        (fx, fy), (tx, ty) = points[-2:]
        dx, dy = (tx > fx) - (tx < fx), (ty > fy) - (ty < fy)
        line = [*points[:-1], (tx - 7 * dx, ty - 7 * dy)]
        self.parts.append(f'<path class="{kind}" d="M' + " L".join(f"{x} {y}" for x, y in line) + '"/>')
        back = tx - 9 * dx, ty - 9 * dy
        corners = [(tx, ty), (back[0] + 4 * dy, back[1] + 4 * dx), (back[0] - 4 * dy, back[1] - 4 * dx)]
        tip = "tip" if kind == "way" else "calltip"
        self.parts.append(f'<path class="{tip}" d="M' + " L".join(f"{x} {y}" for x, y in corners) + ' Z"/>')

    def step(self, x: int, y: int, number: int) -> None:
        """Put the number of a step in a circle around a point."""
        self.parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="9"/>')
        self.parts.append(f'<text class="number" x="{x}" y="{y + 4}">{number}</text>')

    def labelled(self, x: int, y: int, number: int, words: str, room: int, kind: str = "ink") -> None:
        """Write a line behind the number of its step."""
        self.step(x, y - 4, number)
        self.text(x + 14, y, words, kind, room)

    def finish(self) -> str:
        """Return the document."""
        return "\n".join([*self.parts, "</svg>"]) + "\n"


LEFT, RIGHT = (24, 264), (856, 1096)
MIDDLE = (392, 728)


def draw_worlds(d: Drawing) -> None:
    """Draw the guests, and who lets them and the card run."""
    d.box(12, 50, 1108, 222, "world", 10)
    d.text(28, 72, "Guests of this process: one compiled loop runs them and the card", "head ink", 700)
    d.box(12, 640, 1108, 834, "world", 10)
    words = "Linux guests in QEMU: processes of their own, by vfio-user; the pump looks for their tails"
    d.text(28, 824, words, "head ink", 700)

    for (x, right), who in ((LEFT, "guest a, who sends"), (RIGHT, "guest b, who receives")):
        d.box(x, 84, right, 210, "box")
        d.text(x + 12, 103, who, "head ink", right - x - 24)
        d.box(x, 652, right, 800, "box")
        d.text(x + 12, 672, who, "head ink", right - x - 24)
    x, room = LEFT[0] + 12, 216
    y = d.names(x, 124, "kernels/traffic.py", ["poll_guest", "send_generated"], room)
    y = d.names(x, y, "kernels/i82576/netdev.py", ["tx_room", "tx_send"], room)
    d.text(x, y + 4, "kernels/traffic.py, i82576/netdev.py", "small dim", room)
    x = RIGHT[0] + 12
    y = d.names(x, 124, "kernels/traffic.py", ["take_frames", "check_generated"], room)
    y = d.names(x, y, "kernels/i82576/netdev.py", ["rx_take", "rx_return"], room)
    d.text(x, y + 4, "kernels/traffic.py, i82576/netdev.py", "small dim", room)

    sends = (
        "Debian's igbvf",
        "writes its descriptor and",
        "its tail: a store into the page",
        "that is mapped, no exit",
    )
    takes = ("Debian's igbvf", "its interrupt, its poll,", "its tail: a store; then EIMS,", "which is an exit")
    for x, lines in ((LEFT[0] + 12, sends), (RIGHT[0] + 12, takes)):
        for i, line in enumerate(lines):
            d.text(x, 693 + 17 * i, line, "ink", room)
        d.text(x, 767, "QEMU: the guest's memory is a file,", "small dim", room)
        d.text(x, 782, "shared with this process", "small dim", room)

    x, right = MIDDLE
    room = right - x - 24
    d.box(x, 84, right, 210, "box")
    y = d.names(x + 12, 108, "kernels/breath.py", ["breathe"], room)
    for line in ("guests, the card, guests again: up to 128", "rounds; then Python, if anything needs it:"):
        d.text(x + 12, y + 2, line, "ink", room)
        y += 18
    y = d.names(x + 12, y + 3, "vmm/guest.py", ["run_interrupts"], room)
    d.text(x + 12, 197, "kernels/breath.py, vmm/guest.py", "small dim", room)
    d.box(x, 652, right, 800, "box")
    y = d.names(x + 12, 672, "kernels/pump.py", ["run_pump", "serve_all", "take_all"], room)
    y = d.names(x + 12, y, "kernels/link.py", ["send_vectors", "take_access"], room)
    d.text(x + 12, y + 4, "the card, vectors, a rest, what guests wrote", "ink", room)
    d.text(x + 12, y + 22, "kernels/pump.py, kernels/link.py", "small dim", room)


def draw_memory(d: Drawing) -> None:
    """Draw what guests and card share, and the gate between."""
    sends = ("transmit ring: descriptor", "buffer: the frame", "done: the head, or DD")
    takes = ("receive ring: descriptor", "buffer: the frame", "done: DD")
    for (x, right), who, kind, memory in ((LEFT, "a", "T", sends), (RIGHT, "b", "R", takes)):
        room = right - x - 36
        d.box(x, 272, right, 590, "shared", 10)
        d.text(x + 12, 292, "what both sides see", "small dim", room)
        d.box(x + 12, 300, right - 12, 378, "box")
        d.text(x + 22, 320, f"ring page of {who}'s VF", "head ink", room)
        d.text(x + 22, 342, f"{kind}DT: the tail, by the guest", "ink", room)
        d.text(x + 22, 361, f"{kind}DH: the head, by the card", "ink", room)
        d.box(x + 12, 394, right - 12, 578, "box")
        d.text(x + 22, 414, f"memory of guest {who}", "head ink", room)
        for y, line in zip((464, 508, 565), memory, strict=True):
            d.text(x + 22, y, line, "ink", room)
    for x, right in ((288, 368), (752, 832)):
        middle = (x + right) // 2
        d.box(x, 394, right, 578, "gate")
        d.step(middle, 412, 6)
        d.text(middle, 438, "translate", "mono ink middle", right - x - 4)
        for y, line in ((494, "IOTLB, or"), (510, "its tables"), (564, "or a fault")):
            d.text(middle, y, line, "small dim middle", right - x - 4)
    if "translate" not in defined("kernels/vtd/dma.py"):
        raise ValueError("kernels/vtd/dma.py defines no translate")


def draw_card(d: Drawing) -> None:
    """Draw the card, step by step."""
    x, right = MIDDLE
    left, end = x + 12, right - 12
    half = (left + end) // 2
    d.box(x, 272, right, 590, "card", 10)
    d.text(left, 292, "the card:", "head ink", 80)
    d.names(left + 72, 292, "kernels/i82576/port.py", ["serve_port"], 100)
    d.box(left, 300, end, 352, "box")
    d.step(left + 16, 316, 4)
    d.names(left + 32, 320, "kernels/i82576/port.py", ["begin"], 60)
    d.names(left + 84, 320, "kernels/i82576/ring.py", ["latch"], 60)
    d.text(left + 32, 341, "what registers and tails say, once a call", "ink", end - left - 40)
    d.box(left, 370, end, 422, "box")
    d.step(left + 16, 386, 5)
    d.names(left + 32, 390, "kernels/i82576/turns.py", ["visit"], 60)
    d.text(left + 84, 390, "queue by queue", "ink", 120)
    d.text(left + 32, 411, "as much work as its pool may do now", "ink", end - left - 40)
    d.box(left, 432, half - 4, 532, "box")
    d.step(left + 16, 448, 7)
    d.text(left + 32, 452, "locally", "head ink", 100)
    y = d.names(left + 10, 474, "kernels/i82576/whole.py", ["serve_whole"], half - left - 20)
    d.names(left + 10, y, "kernels/i82576/local.py", ["find_route", "move_frame"], half - left - 20)
    d.box(half + 4, 432, end, 532, "box")
    d.step(half + 20, 448, 7)
    d.text(half + 36, 452, "or one frame", "head ink", 110)
    y = 474
    for module, name in (("tx.py", "send_one"), ("forward.py", "forward"), ("rx.py", "receive")):
        y = d.names(half + 14, y, f"kernels/i82576/{module}", [name], end - half - 24)
    d.text(half + 82, 491, "check,", "small dim", 40)
    d.text(half + 82, 508, "sort, copy", "small dim", 66)
    d.box(left, 542, end, 580, "box")
    d.step(left + 16, 561, 8)
    d.names(left + 32, 565, "kernels/i82576/tx.py", ["write_back"], 90)
    d.names(left + 122, 565, "kernels/i82576/ring.py", ["publish"], 70)
    d.names(left + 190, 565, "kernels/i82576/port.py", ["raise_vectors"], 112)


def draw_ways(d: Drawing) -> None:
    """Draw who writes what, and who tells whom."""
    # The sender's and the receiver's stores and loads.
    for top, bottom, first in ((210, 272, True), (590, 652, False)):
        near, far = (top, bottom) if first else (bottom, top)
        label = 252 if first else 622
        d.arrow([(48, near), (48, far)])
        d.labelled(68, label, 1, "frame, descriptor", 112)
        d.arrow([(204, near), (204, far)])
        d.labelled(224, label, 2, "tail", 40)
        d.arrow([(880, far), (880, near)])
        d.labelled(900, label, 10, "frame", 60)
        d.arrow([(1004, near), (1004, far)])
        d.labelled(1024, label, 11, "tail", 40)
        d.arrow([(452, near), (452, far)], "call")
        d.labelled(472, label, 3, "serve", 50)
        d.arrow([(620, far), (620, near)])
        d.labelled(640, label, 9, "a vector", 70)
    # Registers, memory, the gate.
    d.arrow([(252, 337), (404, 337)])
    d.arrow([(868, 337), (716, 337)])
    d.arrow([(392, 361), (252, 361)])
    d.arrow([(728, 361), (868, 361)])
    for y, reads, writes in ((460, True, False), (504, True, True), (561, False, True)):
        for near, far, forth in ((252, 288, reads), (368, 404, reads), (716, 752, writes), (832, 868, writes)):
            d.arrow([(near, y), (far, y)] if forth else [(far, y), (near, y)])
    # Interrupts, and what enables them again.
    for y, number, words in ((112, 9, "posted"), (682, 9, "DMA_WRITE")):
        d.arrow([(728, y + 11), (856, y + 11)])
        d.labelled(742, y, number, words, 98)
    for y, number, words in ((166, 11, "VTEIMS"), (742, 11, "REGION_WRITE")):
        d.arrow([(856, y + 11), (728, y + 11)])
        d.labelled(742, y, number, words, 98)


def draw() -> str:
    """Draw it all."""
    d = Drawing(
        "The way of one frame, from guest to guest",
        "Above, guests of this process; below, Linux guests in QEMU. In the middle what both share: the sender's ring "
        "page and memory, the IOMMU's gate, the card, the gate again, the receiver's memory and ring page. The sender "
        "writes a descriptor and a tail; the card looks, takes turns, translates, checks and copies, writes back and "
        "raises a vector; the receiver takes the frame and gives the descriptor back.",
    )
    d.box(0, 0, WIDTH, HEIGHT, "ground", 12)
    d.text(24, 34, "One frame: two worlds, one card", "title ink", 600)
    d.arrow([(812, 29), (852, 29)])
    d.text(860, 33, "bytes go", "small dim", 60)
    d.arrow([(932, 29), (972, 29)], "call")
    d.text(980, 33, "a kernel is called", "small dim", 120)
    draw_worlds(d)
    draw_memory(d)
    draw_card(d)
    draw_ways(d)
    return d.finish()


def main(arguments: list[str], target: Path = TARGET) -> int:
    """Write the drawing, or compare it."""
    return deliver(draw(), arguments, target)


def deliver(text: str, arguments: list[str], target: Path) -> int:
    """Write a drawing, or with --check compare it; return the exit status."""
    if "--check" in arguments:
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            return 0
        print(f"{target} is stale or missing: run `make docs` and commit the result", file=sys.stderr)
        return 1
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
