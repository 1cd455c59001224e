"""Change a lab that is up into another: all of it, or none.

    guests that leave are unplugged -> numbers of VFs -> policies -> guests that come are plugged in

A PF whose number of VFs changes is without VFs for a moment, as the specification wants it: its guests are unplugged
before, and plugged in again. What raises on the way is undone, step by step; others go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from virtfn.api.lab import Guest, Lab
from virtfn.api.labchange import function
from virtfn.api.labpolicy import driver_policy, switch_policy
from virtfn.api.session.events import GuestAttached, GuestDetached, VfsChanged
from virtfn.api.session.policy import set_policies
from virtfn.machine.pieces import InPieces
from virtfn.machine.ports import VirtfnError

if TYPE_CHECKING:
    from virtfn.api.linux import LinuxGuest
    from virtfn.api.session.live import Live

__all__ = ["change"]


def change(live: Live, after: Lab) -> InPieces[None]:
    """Make the lab that is up like `after`, which differs in nothing that is fixed.

    Raises VirtfnError as all do that take part; then everything is as before, or the error says what is not. EBUSY if
    another change is under way.
    """
    if live.changing:
        raise VirtfnError("another change is under way; ask again later", errno_name="EBUSY")
    live.changing = True
    undo: list[Callable[[], object]] = []
    try:
        yield from _carry_out(live, after, undo)
    except BaseException as error:
        wrong = _take_back(undo)
        if wrong and isinstance(error, VirtfnError):
            error.args = (f"{error}; and what was done could not be undone: {'; '.join(wrong)}",)
        raise
    finally:
        live.changing = False


def _take_back(undo: list[Callable[[], object]]) -> list[str]:
    wrong = []
    for step in reversed(undo):
        try:
            step()
        except VirtfnError as error:
            wrong.append(str(error))
    return wrong


def _carry_out(live: Live, after: Lab, undo: list[Callable[[], object]]) -> InPieces[None]:
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
    for name in (name for name in old if name in moving and old[name].nic.attached):
        _detach(live, old[name])
        undo.append(partial(_attach, live, old[name]))
        yield
    undo.append(partial(_use, live, machine.lab, {pf.name: dict(pf.policies) for pf in machine.pfs}))
    switched = [pf for pf in machine.pfs if pf.driven and after.pf(pf.name).sr_iov != before.pf(pf.name).sr_iov]
    undo += [partial(pf.driver.set_switch, pf.driver.switch_policy()) for pf in switched]  # once its VFs are back
    for name, count in counts.items():
        pf = machine.pf(name)
        undo.append(partial(machine.set_vfs, pf, len(pf.vfs)))
        had = len(pf.vfs)
        machine.set_vfs(pf, count)
        live.tell_event(VfsChanged(name, had, count))
        yield
    for pf in (pf for pf in machine.pfs if pf.driven):
        wanted = after.pf(pf.name)
        policies = {n: driver_policy(wanted.policy(n)) for n in range(wanted.total_vfs)}
        changed = {n: policy for n, policy in policies.items() if policy != machine.policy(pf, pf.vfs[n])}
        if changed:
            undo.append(partial(set_policies, pf, {n: machine.policy(pf, pf.vfs[n]) for n in changed}))
            set_policies(pf, changed)
            yield
        if wanted.sr_iov is not None and switch_policy(wanted.sr_iov) != pf.driver.switch_policy():
            pf.driver.set_switch(switch_policy(wanted.sr_iov))
    _use(live, after, {})
    for name in (name for name in new if name in moving and new[name].nic.attached):
        linux = _attach(live, new[name])
        undo.append(partial(_detach, live, new[name]))
        yield
        if linux is not None:
            yield from live.set_up(linux)


def _use(live: Live, lab: Lab, policies: dict[str, dict[int, object]]) -> None:
    """Let a lab be the one that runs. policies: by PF, where they are not what it says."""
    live.machine.lab = lab
    for pf in live.machine.pfs:
        pf.policies.clear()
        pf.policies.update(policies.get(pf.name, {}))  # type: ignore[arg-type]


def _detach(live: Live, guest: Guest) -> None:
    """Unplug the VF of a guest, and make it as new."""
    machine = live.machine
    linux = live.linux_guest(guest.name)
    if linux is not None:
        vf = linux.plug.vf
        linux.attached, linux.device = False, ""
        if vf is not None:
            machine.iovm.take_back(vf)
    else:
        run = next(run for run in machine.guests if run.lab.name == guest.name)
        if live.standing is not None:
            live.standing.settle(run.pf, without=guest.name)
        machine.detach(run)
    live.tell_event(GuestDetached(guest.name, function(guest.nic)))


def _attach(live: Live, guest: Guest) -> LinuxGuest | None:
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
