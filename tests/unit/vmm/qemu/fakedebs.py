"""Debian packages made by hand, for tests."""

import gzip
import io
import tarfile
from pathlib import Path


def deb(path: Path, files: dict[str, bytes]) -> Path:
    """Make a package by hand: an ar archive of a version, control data and a tar file."""

    def tar(entries: dict[str, bytes]) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in entries.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))
        return gzip.compress(packed.getvalue())

    name, version, architecture = path.stem.split("_")
    control = f"Package: {name}\nVersion: {version.replace('%3a', ':')}\nArchitecture: {architecture}\n".encode()
    members = {"debian-binary": b"2.0\n", "control.tar.gz": tar({"control": control}), "data.tar.gz": tar(files)}
    content = b"!<arch>\n"
    for member, data in members.items():
        content += (
            f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    path.write_bytes(content)
    return path
