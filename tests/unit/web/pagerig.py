"""A lab of the tests' own for the page: counters grow with time, policies can be changed, names are hostile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import Request
from starlette.responses import Response

from virtfn.api.session.requests import REQUESTS
from virtfn.machine.ports import VirtfnError
from virtfn.web.app import make_app
from virtfn.web.door import Door
from virtfn.web.methods import answer
from virtfn.web.serve import listen

TOKEN = "the-token-of-the-page"
MARKUP = "<img src=x onerror=alert(1)>"


class PageLab:
    """Answers what the page asks. asked: every question. gone: whether it answers at all. began: of its time."""

    def __init__(self, vfs: int = 4, guests: tuple[str, ...] = ("web", "db", MARKUP)) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.gone = False
        self.began = time.monotonic() - 100
        self.guests = guests
        self.links = [self._link(n) for n in range(vfs)]
        self.states = [self._state(n) for n in range(vfs)]
        self.events = [
            ("STATE_CHANGED", {"before": "starting", "state": "ready"}),
            ("GUEST_BOOTED", {"guest": guests[0], "vmm": "qemu", "boot_s": 7.8}),
            ("GUEST_BOOTED", {"guest": guests[2], "vmm": "embedded", "boot_s": 0.0}),
            (
                "FAULTS_RECORDED",
                {"count": 3, "rid": "0000:02:10.4", "iova": 0xDEAD000, "reason": MARKUP, "write": True},
            ),
        ]

    def _owner(self, n: int) -> str | None:
        return self.guests[n] if n < len(self.guests) else None

    def _link(self, n: int) -> dict[str, Any]:
        return {
            "vf": n,
            "address": f"02:00:00:00:00:{n:02x}",
            "vlan_list": [{"vlan": 10, "qos": 3}] if n == 1 else [{}],
            "rate": {"max_tx": 500 if n == 0 else 0, "min_tx": 0},
            "spoofchk": n != 2,
            "link_state": "auto",
            "trust": n == 2,
        }

    def _state(self, n: int) -> dict[str, Any]:
        return {
            "pf": "pf0",
            "vf": n,
            "address": f"0000:02:10.{2 * n}",
            "guest": self._owner(n),
            "state": "assigned" if self._owner(n) else "free",
            "throttled_mbps": None,
            "why": "",
            "watch": {"spoof": {"per_second": 12 if n == 2 else 0, "allowed": 100, "action": "quarantine"}},
        }

    def ask(self, method: str, params: Mapping[str, object]) -> object:
        """Answer as a lab does. Raises VirtfnError."""
        if self.gone:
            raise VirtfnError("no lab called page is running")
        self.asked.append((method, dict(params)))
        answer = getattr(self, "_" + method.replace(".", "_"), None)
        if answer is None:
            raise VirtfnError("no such method", errno_name="EOPNOTSUPP")
        return answer(dict(params))

    def _session_snapshot(self, _: Mapping[str, Any]) -> object:
        now = time.monotonic() - self.began
        frames = [int(now * 148_800 / (n + 1)) for n in range(len(self.links))]
        drops = int(now * 12)
        return {
            "lab": "page",
            "state": "ready",
            "elapsed_s": round(now, 3),
            "guests": [
                {
                    "name": name,
                    "io": "sriov",
                    "vmm": "qemu" if n == 0 else "embedded",
                    "address": f"0000:02:10.{2 * n}",
                    "tx_frames": frames[n],
                    "tx_bytes": frames[n] * 1514,
                    "rx_frames": frames[n] // 2,
                    "rx_bytes": frames[n] * 757,
                    "dropped": {"mac-spoof": drops} if n == 2 else {},
                    "exits": int(now * 3),
                    "interrupts": int(now * 800),
                }
                for n, name in enumerate(self.guests)
            ],
            "pfs": [
                {
                    "name": "pf0",
                    "address": "0000:01:00.0",
                    "switch": {
                        "forwarded": sum(frames),
                        "flooded": 12,
                        "dropped": {"mac-spoof": drops, "no-uplink": 40},
                    },
                    "vfs": [
                        {
                            "vf": n,
                            "address": f"0000:02:10.{2 * n}",
                            "guest": self._owner(n),
                            "tx_frames": frames[n] if self._owner(n) else 0,
                            "rx_frames": 0,
                            "dropped": {"mac-spoof": drops} if n == 2 else {},
                        }
                        for n in range(len(self.links))
                    ],
                }
            ],
            "iommu": {
                "iotlb_hits": int(now * 400_000),
                "iotlb_misses": 44,
                "page_walks": 44,
                "faults": 3,
                "interrupts": int(now * 900),
                "blocked": 0,
            },
        }

    def _session_look(self, params: Mapping[str, Any]) -> object:
        return {
            "snapshot": self._session_snapshot({}),
            "events": self._events_read({"since": params["events"]}),
            "messages": self._mailbox_read({"since": params["messages"]}),
            "links": self._link_show({}) if params["policies"] else None,
            "vfs": self._vf_list({}) if params["policies"] else None,
        }

    def _link_show(self, _: Mapping[str, Any]) -> object:
        return [{"ifname": "pf0", "operstate": "UP", "vfinfo_list": self.links}]

    def _link_set(self, params: Mapping[str, Any]) -> object:
        for setting in params["settings"]:
            link = self.links[setting["vf"]]
            if setting.get("max_tx_rate", 0) > 1000:
                raise VirtfnError(f"max_tx_rate is up to 1000, the port's {MARKUP}", errno_name="EINVAL")
            if "vlan" in setting:
                link["vlan_list"] = [{"vlan": setting["vlan"], "qos": setting.get("qos", 0)}]
            link["trust"] = setting.get("trust", link["trust"])
            link["spoofchk"] = setting.get("spoofchk", link["spoofchk"])
            link["link_state"] = setting.get("state", link["link_state"])
            link["address"] = setting.get("mac", link["address"])
            link["rate"]["max_tx"] = setting.get("max_tx_rate", link["rate"]["max_tx"])
        return self._link_show({})

    def _vf_list(self, _: Mapping[str, Any]) -> object:
        return self.states

    def _vf_quarantine(self, params: Mapping[str, Any]) -> object:
        self.states[params["vf"]].update(state="quarantined", why=params.get("why", "by hand"))
        return self.states[params["vf"]]

    def _vf_release(self, params: Mapping[str, Any]) -> object:
        self.states[params["vf"]].update(state="assigned", why="")
        return self.states[params["vf"]]

    def _events_read(self, params: Mapping[str, Any]) -> object:
        since = params.get("since", 0)
        told = [
            {"sequence": k, "event": name, "timestamp": _stamp(), "data": data}
            for k, (name, data) in enumerate(self.events)
        ]
        return {"events": told[since:], "lost": 0, "next": len(told)}

    def _mailbox_read(self, params: Mapping[str, Any]) -> object:
        words = [(k % 3, k % 2 == 0) for k in range(12)]
        told = [
            {
                "sequence": k,
                "timestamp": _stamp(4 * (12 - k)),
                "rid": f"0000:02:10.{2 * n}",
                "to_pf": to_pf,
                "text": "SET_VLAN (add, vlan=10)" if to_pf else "SET_VLAN, done",
            }
            for k, (n, to_pf) in enumerate(words)
        ]
        return {"messages": told[params.get("since", 0) :], "lost": 0, "next": len(told)}


def _stamp(ago_s: float = 0.0) -> dict[str, int]:
    now = time.time() - ago_s
    return {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}


METHODS = ("link.show", "link.set", "vf.list", "vf.quarantine", "vf.release")


def _taker(door: Door, method: str) -> Any:
    async def take(request: Request) -> Response:
        return await answer(door, method, await request.json())

    return take


@contextmanager
def served(lab: PageLab, port: int = 0) -> Iterator[str]:
    """Serve the page of a lab, as its process does; yield where."""
    listener = listen(port)
    port = listener.getsockname()[1]
    app = make_app(lab.ask, TOKEN, port)
    door = Door(lab.ask)
    for method in set(METHODS) - {kind.method for kind in REQUESTS}:
        app.add_api_route(f"/api/{method}", _taker(door, method), methods=["POST"])
    config = uvicorn.Config(app, lifespan="off", log_level="error", ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
