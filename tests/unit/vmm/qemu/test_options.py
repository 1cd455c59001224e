"""Arguments that users add for QEMU: what is refused, and what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtfn.vmm.qemu.options import refused_argument


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-device", "usb-tablet,bus=pcie.0,addr=2"],
        ["-cpu", "max,-x2apic"],
        ["-netdev", "user,id=net0,hostfwd=tcp::2222-:22", "-device", "virtio-net-pci,netdev=net0"],
        ["-qmp", "unix:/tmp/q,server=on,wait=off"],
        ["-drive", "file=/a,,id=rp0,if=none"],  # a comma in a file's name
        ["-device", '{"driver": "igb", "id": "other"}'],
        ["-device", "{broken"],
        ["-device", "[" * 100000][:1],
    ],
)
def test_what_is_taken(arguments: list[str]) -> None:
    assert refused_argument(arguments) is None


@pytest.mark.parametrize(
    ("arguments", "place", "words"),
    [
        (["-M", "pc"], 0, "-M would break the lab"),
        (["--machine", "pc"], 0, "-machine would break the lab"),
        (["-usb", "-daemonize"], 1, "-daemonize would"),
        (["-device", '{"driver": "igb", "id": "f0180"}'], 1, "id=f0180"),
        (["-netdev", "user,id=vif-net"], 1, "id=vif-net"),
        (["-chardev", "null,id=qmp"], 1, "id=qmp"),
        (["-object", "memory-backend-ram,id=ram,size=1M"], 1, "id=ram"),
        (["-device", "igb,bus=rp3"], 1, "bus=rp3"),
        (["-x"] * 129, 128, "are 129 arguments"),
        (["x" * 5000], 0, "is no argument"),
        (["-device", "a\0b"], 1, "is no argument"),
    ],
)
def test_what_is_refused(arguments: list[str], place: int, words: str) -> None:
    refused = refused_argument(arguments)
    assert refused is not None
    assert refused[0] == place
    assert words in refused[1]


@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_text_has_an_answer(arguments: list[str]) -> None:
    refused = refused_argument(arguments)
    assert refused is None or 0 <= refused[0] < len(arguments)
