"""Every reason that a frame can be dropped for is explained, and nothing else is."""

from __future__ import annotations

import pytest

from virtfn.api.dropreasons import DROP_REASONS
from virtfn.api.flows import _ON_THE_WAY_IN
from virtfn.kernels.i82576.state import DROP_NAMES
from virtfn.kernels.virtio.bridge import DROP_NAMES as BRIDGE_NAMES


def test_every_reason_of_the_card_and_of_the_report_is_explained_and_no_other() -> None:
    assert set(DROP_REASONS) == {*DROP_NAMES, *BRIDGE_NAMES, "driver-reset"} - {"given"}
    assert set(DROP_REASONS) >= _ON_THE_WAY_IN


@pytest.mark.parametrize("name", DROP_REASONS)
def test_an_explanation_says_for_whom_what_why_and_what_to_do(name: str) -> None:
    reason = DROP_REASONS[name]
    assert all(part.strip() == part != "" for part in reason)
    assert "|" not in reason.counted + reason.what  # they are cells of a table
    for sentences in (reason.why, reason.remedy):
        assert sentences[0].isupper()
        assert sentences.endswith(".")
