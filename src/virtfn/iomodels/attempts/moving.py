"""Attempts that race: memory that is taken away, descriptors that change, a VF that changes hands."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from virtfn.hw.types import Hpa
from virtfn.iomodels.attack import OUTSIDE, Attempt, Result, Stage, attempt
from virtfn.iomodels.attacker import ETHERTYPE, RING, data_word
from virtfn.iomodels.attempts.memory import overwrite, steal
from virtfn.machine.memory import PAGE
from virtfn.vmm.hostaddresses import host_address

__all__ = ["ATTEMPTS"]

_CHAINS = 40  # frames in the ring at a time
_ROUNDS = 45
_PIECE = 512
_PACES = 64, 4, 1  # frames that the device sends in one go: things change within, and between
_SHORT, _LONG = 64, 1500


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Do something over and over in another thread, as a second vCPU does, while the block runs."""
    done = threading.Event()

    def again() -> None:
        while not done.is_set():
            act()

    thread = threading.Thread(target=again)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)


@attempt("use-after-unmap", "goes on using a page, warm in the IOTLB, after the host has taken it for itself")
def use_after_unmap(stage: Stage) -> Result:
    """Keep descriptors to a page of the attacker's that is the host's by now."""
    attacker = stage.attacker
    iova, hva = attacker.alloc(PAGE)
    address = host_address(attacker.guest.memory, hva)
    attacker.arm_transmit()
    attacker.send(attacker.frame(OUTSIDE), (iova, _PIECE))
    stage.pump()
    warm = len(stage.take_heard())
    stage.take_page(attacker.rid, iova)
    page = stage.secret_at(address)
    page.address = iova
    stolen, spoilt = steal(stage, page), overwrite(stage, page)
    stage.give_page(attacker.rid, iova, address)
    return Result(stolen + spoilt, {"frames_while_mapped": warm, "bytes_read": stolen, "bytes_written": spoilt})


@attempt("changing-descriptors", "changes addresses and lengths of descriptors while the device reads them")
def changing_descriptors(stage: Stage) -> Result:
    """Flip descriptors, first between services of the device, then from another thread while it runs.

    Each frame is one of the two that a descriptor ever described, whole; or neither, and then it was refused.
    """
    stage.quiet()
    stage.take_heard()
    attacker, secret = stage.attacker, stage.host_page
    rng = np.random.default_rng(stage.random.getrandbits(32))
    own = rng.integers(1, 255, (2, _LONG), np.uint8)
    texts = []
    for pattern in own:
        address, size = attacker.frame(OUTSIDE, pattern[: _LONG - 14].tobytes(), length=_LONG)
        texts.append((address, attacker.view_frame(address, size).tobytes()))
    header, header_bytes = attacker.frame(OUTSIDE)
    total = header_bytes + _PIECE
    piece = texts[0][0] + 14

    def fill(flipped: bool) -> None:
        """Write the words that change, in all descriptors."""
        attacker.tx[1 : 3 * _CHAINS : 3, 0] = secret.address if flipped else piece
        attacker.tx[2 : 3 * _CHAINS : 3, 0] = texts[flipped][0]
        length = _LONG if flipped else _SHORT
        attacker.tx[2 : 3 * _CHAINS : 3, 1] = data_word(length, length)

    def arm() -> None:
        attacker.arm_transmit()
        attacker.tx[0 : 3 * _CHAINS : 3] = header, data_word(header_bytes, total, last=False)
        attacker.tx[1 : 3 * _CHAINS : 3, 1] = data_word(_PIECE, total)
        fill(False)
        attacker.kick(3 * _CHAINS)

    arm()
    for turn in range(2 * _CHAINS):
        fill(bool(turn & 1))
        stage.serve(1)

    def flip() -> None:
        fill(True)
        fill(False)

    with meanwhile(flip):
        for turn in range(_ROUNDS):
            attacker.renew()
            arm()
            while stage.serve(_PACES[turn % len(_PACES)]):
                pass
    frames = stage.take_heard()
    seen = _sort_frames(frames, header_bytes, texts[0][1], texts[1][1])
    return Result(seen["neither"], {**{f"frames_{k}": n for k, n in seen.items()}, "stolen": secret.stolen(frames)})


def _sort_frames(frames: list[bytes], header_bytes: int, old: bytes, new: bytes) -> Counter[str]:
    """Count the frames that `changing_descriptors` heard by what their descriptors were when they were read."""
    seen: Counter[str] = Counter({"old": 0, "new": 0, "neither": 0})
    for frame in frames:
        if frame[header_bytes:] == old[14 : 14 + _PIECE] or frame == old[:_SHORT]:
            seen["old"] += 1
        elif frame == new:
            seen["new"] += 1
        elif frame in (old, new[:_SHORT]):
            seen["half_old_half_new"] += 1  # two words of one descriptor, each of them whole, in own memory
        else:
            seen["neither"] += 1
    return seen


