"""The switch of docs/reference/vhost-user.md works as the page says, and the page names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import virtfn.vmm.vhost_user as library
from unit.vhostclient import Client
from unit.virtiorig import ether, mac
from virtfn.devices.virtio import OFFERED
from virtfn.hw.virtio.net import Features
from virtfn.vmm.vhost_user import OFFERED_PROTOCOL, ProtocolFeatures, Switch

PAGE = (Path(__file__).parents[4] / "docs" / "reference" / "vhost-user.md").read_text()


def test_the_switch_of_the_page(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    compile(code, "switch.py", "exec")
    with Switch() as switch:
        clients = [Client(switch, switch.listen(tmp_path / name).path) for name in "ab"]
        for client in clients:
            client.connect()
            client.start()
            client.fill(2)
        clients[0].transmit(ether(mac(1), mac(0), b"hello"))
        switch()
        assert len(clients[1].received()) == 1
        for client in clients:
            client.close()


def test_the_page_names_the_public_face() -> None:
    told = [name for name in library.__all__ if name not in PAGE]
    assert told == ["OFFERED_PROTOCOL", "ProtocolFeatures", "Request"], "names that one meets, but needs not"


def test_the_page_names_what_is_offered() -> None:
    for kind, offered in ((Features, OFFERED), (ProtocolFeatures, OFFERED_PROTOCOL)):
        for field in kind.FIELDS:
            if field.get(offered):
                assert re.search(rf"\b{field.name}\b", PAGE), field.name
