"""A cable between two cards: it leads to the other as long as it is whole, and both are plugged in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from virtfn.vmm.uplink import make_cable


def test_it_leads_to_whoever_is_plugged_in():
    a, b = make_cable()
    assert a.attend()
    assert b.attend()
    assert a.far_card is None
    assert a.send(np.zeros(64, np.uint8)) == 0, "a card keeps what leaves, until there is another"
    b.card = card = SimpleNamespace()
    assert a.far_card is card
    assert b.far_card is None


def test_one_end_pulled_out_is_the_end_for_both():
    a, b = make_cable()
    a.card = b.card = SimpleNamespace()
    b.close()
    b.close()
    assert not a.attend()
    assert not b.attend()
    assert a.far_card is None
    assert b.far_card is None
