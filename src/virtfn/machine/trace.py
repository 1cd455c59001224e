"""The tracer behind `virtfn run --trace FILE`: what the machine did, one line an event, in the specifications' names.

    # time, us function     what       event
       12.504 0000:02:10.0 write      RXDCTL[0] = 0x02000008 (PTHRESH=8, ENABLE=1)
       13.002 0000:02:10.0 mailbox    VF to PF: SET_VLAN (add, vlan=10) [00010004 0000000a]
       13.002 0000:01:00.0 interrupt  vector 2
       15.250 0000:02:10.0 fault      write iova 0xdead000: no second-level entry

Columns: microseconds since the trace began, who (the requester), what, and the event. An access to an offset that no
map declares is an event of its own, `undeclared`. Blocks of the machine hold a `Tracer` or None, and call it where
things happen; it changes nothing. Calls may come from several threads.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from virtfn import private
from virtfn.hw.bits import RegMap
from virtfn.hw.types import Iova, Rid, format_rid
from virtfn.machine.clock import US_PS
from virtfn.machine.ports import Clock, VirtfnError

__all__ = ["Tracer"]

_LINES_BUFFERED = 1024
_HEAD = f"{'# time, us':>13} {'function':<12} {'what':<10} event\n"
_PS_PER_NS = 1000


class Tracer:
    """Write events to a file. States: open until `close`, or until the disk refuses; then it ignores events.

    counts: how many events of each kind were written.
    """

    def __init__(self, path: str | Path, clock: Clock) -> None:
        """Open `path` for writing, which empties it.

        Raises VirtfnError if it cannot be written.
        """
        self.path = Path(path)
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._start = clock.now()
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._failure: VirtfnError | None = None
        try:
            self._file = open(self.path, "w", encoding="utf-8", opener=private.opener)  # noqa: SIM115  # open until close()
        except OSError as error:
            raise self._refused(error) from error
        self._lines.append(_HEAD)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def register(self, rid: Rid, regmap: type[RegMap], offset: int, value: int, write: bool) -> None:
        """Record an access to a register: its name, value and fields."""
        access = "write" if write else "read"
        what = regmap.describe(offset, value)
        if regmap.lookup(offset) is None:
            self._event(rid, "undeclared", f"{access} {what}")
        else:
            self._event(rid, access, what)

    def mailbox(self, rid: Rid, to_pf: bool, words: Sequence[int], text: str) -> None:
        """Record a message that was signalled; `rid` is the VF's. text: the same in words."""
        raw = " ".join(f"{word:08x}" for word in words)
        direction = "VF to PF" if to_pf else "PF to VF"
        self._event(rid, "mailbox", f"{direction}: {text} [{raw}]")

    def interrupt(self, rid: Rid, vector: int) -> None:
        """Record a message-signalled interrupt, by the function's own vector."""
        self._event(rid, "interrupt", f"vector {vector}")

    def fault(self, rid: Rid, iova: Iova, reason: str, write: bool) -> None:
        """Record a DMA that was refused."""
        self._event(rid, "fault", f"{'write' if write else 'read'} iova {iova:#x}: {reason}")

    def reset(self, rid: Rid, kind: str) -> None:
        """Record a reset of a function: `CTRL.RST`, `VTCTRL.RST`, `function level reset`."""
        self._event(rid, "reset", kind)

    def note(self, rid: Rid | None, text: str) -> None:
        """Record anything else; `rid` None is the machine itself."""
        self._event(rid, "note", text)

    def flush(self) -> None:
        """Put everything recorded so far into the file.

        Raises VirtfnError if the file cannot take it.
        """
        with self._lock:
            self._drain()
            if not self._file.closed:
                try:
                    self._file.flush()
                except OSError as error:
                    raise self._refused(error) from error

    def close(self) -> None:
        """Write what is left and close the file; once is enough.

        Raises VirtfnError if the file cannot take it.
        """
        with self._lock:
            if self._file.closed:
                return
            try:
                self._drain()
            finally:
                try:
                    self._file.close()
                except OSError as error:
                    raise self._refused(error) from error

    def _event(self, rid: Rid | None, kind: str, text: str) -> None:
        elapsed = self._clock.now() - self._start
        when = f"{elapsed // US_PS}.{elapsed % US_PS // _PS_PER_NS:03d}"
        who = "machine" if rid is None else format_rid(rid)
        line = f"{when:>13} {who:<12} {kind:<10} {' '.join(text.split())}\n"
        with self._lock:
            if self._file.closed or self._failure is not None:
                return
            self.counts[kind] += 1
            self._lines.append(line)
            if len(self._lines) >= _LINES_BUFFERED:
                with suppress(VirtfnError):  # whoever flushes or closes is told; the machine has nothing to do with it
                    self._drain()

    def _drain(self) -> None:
        lines, self._lines = self._lines, []
        if self._failure is not None:
            raise self._failure
        if lines and not self._file.closed:
            try:
                self._file.write("".join(lines))
            except OSError as error:
                raise self._refused(error) from error

    def _refused(self, error: OSError) -> VirtfnError:
        self._failure = self._failure or self._refusal(error)
        return self._failure

    def _refusal(self, error: OSError) -> VirtfnError:
        return VirtfnError(f"cannot write the trace {self.path}: {error.strerror or error}")
