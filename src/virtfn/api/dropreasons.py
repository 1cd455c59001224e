"""What each drop reason of a report means, and what to do about it: the words of `docs/reference/drops.md`.

The reasons themselves are counted by the kernels: of the card (`kernels/i82576/state.py`, DROP_NAMES) and of the host's
bridge (`kernels/virtio/bridge.py`). `driver-reset` is the report's own. With `host-` before it, a reason is about the
rings that the host itself has on a PF, which split and direct guests share.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DROP_REASONS", "DropReason"]


class DropReason(NamedTuple):
    """A reason, explained. counted: for whom; what: happened, in a line; why: it does; remedy: what to do."""

    counted: str
    what: str
    why: str
    remedy: str


DROP_REASONS = {
    "rx-disabled": DropReason(
        "sender, wire",
        "those whom it is for may not receive",
        "Receiving is off: for the whole port (RCTL.RXEN), or for every pool that the frame is for (VFRE). A reset of "
        "a VF clears its bit; the PF driver sets it again when the VF's driver introduces itself by mailbox. A VF in "
        "quarantine stays off.",
        "Bring the receiver's interface up. A few of these while a guest starts, stops or resets are normal. If they "
        "go on, see in a trace whether the PF answers the receiver's RESET message.",
    ),
    "tx-disabled": DropReason(
        "nobody, so far",
        "the sender may not send",
        "Sending is off: for the whole port (TCTL.EN) or for the pool (VFTE). The card then fetches no descriptors, "
        "so frames stay in the sender's ring and are not dropped. The reason is kept for a path that would drop them.",
        "Nothing, as long as it is zero. Frames that wait leave when sending is on again; a driver that resets its VF "
        "meanwhile gives them up, see driver-reset.",
    ),
    "vlan-filter": DropReason(
        "sender, wire",
        "its VLAN is in nobody's filter",
        "The VLAN filter is on (RCTL.VFE), and VFTA does not have the frame's VLAN: no function of the card is in it. "
        "A frame of a guest is counted only where it cannot leave by the wire either.",
        "Join the VLAN in the guest that is to receive, or give its VF the VLAN as port VLAN (vlan-id). If nobody is "
        "to have it, nothing is wrong.",
    ),
    "vlan-membership": DropReason(
        "sender, wire",
        "who has its address is not in its VLAN",
        "A pool has the destination address, but is no member of the frame's VLAN (VLVF), or takes no untagged frames "
        "(VMOLR.AUPE clear, as with a port VLAN). A guest's frame leaves by the wire instead, if one is up; one of a "
        "local VLAN never does.",
        "Put sender and receiver into the same VLAN: the same vlan-id for both VFs, or the same VLAN interface in "
        "both guests. Between guests that are to be kept apart, this is the filter at work.",
    ),
    "no-match": DropReason(
        "sender, wire",
        "nobody has its address",
        "No address register, no hash table and no promiscuous pool takes the destination. A guest's frame is then "
        "one for the wire; it is counted here only where no wire is up. From the wire it is a frame for somebody "
        "else.",
        "On the sender's side, look for a wrong destination (an old ARP entry, a receiver that changed its address), "
        "or give the PF an uplink. On a shared wire a few are normal.",
    ),
    "no-descriptor": DropReason(
        "receiver",
        "the receive ring is empty",
        "The guest did not give descriptors back as fast as frames came, or a frame needs more of them than there "
        "are. Only queues that may drop count it (SRRCTL.DROP_EN or QDE); others hold up the line instead.",
        "Send less, with max-tx-rate on the senders' VFs, or let the receiver do more: a larger ring in a Linux guest "
        "(ethtool -G), fewer guests on the same processors. With many senders to one receiver it is to be expected.",
    ),
    "queue-disabled": DropReason(
        "receiver",
        "the receive queue is off",
        "The pool may receive, but the queue chosen for the frame is not running: RXDCTL.ENABLE is clear, its ring "
        "has no length, or its function may not master the bus. A ring that the IOMMU refused is stopped the same "
        "way.",
        "Bring the receiver's interface up. If it is up, look for dma-fault of the same guest just before, and at "
        "RXDCTL in a trace.",
    ),
    "oversize": DropReason(
        "sender, receiver, wire",
        "it is longer than allowed",
        "Of the sender and the wire: more than the card carries, 9728 bytes with the frame check sequence. Of the "
        "receiver: more than its pool takes (VMOLR.RLPML, from the MTU that its driver told the PF), or more than its "
        "whole ring could hold. A replayed capture may hold frames that a guest cannot send.",
        "Use one MTU in all guests that talk to each other; in a lab, check frame-bytes.",
    ),
    "undersize": DropReason(
        "sender, wire",
        "it is shorter than an Ethernet header",
        "The frame has fewer than 14 bytes, so there are no addresses to go by. Replaying a capture, the report "
        "counts here what a guest could not send.",
        "Mend the driver, or leave such frames out of the capture.",
    ),
    "mac-spoof": DropReason(
        "sender",
        "its source address is not the sender's",
        "The spoof check is on for the pool (DTXSWC.MACAS), and none of the pool's addresses is the frame's source. A "
        "bridge in a guest, or an address changed by hand, looks just like an attack.",
        "Give the VF the address (mac-address), or let the guest ask for it (trust: true), or switch the check off "
        "(spoof-check: false), which takes the protection from everybody else.",
    ),
    "vlan-spoof": DropReason(
        "sender",
        "its VLAN is not the sender's",
        "The spoof check is on for the pool (DTXSWC.VLANAS), and the pool is no member of the VLAN that the frame "
        "names. Untagged frames pass.",
        "Let the guest's driver join the VLAN, by an interface for it; a guest with a port VLAN has that one only. Or "
        "switch the check off (spoof-check: false).",
    ),
    "dma-fault": DropReason(
        "sender, receiver",
        "the IOMMU refused its memory",
        "A descriptor or the ring named an address that the function's domain does not have, or not with that right. "
        "What was refused was not touched. A ring that is refused stops; a buffer that is refused costs its frame.",
        "See the faults with `virtfn iommu show`, and one address with `virtfn iommu explain RID IOVA`. It is a "
        "mistake of the guest's driver, or memory that was taken away while the card still had it.",
    ),
    "malformed": DropReason(
        "sender",
        "its descriptors make no sense",
        "Lengths that contradict each other, a chain of unlike or unknown descriptors, one that is longer than the "
        "ring or than the largest send, or offloads that do not fit the frame. The queue is reported to the PF (WVBR, "
        "LVMMC), and blocked if the PF asked for that (DTXCTL.MDP_EN).",
        "Mend the guest's driver. What the queue was set up with is in a trace; descriptors are in the guest's memory.",
    ),
    "no-uplink": DropReason(
        "sender, wire",
        "it is for the wire, and nothing is there",
        "The frame was to leave and no uplink is connected, or its other end has gone. What already waited for the "
        "uplink when that went is counted for the wire. Where pools are on and the address is nobody's, the reason is "
        "no-match.",
        "Give the PF an uplink in the lab, or bring the other end back.",
    ),
    "echo": DropReason(
        "sender",
        "it is for its own sender",
        "The only pool that would get the frame is the one that sent it, and frames do not return to their pool "
        "(DTXSWC.LLE clear). A broadcast in a VLAN where the sender is alone ends like this, too.",
        "Nothing, as a rule: a guest talks to itself without its card. Look for two interfaces with one address.",
    ),
    "page-absent": DropReason(
        "receiver",
        "the receiver's page is not there yet",
        "The card has a device TLB (ATS) and may ask for pages. A page of the ring or of a buffer is not mapped, and "
        "has been asked for; meanwhile the frame is treated as without a descriptor.",
        "A few are normal when memory comes on demand. If they go on, the domain's pager does not answer, or refuses.",
    ),
    "uplink-full": DropReason(
        "wire",
        "the uplink does not keep up",
        "Frames that left wait in a store of 4 MiB, and whoever is at the other end does not read fast enough.",
        "See what the other end does; or give the port a pace with link-mbps, so that its senders share the wire.",
    ),
    "withdrawn": DropReason(
        "sender",
        "its sender took it away while it waited",
        "The frame held up the line for a receiver that must not drop. Before that receiver had a descriptor, the "
        "sender stopped or moved its queue, or changed the frame so that it is no longer for those who waited.",
        "Nothing: a sender may do so. Receivers that drop (SRRCTL.DROP_EN, as the drivers here set it) never hold up "
        "the line.",
    ),
    "storm": DropReason(
        "sender, wire",
        "more went to many than storm control lets pass",
        "The host limits broadcasts or multicasts of all senders together (storm-control; SCCRL, BSCTRH, MSCTRH), and "
        "this window of time had its share. The frame goes nowhere: neither to pools nor to the wire.",
        "Find who sends so many: the counts are by sender. Or raise the limit.",
    ),
    "driver-reset": DropReason(
        "its driver",
        "the rings held it when they were stopped",
        "Counted by the driver of an embedded guest, not by the card: frames not sent yet, or received and not looked "
        "at, when the driver reset its VF or lost it.",
        "See why the driver was reset: the PF was, the mailbox did not answer, or the function was pulled.",
    ),
    "down": DropReason(
        "receiver",
        "the receiver's interface is not up",
        "A port of the host's bridge has no driver that has started: of a front end, or of the PF.",
        "Bring the receiver's interface up. A few of these while guests start and stop are normal.",
    ),
    "no-buffer": DropReason(
        "receiver",
        "the receiver has no free buffer",
        "The host's bridge never waits: a front end without a chain in its receive ring, or a full transmit ring of "
        "the PF or of an emulated card, loses the frame, as a switch does whose queue is full.",
        "Send more slowly, or give the receiver more time. Where guests send as fast as they can, this is what a back "
        "end that is the bottleneck looks like.",
    ),
    "too-small": DropReason(
        "receiver",
        "the receiver's buffer does not hold it",
        "The next chain of a front end's receive ring is shorter than the frame, and mergeable buffers were not agreed "
        "on.",
        "Give the front end larger buffers, or let it ask for mergeable ones.",
    ),
    "too-long": DropReason(
        "receiver",
        "it is longer than the receiver's card sends",
        "A frame for the rings of a card is longer than these take.",
        "Use smaller frames, or the same MTU everywhere.",
    ),
    "spoof": DropReason(
        "sender",
        "its source is not the sender's address",
        "The host's bridge lets a guest send by its own address alone.",
        "Let the guest use the address that it was given.",
    ),
    "nobody": DropReason(
        "sender",
        "the bridge has no other port",
        "It is for everybody, or for an address that nobody is known to have, and there is no other port.",
        "Nothing, if the guest is alone.",
    ),
}
