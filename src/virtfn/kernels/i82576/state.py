"""The tables that the data plane runs on: one row a port, a pool, a queue; and why a frame was dropped.

    NIC             everything of one NIC; the rest are its members
    CARD            what kernels know of every card
    PORT            switch and interrupt state of the port
    POOL     (8,)   filtering target n: one VF, or the PF
    QUEUE    (16,)  receive queues, and again transmit queues; queue q belongs to pool q & 7 when pools are on
    COUNTERS        statistics of the port; per pool in POOL

All members are int64. Python writes the configuration members when a register changes, kernels the rest. A register
block's address (`regs`) is memory shared with the driver: kernels read tails from it and publish heads to it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from virtfn.kernels._jit import row_at, row_of
from virtfn.kernels.card import CARD, MSIX
from virtfn.kernels.csum import KEY_START
from virtfn.kernels.i82576.words import WORD, WORDS
from virtfn.kernels.ranges import address_of, row_address
from virtfn.kernels.tapring import TAP
from virtfn.kernels.vtd.iommu import Iommu

__all__ = [
    "CAPTURE_SLOTS",
    "CHAIN",
    "COUNTER_NAMES",
    "DROP_NAMES",
    "NIC",
    "POOLS",
    "QUEUES",
    "SCRATCH_BYTES",
    "TAPS",
    "new_nic",
    "nic_at",
]

POOLS = 8
QUEUES = 16
VECTORS = 25
# The scratch area, private copies: a head, a segment, a frame to split; and for each transmit queue the frame that it
# has gathered, up to the largest segmentation, until that is sent.
HEAD_AREA = 0
LOCAL_AREA = HEAD_AREA + 1024  # a head as `local.py` keeps it
SEGMENT_AREA = 16 << 10
SPLIT_AREA = 32 << 10
GATHER_AREA = 48 << 10
GATHER_BYTES = 272 << 10
SCRATCH_BYTES = GATHER_AREA + QUEUES * GATHER_BYTES
MAC_SLOTS = 128
TAPS = 4  # at a time
CAPTURE_SLOTS = 8192
CAPTURE_BYTES = 16 << 20
DEPARTURE_BYTES = 4 << 20  # frames that left by the wire and wait for the uplink
DEPARTURE_ALARM = 1 << 20  # from here on whoever serves the uplink is called
LOWEST = np.array([0] + [(n & -n).bit_length() - 1 for n in range(1, 256)], np.int64)  # first pool of a bitmap
PLAIN_TAG_AT = 12  # where a VLAN tag stands; behind an outer tag it is four bytes further
WIRE = 8  # the interface after the pools, in captures and drop tables


PORT = row_of(
    # receive and transmit enables and filters (RCTL, TCTL, VT_CTL, MRQC, DTXSWC, RPLOLR, DTXCTL)
    "rx_enable tx_enable vmdq rss rss_fields bam upe mpe vfe multicast_shift pad ign_mac default_pool replicate "
    "loopback self_loop strip_replicated max_frame max_tagged mdp spoof_int mirror "
    # tags (VET, CTRL_EXT): where the tag for filters stands; the type at byte 12 of tagged frames, and of that tag
    "tag_at tag_kind inner_kind "
    # TCP flags kept in segments (DTXTCPFLG), with the data offset, as loaded from the header
    "tcp_first tcp_middle tcp_last tcp_only "
    # pool bitmaps (VMOLR, VFRE, VFTE, DTXSWC, QDE)
    "bam_pools rompe_pools rope_pools mpme_pools aupe_pools rx_pools tx_pools mac_spoof_pools vlan_spoof_pools "
    "lle_pools drop_queues "
    # receive checksum offload (RXCSUM)
    "rx_ip_checksum rx_l4_checksum rss_in_descriptor "
    # interrupts
    "eicr eims eiac eiam automask pending "
    # the wire
    "wire_up wire_ps_per_byte wire_next_ps wire_rx_next_ps "
    # storm control (SCCRL), 0: off; length and end of its windows, the most bytes of each kind in one; what this one
    # had so far, and of what there was too much in it, and in the one before (`storm.py`)
    "storm storm_ps storm_end storm_most_broadcasts storm_most_multicasts storm_broadcasts storm_multicasts storm_over "
    "storm_before "
    # a frame that waits at the head of the line: who sent it, pools still owed, the call that last found it waiting
    "stalled stall_pools stall_tci stall_replicated stall_epoch "
    # malicious drivers seen (bitmap of transmit queues), and blocked
    "misbehaved blocked "
    # how often registers may have changed: what is remembered of them (`routes`) holds as long as this stays
    "era "
    # this call
    "epoch now capture capture_head capture_bytes "
    # addresses: the IOMMU's state, the scratch area, the captured bytes, the RSS key
    "iommu scratch captured rss_key "
    # address of the device TLB, 0 if the NIC has none
    "device_tlb "
    # frames for the uplink: address of the bytes, 0 without one; the part that nobody has taken yet; without padding
    "departures departed_head departed_tail departed_bare"
)

TURN = row_of(
    # the queue to begin with; time of the last call; pools that had frames, and the last call with several such; rounds
    # of credit; how many times queues were asked in turn, and until this call; since when claims count (`shares.py`)
    "first last ready contested round turns begun claims_since "
    # the queue (plus one) that has just held up the line, and so lets the others go first; all that do so
    "resumed yielded "
    # work done, and where a visit ends; bytes that found their place; whether a receiver had no descriptor
    "work work_stop taken refused "
    # receive queues with frames that are not in the counters yet (`local.py`)
    "touched"
)

POOL = row_of(
    "rid strip max_frame max_tagged rsse vlan_mode vlan_tag "
    # its rate, when it may send again, and when that last held it up (`tx.py`)
    "ps_per_byte next_ps held_ps "
    "gprc gorc mprc gptc gotc gprlbc gorlbc gptlbc gotlbc bprc"
)

# The chain at the head of a transmit queue: descriptors and bytes gathered so far, its first word; once it is whole:
# where it starts in the queue's area, its bytes, MSS, header bytes; what its segments need, and how many are sent.
CHAIN = (
    "walked gathered first_word whole chain_start chain_bytes chain_mss chain_header "
    "seg_l3 seg_l4 seg_flags seg_kind segments_done"
).split()

QUEUE = row_of(
    # wiring: register block, requester, pool, interrupt cause bit (0: none)
    "regs rid pool cause "
    # as latched from the registers
    "raw_base raw_len raw_control layout_raw enabled base size head published tail bad_tail "
    # whether the IOMMU refused the ring, which stands still since then, and no frame has been counted for that
    "refused "
    # receive: SRRCTL; transmit: head write-back
    "layout default_bytes packet_bytes header_bytes drop_enable head_wb "
    # the piece of the ring whose translation this call knows: descriptors win_lo..win_hi-1 at win_hpa
    "epoch win_lo win_hi win_hpa "
    # the page of a buffer whose translation it knows: where it begins, there and here, and its bytes (`local.py`)
    "near near_hpa near_bytes "
    # transmit: whether the last ordinary frames left by the wire (`whole.py`)
    "outward "
    # two transmit contexts (advanced descriptors)
    "context0_q0 context0_q1 context1_q0 context1_q1 " + " ".join(CHAIN) + " drops "
    # receive, while `local.py` serves one sender: descriptors at hand, `place` to `stop`; frames and bytes to count
    "place stop frames bytes"
)

# Where frames of a pool go, by their addresses and VLAN, as long as no register changes: era and pool, the first 8
# bytes, the rest of the source address and the VLAN, the receiving pool or -1.
ROUTE = row_of("stamp low high target")
ROUTES = 1024

COUNTER_NAMES = (
    "gprc gptc gorc gotc bprc bptc mprc mptc tpr tpt tor tot ruc roc rfc rnbc mpc "
    "prc64 prc127 prc255 prc511 prc1023 prc1522 ptc64 ptc127 ptc255 ptc511 ptc1023 ptc1522 "
    "rpthc hgptc hgorc hgotc tsctc ssvpc flooded"
).split()
COUNTERS = row_of(" ".join(COUNTER_NAMES))

# Why a frame went no further. The text is what reports show.
DROP_NAMES = (
    "rx-disabled",  # RCTL.RXEN or the pool's VFRE bit is clear
    "tx-disabled",  # the pool's VFTE bit or TCTL.EN is clear
    "vlan-filter",  # VFTA does not have the VLAN
    "vlan-membership",  # no addressed pool is a member of the VLAN, or takes untagged frames
    "no-match",  # no pool has the address
    "no-descriptor",  # the receive ring is empty
    "queue-disabled",  # the receive queue is not enabled
    "oversize",  # longer than the pool takes
    "undersize",  # shorter than a header
    "mac-spoof",  # source address is not the sender's
    "vlan-spoof",  # VLAN is not the sender's
    "dma-fault",  # the IOMMU refused
    "malformed",  # transmit descriptors make no sense
    "no-uplink",  # addressed to the wire, and nothing is there
    "echo",  # addressed to its own sender
    "page-absent",  # the receiver's page is not there yet, and has been asked for
    "uplink-full",  # left by the wire, and the uplink does not keep up
    "withdrawn",  # held up the line, and its sender took it away
    "storm",  # more went to many than storm control lets pass
)
(
    DROP_RX_DISABLED,
    DROP_TX_DISABLED,
    DROP_VLAN_FILTER,
    DROP_VLAN_MEMBERSHIP,
    DROP_NO_MATCH,
    DROP_NO_DESCRIPTOR,
    DROP_QUEUE_DISABLED,
    DROP_OVERSIZE,
    DROP_UNDERSIZE,
    DROP_MAC_SPOOF,
    DROP_VLAN_SPOOF,
    DROP_DMA_FAULT,
    DROP_MALFORMED,
    DROP_NO_UPLINK,
    DROP_ECHO,
    DROP_PAGE_ABSENT,
    DROP_UPLINK_FULL,
    DROP_WITHDRAWN,
    DROP_STORM,
) = range(19)

# Causes above the vectors, for a port without vectors: a queue received, a queue sent (RXDW and TXDW of ICR).
TX_CAUSE = 1 << 32
RX_CAUSE = 1 << 33

CAPTURE_RECORD = row_of("interface outbound length offset time_ps")

# points that taps want, as bits; why the latest frame was dropped; whether one of `local.py` could not be read
SEEN = row_of("points why unread")


NIC = np.dtype(
    [
        ("card", CARD),  # what every card has (`kernels/card.py`)
        ("port", PORT),
        ("turn", TURN),  # whose turn it is (`turns.py`)
        ("counters", COUNTERS),
        ("pools", POOL, (POOLS,)),
        ("rx", QUEUE, (QUEUES,)),
        ("tx", QUEUE, (QUEUES,)),
        ("drops", np.int64, (POOLS + 1, len(DROP_NAMES))),  # by pool, or the wire
        ("credit", np.int64, (POOLS, 2)),  # work that a pool may still do, and in which round (`turns.py`)
        # by receiving pool, or the wire, and by sending pool (`shares.py`)
        ("scarce", np.int64, (POOLS + 1,)),
        ("wanted", np.int64, (POOLS + 1, POOLS)),
        ("claims", np.int64, (POOLS + 1, POOLS)),
        ("had", np.int64, (POOLS + 1, POOLS)),
        ("routes", ROUTE, (ROUTES,)),
        ("macs", np.int64, (MAC_SLOTS, 2)),  # address or -1, pool bitmap
        ("vlans", np.int64, (4096,)),  # pool bitmap 7:0, in VFTA 8, local 10, VLVF entries 47:16
        ("multicast", np.uint32, (128,)),  # MTA
        ("unicast", np.uint32, (128,)),  # UTA
        ("reta", np.uint8, (128,)),
        ("rss_key", np.uint8, (64,)),  # as `toeplitz_key` lays it out
        ("mirrors", np.int64, (4, 4)),  # rule kinds, destination pool bit, VLVF entry bitmap, pool bitmap
        ("eitr", np.int64, (VECTORS, 2)),  # interval, and earliest next interrupt, in ps
        ("msix", MSIX, (POOLS + 1, VECTORS)),  # by VF, or the PF
        ("scratch", np.uint8, (SCRATCH_BYTES,)),  # private copies of frames
        ("capture", CAPTURE_RECORD, (CAPTURE_SLOTS,)),
        ("captured", np.uint8, (CAPTURE_BYTES,)),
        ("departed", np.uint8, (DEPARTURE_BYTES,)),
        ("seen", SEEN),
        ("to_wire", np.int64, (POOLS, 2)),  # frames of a pool, and their bytes
        ("dropped_bytes", np.int64, (POOLS + 1,)),  # of drops whose length is known
        ("taps", TAP, (TAPS,)),
        ("words", WORD, (WORDS,)),  # of the PF's BAR0, then of each VF's (`words.py`)
    ]
)
nic_at = row_at(NIC)


def new_nic(iommu: Iommu) -> npt.NDArray[np.void]:
    """Make the state of a NIC behind `iommu`, everything off, as (1,) NIC. Untouched parts cost no memory."""
    block = np.zeros(1, NIC)
    row_address(block, "the state of a NIC")
    nic = block[0]
    nic["macs"][:] = -1
    port = nic["port"]
    port["default_pool"] = -1
    port["era"] = 1
    nic["card"]["iommu"] = port["iommu"] = iommu.address
    scratch: npt.NDArray[np.uint8] = nic["scratch"]
    edges = (HEAD_AREA, SEGMENT_AREA, SPLIT_AREA, *range(GATHER_AREA, SCRATCH_BYTES + 1, GATHER_BYTES))
    for first, end in pairwise(edges):
        address_of(scratch[first:end], "a scratch area")
    port["scratch"] = scratch.ctypes.data
    port["captured"] = address_of(nic["captured"], "captured frames")
    port["rss_key"] = address_of(nic["rss_key"], "the RSS key") + KEY_START
    address_of(nic["departed"], "frames for the uplink")
    return block
