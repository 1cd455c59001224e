"""Anybody's image, and QEMUs that somebody else starts: kernels by keys, a disk that boots, firmware, virtfn serve."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from guest.hostrig import CARD, FUNCTIONS
from virtfn.api.control import ask
from virtfn.api.image import current_image, make_image
from virtfn.machine.ports import VirtfnError
from virtfn.vmm.qemu import Qemu, cache_folder
from virtfn.vmm.qemu.debian import fetch, own_suite, unpack

pytestmark = pytest.mark.guest

VIRTFN = [sys.executable, "-c", "from virtfn.cli.main import main; main()"]
BOOT_S = 600
DRIVER = "set -- $(ip -o -4 addr show to 10.82.0.0/24); basename $(readlink /sys/class/net/$2/device/driver)"

IMAGES = """\
name: images
pfs: [{name: pf0, sr-iov: {total-vfs: 3}}]
guests:
  - name: keys
    vmm: qemu
    kernel: new/vmlinuz
    initrd: new/initrd.gz
    agent: true
    append: virtfn.name=keys quiet
    cpus: 2
    disk: {file: more.raw, boot: false}
    qemu-args: [-device, "e1000e,bus=pcie.0,addr=2,romfile=,mac=02:00:00:00:00:99"]
    nic: {pf: pf0, vf: 0}
  - {name: disk, vmm: qemu, disk: boot.raw, agent: true, nic: {pf: pf0, vf: 1}}
  - {name: uefi, vmm: qemu, firmware: OVMF.fd, nic: {pf: pf0, vf: 2}}
workload: {kind: ping, frames: 20, expect: all}
"""
SERVED = """\
name: elsewhere
pfs: [{name: pf0, sr-iov: {total-vfs: 2}}]
guests:
  - {name: a, vmm: qemu, nic: {pf: pf0, vf: 0}}
  - {name: b, vmm: qemu, nic: {pf: pf0, io: split}}
workload: {kind: none}
"""
HOST = """\
name: abroad
pfs: [{name: pf0}]
guests: [{name: h, vmm: qemu, memory-mib: 384, nic: {pf: pf0, io: host}}]
workload: {kind: none}
"""
LIBVIRT = """\
tools=$1 scratch=$2 domain=$3
mount -t tmpfs scratch $scratch
for folder in etc run var; do
    over=$scratch/$folder
    mkdir $over $over.work
    mount -t overlay over -o lowerdir=/$folder,upperdir=$over,workdir=$over.work /$folder || exit
done
mount -t overlay usr -o lowerdir=$tools/usr:/usr /usr || exit
mkdir -p /etc/libvirt /run/libvirt /var/cache/libvirt /var/lib/libvirt /var/log/libvirt
echo libvirt-qemu:x:64055:64055::/:/bin/false >> /etc/passwd
echo libvirt-qemu:x:64055: >> /etc/group
echo kvm:x:64054: >> /etc/group
cat > /etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
stdio_handler = "file"
END
libvirtd 2> /var/log/libvirt/own &
for i in $(seq 120); do virsh list > /dev/null 2>&1 && break; sleep 0.5; done
virsh define $domain && virsh start h || { tail /var/log/libvirt/own /var/log/libvirt/qemu/h.log; exit; }
tty=$(virsh ttyconsole h | head -n 1)
stty -F $tty raw -echo
cat $tty &
exec cat > $tty
"""
SYSLINUX = "SERIAL 0 115200\nDEFAULT linux\nLABEL linux\n  KERNEL vmlinuz\n  APPEND initrd=initrd.gz {line}\n"


@pytest.fixture(scope="module", autouse=True)
def image(qemu: Qemu) -> None:
    try:
        make_image()
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(f"/tmp/virtfn-img-{os.getpid()}")
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder / "virtfn"
    left = list((folder / "virtfn").iterdir())
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's programs that make a disk which boots, and its UEFI firmware, unpacked."""
    folder = tmp_path_factory.mktemp("tools")
    try:
        unpack(
            fetch(["syslinux", "mtools", "dosfstools", "ovmf"], depends=False, cache=cache_folder()),
            folder,
        )
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")
    return folder


def boot_disk(disk: Path, tools: Path) -> None:
    """Make a disk of a FAT file system, from which SYSLINUX boots virtfn's kernel and initramfs, without root."""
    environ = {**os.environ, "PATH": f"{tools}/usr/bin:{tools}/sbin:{tools}/usr/sbin:{os.environ['PATH']}"}

    def run(*words: str | Path) -> None:
        subprocess.run(words, env=environ, check=True, stdout=subprocess.DEVNULL)

    with disk.open("wb") as stream:
        stream.truncate(64 << 20)
    config = disk.with_name("syslinux.cfg")
    config.write_text(SYSLINUX.format(line="console=ttyS0 virtfn.name=disk quiet"))
    found = current_image()
    run("mkfs.fat", "-F", "16", disk)
    run("mcopy", "-i", disk, found.kernel, found.initrd, config, "::")
    run("syslinux", "-i", disk)


