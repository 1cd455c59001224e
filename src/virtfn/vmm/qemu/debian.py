"""Debian packages by name, without root: from the mirror that this machine's own apt uses, checked by its keyring.

apt runs with private state, so it neither needs root nor knows what is installed here:

    cache/SUITE/state       lists and an empty dpkg status: every dependency is a package to fetch
    cache/SUITE/pool        the .deb files, under apt's own names
    cache/SUITE/requests    what a request came to; one that is there needs no network

Another suite than the machine's own is signed with keys that the machine may be too old to know. The chain of trust:
the machine's keyring vouches for the own suite, whose debian-archive-keyring package (Debian updates it before a
release) vouches for the other.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from virtfn import private
from virtfn.machine.ports import VirtfnError

__all__ = ["errno_name", "fetch", "own_suite", "unpack"]

KEYRING_PACKAGE = "debian-archive-keyring"
_KEYRINGS = ("usr/share/keyrings/debian-archive-keyring.gpg", "usr/share/keyrings/debian-archive-keyring.pgp")
_TRUSTED_PARTS = "etc/apt/trusted.gpg.d"
_BACKPORTS = "-backports"
# What apt says, the errno that it amounts to, and what virtfn says.
_COMPLAINTS = (
    ("Unable to locate package", "ENOENT", "no such package"),
    ("has no installation candidate", "ENOENT", "no such package"),
    ("does not have a Release file", "ENOENT", "the mirror has no such suite"),
    ("held broken packages", "EINVAL", "these packages do not go together"),
    ("NO_PUBKEY", "EKEYREJECTED", "the suite is signed with a key that is not in the keyring"),
    ("is not signed", "EKEYREJECTED", "the suite is not signed"),
    ("verification failed", "EBADMSG", "what the mirror sent is not what its signature says"),
    ("Hash Sum mismatch", "EBADMSG", "what the mirror sent is not what its signature says"),
    ("No space left", "ENOSPC", "no space left"),
    ("ould not resolve", "ENETUNREACH", "the mirror cannot be reached"),
    ("Temporary failure resolving", "ENETUNREACH", "the mirror cannot be reached"),
    ("ould not connect", "ENETUNREACH", "the mirror cannot be reached"),
    ("annot initiate the connection", "ENETUNREACH", "the mirror cannot be reached"),
    ("onnection failed", "ENETUNREACH", "the mirror cannot be reached"),
    ("onnection timed out", "ETIMEDOUT", "the mirror does not answer"),
    ("404 ", "ENOENT", "the mirror has not got it"),
    ("Failed to fetch", "EIO", "the mirror did not deliver"),
)


@dataclass(frozen=True, slots=True)
class _Source:
    """A line of sources.list: where, which suite, which component."""

    uri: str
    suite: str
    component: str

    def __str__(self) -> str:
        # Only the package lists: what else apt is configured to download (contents, icons) is for others.
        return f"deb [target=Packages] {self.uri} {self.suite} {self.component}\n"


def own_suite(root: Path = Path("/")) -> str:
    """Name the Debian suite of this machine, such as bookworm.

    root: where the machine's etc/os-release lies. Raises VirtfnError (ENOTSUP) where the machine is not Debian.
    """
    try:
        lines = (root / "etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME"):
        found = fields.get("PRETTY_NAME", "a system without /etc/os-release")
        raise VirtfnError(f"Debian packages are fetched by Debian's apt; this machine is {found}", errno_name="ENOTSUP")
    return fields["VERSION_CODENAME"]


def fetch(
    packages: Iterable[str], *, suite: str | None = None, depends: bool, cache: Path, refresh: bool = False
) -> list[Path]:
    """Download packages by name and return their .deb files, which stay in `cache`.

    suite: the machine's own if None; else such as trixie or trixie-backports (which includes trixie).
    depends: with all that they depend on, as if nothing were installed. refresh: ask the mirror again for newer ones.
    Raises VirtfnError: ENOTSUP (not Debian), ENOENT (no apt, no mirror configured, unknown package or suite),
    EKEYREJECTED and EBADMSG (signatures), ENETUNREACH, ETIMEDOUT and EIO (network), EINVAL, ENOSPC, EACCES.
    """
    names = sorted(set(packages))
    suite = suite or own_suite()
    for name in (*names, suite):
        if not name or name[0] in "-.~" or not name.replace("-", "").replace("+", "").replace(".", "").isalnum():
            raise VirtfnError(f"{name!r} is no name of a Debian package or suite", errno_name="EINVAL")
    if not names:
        return []
    folder = cache.absolute() / suite
    request = folder / "requests" / hashlib.sha256(json.dumps([names, depends]).encode()).hexdigest()[:16]
    try:
        private.own_folder(folder)
        for part in ("state/lists/partial", "archives/partial", "pool", "requests"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            files = None if refresh else _fetched_before(request, folder / "pool")
            if files is None:
                files = _Apt(folder, suite, cache).download(names, depends=depends)
                _write(request, json.dumps([file.name for file in files]))
            return files
    except OSError as error:
        raise VirtfnError(f"package cache: {error}", errno_name=errno_name(error)) from error


def unpack(debs: Iterable[Path], root: Path) -> None:
    """Unpack the files of .deb packages under `root`; nothing of them is run. Raises VirtfnError (ENOENT, EBADMSG)."""
    if shutil.which("dpkg-deb") is None:
        raise VirtfnError("dpkg-deb is missing: it comes with Debian's dpkg", errno_name="ENOENT")
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        done = subprocess.run(["dpkg-deb", "-x", deb, root], capture_output=True, text=True, check=False, env=_env())
        if done.returncode:
            raise VirtfnError(f"{deb.name}: {_last_line(done.stderr)}", errno_name="EBADMSG")


class _Apt:
    """apt with its state in `folder`, its sources those of `suite`."""

    def __init__(self, folder: Path, suite: str, cache: Path) -> None:
        self.folder = folder
        self.suite = suite
        missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
        if missing:
            raise VirtfnError(
                f"{' and '.join(missing)} not found: Debian packages need Debian's apt", errno_name="ENOENT"
            )
        sources = _sources(suite)
        _write(folder / "sources.list", "".join(map(str, sources)))
        _write(folder / "state/status", "")
        keyrings = folder / "keyrings"
        if suite == own_suite():
            _collect_keyrings(Path("/"), keyrings)
        else:
            with tempfile.TemporaryDirectory(dir=folder) as unpacked:
                unpack(fetch([KEYRING_PACKAGE], depends=False, cache=cache), Path(unpacked))
                _collect_keyrings(Path(unpacked), keyrings)
        self._options = _options(folder, keyrings, suite)

    def download(self, names: list[str], *, depends: bool) -> list[Path]:
        """Bring packages, and with `depends` what they depend on, into the pool; return the files."""
        self._run("update")
        if depends:
            # "Inst NAME (VERSION SUITES [ARCH])", one line for each package that the request comes to.
            plan = self._run("--simulate", "--no-install-recommends", "install", *names)
            names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
        pool = self.folder / "pool"
        with tempfile.TemporaryDirectory(dir=self.folder) as staging:
            # "'URI' FILE SIZE HASH", the names under which apt stores them.
            uris = self._run("download", "--print-uris", *names, cwd=Path(staging))
            files = {fields[1]: fields[0] for line in uris.splitlines() if len(fields := line.split()) >= 3}
            missing = {file.partition("_")[0] for file in files if not (pool / file).exists()}
            if missing:
                self._run("download", *(name for name in names if name.partition(":")[0] in missing), cwd=Path(staging))
            for file in Path(staging).glob("*.deb"):
                os.replace(file, pool / file.name)
        found = {file.partition("_")[0]: pool / file for file in files}
        wanted = [name.partition(":")[0] for name in names]
        lost = [name for name in wanted if name not in found or not found[name].exists()]
        if lost:
            raise VirtfnError(f"apt did not deliver {', '.join(lost)} of {self.suite}", errno_name="EIO")
        return [found[name] for name in wanted]

    def _run(self, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["apt-get", *self._options, *arguments],
            cwd=cwd or self.folder, env=_env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise _complaint(self.suite, done.stderr)
        return done.stdout


def _options(folder: Path, keyrings: Path, suite: str) -> list[str]:
    settings: dict[str, object] = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder,
        "Dir::Log": folder,
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",  # the machine's preferences are for what it has installed
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::trusted": "/dev/null",
        "Dir::Etc::trustedparts": keyrings,
        "APT::Update::Error-Mode": "any",
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    if suite.endswith(_BACKPORTS):
        settings["APT::Default-Release"] = suite  # else apt takes a backport only where there is no other version
    if os.geteuid() == 0:
        settings["APT::Sandbox::User"] = "root"  # _apt may not enter a cache in root's home
    return ["-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]


def _sources(suite: str) -> list[_Source]:
    """Derive the sources of a suite from the machine's own; raise VirtfnError if it names no mirror of Debian."""
    own = own_suite()
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        env=_env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise _complaint(own, done.stderr)
    entries = {_Source(*fields) for line in done.stdout.splitlines() if len(fields := line.split()) == 3}
    # The own suite with its -updates and -security; the same of the other suite lie on the same mirrors.
    entries = {entry for entry in entries if entry.suite.partition("-")[0] == own and entry.component == "main"}
    mirrors = {entry.uri for entry in entries if entry.suite == own}
    if not mirrors:
        raise VirtfnError(f"apt's sources of this machine name no mirror of {own} main", errno_name="ENOENT")
    release = suite.removesuffix(_BACKPORTS)
    followers = ("-updates", "-security")
    wanted = {
        _Source(entry.uri, release + entry.suite.removeprefix(own), "main")
        for entry in entries
        if entry.suite == own or entry.suite.removeprefix(own) in followers
    }
    if suite != release:
        wanted |= {_Source(uri, suite, "main") for uri in mirrors}
    return sorted(wanted, key=str)


