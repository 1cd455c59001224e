"""A guest that means harm, on the real path to its VF: everything it can write, random and structured.

Its memory, 8 MiB by guest addresses; what it does with it knows what a NIC looks for:

    400000 transmit rings   480000 receive rings   500000 buffers   600000 frames, half of them well formed

Attacks are methods `on_...`; `act` does one of them, chosen by weight. All chance comes from one generator.
"""

from __future__ import annotations

import random

import numpy as np

from virtfn.hw.i82576 import MAILBOX_WORDS, Message, Opcode, VfRegs
from virtfn.machine.memory import view_bytes
from virtfn.vmm.guest import Guest, Nic

TX, RX, BUFFERS, FRAMES, FRAME_STEP, FRAME_COUNT = 0x400000, 0x480000, 0x500000, 0x600000, 0x4000, 64
M64 = (1 << 64) - 1
ENABLE = 1 << 25
LENGTHS = (0, 1, 13, 14, 15, 17, 18, 59, 60, 61, 64, 127, 128, 129, 1514, 1518, 1522, 2048, 9724, 9725, 16384, 65535)
RINGS = (0, 16, 64, 127, 128, 128, 256, 1024, 4096, 0x8000, 0xFFF80, 0xFFFF0, 0xFFFFFFFF)
EDGES = (0, 0xFFE, 4095, 0x1FFFFF, 0x7FFFF0, 0x7FFFFF, 0x800000, 0xFFFFFFFF, 1 << 32, (1 << 47) - 8, 1 << 47,
         (1 << 48) - 1, 0xFEE00000, 0xFEDFFFFF, (1 << 63) - 1, 1 << 63, M64 - 15, M64)  # fmt: skip


