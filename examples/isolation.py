"""A test of a lab in a few lines: two tenants share a card, and hear their own neighbours alone."""

import virtfn
from virtfn import Guest, Nic, Pf, SrIov, VfPolicy, Workload

VLANS = (10, 10, 20)
POLICY = tuple(VfPolicy(id=n, vlan_id=vlan) for n, vlan in enumerate(VLANS))
LAB = virtfn.make_lab(
    pfs=[Pf(name="pf0", sr_iov=SrIov(total_vfs=3, vfs=POLICY))],
    guests=[
        Guest(name="a", nic=Nic(pf="pf0", vf=0), expect={"c": "none"}),
        Guest(name="b", nic=Nic(pf="pf0", vf=1)),
        Guest(name="c", nic=Nic(pf="pf0", vf=2)),
    ],
    workload=Workload(kind="fan-in", frames=1000, expect="all"),
)


def test_tenants_are_kept_apart() -> None:
    """Run the lab, and find that a hears all of b, which is in its VLAN, and nothing of c, which is not."""
    report = virtfn.check(virtfn.run(LAB))
    heard = {flow["sender"]: flow["heard"] for flow in report["flows"]}
    assert heard == {"b": 1000, "c": 0}


if __name__ == "__main__":
    test_tenants_are_kept_apart()
    print("b is heard, c is not")