def _collect_keyrings(root: Path, keyrings: Path) -> None:
    """Copy Debian's keyring found under `root` (the machine's or an unpacked package's) to where apt looks for keys."""
    found = [root / name for name in _KEYRINGS if (root / name).exists()][:1]
    found += [file for file in (root / _TRUSTED_PARTS).glob("*") if file.suffix in (".gpg", ".asc")]
    if not found:
        raise VirtfnError(f"no keyring of Debian's archive: {KEYRING_PACKAGE} is not installed", errno_name="ENOKEY")
    shutil.rmtree(keyrings, ignore_errors=True)
    keyrings.mkdir()
    for file in found:
        # apt reads no other suffixes; a .pgp file is binary like a .gpg
        shutil.copyfile(file, keyrings / file.with_suffix(".asc" if file.suffix == ".asc" else ".gpg").name)


def _complaint(suite: str, said: str) -> VirtfnError:
    for pattern, errno_name, meaning in _COMPLAINTS:
        for line in said.splitlines():
            if pattern in line:
                return VirtfnError(f"packages of {suite}: {meaning}: {_bare(line)}", errno_name=errno_name)
    return VirtfnError(f"packages of {suite}: apt failed: {_last_line(said)}", errno_name="EIO")


def _fetched_before(request: Path, pool: Path) -> list[Path] | None:
    try:
        files = [pool / str(name) for name in json.loads(request.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None
    return files if all(file.is_file() for file in files) else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two runs at once must not share apt's state."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _env() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _bare(line: str) -> str:
    return line.strip().removeprefix("E: ").removeprefix("W: ")


def _last_line(said: str) -> str:
    return _bare(said.strip().rpartition("\n")[2]) or "no word why"


def errno_name(error: OSError) -> str:
    """Name the errno of an error of the operating system, such as ENOSPC."""
    return errno.errorcode.get(error.errno or 0, "EIO")
