"""Facts of the Intel 82576: registers of PF and VF, mailbox messages, descriptors, NVM and PHY.

Descriptors are plain ints for compiled kernels and stay in `desc`.
"""

from __future__ import annotations

from virtfn.hw.i82576.mailbox import (
    MAX_MULTICAST,
    MULTICAST_OVERFLOW,
    MacAction,
    Message,
    Opcode,
    Promisc,
    describe_message,
    hash_words,
    mac_words,
    multicast_hash,
    words_hashes,
    words_mac,
)
from virtfn.hw.i82576.nvm import Word, checksum_ok, default_image, image_mac, seal, word_count
from virtfn.hw.i82576.phy import PHY_ADDRESS, PhyRegs, phy_address
from virtfn.hw.i82576.regs import BAR0_BYTES, QUEUES, VECTORS, VF_VECTORS, VFS, Regs, vf_vector
from virtfn.hw.i82576.vfregs import MAILBOX_WORDS, VF_BAR0_BYTES, VF_QUEUES, VfRegs, vf_view

__all__ = [
    "BAR0_BYTES",
    "MAILBOX_WORDS",
    "MAX_MULTICAST",
    "MULTICAST_OVERFLOW",
    "PHY_ADDRESS",
    "QUEUES",
    "VECTORS",
    "VFS",
    "VF_BAR0_BYTES",
    "VF_QUEUES",
    "VF_VECTORS",
    "MacAction",
    "Message",
    "Opcode",
    "PhyRegs",
    "Promisc",
    "Regs",
    "VfRegs",
    "Word",
    "checksum_ok",
    "default_image",
    "describe_message",
    "hash_words",
    "image_mac",
    "mac_words",
    "multicast_hash",
    "phy_address",
    "seal",
    "vf_vector",
    "vf_view",
    "word_count",
    "words_hashes",
    "words_mac",
]
