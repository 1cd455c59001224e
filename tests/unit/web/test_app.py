"""HTTP against a lab of the tests' own: who may ask, what is refused and how, what is described."""

from __future__ import annotations

import socket
import threading
import time
import types
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import pytest

pytest.importorskip("fastapi", reason="the extra `web` is not installed")

import anyio
import httpx

from virtfn.api.session.requests import REQUESTS
from virtfn.machine.ports import VirtfnError
from virtfn.web.app import make_app
from virtfn.web.connections import CONNECTIONS, make_server
from virtfn.web.door import AT_ONCE, WAITING, Door
from virtfn.web.guard import MAX_BODY
from virtfn.web.serve import listen, serve

TOKEN = "a-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PORT = 8256


class FakeLab:
    """Answers questions as a lab would, and notes them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.error: VirtfnError | None = None

    def ask(self, method: str, params: Mapping[str, object]) -> object:
        self.asked.append((method, dict(params)))
        if self.error is not None:
            raise self.error
        if method == "events.read":
            since = params["since"]
            assert isinstance(since, int)
            if since >= 3:
                raise VirtfnError("lab fake has gone away")
            told = {"sequence": since, "event": "WORK_DONE", "timestamp": {}, "data": {"finished": True}}
            return {"events": [told], "lost": 0, "next": since + 1}
        return {"lab": "fake", "method": method}


@pytest.fixture
def lab() -> FakeLab:
    return FakeLab()


def call(lab: FakeLab, method: str, path: str, *, host: str = f"127.0.0.1:{PORT}", **more: Any) -> httpx.Response:
    more.setdefault("headers", HEADERS)

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(lab.ask, TOKEN, PORT), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path, **more)

    return anyio.run(go)


def refused(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()["error"]["errno"]


def test_snapshot_is_the_answer_of_the_lab(lab: FakeLab) -> None:
    response = call(lab, "GET", "/snapshot")
    assert (response.status_code, response.json()) == (200, {"lab": "fake", "method": "session.snapshot"})
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-frame-options"] == "DENY"


def test_each_request_has_a_route_with_its_params(lab: FakeLab) -> None:
    response = call(lab, "POST", "/api/iommu.explain", json={"rid": 0x180, "iova": 4096})
    assert response.status_code == 200
    assert lab.asked == [("iommu.explain", {"rid": 0x180, "iova": 4096})]


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"]
)
def test_without_the_token_nothing_is_asked(lab: FakeLab, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in ("/snapshot", "/events", "/no-such-path"):
        response = call(lab, "GET", path, headers=headers)
        assert refused(response) == (401, "EACCES")
        assert response.headers["www-authenticate"] == "Bearer"
    assert not lab.asked


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:1", "localhost.evil.example"])
def test_hosts_of_other_names_are_refused(lab: FakeLab, host: str) -> None:
    for path in ("/snapshot", "/openapi.json"):
        assert refused(call(lab, "GET", path, host=host)) == (421, "EACCES")
    assert not lab.asked


def test_loopback_names_are_answered(lab: FakeLab) -> None:
    for host in (f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"[::1]:{PORT}"):
        assert call(lab, "GET", "/snapshot", host=host).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1"])
def test_other_origins_are_refused(lab: FakeLab, origin: str) -> None:
    response = call(lab, "POST", "/api/session.snapshot", headers={**HEADERS, "Origin": origin})
    assert refused(response) == (403, "EACCES")
    assert not lab.asked


def test_its_own_origin_may_ask(lab: FakeLab) -> None:
    headers = {**HEADERS, "Origin": f"http://localhost:{PORT}"}
    assert call(lab, "POST", "/api/session.snapshot", headers=headers).status_code == 200


def test_bodies_too_large_are_refused(lab: FakeLab) -> None:
    assert refused(call(lab, "POST", "/api/guest.exec", content=b" " * (MAX_BODY + 1))) == (413, "EMSGSIZE")

    async def pieces() -> AsyncIterator[bytes]:  # sent without a length
        for _ in range(MAX_BODY // 1024 + 1):
            yield b" " * 1024

    assert refused(call(lab, "POST", "/api/guest.exec", content=pieces())) == (413, "EMSGSIZE")
    assert not lab.asked


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/iommu.explain", b'{"rid": 65536, "iova": 0}'),
        ("/api/iommu.explain", b'{"rid": -1, "iova": 0}'),
        ("/api/iommu.explain", b'{"rid": true, "iova": 0}'),
        ("/api/iommu.explain", b'{"rid": 1, "iova": 18446744073709551616}'),
        ("/api/events.read", b'{"since": "0"}'),
        ("/api/events.read", b'{"sinc": 0}'),
        ("/api/guest.exec", b'{"guest": 1, "command": "ls"}'),
        ("/api/guest.exec", b'{"guest": "a", "command": "\\ud800"}'),
        ("/api/session.snapshot", b"[]"),
        ("/api/session.snapshot", b"{"),
        ("/api/session.snapshot", b"\xff\xfe"),
        ("/api/session.snapshot", b"[" * 60_000),
    ],
)
def test_what_no_request_is_never_reaches_the_lab(lab: FakeLab, path: str, body: bytes) -> None:
    assert refused(call(lab, "POST", path, content=body)) == (400, "EINVAL")
    assert not lab.asked


def test_what_descriptors_come_with_is_for_the_socket_alone(lab: FakeLab) -> None:
    assert {kind.method for kind in REQUESTS if kind.hands} == {"capture.start"}
    assert refused(call(lab, "POST", "/api/capture.start", content=b'{"interface": "pf0"}')) == (404, "ENOENT")
    assert not lab.asked


def test_paths_and_methods_that_are_not_there(lab: FakeLab) -> None:
    assert refused(call(lab, "GET", "/no")) == (404, "ENOENT")
    assert refused(call(lab, "GET", "/api/session.snapshot")) == (405, "EINVAL")
    assert refused(call(lab, "GET", "/events?since=-1")) == (400, "EINVAL")
    assert refused(call(lab, "GET", "/events?since=x")) == (400, "EINVAL")


@pytest.mark.parametrize(
    ("errno_name", "status"), [("EBUSY", 409), ("ENOENT", 404), ("EOPNOTSUPP", 501), ("", 503), ("ETIMEDOUT", 504)]
)
def test_refusals_of_the_lab_have_a_status(lab: FakeLab, errno_name: str, status: int) -> None:
    lab.error = VirtfnError("no", errno_name=errno_name)
    response = call(lab, "GET", "/snapshot")
    assert refused(response) == (status, errno_name)
    assert response.json()["error"]["message"] == "no"


def test_events_are_followed_until_the_lab_is_gone(lab: FakeLab) -> None:
    response = call(lab, "GET", "/events?since=1")
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.splitlines()
    assert [line for line in lines if line.startswith(("id", "event"))] == [
        "id: 1",
        "event: WORK_DONE",
        "id: 2",
        "event: WORK_DONE",
        "event: GONE",
    ]


def test_a_lab_that_is_busy_has_not_gone(lab: FakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtfn.web.stream._LOOK_S", 0.0)
    answer, refusals = lab.ask, [VirtfnError("no", errno_name=name) for name in ("EBUSY", "EAGAIN", "ETIMEDOUT")]

    def ask(method: str, params: Mapping[str, object]) -> object:
        if params["since"] == 1 and refusals:
            raise refusals.pop()
        return answer(method, params)

    monkeypatch.setattr(lab, "ask", ask)
    lines = call(lab, "GET", "/events").text.splitlines()
    assert [line for line in lines if line.startswith("id")] == ["id: 0", "id: 1", "id: 2"]
    assert refusals == []


def test_a_browser_that_comes_again_goes_on_where_it_was(lab: FakeLab) -> None:
    call(lab, "GET", "/events", headers={**HEADERS, "Last-Event-ID": "1"})
    assert lab.asked[0] == ("events.read", {"since": 2})


def test_the_document_describes_every_request(lab: FakeLab) -> None:
    response = call(lab, "GET", "/openapi.json", headers={})  # it holds nothing of the lab
    document = response.json()
    paths = {path for path in document["paths"] if path.startswith("/api/")}
    assert paths == {f"/api/{kind.method}" for kind in REQUESTS if not kind.hands}
    explain = document["paths"]["/api/iommu.explain"]["post"]
    taken = explain["requestBody"]["content"]["application/json"]["schema"]
    assert set(taken["properties"]) == {"rid", "iova", "write", "message"}
    assert taken["required"] == ["rid", "iova"]
    answered = document["paths"]["/api/session.snapshot"]["post"]["responses"]["200"]
    assert answered["content"]["application/json"]["schema"]["$ref"].endswith("/Snapshot")
    assert {"lab", "guests", "pfs"} <= set(document["components"]["schemas"]["Snapshot"]["properties"])


@pytest.mark.parametrize("body", [b'{"\\ud800": 1}', b'{"since": 0, "a\\udfff": {"b": 1}}'])
def test_half_characters_are_refused_in_json(lab: FakeLab, body: bytes) -> None:
    response = call(lab, "POST", "/api/events.read", content=body)
    assert refused(response) == (400, "EINVAL")
    assert "no such parameter" in response.json()["error"]["message"]


def test_half_characters_of_the_lab_are_told(lab: FakeLab) -> None:
    lab.error = VirtfnError("no \ud800", errno_name="EBUSY")
    assert call(lab, "GET", "/snapshot").json()["error"]["message"] == "no \ud800"


@contextmanager
def served(lab: FakeLab) -> Iterator[int]:
    """Serve it in a thread, as `virtfn up --http` does; the port."""
    listener = listen(0)
    port = listener.getsockname()[1]
    server = make_server(make_app(lab.ask, TOKEN, port), "critical")
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)


def test_silent_connections_make_room_for_who_asks(lab: FakeLab) -> None:
    with served(lab) as port, ExitStack() as closes:
        idle = [closes.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3 * CONNECTIONS)]
        for connection in idle[::2]:
            connection.sendall(b"GET /snapshot HTTP/1.1\r\n")
        for _ in range(3):
            assert httpx.get(f"http://127.0.0.1:{port}/snapshot", headers=HEADERS, timeout=20).status_code == 200


def test_who_asks_nothing_in_time_is_gone(lab: FakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtfn.web.connections._SILENT_S", 0.3)
    monkeypatch.setattr("virtfn.web.connections._KEEP_ALIVE_S", 60)
    head = f"GET /snapshot HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\n".encode()
    with served(lab) as port:
        for sent in (b"", head, head + b"\r\n", head + b"\r\n" + head):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(sent)
                before = time.monotonic()
                with suppress(ConnectionError):
                    while connection.recv(4096):
                        pass
                assert time.monotonic() - before >= 0.25


def test_what_waits_for_a_guest_has_time_and_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"guest.exec", "guest.attach", "guest.detach", "lab.apply", "pf.vfs"} == WAITING
    times: dict[str, float] = {}

    def ask(method: str, params: Mapping[str, object], lab: str, timeout_s: float) -> object:
        times[method] = timeout_s
        return {}

    def ask_both(app: Any, _: str) -> Any:
        for path in ("/api/guest.detach", "/api/lab.status"):
            assert call_app(app, path, {"guest": "a"} if "guest" in path else {}).status_code == 200
        return types.SimpleNamespace(run=lambda sockets: None)

    monkeypatch.setattr("virtfn.web.serve.ask", ask)
    monkeypatch.setattr("virtfn.web.serve.make_server", ask_both)
    listener = types.SimpleNamespace(getsockname=lambda: ("127.0.0.1", PORT))
    serve("rig", cast(socket.socket, listener), TOKEN)
    assert times == {"guest.detach": 600.0, "lab.status": 30.0}

    async def crowd() -> list[str]:
        held, answers = threading.Event(), []
        door = Door(lambda method, params: method if method == "lab.status" else held.wait(20))
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(door.ask, "guest.exec")
            await anyio.sleep(0.05)
            with pytest.raises(VirtfnError, match="4 such questions") as caught:
                await door.ask("lab.apply")
            answers += [caught.value.errno_name, str(await door.ask("lab.status"))]
            held.set()
        return answers

    assert anyio.run(crowd) == ["EAGAIN", "lab.status"]


def call_app(app: Any, path: str, params: dict[str, object]) -> httpx.Response:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url=f"http://127.0.0.1:{PORT}", headers=HEADERS
        ) as client:
            return await client.post(path, json=params)

    return anyio.run(go)


def test_questions_under_way_are_few() -> None:
    async def go() -> int:
        from threading import Event

        held = Event()
        door = Door(lambda method, params: held.wait(10))
        refusals = 0

        async def ask() -> None:
            nonlocal refusals
            try:
                await door.ask("session.snapshot")
            except VirtfnError as error:
                refusals += error.errno_name == "EAGAIN"
                held.set()

        async with anyio.create_task_group() as group:
            for _ in range(AT_ONCE + 1):
                group.start_soon(ask)
        return refusals

    assert anyio.run(go) == 1
