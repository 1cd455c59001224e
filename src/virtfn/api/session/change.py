"""Change a lab that is up into another: all of it, or none.

    guests that leave are unplugged -> numbers of VFs -> policies -> guests that come are plugged in

A PF whose number of VFs changes is without VFs for a moment, as the specification wants it: its guests are unplugged
before, and plugged in again. What raises on the way is undone, step by step, also where nobody waits for the answer any
more; others go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from virtfn.api.lab import Guest, Lab
from virtfn.api.labchange import detached, function
from virtfn.api.labpolicy import driver_policy, switch_policy
from virtfn.api.session.events import GuestAttached, GuestDetached, VfsChanged
from virtfn.api.session.policy import set_policies
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:
    from virtfn.api.linux import LinuxGuest
    from virtfn.api.session.live import Live

__all__ = ["change"]

_Step: TypeAlias = Callable[[], InPieces[None]]


def change(live: Live, after: Lab) -> InPieces[None]:
    """Make the lab that is up like `after`, which differs in nothing that is fixed.

    Raises VirtfnError as all do that take part; then everything is as before, or the error says what is not. EBUSY if
    another change is under way.
    """
    if live.changing:
        raise VirtfnError("another change is under way; ask again later", errno_name="EBUSY")
    live.changing = True
    undo: list[_Step] = []
    try:
        try:
            yield from _carry_out(live, after, undo)
        except Exception as error:
            wrong = yield from _take_back(undo)
            if wrong and isinstance(error, VirtfnError):
                error.args = (f"{error}; and what was done could not be undone: {'; '.join(wrong)}",)
            raise
    except BaseException:
        _take_back_at_once(undo)
        raise
    finally:
        live.changing = False


def _take_back(undo: list[_Step]) -> InPieces[list[str]]:
    """Undo all of it, the last first; return what went wrong, in words."""
    wrong = []
    while undo:
        try:
            yield from undo.pop()()
        except Exception as error:  # the other steps are no worse for it
            wrong.append(str(error))
    return wrong


def _take_back_at_once(undo: list[_Step]) -> None:
    """Undo what is left, and wait for no guest: the lab ends."""
    while undo:
        with suppress(Exception):
            pieces = undo.pop()()
            next(pieces, None)
            pieces.close()


def _at_once(act: Callable[..., object], *args: object) -> InPieces[None]:
    """Do what takes no time: one piece."""
    act(*args)
    yield


def _carry_out(live: Live, after: Lab, undo: list[_Step]) -> InPieces[None]:
    machine, before = live.machine, live.running_lab()
    counts = {pf.name: pf.total_vfs for pf in after.pfs if pf.total_vfs != before.pf(pf.name).total_vfs}
    for pf in machine.pfs:
        if not pf.driven and after.pf(pf.name).sr_iov != before.pf(pf.name).sr_iov:
            words = f"{pf.name} is a guest's, whole: its VFs and their policies are changed there, by ip and sysfs"
            raise VirtfnError(words, errno_name="EBUSY")
    old, new = ({guest.name: guest for guest in lab.guests} for lab in (before, after))
    moving = {name for name in old if old[name].nic != new[name].nic or old[name].nic.pf in counts}
    for served in live.served:
        if served.lab.name in moving:
            words = f"the QEMU of guest {served.lab.name} is started elsewhere, and has its function from its start on"
            raise VirtfnError(words, errno_name="EOPNOTSUPP")
    for name in (name for name in old if name in moving and old[name].nic.attached and name not in live.ended):
        undo.append(partial(_attach, live, old[name]))
        yield from _detach(live, old[name])
    policies_before = {pf.name: dict(pf.policies) for pf in machine.pfs}
    undo.append(partial(_at_once, _use, live, machine.lab, policies_before))
    switched = [pf for pf in machine.pfs if pf.driven and after.pf(pf.name).sr_iov != before.pf(pf.name).sr_iov]
    # Once its VFs are back.
    undo += [partial(_at_once, pf.driver.set_switch, pf.driver.switch_policy()) for pf in switched]
    for name, count in counts.items():
        pf = machine.pf(name)
        undo.append(partial(_at_once, machine.set_vfs, pf, len(pf.vfs)))
        had = len(pf.vfs)
        machine.set_vfs(pf, count)
        live.tell_event(VfsChanged(name, had, count))
        yield
    for pf in (pf for pf in machine.pfs if pf.driven):
        wanted = after.pf(pf.name)
        policies = {n: driver_policy(wanted.policy(n)) for n in range(wanted.total_vfs)}
        changed = {n: policy for n, policy in policies.items() if policy != machine.policy(pf, pf.vfs[n])}
        if changed:
            undo.append(partial(_at_once, set_policies, pf, {n: machine.policy(pf, pf.vfs[n]) for n in changed}))
            set_policies(pf, changed)
            yield
        if wanted.sr_iov is not None and switch_policy(wanted.sr_iov) != pf.driver.switch_policy():
            pf.driver.set_switch(switch_policy(wanted.sr_iov))
    _use(live, after, {})
    for name in (name for name in new if name in moving and new[name].nic.attached):
        linux = _plug(live, new[name])
        undo.append(partial(_detach, live, new[name]))
        yield
        if linux is not None:
            yield from live.set_up(linux)


def _use(live: Live, lab: Lab, policies: Mapping[str, Mapping[int, object]]) -> None:
    """Let a lab be the one that runs, but for guests that have ended. policies: by PF, where they are not its."""
    live.machine.lab = detached(lab, live.ended)
    for pf in live.machine.pfs:
        pf.policies.clear()
        pf.policies.update(policies.get(pf.name, {}))  # type: ignore[arg-type]


def _detach(live: Live, guest: Guest) -> InPieces[None]:
    """Unplug the VF of a guest, once it has let go or had time to, and make it as new.

    One that has ended has none.
    """
    machine = live.machine
    linux = live.linux_guest(guest.name)
    if linux is not None:
        vf = linux.plug.vf
        linux.attached, linux.device = False, ""
        if vf is not None:
            try:
                yield from linux.vm.let_go(vf.rid)
            finally:
                machine.iovm.take_back(vf)
    elif guest.name in live.ended:
        return
    else:
        run = next(run for run in machine.guests if run.lab.name == guest.name)
        if live.standing is not None:
            live.standing.settle(run.pf, without=guest.name)
        machine.detach(run)
    live.tell_event(GuestDetached(guest.name, function(guest.nic)))
    yield


def _attach(live: Live, guest: Guest) -> InPieces[None]:
    """Plug a VF into a guest, and let it bring its interface up."""
    linux = _plug(live, guest)
    yield
    if linux is not None:
        yield from live.set_up(linux)


def _plug(live: Live, guest: Guest) -> LinuxGuest | None:
    """Plug a VF into a guest; return it if it is under QEMU, and finds that itself."""
    if guest.name in live.ended:
        raise VirtfnError(f"guest {guest.name} has ended; virtfn down, then up", errno_name="ENODEV")
    machine = live.machine
    linux = live.linux_guest(guest.name)
    pf = machine.pf(guest.nic.pf)
    if linux is not None:
        linux.plug = machine.model(pf, guest.nic.io).plug(linux.vm, machine.wish(pf, guest))
        linux.lab, linux.pf, linux.attached = guest, pf, True
    else:
        machine.attach(guest)
        if live.standing is not None:
            live.standing.settle(pf)
    live.tell_event(GuestAttached(guest.name, function(guest.nic)))
    return linux
