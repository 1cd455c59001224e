"""A client's session: its messages, one by one, each done and answered before the next.

QEMU waits for answers with all of the virtual machine stopped: nothing here takes long, and nothing waits.
"""

from __future__ import annotations

import os
import select
from collections import Counter
from collections.abc import Callable

from virtfn.devices.virtio import BackEnd, Bridge
from virtfn.hw.virtio.net import Features
from virtfn.kernels.virtio.state import REGIONS
from virtfn.machine.virtio import RX, TX
from virtfn.vmm.connection import Connection, DroppedError, Message
from virtfn.vmm.vhost_user.inflight import check_record, new_record
from virtfn.vmm.vhost_user.limits import Limits
from virtfn.vmm.vhost_user.memory import ClientMemory, Region
from virtfn.vmm.vhost_user.messages import (
    ADDRESSES,
    INDEX,
    INFLIGHT,
    MEMORY_COUNT,
    NO_FD,
    NUMBER,
    OFFERED_PROTOCOL,
    REGION,
    SLOT,
    STATE,
    BadMessageError,
    Header,
    ProtocolFeatures,
    Request,
    check,
    exactly,
    reply,
)
from virtfn.vmm.vhost_user.rings import CALL, ERR, KICK, Ring

__all__ = ["Session"]

_FEATURES = Features.PROTOCOL_FEATURES.mask
_LEGACY = "legacy-driver"


