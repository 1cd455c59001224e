"""Captures: every variant of the formats is read alike, damage is one clear line, and what is recorded reads back."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import warnings
from pathlib import Path

import dpkt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng import FileScanner, FileWriter, blocks

from virtfn.machine.captures import CaptureError, Frames, read_capture
from virtfn.machine.recorder import Direction, Packet, Recorder

FRAMES = [bytes([n]) * (60 + 7 * n) for n in range(5)] + [b"\x01\x02\x03"]


def pcap(frames: list[bytes], order: str = "<", magic: int = 0xA1B2C3D4, link: int = 1, cut: int = 0) -> bytes:
    out = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, link)
    for n, frame in enumerate(frames):
        out += struct.pack(order + "IIII", 1_700_000_000 + n, 5, len(frame), len(frame) + cut) + frame
    return out


def pcapng(frames: list[bytes], endianness: str = "<", link: int = 1, cut: int = 0, **options: object) -> bytes:
    stream = io.BytesIO()
    section = blocks.SectionHeader(endianness=endianness)
    interface = section.new_member(blocks.InterfaceDescription, link_type=link, options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        writer = FileWriter(stream, section)
    for n, frame in enumerate(frames):
        block = section.new_member(
            blocks.EnhancedPacket, interface_id=interface.interface_id, packet_data=frame, packet_len=len(frame) + cut
        )
        block.timestamp_high, block.timestamp_low = divmod(1_700_000_000 * 10**6 + n * 10**6, 1 << 32)
        writer.write_block(block)
    return stream.getvalue()


def load(tmp_path: Path, content: bytes) -> Frames:
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    return read_capture(path)


def refused(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(CaptureError) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "x.pcap") + ": ")
    assert message.isprintable()
    assert ";" in message
    return message.removeprefix(str(tmp_path / "x.pcap") + ": ")


def assert_holds(frames: Frames, expected: list[bytes]) -> None:
    assert [frames.frame(i).tobytes() for i in range(len(frames))] == expected
    assert frames.bytes.dtype == np.uint8
    assert frames.bytes.flags.writeable
    assert frames.bytes.tobytes() == b"".join(expected)
    for array in (frames.offsets, frames.lengths, frames.ts_ps):
        assert array.dtype == np.int64
        assert len(array) == len(expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "tick_ps"), [(0xA1B2C3D4, 10**6), (0xA1B23C4D, 10**3)])
def test_pcap_in_every_variant(tmp_path: Path, order: str, magic: int, tick_ps: int) -> None:
    content = bytearray(pcap(FRAMES, order, magic))
    struct.pack_into(order + "I", content, 24 + 4, 9)
    frames = load(tmp_path, bytes(content))
    assert_holds(frames, FRAMES)
    assert frames.skipped == 0
    assert frames.ts_ps.tolist()[:3] == [0, 10**12 - 4 * tick_ps, 2 * 10**12 - 4 * tick_ps]


@pytest.mark.parametrize("endianness", ["<", ">"])
def test_pcapng_in_either_byte_order(tmp_path: Path, endianness: str) -> None:
    frames = load(tmp_path, pcapng(FRAMES, endianness))
    assert_holds(frames, FRAMES)
    assert frames.ts_ps.tolist() == [n * 10**12 for n in range(len(FRAMES))]


def test_pcapng_resolutions(tmp_path: Path) -> None:
    nano = load(tmp_path, pcapng(FRAMES, if_tsresol=b"\x09"))
    assert nano.ts_ps.tolist()[1] == 10**9
    binary = load(tmp_path, pcapng(FRAMES, if_tsresol=b"\x94"))
    assert binary.ts_ps.tolist()[1] == pytest.approx(10**18 >> 20, abs=1)


def test_what_an_independent_writer_wrote(tmp_path: Path) -> None:
    for nano in (False, True):
        stream = io.BytesIO()
        writer = dpkt.pcap.Writer(stream, nano=nano)
        for frame in FRAMES:
            writer.writepkt(frame, ts=1.5)
        assert_holds(load(tmp_path, stream.getvalue()), FRAMES)


def test_simple_packet_blocks_have_no_time(tmp_path: Path) -> None:
    section = pcapng([])
    frame = FRAMES[1][:64]
    body = struct.pack("<I", 64) + frame
    length = len(body) + 12
    frames = load(tmp_path, section + struct.pack("<II", 3, length) + body + struct.pack("<I", length))
    assert_holds(frames, [frame])
    assert frames.ts_ps.tolist() == [0]


def test_frames_cut_by_the_snap_length_are_counted(tmp_path: Path) -> None:
    short = pcap(FRAMES[:2]) + pcap(FRAMES[2:4], cut=100)[24:]
    frames = load(tmp_path, short)
    assert_holds(frames, FRAMES[:2])
    assert frames.skipped == 2
    assert frames.notes == (f"{tmp_path / 'x.pcap'}: 2 frames that the snap length had cut are left out",)
    assert load(tmp_path, pcap(FRAMES)).notes == ()
    assert refused(tmp_path, pcap(FRAMES, cut=1)).startswith("the snap length has cut all 6 frames; ")
    assert refused(tmp_path, pcapng(FRAMES, cut=1)).startswith("the snap length has cut all 6 frames; ")


def test_a_frame_check_sequence_is_taken_off(tmp_path: Path) -> None:
    assert_holds(load(tmp_path, pcap(FRAMES[:1], link=1 | 1 << 26 | 2 << 28)), [FRAMES[0][:-4]])
    assert_holds(load(tmp_path, pcapng(FRAMES[:1], if_fcslen=4)), [FRAMES[0][:-4]])


def test_times_may_be_absurd(tmp_path: Path) -> None:
    content = bytearray(pcap(FRAMES[:2]))
    struct.pack_into("<I", content, 24, 0)
    frames = load(tmp_path, bytes(content))
    assert frames.ts_ps.tolist() == [0, 1 << 62]


def test_files_that_are_no_captures(tmp_path: Path) -> None:
    assert refused(tmp_path, b"").startswith("is empty")
    assert refused(tmp_path, b"hello, world").startswith("is neither pcap nor pcapng")
    for magic, tool in (
        (b"\x1f\x8b\x08\x00", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"BZh9", "bunzip2"),
        (b"\xfd7zXZ\x00", "unxz"), (b"\x04\x22\x4d\x18", "unlz4"),
    ):  # fmt: skip
        assert refused(tmp_path, magic) == f"is compressed; unpack it with {tool} first"
    assert refused(tmp_path, pcap([])).startswith("holds no frame")
    assert refused(tmp_path, pcapng([])).startswith("holds no frame")
    assert refused(tmp_path, pcap(FRAMES)[:20]).startswith("is cut short in its header")
    assert refused(tmp_path, pcap(FRAMES)[:30]).startswith("ends in the header of frame 1, and holds no whole frame")
    assert refused(tmp_path, pcap(FRAMES)[:50]).startswith("ends in frame 1, and holds no whole frame")
    assert refused(tmp_path, pcap(FRAMES, link=113)).startswith("link type 113 (Linux cooked (any)) is not Ethernet")
    assert refused(tmp_path, pcapng(FRAMES, link=105)).startswith("link type 105 (IEEE 802.11) is not Ethernet")
    absurd = bytearray(pcap(FRAMES))
    struct.pack_into("<I", absurd, 24 + 8, 0x7FFFFFFF)
    assert refused(tmp_path, bytes(absurd)).startswith("frame 1 claims 2147483647 bytes")
    with pytest.raises(CaptureError, match="is a directory"):
        read_capture(tmp_path)
    with pytest.raises(CaptureError, match="No such file"):
        read_capture(tmp_path / "none")
    with pytest.raises(CaptureError, match="not a file name"):
        read_capture(Path("a\0b"))


def noted(frames: Frames) -> list[str]:
    return [note.split("x.pcap: ")[1] for note in frames.notes]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_that_ends_anywhere_has_the_frames_before(tmp_path: Path, order: str) -> None:
    """As a tool that was killed, or a full disk, leaves it."""
    whole = pcap(FRAMES[:3], order)
    ends = [24]
    for frame in FRAMES[:3]:
        ends.append(ends[-1] + 16 + len(frame))
    for size in range(ends[1], len(whole)):
        frames = load(tmp_path, whole[:size])
        count = sum(end <= size for end in ends[1:])
        assert_holds(frames, FRAMES[:count])
        inside = size - ends[count]
        expected = [] if not inside else ["ends in the header of frame" if inside < 16 else "ends in frame"]
        assert noted(frames) == [f"{words} {count + 1}" for words in expected]


@pytest.mark.parametrize("endianness", ["<", ">"])
def test_pcapng_that_ends_anywhere_has_the_frames_before(tmp_path: Path, endianness: str) -> None:
    whole = pcapng(FRAMES[:3], endianness)
    ends = [0]
    while ends[-1] < len(whole):
        ends.append(ends[-1] + struct.unpack_from(endianness + "I", whole, ends[-1] + 4)[0])
    for size in range(1, len(whole)):
        start = max(end for end in ends if end <= size)
        count = max(0, ends.index(start) - 2)  # behind the section and its interface
        if count == 0:
            message = refused(tmp_path, whole[:size])
            assert size < 4 or "holds no" in message, (size, message)
            continue
        frames = load(tmp_path, whole[:size])
        assert_holds(frames, FRAMES[:count])
        assert noted(frames) == ([] if size == start else [f"ends in the block after byte {start:,}"])


def test_damage_before_the_end_is_refused(tmp_path: Path) -> None:
    content = bytearray(pcapng(FRAMES))
    first = struct.unpack_from("<I", content, 4)[0]
    struct.pack_into("<I", content, first + 4, 16)  # shorter than its other length says
    assert refused(tmp_path, bytes(content)).startswith(f"is damaged after byte {first}; ")


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) & 3)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def interface(link: int = 1, snaplen: int = 0, options: bytes = b"", order: str = "<") -> bytes:
    return block(1, struct.pack(order + "HHI", link, 0, snaplen) + options, order)


def enhanced(
    number: int, frame: bytes, ticks: int = 0, options: bytes = b"", length: int | None = None, order: str = "<"
) -> bytes:
    size = len(frame) if length is None else length
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), size)
    return block(6, head + frame + bytes(-len(frame) & 3) + options, order)


def section(order: str = "<", size: int = -1) -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, size), order)


def test_sections_have_byte_orders_and_interfaces_of_their_own(tmp_path: Path) -> None:
    nano, offset = struct.pack(">HHBxxx", 9, 1, 9), struct.pack("<HHq", 14, 8, 1)
    content = section() + interface() + enhanced(0, FRAMES[0], 5)
    content += section(">") + interface(options=nano, order=">") + interface(order=">")
    content += enhanced(1, FRAMES[1], 6, order=">") + enhanced(0, FRAMES[2], 7000, order=">")
    content += section("<", 0) + interface(options=offset) + enhanced(0, FRAMES[3], 8)
    frames = load(tmp_path, content)
    assert_holds(frames, FRAMES[:4])
    assert frames.ts_ps.tolist() == [0, 10**6, 2 * 10**6, 10**12 + 3 * 10**6]
    assert frames.notes == ()


def test_blocks_that_say_nothing_about_frames_are_skipped(tmp_path: Path) -> None:
    """Names, statistics, secrets, processes, custom ones, and kinds that nobody knows yet."""
    content = section() + interface()
    for kind in (4, 5, 7, 9, 10, 0xBAD, 0x40000BAD, 0x80000001, 0x7FFFFFFF):
        content += block(kind, bytes(range(40))) + block(kind, b"")
    frames = load(tmp_path, content + enhanced(0, FRAMES[0]) + block(5, bytes(12)))
    assert_holds(frames, FRAMES[:1])
    assert frames.notes == ()


def test_simple_and_obsolete_packet_blocks(tmp_path: Path) -> None:
    frame = FRAMES[2]
    obsolete = struct.pack("<HHIIII", 1, 0xFFFF, 0, 9, len(frame), len(frame)) + frame
    content = section() + interface(snaplen=64) + interface()
    content += block(3, struct.pack("<I", 60) + FRAMES[0]) + block(3, struct.pack("<I", 74) + FRAMES[2][:64])
    frames = load(tmp_path, content + block(2, obsolete))
    assert_holds(frames, [FRAMES[0], frame])
    assert frames.skipped == 1


def test_the_fcs_is_where_a_frame_says_so(tmp_path: Path) -> None:
    flags = struct.pack("<HHIHH", 2, 4, 4 << 5 | 1, 0, 0)
    comment = struct.pack("<HH", 1, 5) + b"hello\0\0\0"
    content = section() + interface() + enhanced(0, FRAMES[0], options=comment + flags) + enhanced(0, FRAMES[1])
    assert_holds(load(tmp_path, content), [FRAMES[0][:-4], FRAMES[1]])


def test_frames_of_other_links_are_left_out_beside_ethernet(tmp_path: Path) -> None:
    """As tools write that record on several interfaces."""
    content = section() + interface(113) + interface(1) + enhanced(0, FRAMES[0]) + enhanced(0, FRAMES[1])
    frames = load(tmp_path, content + enhanced(1, FRAMES[2]))
    assert_holds(frames, [FRAMES[2]])
    assert noted(frames) == ["2 frames of link type 113 (Linux cooked (any)), not Ethernet, are left out"]
    assert refused(tmp_path, content).startswith("link type 113 (Linux cooked (any)) is not Ethernet")


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_of_the_patched_libpcap(tmp_path: Path, order: str) -> None:
    out = struct.pack(order + "IHHIIII", 0xA1B2CD34, 2, 4, 0, 0, 65535, 1)
    for frame in FRAMES:
        out += struct.pack(order + "IIIIIHBB", 1, 5, len(frame), len(frame), 2, 0x0800, 1, 0) + frame
    assert_holds(load(tmp_path, out), FRAMES)
    assert noted(load(tmp_path, out[:-1])) == ["ends in frame 6"]


@pytest.mark.parametrize("minor", [2, 3])
def test_pcap_of_old_with_its_lengths_exchanged(tmp_path: Path, minor: int) -> None:
    out = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, minor, 0, 0, 65535, 1)
    for frame in FRAMES[:2]:
        out += struct.pack("<IIII", 1, 5, len(frame) + 30, len(frame)) + frame
    out += struct.pack("<IIII", 1, 5, 60, 60) + FRAMES[0]
    frames = load(tmp_path, out)
    assert_holds(frames, [FRAMES[0]])
    assert frames.skipped == 2


@given(st.binary(max_size=120), st.integers(0, 400), st.sampled_from(["pcap", "pcapng", "none"]))
def test_any_bytes_give_frames_or_a_capture_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, kind: str
) -> None:
    whole = {"pcap": pcap(FRAMES), "pcapng": pcapng(FRAMES), "none": b""}[kind]
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    try:
        frames = read_capture(path)
    except CaptureError:
        return
    assert frames.lengths.sum() == len(frames.bytes)


def record(path: Path) -> list[tuple[int, int, bytes, Direction]]:
    batch = [(n % 2, n * 1_500_000, frame, Direction(1 + n % 2)) for n, frame in enumerate(FRAMES)]
    with Recorder(path, ["vf0 0000:01:10.0", "vf1 0000:01:10.2"], epoch_ps=1_700_000_000 * 10**12) as recorder:
        recorder.write(Packet(i, t, memoryview(f), d) for i, t, f, d in batch)
    assert recorder.frames == len(FRAMES)
    return batch


@pytest.mark.filterwarnings("ignore:Field type:DeprecationWarning")  # python-pcapng, of its own declaration
def test_a_recording_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    batch = record(path)
    frames = read_capture(path)
    assert_holds(frames, FRAMES)
    assert frames.ts_ps.tolist() == [n * 1_500_000 for n in range(len(FRAMES))]
    with path.open("rb") as stream:
        packets = [b for b in FileScanner(stream) if isinstance(b, blocks.EnhancedPacket)]
    assert [p.interface.options["if_name"] for p in packets[:2]] == ["vf0 0000:01:10.0", "vf1 0000:01:10.2"]
    assert [p.options["epb_flags"].inout for p in packets] == [d.name.lower() for *_, d in batch]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="not run: no tshark (Debian package tshark)")
def test_tshark_reads_a_recording_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    record(path)
    fields = ["frame.interface_name", "frame.packet_flags_direction", "frame.len", "frame.time_epoch"]
    command = ["tshark", "-r", str(path), "-T", "fields", *[a for f in fields for a in ("-e", f)]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # tshark says this of its own accord when it runs as root.
    noise = [line for line in done.stderr.splitlines() if line and not line.startswith("Running as user")]
    assert noise == []
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [r[0] for r in rows] == ["vf0 0000:01:10.0", "vf1 0000:01:10.2"] * 3
    assert [int(r[1], 0) for r in rows] == [1, 2] * 3
    assert [int(r[2]) for r in rows] == [len(f) for f in FRAMES]
    assert rows[1][3] == "1700000000.000001500"


def test_a_recording_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be written"):
        Recorder(tmp_path / "none" / "x.pcapng", ["vf0"])
    with Recorder(tmp_path / "x.pcapng", ["vf0"]) as recorder, pytest.raises(ValueError, match="interface 1 of 1"):
        recorder.write([Packet(1, 0, b"", Direction.INBOUND)])
    full = Path("/dev/full")
    if full.exists():
        recorder = Recorder(full, ["vf0"])
        with pytest.raises(CaptureError, match="No space left"):
            recorder.write([Packet(0, 0, bytes(1500), Direction.INBOUND)] * 2000)
        with pytest.raises(CaptureError, match="No space left"):
            recorder.close()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "captures").glob("*.pcap")), ids=lambda p: p.name)
def test_committed_captures_agree_with_an_independent_reader(path: Path) -> None:
    with path.open("rb") as stream:
        expected = [frame for _, frame in dpkt.pcap.Reader(stream)]
    frames = read_capture(path)
    assert frames.skipped == 0
    assert_holds(frames, expected)
