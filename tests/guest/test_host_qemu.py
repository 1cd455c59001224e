"""What `io: host` needs of QEMU and nobody promises, asked of the QEMU that is here; no guest runs."""

from __future__ import annotations

import pytest

from virtfn.vmm.qemu import Qemu, hostprobe
from virtfn.vmm.qemu.hostprobe import probe_host_cards

pytestmark = pytest.mark.guest


def test_this_qemu_does_what_hosts_need(qemu: Qemu) -> None:
    assert probe_host_cards(qemu) == ""


def _hears_nothing(device, region, offset, data):
    return


def _hears_once(device, region, offset, data):
    if not device.bar:
        _written(device, region, offset, data)


def _hides(device, region, offset, count):
    return bytes(count) if offset >= 0x100 else _read(device, region, offset, count)


_written, _read = hostprobe._Listener.region_write, hostprobe._Listener.region_read


@pytest.mark.parametrize(
    ("method", "does", "words"),
    [
        ("region_write", _hears_nothing, "through I/O ports does not reach a device"),
        ("region_write", _hears_once, "DMA of a device does not reach the configuration space of another"),
        ("region_read", _hides, "extended capabilities that come after the first reset are not shown"),
    ],
)
def test_a_qemu_that_does_otherwise_is_found_out(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch, method: str, does: object, words: str
) -> None:
    monkeypatch.setattr(hostprobe._Listener, method, does)
    assert words in probe_host_cards(qemu)


def test_a_qemu_whose_window_is_elsewhere_is_found_out(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostprobe, "_WINDOW", 0xB000_0002)
    assert "does not tell where the window of configuration space is" in probe_host_cards(qemu)
