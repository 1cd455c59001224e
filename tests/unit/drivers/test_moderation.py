from __future__ import annotations

import pytest

from virtfn.drivers.moderation import AdaptiveInterval


@pytest.mark.parametrize(
    ("looks", "us"),
    [
        ([], 49),
        ([(100, 100 * 1514)], 245),  # bulk
        ([(2, 128)], 14),  # single small frames
        ([(40, 40 * 300)], 14),  # many, not large
        ([(8, 8 * 1514)], 245),
        ([(20, 20 * 300)], 49),
        ([(2, 128), (4, 4 * 200)], 49),  # few again, and larger
        ([(2, 128), (50, 50 * 60)], 14),
        ([(2, 128), (2, 2 * 9000)], 245),
        ([(100, 100 * 1514), (100, 100 * 1514)], 49),
        ([(100, 100 * 1514), (20, 20 * 1514)], 245),
        ([(100, 100 * 1514), (10, 10 * 1514)], 245),
        ([(100, 100 * 1514), (2, 128)], 49),
        ([(0, 0)], 49),
    ],
)
def test_the_interval_follows_the_traffic(looks: list[tuple[int, int]], us: int) -> None:
    interval = AdaptiveInterval()
    for frames, nbytes in looks:
        interval.look(frames, nbytes)
    assert interval.us == us


def test_a_change_is_told_once() -> None:
    interval = AdaptiveInterval()
    assert interval.look(2, 128)
    assert not interval.look(2, 128)
