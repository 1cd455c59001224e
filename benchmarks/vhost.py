"""How fast is virtfn's vhost-user back end beside DPDK's, and beside QEMU's own network? Rounds alternate, in one run.

    python benchmarks/vhost.py [ROUNDS] [--seconds S] [--only pair front linux] [--json FILE]

pair    guest to guest, 64 bytes, all on one core: two embedded guests by Split I/O, with both drivers and Dom0; and one
        testpmd with two net_virtio_user ports and the two net_vhost ports that they are connected to. By the time that
        the core has given to them, so that others at work on the machine matter less
front   the same virtio_user ports on a core of their own; on the other core is the back end, which hands frames from
        port to port: virtfn's switch, or testpmd with two net_vhost ports
linux   two Linux guests in QEMU with stock virtio_net: ping, TCP, and small UDP frames; their back end is virtfn's
        switch, testpmd with net_vhost (with and without tso), or QEMU's own with its stream network

A machine that does something else at the same time shows it in the spreads: two of the processes poll. testpmd comes
from Debian's package dpdk-dev, which this script installs if it may.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

from guests import LAB, Run, booted, measure, on_qemu
from memif import find_testpmd
from models import Way

from virtfn.api.image import Platform, find_platform
from virtfn.api.lab import parse_lab
from virtfn.kernels import warm
from virtfn.machine.clock import MS_PS, S_PS, WallClock
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import rest

BURSTS = 8  # of 64 frames that each port starts with
FRONT = "net_virtio_user{n},path={path},queue_size=1024,mac=02:00:00:00:00:0{n}"
BACK = "net_vhost{n},iface={path},queues=1"
SWITCH = """
import sys
from virtfn.vmm.vhost_user import Limits, Switch
with Switch() as switch:
    for path in sys.argv[1:]:
        switch.listen(path, limits=Limits(trusted=True))
    while True:
        switch()
"""
Results = dict[str, list[dict[str, float]]]


def testpmd_command(testpmd: str, cores: tuple[int, int], ports: list[str], options: str) -> list[str]:
    """Compose testpmd's command. cores: of its threads of control, and of forwarding."""
    where = f"--lcores 0@{cores[0]},1@{cores[1]} --no-huge -m 256 --no-pci --no-telemetry --no-shconf"
    work = "--nb-cores=1 --burst=64 --total-num-mbufs=8192 --no-lsc-interrupt --no-mlockall"
    vdevs = [f"--vdev={port}" for port in ports]
    return [testpmd, *where.split(), *vdevs, "--", *work.split(), *options.split()]


def end(process: subprocess.Popen[str]) -> None:
    """End a process that this script started, kindly first."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def back_end(kind: str, testpmd: str, core: int, other: int, folder: Path) -> Iterator[list[Path]]:
    """Run a back end with two sockets on a core of its own: virtfn's, or DPDK's."""
    sockets = [folder / f"{n}.sock" for n in range(2)]
    if kind == "virtfn":
        command = ["taskset", "-c", str(core), sys.executable, "-c", SWITCH, *map(str, sockets)]
    else:
        more = ",tso=1" if kind.endswith("tso") else ""
        ports = [BACK.format(n=n, path=path) + more for n, path in enumerate(sockets)]
        command = testpmd_command(testpmd, (other, core), ports, "--forward-mode=io --auto-start --stats-period=60")
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, text=True)
    try:
        deadline = time.monotonic() + 300
        while not all(path.exists() for path in sockets):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"not run: the back end did not start: {' '.join(command)}")
            time.sleep(0.1)
        yield sockets
    finally:
        end(process)


def front_mpps(kind: str, testpmd: str, seconds: float) -> float:
    """Let testpmd's virtio_user ports send frames round by a back end; return million frames a second, both ways."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("not run: front end and back end need a core each")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        sockets = stack.enter_context(back_end(kind, testpmd, cores[1], cores[0], Path(name)))
        ports = [FRONT.format(n=n, path=path) for n, path in enumerate(sockets)]
        # The first frames are for the other port, so that nobody has to flood.
        options = "-i --eth-peer=0,02:00:00:00:00:01 --eth-peer=1,02:00:00:00:00:00 --txpkts=60 --forward-mode=mac"
        command = testpmd_command(testpmd, (cores[1], cores[0]), ports, options)
        pipe = subprocess.PIPE
        front = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, bufsize=1)
        stack.callback(end, front)
        assert front.stdin is not None
        for text, wait in (
            (f"start tx_first {BURSTS}", 1.5),
            ("show port stats all", seconds),
            ("show port stats all", 0.2),
        ):
            front.stdin.write(text + "\n")
            time.sleep(wait)
        with suppress(BrokenPipeError):
            front.stdin.write("stop\nquit\n")
        output, _ = front.communicate(timeout=30)
    rates = [int(rate) for rate in re.findall(r"Rx-pps:\s+(\d+)", output)]
    if len(rates) < 4:
        raise SystemExit(f"not run: testpmd gave no rates:\n{output[-2000:]}")
    return sum(rates[2:4]) / 1e6