class Hostile:
    """One guest's VF, and the will to break out. targets: addresses worth trying: host memory, tables, others' rings.

    macs: its own address first, then those of others.
    """

    def __init__(self, guest: Guest, nic: Nic, rng: random.Random, targets: list[int], macs: list[int]) -> None:
        self.guest = guest
        self.function = nic.function
        self.rng = rng
        self.targets = targets
        self.macs = macs
        self.memory = guest.memory.bytes
        self.pages = self.function.device.bar_mappings(self.function.rid, 0)[0]
        self.log: list[str] = []
        self._attacks = {
            self.on_transmit_ring: 30, self.on_good_ring: 20, self.on_receive_ring: 15, self.on_ring_registers: 15,
            self.on_enables: 8, self.on_bar: 12, self.on_msix_bar: 4, self.on_config: 6, self.on_mailbox: 10,
            self.on_hogging: 2, self.on_reset: 3, self.on_memory: 3, self.on_message_by_head: 8,
            self.on_message_by_frame: 4, self.on_messages: 6, self.on_short_ring: 12, self.on_plain_run: 8,
            self.on_open_chain: 4,
        }  # fmt: skip
        self._make_frames()

    def act(self) -> None:
        """Do one thing."""
        (attack,) = self.rng.choices(list(self._attacks), list(self._attacks.values()))
        self.log = [*self.log[-7:], attack.__name__]
        attack()

    # Values.

    def address(self) -> int:
        """Pick an address: mostly memory of its own, at times anything."""
        rng = self.rng
        match rng.randrange(12):
            case 0:
                return rng.choice((*EDGES, self.message_address()))
            case 1 | 2:
                return rng.choice(self.targets) + rng.randrange(-16, 4096)
            case 3:
                return rng.choice((rng.getrandbits(64), rng.randrange(0x800000 - 64, 0x800000 + 64)))
            case 4 | 5:
                return rng.randrange(0x800000) | 0xFFF
            case _:
                return FRAMES + FRAME_STEP * rng.randrange(FRAME_COUNT) + rng.choice((0, 0, 0, 1, 7))

    def message_address(self) -> int:
        """Pick an address that means an interrupt: destination and vector in it, or a handle, mostly one in use."""
        rng = self.rng
        handle = rng.choice((rng.randrange(24), rng.randrange(24), rng.getrandbits(16)))
        remappable = 0xFEE00010 | (handle & 0x7FFF) << 5 | handle >> 15 << 2
        odd = 0xFEE00000 | rng.getrandbits(20)
        return rng.choice((remappable, remappable, remappable | 8, 0xFEE00000 | rng.getrandbits(8) << 12, odd))

    def word(self) -> int:
        """Pick 32 bits."""
        rng = self.rng
        return rng.choice(
            (0, 1, 0xFFFFFFFF, 0x80000000, 1 << rng.randrange(32), rng.getrandbits(32), rng.getrandbits(8))
        )

    def store64(self, at: int, *words: int) -> None:
        packed = np.frombuffer(b"".join((w & M64).to_bytes(8, "little") for w in words), np.uint8)
        self.memory[at : at + packed.size] = packed

    def register(self, offset: int, value: int) -> None:
        """Write a ring register as a guest does: past the hypervisor, all 32 bits."""
        at = offset - self.pages.offset
        self.pages.bytes[at : at + 4] = np.frombuffer((value & 0xFFFFFFFF).to_bytes(4, "little"), np.uint8)

    # Frames.

    def _make_frames(self) -> None:
        for i in range(FRAME_COUNT):
            at = FRAMES + FRAME_STEP * i
            body = self.frame()
            self.memory[at : at + len(body)] = np.frombuffer(body, np.uint8)

    def frame(self) -> bytes:
        """Make up to 16 KiB of something like a frame."""
        rng = self.rng
        group = rng.choice((0xFFFFFFFFFFFF, 0x010000005E0001, rng.getrandbits(48) | 1))
        target = rng.choice((*self.macs, *self.macs, group & (1 << 48) - 1, rng.getrandbits(48)))
        source = rng.choice((self.macs[0], self.macs[0], *self.macs, rng.getrandbits(48)))
        tag = rng.choice((b"", b"", b"\x81\x00" + rng.getrandbits(16).to_bytes(2, "big")))
        head = target.to_bytes(6, "little") + source.to_bytes(6, "little") + tag
        kind = rng.choice((b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xb5", rng.randbytes(2)))
        total = rng.choice((20, 40, 60, 500, 1480, 9000, 65535)).to_bytes(2, "big")
        ip4 = bytes([rng.choice((0x45, 0x45, 0x4F, 0x40, 0x65, rng.getrandbits(8)))]) + b"\0" + total + rng.randbytes(2)
        ip4 += rng.choice((b"\0\0", b"\x20\0", rng.randbytes(2))) + b"\x40" + bytes([rng.choice((6, 17, 132, 1))])
        ip6 = b"\x60\0\0\0" + total + bytes([rng.choice((6, 17, 0, 43, 44, 60, 59, rng.getrandbits(8)))])
        body = {b"\x08\x00": ip4, b"\x86\xdd": ip6}.get(kind, b"")
        return (head + kind + body + rng.randbytes(64)).ljust(FRAME_STEP - 64, bytes([rng.getrandbits(8)]))

    # Descriptors.

    def data(self, eop: bool) -> tuple[int, int]:
        rng = self.rng
        size = rng.choice((*LENGTHS, 60, 60, 64, 64, 1514, rng.randrange(1, 2000)))
        dtyp = rng.choice((3, 3, 3, 3, 3, 3, 2, 0, 1, rng.randrange(16)))
        command = 0x22 | int(eop) | rng.choice((0, 8)) | rng.choice((0, 0, 0, rng.getrandbits(8)))
        paylen = rng.choice((size, size, size, 0, rng.getrandbits(18)))
        popts = rng.choice((0, 0, 0, 1, 2, 3, rng.getrandbits(6)))
        index = rng.choice((0, 0, 1, rng.randrange(8)))
        return self.address(), size | dtyp << 20 | command << 24 | index << 36 | popts << 40 | paylen << 46

    def context(self, mss: int | None = None) -> tuple[int, int]:
        rng = self.rng
        maclen, iplen, l4len = rng.choice(
            ((14, 20, 20), (18, 20, 20), (14, 40, 8), (rng.getrandbits(7), rng.getrandbits(9), 0))
        )
        mss = rng.choice((1, 2, 100, 1460, 9000, 9724, 65535, 0)) if mss is None else mss
        tucmd = rng.choice((1 << 10 | 1 << 11, 1 << 10, 1 << 11, rng.getrandbits(5) << 9))
        q1 = (
            tucmd
            | 2 << 20
            | 1 << 29
            | rng.randrange(2) << 36
            | rng.choice((l4len, rng.getrandbits(8))) << 40
            | mss << 48
        )
        return iplen | maclen << 9 | rng.getrandbits(16) << 16, q1

    def segmentation(self) -> list[tuple[int, int]]:
        """Make a large send that the device may well accept."""
        rng = self.rng
        pieces = [rng.choice((54, 200, 4096, 16000)) for _ in range(rng.randrange(1, 6))]
        header = rng.choice((54, 54, 54, 58, 74))
        payload = (sum(pieces) - header) & 0x3FFFF
        mss = rng.choice((1, 2, 7, 536, 1460, 8000))
        q0 = 20 | 14 << 9
        chain = [(q0, 1 << 10 | 1 << 11 | 2 << 20 | 1 << 29 | 20 << 40 | mss << 48)]
        for i, size in enumerate(pieces):
            command = 0xA2 | (9 if i == len(pieces) - 1 else 0)
            at = FRAMES + FRAME_STEP * rng.randrange(FRAME_COUNT)
            chain.append((at, size | 3 << 20 | command << 24 | rng.choice((0, 3)) << 40 | payload << 46))
        return chain

    def chain(self) -> list[tuple[int, int]]:
        """Make the descriptors of a frame, or of something else."""
        rng = self.rng
        match rng.randrange(10):
            case 0 | 1:
                return [self.data(False) for _ in range(rng.choice((1, 2, 5, 40)))] + [self.data(True)]
            case 2:
                return [self.context(), self.data(True)]
            case 3:
                return self.segmentation()
            case 4:
                return [(self.address(), rng.getrandbits(64) & ~(1 << 29)) for _ in range(rng.randrange(1, 4))]
            case 5:
                return [(rng.getrandbits(64), rng.getrandbits(64))]
            case 6:
                return [(M64, M64)]
            case _:
                return [self.data(True)]

    # Attacks.

    def on_transmit_ring(self) -> None:
        """Put chains where the device is looking, and move the tail: as it should be, or not."""
        rng, queue = self.rng, self.rng.choice((0, 0, 1))
        at = rng.randrange(0, 120)
        for pair in self.chain():
            self.store64(TX + queue * 0x10000 + 16 * (at % 128), *pair)
            at += 1
        tail = rng.choice((at % 128, at % 128, at % 128, *EDGES[:4], 127, 128, 0x10005, self.word()))
        self.register(VfRegs.TDT.at(queue), tail)

    def on_good_ring(self) -> None:
        """Set a queue pair up as a driver would, so that what follows gets deep into the device."""
        queue = self.rng.choice((0, 0, 0, 1))
        for i in range(128):
            self.store64(RX + queue * 0x10000 + 16 * i, BUFFERS + 2048 * i, BUFFERS + 0x40000 + 256 * i)
        for decl, value in (
            (VfRegs.RXDCTL, 0), (VfRegs.TXDCTL, 0), (VfRegs.RDBAL, RX + queue * 0x10000), (VfRegs.RDBAH, 0),
            (VfRegs.RDLEN, 2048), (VfRegs.RDH, 0), (VfRegs.RXDCTL, ENABLE), (VfRegs.RDT, self.rng.randrange(128)),
            (VfRegs.TDBAL, TX + queue * 0x10000), (VfRegs.TDBAH, 0), (VfRegs.TDLEN, 2048), (VfRegs.TXDCTL, ENABLE),
            (VfRegs.SRRCTL, self.rng.choice((0x02000002, 0x82000002, 0x8A000202, 0x04000401, 0x02000001))),
        ):  # fmt: skip
            self.register(decl.at(queue), value)
        head = self.rng.randrange(128)
        self.register(VfRegs.TDH.at(queue), head)
        self.register(VfRegs.TDT.at(queue), (head + self.rng.choice((0, 1, 5, 60))) % 128)
        if self.rng.random() < 0.5:
            self.message(Opcode.RESET)

    def on_short_ring(self) -> None:
        """Post a receive ring that ends where a page, or all memory, does, and hand over every descriptor there is."""
        rng, queue = self.rng, self.rng.choice((0, 0, 0, 1))
        size = rng.choice((128, 128, 256, 1024, 4096))
        end = rng.choice((RX + 0x4000, RX + 0x1000 * rng.randrange(1, 16), BUFFERS, 0x800000, 0x800000))
        for i in range(size // 16):
            self.store64(end - size + 16 * i, BUFFERS + 2048 * (i % 256), 0)
        for decl, value in (
            (VfRegs.RXDCTL, 0), (VfRegs.RDBAL, end - size), (VfRegs.RDBAH, 0), (VfRegs.RDLEN, size), (VfRegs.RDH, 0),
            (VfRegs.SRRCTL, 0x02000002), (VfRegs.RXDCTL, ENABLE),
            (VfRegs.RDT, rng.choice((size // 16, size // 16, size // 16 - 1, 1))),
        ):  # fmt: skip
            self.register(decl.at(queue), value)
        self.message(Opcode.RESET)

    def on_plain_run(self) -> None:
        """Send more like frames than anybody's ring has room for, from a ring that ends where a page or memory does."""
        rng = self.rng
        size = rng.choice((1024, 2048, 4096))
        end = rng.choice((TX + 0x1000 * rng.randrange(1, 8), 0x800000))
        at, length = FRAMES, rng.choice((60, 60, 64, 1514))
        target, source = rng.choice(self.macs), self.macs[0]
        head = target.to_bytes(6, "little") + source.to_bytes(6, "little") + b"\x88\xb5"
        self.memory[at : at + len(head)] = np.frombuffer(head, np.uint8)
        for i in range(size // 16):
            self.store64(end - size + 16 * i, at, length | 3 << 20 | 0x2B << 24 | length << 46)
        start = rng.choice((0, 0, size // 16 - 2))
        for decl, value in (
            (VfRegs.TXDCTL, 0), (VfRegs.TDBAL, end - size), (VfRegs.TDBAH, 0), (VfRegs.TDLEN, size),
            (VfRegs.TDH, start), (VfRegs.TDWBAL, 0), (VfRegs.TXDCTL, ENABLE), (VfRegs.TDT, (start - 1) % (size // 16)),
        ):  # fmt: skip
            self.register(decl.at(0), value)

    def on_open_chain(self) -> None:
        """Post a chain without an end, and change under the device's hands what it has gathered so far."""
        rng = self.rng
        self.on_good_ring()
        for i in range(rng.choice((1, 20, 127))):
            self.store64(TX + 16 * i, *self.data(False))
        for decl, value in ((VfRegs.TDH, 0), (VfRegs.TDT, rng.choice((1, 20, 127)))):
            self.register(decl.at(0), value)

    def on_receive_ring(self) -> None:
        """Post buffers anywhere."""
        queue = self.rng.choice((0, 0, 1))
        for i in range(self.rng.randrange(1, 128)):
            self.store64(RX + queue * 0x10000 + 16 * i, self.address(), self.address())
        self.register(VfRegs.RDT.at(queue), self.rng.choice((127, 64, self.rng.randrange(128), self.word())))

    def on_ring_registers(self) -> None:
        """Write ring registers, one or all of them."""
        rng, queue = self.rng, self.rng.randrange(2)
        address = self.address()
        layouts = (rng.randrange(8) << 25, rng.randrange(8) << 25 | 0x80000202, rng.getrandbits(32))
        values = {
            VfRegs.RDBAL: address, VfRegs.RDBAH: address >> 32, VfRegs.TDBAL: address, VfRegs.TDBAH: address >> 32,
            VfRegs.RDLEN: rng.choice(RINGS), VfRegs.TDLEN: rng.choice(RINGS), VfRegs.SRRCTL: rng.choice(layouts),
            VfRegs.TDWBAL: self.address() | rng.choice((1, 1, 3, 0)), VfRegs.TDWBAH: rng.choice((0, 0, address >> 32)),
            VfRegs.RDH: self.word(), VfRegs.RDT: self.word(), VfRegs.TDH: self.word(), VfRegs.TDT: self.word(),
        }  # fmt: skip
        chosen = values if rng.random() < 0.2 else [rng.choice(list(values))]
        for decl in chosen:
            self.register(decl.at(queue), values[decl])
        if rng.random() < 0.1:
            self.register(self.pages.offset + 4 * rng.randrange(self.pages.bytes.size // 4), self.word())

    def on_enables(self) -> None:
        """Switch queues on and off."""
        decl = self.rng.choice((VfRegs.RXDCTL, VfRegs.TXDCTL))
        self.register(decl.at(self.rng.randrange(2)), self.rng.choice((0, ENABLE, ENABLE, ENABLE, self.word())))

    def on_bar(self) -> None:
        """Access BAR0 anywhere, in any size, aligned or not."""
        rng = self.rng
        for _ in range(rng.randrange(1, 8)):
            offset = rng.choice((rng.randrange(0, 0x4000, 4), rng.choice(VfRegs.DECLS).offset, rng.randrange(0x5000)))
            offset, size = offset + rng.choice((0, 0, 0, 1, 2, 3)), rng.choice((1, 2, 4, 4, 4, 8))
            if rng.random() < 0.7:
                self.function.write(0, offset, rng.getrandbits(64) if size == 8 else self.word(), size)
            else:
                self.function.read(0, offset, size)

    def on_msix_bar(self) -> None:
        """Access the BAR of the MSI-X table and pending bits anywhere; raise vectors."""
        rng = self.rng
        for _ in range(rng.randrange(1, 8)):
            offset, size = (
                rng.choice((rng.randrange(0x40), 0x2000 + rng.randrange(16), rng.randrange(0x4100))),
                rng.choice((1, 2, 4, 4, 8)),
            )
            self.function.write(3, offset, rng.choice((0, 1, rng.getrandbits(64))), size)
            self.function.read(3, offset, size)
        for decl in (VfRegs.VTIVAR, VfRegs.VTIVAR_MISC, VfRegs.VTEIMS, VfRegs.VTEICS, VfRegs.VTEITR):
            self.function.write(0, decl.offset, self.word())

    def on_message_by_head(self) -> None:
        """Have the device write its head, the vector, where messages go."""
        rng = self.rng
        self.on_good_ring()
        address, head = self.message_address(), rng.randrange(0x20, 127)
        at, size = FRAMES, rng.choice((60, 64, 1514))
        self.store64(TX + 16 * head, at, size | 3 << 20 | 0x2B << 24 | size << 46)
        for decl, value in ((VfRegs.TDWBAH, 0), (VfRegs.TDWBAL, address | 1), (VfRegs.TDH, head)):
            self.register(decl.at(0), value)
        self.register(VfRegs.TDT.at(0), head + 1)

    def on_message_by_frame(self) -> None:
        """Post buffers where messages go, of all sizes: whoever sends a frame sends messages."""
        self.on_good_ring()
        for i in range(128):
            self.store64(RX + 16 * i, self.message_address(), self.rng.choice((0, self.message_address())))
        self.register(VfRegs.SRRCTL.at(0), self.rng.choice((0x02000001, 0x82000002, 0x8A000202, 0x04000401)))
        self.register(VfRegs.RDT.at(0), 127)

    def on_messages(self) -> None:
        """Write well-formed messages of others into the MSI-X table, unmask them, and raise them."""
        rng = self.rng
        for vector in range(3):
            for offset, value in ((0, self.message_address()), (4, rng.choice((0, 0, self.word()))), (8, self.word())):
                self.function.write(3, 16 * vector + offset, value)
            self.function.write(3, 16 * vector + 12, rng.choice((0, 0, 0, 1)))
        self.function.config.write(0x72, 2, 0x8000)
        self.function.config.write(0x04, 2, 0x0006)
        for decl, value in ((VfRegs.VTEIMS, 7), (VfRegs.VTEITR, 0), (VfRegs.VTEICS, rng.getrandbits(3))):
            self.function.write(0, decl.offset, value)

    def on_config(self) -> None:
        """Write configuration space anywhere, Bus Master Enable and FLR included."""
        rng = self.rng
        for _ in range(rng.randrange(1, 6)):
            offset = rng.choice((rng.randrange(4096), 0x04, 0x72, 0xA8, 0xA9, rng.randrange(0x10, 0x28)))
            self.function.config.write(offset, rng.choice((1, 2, 4, 4, 8, 3)), self.word())
            self.function.config.read(offset, rng.choice((1, 2, 4)))
        if rng.random() < 0.8:
            self.function.config.write(0x04, 2, 0x0006)

    def message(self, opcode: int, info: int = 0, *body: int) -> None:
        """Send a message to the PF."""
        self.function.write(0, VfRegs.V2PMAILBOX.offset, 4)
        words = [Message.of(OPCODE=opcode & 0xFFFF, INFO=info & 0xFF).value, *body]
        for i, word in enumerate(words[:MAILBOX_WORDS]):
            self.function.write(0, VfRegs.VMBMEM.at(i), word & 0xFFFFFFFF)
        self.function.write(0, VfRegs.V2PMAILBOX.offset, 1)

    def on_mailbox(self) -> None:
        """Send messages, some of which make sense, and read none of the answers."""
        rng = self.rng
        for _ in range(rng.choice((1, 1, 2, 20))):
            opcode = rng.choice((*Opcode, Opcode.RESET, rng.getrandbits(16)))
            mac = rng.choice((*self.macs, 0, rng.getrandbits(48)))
            body = rng.choice(([mac & 0xFFFFFFFF, mac >> 32], [self.word() for _ in range(15)], [rng.randrange(4200)]))
            self.message(opcode, rng.choice((0, 1, 2, 31, 0x80, rng.getrandbits(8))), *body)

    def on_hogging(self) -> None:
        """Keep the buffer, ring without end, write while the PF has it."""
        for _ in range(self.rng.randrange(1, 30)):
            self.function.write(0, VfRegs.V2PMAILBOX.offset, self.rng.choice((4, 5, 7, 1, 2, 3, 0xFFFFFFFF)))
            self.function.write(0, VfRegs.VMBMEM.at(self.rng.randrange(16)), self.word())

    def on_reset(self) -> None:
        """Reset the VF, one way or the other, and tell the PF, or not."""
        if self.rng.random() < 0.5:
            self.function.write(0, VfRegs.VTCTRL.offset, 1 << 26)
        else:
            self.function.config.write(0xA8, 2, 0x8000)
        if self.rng.random() < 0.7:
            self.function.config.write(0x04, 2, 0x0006)
            self.message(Opcode.RESET)

    def on_memory(self) -> None:
        """Change frames and descriptors under the device's hands."""
        self.function.config.write(0x04, 2, 0x0006)
        at = FRAMES + FRAME_STEP * self.rng.randrange(FRAME_COUNT)
        body = self.frame()
        self.memory[at : at + len(body)] = np.frombuffer(body, np.uint8)
        for region in (TX, RX):
            self.store64(region + 16 * self.rng.randrange(128), self.rng.getrandbits(64), self.rng.getrandbits(64))


def pattern(address: int, size: int) -> None:
    """Fill memory with canaries: every byte differs from its neighbours."""
    view_bytes(address, size)[:] = np.resize(np.arange(1, 252, dtype=np.uint8), size)
