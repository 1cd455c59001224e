"""The pytest plugin: labs as fixtures, for tests of what uses SR-IOV. Loaded by pytest where virtfn is installed.

    virtfn_lab    makes labs of a file, text, a dictionary or an object, brings them up, and takes them down at the end
    virtfn_pair   two embedded guests, a and b, with a VF each of pf0
    virtfn_qemu   skips the test where Linux guests cannot be: no QEMU, or no image

What a lab gives is in `lab.py`. Nothing of virtfn is loaded before a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from virtfn.pytest.lab import LiveLab, MakeLab

__all__ = ["virtfn_lab", "virtfn_pair", "virtfn_qemu"]


@pytest.fixture
def virtfn_lab() -> Iterator[MakeLab]:
    """Bring labs up: `virtfn_lab(lab)` returns one that lives until the test ends."""
    from virtfn.pytest.lab import Labs

    with Labs() as labs:
        yield labs.bring_up


@pytest.fixture
def virtfn_pair(virtfn_lab: Callable[..., LiveLab]) -> LiveLab:
    """Two embedded guests, a and b, with VF 0 and 1 of pf0, which has four."""
    from virtfn.pytest.lab import PAIR

    return virtfn_lab(PAIR)


@pytest.fixture(scope="session")
def virtfn_qemu() -> None:
    """Skip the test if there can be no Linux guests here, and say what is missing."""
    from virtfn.pytest.lab import why_no_linux

    if reason := why_no_linux():
        pytest.skip(reason)