def split_mpps(seconds: float) -> float:
    """Measure embedded Split I/O; return million frames in a second of processor time."""
    with ExitStack() as stack:
        way = Way(stack, WallClock(), "split", 64, outside=False)
        way.measure(100 * MS_PS)
        before, began = int(way.receiver["rx_frames"]), time.thread_time_ns()
        way.measure(int(seconds * S_PS))
        return (int(way.receiver["rx_frames"]) - before) * 1000 / (time.thread_time_ns() - began)


def pair_mpps(testpmd: str, seconds: float) -> float:
    """Let frames go round between virtio_user and vhost ports of one testpmd; return as `split_mpps` does."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        paths = [f"{folder}/{n}.sock" for n in range(2)]
        ports = [BACK.format(n=n, path=path) for n, path in enumerate(paths)]
        command = testpmd_command(testpmd, (cores[0], cores[-1]), ports, "-i --txpkts=60 --forward-mode=io")
        command = ["stdbuf", "-oL", *command]  # what it says is wanted as it says it
        pipe = subprocess.PIPE
        run = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, bufsize=1)
        stack.callback(end, run)
        watch = threading.Timer(seconds + 60, run.kill)
        stack.callback(watch.cancel)
        watch.start()
        assert run.stdin is not None
        while not all(Path(path).exists() for path in paths):
            time.sleep(0.1)
            if run.poll() is not None:
                raise SystemExit("not run: testpmd did not start")
        attach = [f"port attach {FRONT.format(n=n, path=path)}" for n, path in enumerate(paths)]
        for text in (*attach, "port start all", "set portlist 0,1,2,3", f"start tx_first {BURSTS}"):
            run.stdin.write(text + "\n")
        time.sleep(2)
        (before, began), _, (after, ended) = received(run), time.sleep(seconds), received(run)
        run.stdin.write("stop\nquit\n")
    if after == before:
        raise SystemExit("not run: no frame went round between testpmd's ports")
    return (after - before) * 1000 / (ended - began)


def received(run: subprocess.Popen[str]) -> tuple[int, int]:
    """Ask testpmd what its ports 2 and 3 have received; return (frames, ns that its forwarding thread has run)."""
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write("show port stats all\n")
    counts: dict[int, int] = {}
    port = -1
    for line in run.stdout:
        if found := re.search(r"statistics for port (\d)", line):
            port = int(found[1])
        elif found := re.search(r"RX-packets: (\d+)", line):
            counts[port] = int(found[1])
        elif port == 3 and "Tx-pps" in line:
            break
    for task in Path(f"/proc/{run.pid}/task").iterdir():
        if "worker" in (task / "comm").read_text(encoding="utf-8"):
            return counts.get(2, 0) + counts.get(3, 0), int((task / "schedstat").read_text(encoding="utf-8").split()[0])
    raise SystemExit("not run: testpmd has no forwarding thread")


@contextmanager
def on_vhost(kind: str, testpmd: str, platform: Platform) -> Iterator[tuple[Run, list[int], list[str]]]:
    """Boot two guests with stock virtio_net, whose back end is a process of its own."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        extras = []
        for n, path in enumerate(stack.enter_context(back_end(kind, testpmd, cores[-1], cores[0], Path(folder)))):
            device = f"virtio-net-pci,netdev=n0,mac=52:54:00:00:00:0{n + 1},bus=pcie.0,addr=5,romfile="
            network = ("-chardev", f"socket,id=c0,path={path}", "-netdev", "vhost-user,id=n0,chardev=c0")
            extras.append((*network, "-device", device))
        yield stack.enter_context(booted(extras, platform))


