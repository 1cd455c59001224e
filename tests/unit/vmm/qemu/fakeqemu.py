"""Plays QEMU for the launcher: QMP, two serial ports and an early death, as told by -fake WORD arguments.

dies        complain and end before QMP answers       deaf        ignore quit and SIGTERM
silent      never greet                               crash       die of device_del, as an assertion does
stubborn    the guest refuses to let go of devices
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any


def chardevs(argv: list[str]) -> dict[str, socket.socket]:
    found = {}
    for value in argv:
        if match := re.fullmatch(r"socket,id=(\w+),fd=(\d+)", value):
            found[match[1]] = socket.socket(fileno=int(match[2]))
    return found


def run_agent(port: socket.socket) -> None:
    port.sendall(b"boot noise\nready\n")
    for line in port.makefile("r"):
        name, _, command = line.rstrip("\n").partition(" ")
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
        port.sendall(f"{name} {done.returncode} {len(done.stdout)}\n".encode() + done.stdout)


def echo_console(port: socket.socket) -> None:
    port.sendall(b"\x1b[2J[    0.000000] Linux version 6.1\r\nlogin: ")
    while typed := port.recv(4096):
        port.sendall(b"you typed " + typed)


def requests(qmp: socket.socket) -> Iterator[dict[str, Any]]:
    """QMP is a stream of JSON objects; nothing but their braces parts them."""
    text = ""
    while received := qmp.recv(65536):
        text += received.decode()
        while text := text.lstrip():
            try:
                request, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            yield request
            text = text[end:]


def main() -> None:
    argv = sys.argv[1:]
    words = {argv[i + 1] for i, word in enumerate(argv) if word == "-fake"}
    ports = chardevs(argv)
    if "dies" in words:
        sys.exit("fakeqemu: -fake dies: no such thing")
    if "deaf" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "silent" in words:
        time.sleep(60)
    threading.Thread(target=run_agent, args=(ports["agent"],), daemon=True).start()
    threading.Thread(target=echo_console, args=(ports["console"],), daemon=True).start()
    qmp = ports["qmp"]

    def send(message: dict[str, Any]) -> None:
        qmp.sendall(json.dumps(message).encode() + b"\r\n")

    send({"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 0}, "package": ""}, "capabilities": []}})
    devices: set[str] = set()
    for request in requests(qmp):
        arguments = request.get("arguments", {})
        answer: dict[str, Any] = {"return": {}, "id": request.get("id")}
        event = None
        match request["execute"]:
            case "device_add":
                if not os.path.exists(arguments["socket"]["path"]):
                    answer = {"error": {"class": "GenericError", "desc": "Failed to connect"}, "id": request["id"]}
                else:
                    devices.add(arguments["id"])
            case "device_del" if "crash" in words:
                print("Assertion failed.", file=sys.stderr, flush=True)
                os.abort()
            case "device_del":
                kind = "DEVICE_UNPLUG_GUEST_ERROR" if "stubborn" in words else "DEVICE_DELETED"
                event = {"event": kind, "data": {"device": arguments["id"], "path": "/x"}}
            case "query-status":
                answer["return"] = {"status": "running", "argv": argv, "session": os.getsid(0) == os.getpid()}
            case "never":
                continue
        send(answer)
        if event:
            send({**event, "timestamp": {"seconds": 0, "microseconds": 0}})
        if request["execute"] == "quit" and "deaf" not in words:
            return


main()