@pytest.mark.long
def test_anybodys_image(tools: Path, tmp_path: Path, runtime: Path) -> None:
    """A kernel of Debian's backports by keys, a disk, and UEFI: three kinds of boot, igbvf in each."""
    boot_disk(tmp_path / "boot.raw", tools)
    shutil.copy(tools / "usr/share/ovmf/OVMF.fd", tmp_path)
    (tmp_path / "more.raw").write_bytes(b"more".ljust(1 << 20, b"\0"))
    backports = f"linux-image-amd64/{own_suite()}-backports"
    built = subprocess.run(
        [*VIRTFN, "image", "build", "--kernel", backports, "--to", str(tmp_path / "new"), "--json", "-"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    new, old = json.loads(built.stdout)["version"], current_image().version
    assert _numbers(new) > _numbers(old)
    (tmp_path / "lab.yaml").write_text(IMAGES)
    report = tmp_path / "report.json"
    with subprocess.Popen(
        [*VIRTFN, "run", str(tmp_path / "lab.yaml"), "--keep", "--json", str(report)], stdout=-1, text=True
    ) as run:
        try:
            assert run.stdout is not None
            assert any(line.startswith("ready: images is kept up") for line in run.stdout)
            for guest, release in (("keys", new), ("disk", old), ("uefi", old)):
                assert _exec(guest, "uname -r") == release
                assert _exec(guest, DRIVER) == "igbvf"
            assert (
                _exec("keys", "nproc; head -c 4 /dev/vda; ls /sys/bus/pci/drivers/e1000e | grep -c 02.0") == "2\nmore1"
            )
            assert _exec("uefi", "[ -d /sys/firmware/efi ] && echo uefi") == "uefi"
            assert _exec("disk", "cat /proc/cmdline").startswith("BOOT_IMAGE=vmlinuz")
        finally:
            run.send_signal(signal.SIGINT)
            run.wait(60)
    assert run.returncode == 0
    document = json.loads(report.read_text())
    assert document["workload"] == "ping"
    assert all(guest["boot_s"] > 0 and guest["ping_ms"] > 0 for guest in document["guests"])
    assert all(flow["heard"] == flow["sent"] == 20 for flow in document["flows"])
    assert document["iommu"]["faults"] == 0


def _exec(guest: str, command: str) -> str:
    done = subprocess.run([*VIRTFN, "exec", guest, command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.strip()


def _numbers(release: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", release)]


class Terminal:
    """A QEMU that was started by a line for a shell, and its console, which is the terminal."""

    def __init__(self, line: str) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {line}"], stdin=-1, stdout=-1, stderr=subprocess.STDOUT, cwd="/"
        )
        self.said = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End QEMU as the kernel does it when memory is short."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def until(self, pattern: str, timeout_s: float = BOOT_S) -> str:
        """Read until the console has said what matches; return the match."""
        assert self._process.stdout is not None
        end = time.monotonic() + timeout_s
        while (match := re.search(pattern, self.said)) is None:
            assert time.monotonic() < end, self.said[-4000:]
            if select.select([self._process.stdout], [], [], 1.0)[0]:
                got = os.read(self._process.stdout.fileno(), 65536)
                assert got, self.said[-4000:]
                self.said += got.decode(errors="replace").replace("\r", "")
        self.said = self.said[match.end() :]
        return match[0]

    def run(self, command: str, timeout_s: float = 120) -> str:
        """Run a command at the console's shell, and return what it said."""
        self.type(f"{command}; echo status-$((0+$?))-end\n")
        found = self.until(r"(?s).*\nstatus-\d+-end", timeout_s)
        assert "status-0-end" in found, found
        return found

    def up(self, address: str) -> None:
        """Wait for the shell, and bring the VF up."""
        self.until(r":~# ")
        self.run(f"ip link set eth0 up && ip address add {address}/24 dev eth0")
        self.run("for i in $(seq 100); do grep -qx 1 /sys/class/net/eth0/carrier && break; sleep 0.1; done")


def test_qemus_that_somebody_else_starts(tmp_path: Path, runtime: Path) -> None:
    """A VF over vfio-user and a virtio device over vhost-user, by the printed lines; one is killed and comes again."""
    (tmp_path / "lab.yaml").write_text(SERVED)
    sockets = runtime.parent / "s"
    at = [str(tmp_path / "lab.yaml"), "--sockets", str(sockets)]

    def line(guest: str) -> str:
        done = subprocess.run([*VIRTFN, "qemu-args", at[0], guest, *at[1:]], capture_output=True, text=True, check=True)
        return done.stdout

    with ExitStack() as stack:
        serve = stack.enter_context(
            subprocess.Popen([*VIRTFN, "serve", *at, "--json", str(tmp_path / "served.json")], stdout=-1, text=True)
        )
        stack.callback(serve.kill)
        assert serve.stdout is not None
        assert any(said.startswith("ready: elsewhere is served") for said in serve.stdout)
        document = json.loads((tmp_path / "served.json").read_text())
        assert [entry["path"] for entry in document["sockets"]] == [f"{sockets}/a.sock", f"{sockets}/b.sock"]
        b = stack.enter_context(Terminal(line("b")))
        with Terminal(line("a")) as a:
            a.up("10.9.0.1")
            b.up("10.9.0.2")
            assert " 0% packet loss" in a.run("ping -c 5 -i 0.2 10.9.0.2")
            shown = subprocess.run([*VIRTFN, "iommu", "show", "--json", "-"], capture_output=True, text=True)
            rids = {rid for domain in json.loads(shown.stdout)["domains"] for rid in domain["rids"]}
            assert document["sockets"][0]["address"] in rids
        # The same guest again, by the same line, while the other goes on.
        with Terminal(line("a")) as a:
            a.up("10.9.0.1")
            assert " 0% packet loss" in b.run("ping -c 5 -i 0.2 10.9.0.1")
            serve.send_signal(signal.SIGINT)
            assert serve.wait(60) == 0
        assert list(sockets.iterdir()) == []


@pytest.mark.long
def test_a_host_in_a_qemu_that_somebody_else_starts(tmp_path: Path, runtime: Path) -> None:
    """Its stock igb makes VFs. QEMU is killed with them on and comes again, with an IOMMU, past which VFs are placed by
    its monitor; so is virtfn serve, whose next one serves a QEMU without a monitor: that guest has a PF alone.
    """
    lab, behind_iommu = tmp_path / "lab.yaml", tmp_path / "iommu.yaml"
    lab.write_text(HOST)
    behind_iommu.write_text(HOST.replace("vmm: qemu", "vmm: qemu, iommu: translated"))
    words = _line(lab)
    with ExitStack() as stack:
        killed = stack.enter_context(_serving(lab))
        with Terminal(shlex.join(words)) as host:
            _vfs_ping(host)
            assert _events("VFS_CHANGED")[-1]["vfs"] == 2
        # It was killed, with VFs on.
        _until(lambda: _events("GUEST_DISCONNECTED") and _events("VFS_CHANGED")[-1]["vfs"] == 0)
        with Terminal(shlex.join(_line(behind_iommu))) as host:
            _vfs_ping(host)
            assert len(_events("GUEST_CONNECTED")) == 2
            assert _events("GUEST_DISCONNECTED") == [{"guest": "h", "refusal": ""}]
            assert not _events("VFS_REFUSED")
            killed.kill()
            killed.wait()
            serve = stack.enter_context(_serving(lab))
        at = words.index("-qmp")
        with Terminal(shlex.join(words[: at - 2] + words[at + 2 :])) as host:
            host.until(r":~# ")
            host.run(
                "ip link set eth0 up; for i in $(seq 100); do grep -qx 1 /sys/class/net/eth0/carrier && break; done"
            )
            host.run(f"[ ! -e {CARD}/sriov_numvfs ] && ethtool -i eth0 | grep -qx 'driver: igb'")
            (refused,) = _events("VFS_REFUSED")
            assert refused["why"].startswith("no monitor of its QEMU listens at ")
            serve.send_signal(signal.SIGINT)
            assert serve.wait(60) == 0
        assert not (runtime / "served").exists()


def _line(lab: Path) -> list[str]:
    done = subprocess.run([*VIRTFN, "qemu-args", str(lab), "h", "--json", "-"], stdout=-1, text=True, check=True)
    return [str(word) for word in json.loads(done.stdout)]


@contextmanager
def _serving(lab: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*VIRTFN, "serve", str(lab)], stdout=-1, text=True) as serve:
        try:
            assert serve.stdout is not None
            assert any(said.startswith("ready: abroad is served") for said in serve.stdout)
            yield serve
        finally:
            serve.kill()


def _vfs_ping(host: Terminal) -> None:
    """Make two VFs, and let one ping the other."""
    host.until(r":~# ")
    found = re.search(r"0000:(\w\w):00\.0/sriov", host.run("ls -d /sys/bus/pci/devices/*/sriov_numvfs"))
    assert found is not None
    bus = f"0000:{found[1]}:"
    for line in FUNCTIONS.replace("0000:01:", bus).strip().splitlines():
        host.type(f"{line}\n")
    host.run(f"ip link set eth0 up; echo 2 > /sys/bus/pci/devices/{bus}00.0/sriov_numvfs")
    host.run("give a 10.0 10.0.0.2; give b 10.2 10.0.0.3; linked a && linked b", 200)
    assert "igbvf" in host.run(f"readlink /sys/bus/pci/devices/{bus}10.2/driver")
    assert " 0% packet loss" in host.run("ip netns exec a ping -c 5 -i 0.2 10.0.0.3")


@pytest.fixture
def libvirt(qemu: Qemu, tmp_path: Path) -> Path:
    """Debian's libvirt, unpacked, with QEMU where libvirt looks for it; it is mounted over this system, for itself."""
    probe = f"mount -t tmpfs t {tmp_path} && mount -t overlay t -o lowerdir=/usr:/etc /usr"
    if subprocess.run(["unshare", "-m", "-p", "-f", "sh", "-c", probe], capture_output=True).returncode:
        pytest.skip("not run: nobody may mount file systems here")
    names = ["libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-qemu"]
    folder = tmp_path / "libvirt"
    try:
        unpack(fetch(names, depends=True, cache=cache_folder()), folder)
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")
    if qemu.command != (str(qemu.path),):
        words = [*(f"{name}={value}" for name, value in qemu.environ.items()), *qemu.command]
        program = folder / "usr/bin/qemu-system-x86_64"
        program.write_text(f'#!/bin/sh\nexec env {shlex.join(words)} "$@"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.long
def test_a_host_that_libvirt_starts(libvirt: Path, tmp_path: Path, runtime: Path) -> None:
    """Libvirt takes the domain as it is printed, without systemd; it is killed with all it has started, with VFs on."""
    scratch, lab = tmp_path / "scratch", tmp_path / "lab.yaml"
    scratch.mkdir()
    lab.write_text(HOST)
    done = subprocess.run([*VIRTFN, "qemu-args", str(lab), "h", "--libvirt"], stdout=-1, text=True, check=True)
    (tmp_path / "h.xml").write_text(done.stdout)
    (tmp_path / "start").write_text(LIBVIRT)
    line = shlex.join(map(str, ["sh", tmp_path / "start", libvirt, scratch, tmp_path / "h.xml"]))
    with _serving(lab) as serve:
        with Terminal(f"unshare -m -p -f --mount-proc --kill-child {line}") as host:
            _vfs_ping(host)
            assert len(_events("GUEST_CONNECTED")) == 1
        _until(lambda: _events("GUEST_DISCONNECTED") and _events("VFS_CHANGED")[-1]["vfs"] == 0)
        assert not _events("VFS_REFUSED")
        serve.send_signal(signal.SIGINT)
        assert serve.wait(60) == 0


def _events(name: str) -> list[Any]:
    found = ask("events.read", {}, "abroad")
    return [event["data"] for event in found["events"] if event["event"] == name]  # type: ignore[index]


def _until(done: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_libvirt_takes_the_domains(tmp_path: Path) -> None:
    """Libvirt's own schema, of Debian's packages, is the judge."""
    try:
        unpack(fetch(["libvirt0", "libxml2-utils"], depends=False, cache=cache_folder()), tmp_path)
    except VirtfnError as error:
        pytest.skip(f"not run: {error}")
    (tmp_path / "disk.raw").write_bytes(bytes(1024))
    (tmp_path / "OVMF.fd").write_bytes(bytes(1024))
    disk = "{name: c, vmm: qemu, disk: disk.raw, firmware: OVMF.fd, qemu-args: [-usb], nic: {pf: pf0, io: split}}"
    whole = SERVED.replace("]\nguests", ", {name: pf1}]\nguests")
    host = "{name: h, vmm: qemu, nic: {pf: pf1, io: host}}"
    (tmp_path / "lab.yaml").write_text(whole.replace("workload", f"  - {disk}\n  - {host}\nworkload"))
    for guest in "abch":
        domain = subprocess.run(
            [*VIRTFN, "qemu-args", str(tmp_path / "lab.yaml"), guest, "--libvirt"], capture_output=True, check=True
        )
        schema = tmp_path / "usr/share/libvirt/schemas/domain.rng"
        judged = subprocess.run(
            [tmp_path / "usr/bin/xmllint", "--noout", "--relaxng", schema, "-"],
            input=domain.stdout,
            capture_output=True,
        )
        assert judged.returncode == 0, judged.stderr.decode()