def udp_kpps(run: Run, ip: str, seconds: int) -> float:
    """Send small UDP frames from guest 0 as fast as it can; return thousands a second that the other has received."""
    said = run(0, f"iperf3 -J -u -b 0 -l 18 -t {seconds} -c {ip}", seconds + 60)
    report = json.loads(said)
    if "error" in report:
        raise VirtfnError(f"iperf3: {report['error']}")
    total = report["end"]["sum"]
    return (total["packets"] - total["lost_packets"]) / total["seconds"] / 1000


def linux_round(name: str, testpmd: str | None, platform: Platform, seconds: int) -> dict[str, float]:
    """Boot a pair of guests and measure it."""
    if name == "QEMU, stream":
        context = on_qemu("virtio-net-pci,romfile=", "stream", platform)
    else:
        context = on_vhost(name, testpmd or "", platform)
    with context as (run, pids, ips):
        found = measure(run, pids, ips, seconds)
        return {**found, "udp_kpps": udp_kpps(run, ips[1], seconds)}


def show(name: str, values: list[float], unit: str) -> None:
    print(f"{name:28} {median(values):8.3f} {unit:6} ({min(values):.3f} to {max(values):.3f})")


def compare(found: Results, key: str, ours: str, theirs: str) -> None:
    """Print the ratio of what was measured in the same rounds."""
    if ours in found and theirs in found:
        ratios = [a[key] / b[key] for a, b in zip(found[ours], found[theirs], strict=True)]
        print(f"{key}: {ours} has {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times {theirs}")


def main() -> None:
    """Measure what was asked for, in turn."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("rounds", nargs="?", type=int, default=3)
    arguments.add_argument("--seconds", type=int, default=4)
    arguments.add_argument("--only", nargs="*", default=["pair", "front", "linux"])
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    testpmd = find_testpmd()
    if testpmd is None:
        print("DPDK: not run: dpdk-testpmd is not installed (Debian package dpdk-dev)")
    warm.load()
    found: Results = {}
    backs = ["virtfn", *(["DPDK"] if testpmd else [])]
    linux = [*backs, *(["DPDK, tso"] if testpmd else []), "QEMU, stream"]
    platform = find_platform(rest, parse_lab(LAB.format(mapped="true")).guests) if "linux" in given.only else None
    for _ in range(given.rounds):
        if "front" in given.only and testpmd is not None:
            for kind in backs:
                result = {"mpps": front_mpps(kind, testpmd, given.seconds)}
                found.setdefault(f"front end on {kind}", []).append(result)
        if "pair" in given.only:
            found.setdefault("embedded Split", []).append({"mpps": split_mpps(given.seconds)})
            if testpmd is not None:
                found.setdefault("DPDK's pair", []).append({"mpps": pair_mpps(testpmd, given.seconds)})
        for kind in linux if platform is not None else ():
            found.setdefault(f"Linux on {kind}", []).append(linux_round(kind, testpmd, platform, given.seconds))
    for name, results in found.items():
        for key in results[0]:
            show(name, [result[key] for result in results], key)
    compare(found, "mpps", "front end on virtfn", "front end on DPDK")
    compare(found, "mpps", "embedded Split", "DPDK's pair")
    for key in ("mbps", "udp_kpps", "ping_ms"):
        for other in ("DPDK", "DPDK, tso", "QEMU, stream"):
            compare(found, key, "Linux on virtfn", f"Linux on {other}")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} in the last minute, {os.cpu_count()} processors")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
