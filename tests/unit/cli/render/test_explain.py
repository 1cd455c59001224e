"""How an explanation looks: steps, the end, and what nobody can know before the frame moves."""

from __future__ import annotations

from unit.cli.render.text import text
from virtfn.api.explain import ExplainDocument
from virtfn.cli.render.explain import render_explanation

DOCUMENT: ExplainDocument = {
    "lab": "rig",
    "source": "pf0/vf0",
    "frame": "ff" * 60,
    "steps": [{"stage": "storm control", "register": "SCCRL, BSCTRH", "words": "with it, 64 bytes of broadcasts"}],
    "outcome": "forwarded",
    "words": "to pf0/vf1",
    "to": [{"interface": "pf0/vf1", "queue": 1, "descriptors": 1, "stripped": False}],
    "wire": False,
    "dropped": [],
    "unknown": ["whether the IOMMU lets the card read the frame", "how long it waits"],
}


def test_steps_the_end_and_what_is_not_known() -> None:
    lines = text(render_explanation(DOCUMENT)).splitlines()
    assert [line.rstrip() for line in lines] == [
        "pf0/vf0 sends 60 bytes",
        "storm control  SCCRL, BSCTRH  with it, 64 bytes of broadcasts",
        "forwarded: to pf0/vf1",
        "not known: whether the IOMMU lets the card read the frame",
        "not known: how long it waits",
    ]