class Session:
    """What one client has set up. signals: address of a SIGNALS row. counters: of messages, and what was refused."""

    def __init__(
        self,
        connection: Connection[Header],
        back: BackEnd,
        bridge: Bridge,
        signals: int,
        limits: Limits,
        counters: Counter[str],
    ) -> None:
        self.last_refusal = ""
        self._connection = connection
        self._back = back
        self._counters = counters
        self._memory = ClientMemory(limits)
        self._rings = [Ring(number, back, bridge, signals) for number in (RX, TX)]
        self._protocol = 0
        self._status = 0
        self._resumes = False  # rings begin where the used index says
        self._record: tuple[int, bytes] | None = None  # of chains under way: its file, and what the client knows of it
        for ring in self._rings:
            ring.enable(False)
        self._handlers: dict[Request, Callable[[Message[Header]], bytes | None]] = {
            Request.GET_FEATURES: lambda m: self._tell(m, self._back.offered | _FEATURES),
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: self._nothing,
            Request.RESET_OWNER: self._nothing,
            Request.SET_MEM_TABLE: self._set_memory,
            Request.SET_VRING_NUM: lambda m: self._ring_state(m, Ring.set_size),
            Request.SET_VRING_BASE: lambda m: self._ring_state(m, Ring.set_base),
            Request.SET_VRING_ADDR: self._set_addresses,
            Request.GET_VRING_BASE: self._get_base,
            Request.SET_VRING_KICK: self._set_kick,
            Request.SET_VRING_CALL: lambda m: self._set_other(m, CALL),
            Request.SET_VRING_ERR: lambda m: self._set_other(m, ERR),
            Request.GET_PROTOCOL_FEATURES: lambda m: self._tell(m, OFFERED_PROTOCOL),
            Request.SET_PROTOCOL_FEATURES: self._set_protocol,
            Request.SET_VRING_ENABLE: self._enable,
            Request.RESET_DEVICE: self._reset,
            Request.GET_MAX_MEM_SLOTS: lambda m: self._tell(m, REGIONS),
            Request.ADD_MEM_REG: self._add_region,
            Request.REM_MEM_REG: self._remove_region,
            Request.GET_INFLIGHT_FD: self._get_inflight,
            Request.SET_INFLIGHT_FD: self._set_inflight,
            Request.SET_STATUS: self._set_status,
            Request.GET_STATUS: lambda m: self._tell(m, self._status),
        }

    # The stream.

    def serve(self, events: int, budget: int) -> int:
        """Do messages that are there, at most `budget`; return how many.

        Raises DroppedError at the end.
        """
        connection = self._connection
        if events & select.EPOLLOUT:
            connection.flush()
        done = 0
        while done < budget and not connection.paused and not connection.lost:
            message = connection.receive()
            if message is None:
                break
            done += 1
            self._take(message)
            if message.header.request in _MEMORY:
                break  # it may take milliseconds: others have their turn
        if connection.lost:
            raise DroppedError(connection.lost)
        return done

    def _take(self, message: Message[Header]) -> None:
        """Do a message, and answer it; what it brought and nobody took is closed.

        Raises DroppedError for one that cannot be and whose sender does not ask what became of it.
        """
        header = message.header
        acknowledged = header.needs_reply and bool(ProtocolFeatures(self._protocol).REPLY_ACK)
        try:
            check(header.request in self._handlers, "unknown-request")
            request = Request(header.request)
            self._counters[request.name.lower()] += 1
            answer = self._handlers[request](message)
        except BadMessageError as e:
            self._counters[f"refused:{e.reason}"] += 1
            self.last_refusal = str(e)
            if not acknowledged or header.request in _ANSWERED:
                raise DroppedError(e.reason) from None
            answer = NUMBER.pack(1)
        else:
            if answer is None and acknowledged:
                answer = NUMBER.pack(0)
        finally:
            if message.close_fds():
                self._counters["fds-not-wanted"] += 1
        if answer is not None:
            fds = [self._record[0]] if self._record and header.request == Request.GET_INFLIGHT_FD else []
            self._connection.send(reply(header, answer), fds)

    def end(self) -> None:
        """Take back all that the client has set up; nothing of it is touched from now on."""
        self._stop()
        for ring in self._rings:
            ring.close()
        self._back.set_memory([])
        self._memory.close()
        self._connection.close()
        if self._record is not None:
            os.close(self._record[0])
            self._record = None

    # Messages; each returns its answer, or None.

    def _tell(self, message: Message[Header], value: int) -> bytes:
        check(not message.body, "wrong-size")
        return NUMBER.pack(value)

    def _nothing(self, message: Message[Header]) -> None:
        check(not message.body, "wrong-size")

    def _set_features(self, message: Message[Header]) -> None:
        (features,) = exactly(NUMBER, message.body)
        check(not features & ~(self._back.offered | _FEATURES), "features-not-offered")
        self._back.row["own"]["features"] = features & ~_FEATURES
        if not features & _FEATURES:
            for ring in self._rings:
                ring.enable(True)

    def _set_protocol(self, message: Message[Header]) -> None:
        (features,) = exactly(NUMBER, message.body)
        check(not features & ~OFFERED_PROTOCOL, "features-not-offered")
        self._protocol = features

    def _set_status(self, message: Message[Header]) -> None:
        (self._status,) = exactly(NUMBER, message.body)
        check(self._status <= 0xFF, "status")

    def _reset(self, message: Message[Header]) -> None:
        check(not message.body, "wrong-size")
        self._stop()
        for ring in self._rings:
            ring.close()
            ring.enable(False)
        self._status = 0

    def _stop(self) -> None:
        self._back.row["own"]["up"] = 0

    # Memory.

    def _set_memory(self, message: Message[Header]) -> None:
        check(len(message.body) >= MEMORY_COUNT.size, "wrong-size")
        count, _ = MEMORY_COUNT.unpack_from(message.body)
        check(len(message.body) == MEMORY_COUNT.size + count * REGION.size, "wrong-size")
        check(count == len(message.fds), "wrong-fds")
        regions = [Region._make(words) for words in REGION.iter_unpack(message.body[MEMORY_COUNT.size :])]
        self._memory.replace(regions, message.fds)
        self._use_memory()

    def _add_region(self, message: Message[Header]) -> None:
        check(len(message.fds) == 1, "wrong-fds")
        _, *region = exactly(SLOT, message.body)
        self._memory.add(Region._make(region), message.fds[0])
        self._use_memory()

    def _remove_region(self, message: Message[Header]) -> None:
        _, gpa, size, uva, _ = exactly(SLOT, message.body)
        self._memory.remove(gpa, size, uva)
        self._use_memory()

    def _use_memory(self) -> None:
        """Let kernels see the memory as it is now, and the rings in it."""
        self._back.set_memory(self._memory.table())
        for ring in self._rings:
            ring.move(self._memory)

    # Chains under way.

    def _get_inflight(self, message: Message[Header]) -> bytes:
        _, _, rings, size = self._inflight(message)
        if self._record is None:
            fd, nbytes = new_record(rings, size)
            self._record = fd, INFLIGHT.pack(nbytes, 0, rings, size)
        check(INFLIGHT.unpack(self._record[1])[2:] == (rings, size), "inflight-of-another-size")
        return self._record[1]

    def _set_inflight(self, message: Message[Header]) -> None:
        nbytes, offset, rings, size = self._inflight(message)
        check(len(message.fds) == 1, "wrong-fds")
        check(not any(ring.running for ring in self._rings), "ring-runs")
        check_record(message.fds[0], offset, nbytes, rings, size)
        self._resumes = True

    def _inflight(self, message: Message[Header]) -> tuple[int, ...]:
        """Read what a record is like; whether padding comes behind it depends on the client's compiler."""
        check(bool(ProtocolFeatures(self._protocol).INFLIGHT_SHMFD), "features-not-offered")
        body = message.body
        return exactly(INFLIGHT, body + bytes(4) if len(body) == INFLIGHT.size - 4 else body)

    # Rings.

    def _ring(self, number: int) -> Ring:
        check(number < len(self._rings), "no-such-ring")
        return self._rings[number]

    def _ring_state(self, message: Message[Header], change: Callable[[Ring, int], None]) -> None:
        number, value = exactly(STATE, message.body)
        change(self._ring(number), value)

    def _set_addresses(self, message: Message[Header]) -> None:
        number, flags, desc, used, avail, _ = exactly(ADDRESSES, message.body)
        check(flags == 0, "ring-flags")
        self._ring(number).set_parts(desc, used, avail)

    def _get_base(self, message: Message[Header]) -> bytes:
        number, _ = exactly(STATE, message.body)
        base = self._ring(number).stop()
        if not any(ring.running for ring in self._rings):
            self._stop()
        return STATE.pack(number, base)

    def _enable(self, message: Message[Header]) -> None:
        number, enabled = exactly(STATE, message.body)
        check(enabled <= 1, "ring-enable")
        self._ring(number).enable(bool(enabled))

    def _set_fd(self, message: Message[Header], kind: int) -> Ring:
        """Give a ring the eventfd that came, or none."""
        (word,) = exactly(NUMBER, message.body)
        check(word & ~(INDEX | NO_FD) == 0, "ring-fd")
        ring = self._ring(word & INDEX)
        check(len(message.fds) == (0 if word & NO_FD else 1), "wrong-fds")
        ring.set_fd(kind, message.fds[0] if message.fds else -1)
        message.fds.clear()
        return ring

    def _set_other(self, message: Message[Header], kind: int) -> None:
        self._set_fd(message, kind)

    def _set_kick(self, message: Message[Header]) -> None:
        ring = self._set_fd(message, KICK)
        if ring.running:
            return
        if not Features(int(self._back.row["own"]["features"])).VERSION_1:
            self._counters[_LEGACY] += 1  # its header and byte order are not ours: no frame is moved for it
            return
        ring.start(self._memory, resumes=self._resumes)
        self._back.row["own"]["up"] = 1


_MEMORY = {Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.REM_MEM_REG}
_ANSWERED = {
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.GET_VRING_BASE,
    Request.GET_QUEUE_NUM,
    Request.GET_INFLIGHT_FD,
    Request.GET_MAX_MEM_SLOTS,
    Request.GET_STATUS,
}
