"""What the card enforces for my tenants, as pytest runs it: no NIC, no root, no virtual machine."""

from pathlib import Path

import pytest

import virtfn

HERE = Path(__file__).parent
RATE_MBPS = 100


@pytest.fixture(scope="module")
def report() -> virtfn.Report:
    """Run the lab once; it fails here if anything arrives that the lab does not expect, or does not arrive."""
    return virtfn.check(virtfn.run(HERE / "policy.yaml"))


def test_another_tenant_is_not_heard(report: virtfn.Report) -> None:
    """The server hears its own VLAN alone, and the card says why."""
    heard = {flow["sender"]: flow["heard"] for flow in report["flows"]}
    assert heard == {"client": 5000, "tenant": 0, "slow": 5000}
    tenant = next(guest for guest in report["guests"] if guest["name"] == "tenant")
    assert sum(tenant["dropped"].values()) == 5000


def test_the_rate_is_kept(report: virtfn.Report) -> None:
    """What the slow guest sends takes as long as its rate says."""
    bits = 5000 * 1518 * 8
    assert report["totals"]["moving_s"] > 0.9 * bits / (RATE_MBPS * 1e6)


def test_what_is_not_enforced_is_refused() -> None:
    """A policy that the card cannot keep is an error, and never a number that nobody looks at."""
    text = (HERE / "policy.yaml").read_text().replace("vlan-id: 20", "vlan-id: 20, min-tx-rate: 10")
    with pytest.raises(virtfn.VirtfnError, match="guarantees nothing"):
        virtfn.run(text)
