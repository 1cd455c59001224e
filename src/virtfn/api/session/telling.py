"""What a session says of its progress to whoever watches."""

from __future__ import annotations

from virtfn.api.accounts import Group
from virtfn.api.machine import LabGuestRun
from virtfn.api.progress import OnProgress, Progress
from virtfn.machine.clock import MS_PS, S_PS
from virtfn.machine.ports import Clock

__all__ = ["Teller"]

_PROGRESS_PS = 100 * MS_PS


class Teller:
    """Tells of progress, ten times a second at most. groups: the embedded guests at work; who lets them adds them."""

    def __init__(self, clock: Clock, progress: OnProgress) -> None:
        self.groups: list[Group] = []
        self._clock = clock
        self._progress = progress
        self._started = clock.now()
        self._shown = 0
        self._last: tuple[int, int, int] = (self._started, 0, 0)

    def tell(self, phase: str, since: int | None = None, *, force: bool = False) -> None:
        """Tell what goes on. since: when that began, if not with the session; force: even if it is too soon."""
        now = self._clock.now()
        if not force and now - self._shown < _PROGRESS_PS:
            return
        self._shown = now
        rate, bits = self._rates(now)
        if phase != "running":
            rate = bits = 0.0
        total = sum(group.workload.total_frames for group in self.groups)
        sent = sum(group.workload.sent for group in self.groups)
        elapsed = now - (self._started if since is None else since)
        self._progress(Progress(phase, elapsed / S_PS, sent, total, rate, bits, self._guests()))

    def tell_steps(self, phase: str, steps: int, total: int) -> None:
        """Tell how much of a phase before all work is done."""
        elapsed_s = (self._clock.now() - self._started) / S_PS
        self._progress(Progress(phase, elapsed_s, steps=steps, total_steps=total))

    def _guests(self) -> tuple[tuple[str, int, int, int], ...]:
        return tuple(
            (
                run.lab.name,
                int(_row(run)["tx_frames"]),
                int(_row(run)["rx_frames"]),
                sum(run.link.drops().values()),
            )
            for run in self._runs()
        )

    def _rates(self, now: int) -> tuple[float, float]:
        """Return millions of frames and Gb/s received since this was asked last."""
        rows = [_row(run) for run in self._runs()]
        frames, size = sum(int(r["rx_frames"]) for r in rows), sum(int(r["rx_bytes"]) for r in rows)
        before, had, bytes_before = self._last
        seconds = max((now - before) / S_PS, 1e-9)
        self._last = now, frames, size
        return (frames - had) / seconds / 1e6, (size - bytes_before) * 8 / seconds / 1e9

    def _runs(self) -> list[LabGuestRun]:
        return [run for group in self.groups for run in group.runs if run.guest.drivers]


def _row(run: LabGuestRun) -> dict[str, int]:
    return run.driver.netdev  # type: ignore[return-value]
