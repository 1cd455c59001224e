"""Which address is whose: each is one function's alone, and the host's word counts before a guest's wish.

    the PF     its own
    VF n       given: fixed by the host, or else offered by it, from then on, used or not
               taken: a trusted guest's choice instead, of what nobody has; the host may still give it to another VF
               further: a trusted guest's filters, of what nobody has; they go with its driver's next reset

An address leads frames to its VF and lets frames from it pass the spoof check: without trust, only the given one does.
Who asks for what is another's is refused, whoever came first and by whatever message, and that is told and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from virtfn.drivers.policy import Claim, VfPolicy
from virtfn.drivers.pools import Pools
from virtfn.hw.types import Mac, format_mac
from virtfn.machine.ports import VirtfnError

__all__ = ["Addresses"]


class Addresses:
    """The addresses of a port's functions. policies: the host's decisions, by VF."""

    def __init__(self, pools: Pools, policies: list[VfPolicy]) -> None:
        self._pools = pools
        self._policies = policies
        self._own = Mac(0)
        self._watchers: list[Callable[[Claim], None]] = []
        self._claims: list[int] = []
        self._offered: list[Mac] = []
        self._taken: list[Mac] = []

    def start(self, own: Mac, vfs: int) -> None:
        """Begin with `vfs` VFs that have none, on a PF with the address `own`."""
        self._own = own
        self._offered, self._taken = [Mac(0)] * vfs, [Mac(0)] * vfs
        self._claims = [0] * vfs

    def watch(self, tell: Callable[[Claim], None]) -> None:
        """Have it told when a guest asks for an address that is another's."""
        self._watchers.append(tell)

    def claims(self, n: int) -> int:
        """Count how often VF `n` has asked for an address that is another's, since it was last given to someone."""
        return self._claims[n]

    def of(self, n: int) -> Mac:
        """Return the address that VF `n` uses; 0 if it has none."""
        return self._taken[n] or self._given(n)

    def _given(self, n: int) -> Mac:
        return self._policies[n].mac or self._offered[n]

    def apply(self, n: int) -> None:
        """Lead the address of VF `n` to it."""
        mac = self.of(n)
        if mac:
            self._pools.set_address(n, mac)
        else:
            self._pools.clear_address(n)

    # The host.

    def fix(self, macs: Mapping[int, Mac]) -> list[int]:
        """Decide addresses, by VF, all or none; 0 leaves one at the offered. Returns the VFs that lose theirs by that.

        Raises VirtfnError, errno EADDRINUSE, for the PF's address, or another VF's by the host's own word.
        """
        fixed = [macs.get(n, policy.mac) for n, policy in enumerate(self._policies)]
        for n, mac in macs.items():
            given = [m for m in self._others(n) if mac and mac in (fixed[m], self._offered[m])]
            if given or mac == self._own:
                raise _taken(mac, given)
        changed = {n: mac for n, mac in macs.items() if mac != self._policies[n].mac}
        for n in changed:
            self._policies[n].mac = Mac(0)  # two may change places
        losers = []
        for n, mac in changed.items():
            losers += self._claim(n, mac) if mac else []
            self._policies[n].mac = mac
            if mac:
                self._taken[n] = Mac(0)
            self.apply(n)
        return losers

    def take_back(self, n: int) -> None:
        """Take from the guest of VF `n` the address that it chose: the host's counts again."""
        self._taken[n] = Mac(0)
        self.apply(n)

    def offer(self, n: int, mac: Mac) -> list[int]:
        """Give VF `n` an address that counts while none is fixed. Returns and raises as `fix` does."""
        losers = self._claim(n, mac)
        self._offered[n] = mac
        self.apply(n)
        return losers

    def _claim(self, n: int, mac: Mac) -> list[int]:
        """Take an address from all guests that chose it."""
        given = [m for m in self._others(n) if mac in (self._policies[m].mac, self._offered[m])]
        if given or mac == self._own:
            raise _taken(mac, given)
        losers = [m for m in self._others(n) if self._taken[m] == mac]
        for m in losers:
            self._taken[m] = Mac(0)
            self.apply(m)
        for m in self._pools.further_owners(mac) - {n}:
            self._pools.clear_addresses(m, mac)
        return losers

    def distrust(self, n: int) -> bool:
        """Leave VF `n` only what the host gave it; tell whether its address is another one now."""
        self._pools.clear_addresses(n)
        lost = self._taken[n] != 0
        if lost:
            self.take_back(n)
        return lost

    def forget(self, n: int) -> None:
        """Take every address of VF `n` away."""
        self._offered[n] = self._taken[n] = Mac(0)
        self._claims[n] = 0
        self._pools.clear_addresses(n)
        self.apply(n)

    # Guests.

    def take(self, n: int, mac: Mac) -> bool:
        """Let the guest of VF `n` choose its address; False for what is not its to choose."""
        given = self._given(n)
        if mac != given and not self._may_have(n, mac):
            return False
        self._taken[n] = Mac(0) if mac == given else mac
        self.apply(n)
        return bool(mac)

    def add(self, n: int, mac: Mac) -> bool:
        """Let the guest of VF `n` have a further address; False for what is not its to choose, or without room."""
        return mac == self.of(n) != 0 or (self._may_have(n, mac) and self._pools.add_address(n, mac))

    def _may_have(self, n: int, mac: Mac) -> bool:
        if not mac or mac & 1:
            return False
        holders = [m for m in self._others(n) if mac in (self._policies[m].mac, self._offered[m], self._taken[m])]
        holders += sorted(self._pools.further_owners(mac) - {n})
        if mac == self._own or holders:
            self._claims[n] += 1
            for tell in self._watchers:
                tell(Claim(n, mac, None if mac == self._own else holders[0]))
            return False
        return self._policies[n].trust

    def _others(self, n: int) -> list[int]:
        return [m for m in range(len(self._taken)) if m != n]


def _taken(mac: Mac, holders: list[int]) -> VirtfnError:
    holder = f"VF {holders[0]}'s" if holders else "the PF's"
    return VirtfnError(f"{format_mac(mac)} is {holder} already", errno_name="EADDRINUSE")