@attempt("foreign-memory-in-bursts", "sends bursts to a neighbour in which addresses change between own and the host's")
def foreign_in_bursts(stage: Stage) -> Result:
    """Take the device's shortest path, where one look at a header serves a whole run of frames."""
    stage.quiet()
    attacker, victim = stage.attacker, stage.victims[0]
    own, size = attacker.frame(victim.nics[0].driver.mac, length=_PIECE)
    page = stage.secret_at(stage.host.memory.alloc_page())
    # Memory of the host that looks like one more frame of the run: the switch has no reason to refuse it.
    page.now[:14] = attacker.view_frame(own, 14)
    page = stage.region(page.address, PAGE)
    taste = page.kept[16:48].tobytes()

    def fill(flipped: bool) -> None:
        """Write the addresses that change."""
        attacker.tx[1:_CHAINS:2, 0] = page.address if flipped else own

    def flip() -> None:
        fill(True)
        fill(False)

    stolen = sent = 0

    def burst(turn: int) -> None:
        nonlocal stolen, sent
        attacker.arm_transmit()
        attacker.tx[:_CHAINS] = own, data_word(size, size)
        fill(bool(turn & 1))
        attacker.kick(_CHAINS)
        while frames := stage.serve(_PACES[turn % len(_PACES)]):
            sent += frames
        stolen += stage.buffers_of(victim).count(taste)
        stage.pump(2)

    with stage.unheard():
        for turn in range(4):
            burst(turn)
        with meanwhile(flip):
            for turn in range(_ROUNDS):
                burst(turn)
    spoilt = page.changed()
    stage.host.memory.free_page(Hpa(page.address))
    return Result(stolen + spoilt, {"frames_served": sent, "buffers_with_the_secret": stolen})


@attempt(
    "changing-source-address",
    "changes the source address of a frame after the device has checked it",
    "the device checks and forwards one private copy of the header",
)
def changing_source(stage: Stage) -> Result:
    """Flip the source address in own memory while the device sends; no frame with the other's may come out."""
    stage.quiet()
    stage.take_heard()
    attacker = stage.attacker
    forged = stage.victims[0].nics[0].driver.mac
    pictures = [attacker.frame(OUTSIDE, source=source, length=_LONG) for source in (attacker.mac, forged)]
    heads = [attacker.view_frame(address, 12).copy() for address, _ in pictures]
    frame = attacker.view_frame(pictures[0][0], 12)

    def flip() -> None:
        frame[:] = heads[1]
        frame[:] = heads[0]

    def send() -> None:
        attacker.arm_transmit()
        for _ in range(_CHAINS):
            attacker.put(pictures[0])
        attacker.kick()

    send()
    for turn in range(_CHAINS):
        frame[:] = heads[turn & 1]
        stage.serve(1)
    with meanwhile(flip):
        for turn in range(_ROUNDS):
            send()
            while stage.serve(_PACES[turn % len(_PACES)]):
                pass
    heard = [f for f in stage.take_heard() if f[12:14] == ETHERTYPE]
    honest = sum(f[6:12] == heads[0][6:].tobytes() for f in heard)
    return Result(len(heard) - honest, {"frames_sent": (_ROUNDS + 1) * _CHAINS, "frames_honest": honest})


@attempt("taken-away-in-flight", "keeps its rings full while its VF is pulled and its memory goes to the next owner")
def taken_away(stage: Stage) -> Result:
    """Have DMA under way when the domain goes, then the VF; the next owner of either must notice nothing."""
    attacker, vf, guest = stage.attacker, stage.vf, stage.attacker.guest
    iova, hva = attacker.alloc(PAGE)
    attacker.arm_receive([iova] * (RING - 1))
    attacker.arm_transmit(write_back=iova + 2048)
    header = attacker.frame(OUTSIDE)
    for _ in range(RING // 2 - 1):
        attacker.put(header, (iova, _PIECE))
    attacker.kick()
    stage.serve(4)
    under_way = len(stage.take_heard())
    # The host takes everything away, without asking, while the device still has a hundred frames to send.
    if stage.remapping:
        stage.host.remapping.detach(vf.rid)
    page = stage.secret_at(host_address(guest.memory, hva))
    stage.inject(attacker.mac, bytes(range(64)))
    stage.serve()
    stage.pump()
    stolen, spoilt = page.stolen(stage.take_heard()), page.changed()
    page.restore()
    policy, mac = vf.policy, attacker.mac
    stage.iovm.take_back(vf, surprise=True)
    heir = stage.newcomer("heir")
    stage.iovm.assign(vf, heir, policy, mac)
    heir.nic(vf.rid).driver.start()
    stage.pump()
    stage.inject(mac, b"for the heir")
    stage.serve()
    inherited = len(stage.take_heard())
    buffers = stage.buffers_of(heir)
    late = page.changed() + page.stolen([buffers])
    stage.iovm.take_back(vf)
    heir.close()
    stage.iovm.assign(vf, guest, policy, mac)
    guest.nic(vf.rid).driver.start()
    attacker.seize()
    return Result(
        stolen + spoilt + inherited + late,
        {
            "frames_under_way": under_way,
            "bytes_read": stolen,
            "bytes_written": spoilt,
            "frames_inherited": inherited,
            "heir_got_its_frame": int(b"for the heir" in buffers),
        },
    )


ATTEMPTS: tuple[Attempt, ...] = (
    use_after_unmap,
    changing_descriptors,
    foreign_in_bursts,
    changing_source,
    taken_away,
)
