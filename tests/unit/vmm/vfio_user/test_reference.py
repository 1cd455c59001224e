"""The device of docs/reference/vfio-user.md works as the page says, and the page names what there is."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import virtfn.vmm.vfio_user as library
from unit.vmm.vfio_user.peer import Peer
from virtfn.vmm.vfio_user import IrqIndex, Server

PAGE = (Path(__file__).parents[4] / "docs" / "reference" / "vfio-user.md").read_text()


def test_the_device_of_the_page(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"__name__": "scratch"}
    exec(compile(code, "scratch.py", "exec"), names)
    with Server(tmp_path / "socket", names["Scratch"]()) as server, Peer(server) as peer:
        vendor, device = struct.unpack("<HH", peer.read(7, 0, 4))
        assert (vendor, device, peer.read(7, 0x40, 1)) == (0x1234, 0xCAFE, b"\x11")
        event = os.eventfd(0, os.EFD_NONBLOCK)
        peer.set_irqs(0x24, IrqIndex.MSIX, 0, 1, fds=[event])
        peer.write(0, 100, b"scratch")
        assert peer.read(0, 100, 7) == b"scratch"
        peer.write(0, 0, b"\1")
        assert os.eventfd_read(event) == 1
        os.close(event)
        peer.write(7, 0, b"\0\0\0\0")
        peer.write(7, 4, b"\6\0")
        assert peer.read(7, 0, 6) == struct.pack("<HHH", 0x1234, 0xCAFE, 6)
        peer.call(13)
        assert peer.read(0, 100, 7) == bytes(7)


def test_the_page_names_the_public_face():
    told = [name for name in library.__all__ if name not in PAGE]
    assert told == ["Capabilities", "Command", "DmaRanges", "Done", "Going"], "types that one meets, but never makes"
    for name in library.__all__:
        assert hasattr(library, name)
