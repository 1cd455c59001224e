"""A byte stream of frames, read slowly: what `cut_stream` and `whole_frames` must find."""

from __future__ import annotations


def cut(stream: bytes, most: int, longest: int) -> tuple[list[bytes], bytes, bool]:
    """Take up to `most` whole frames off a stream. Returns (frames, filled up; the rest; whether it can go on)."""
    frames = []
    while len(frames) < most and len(stream) >= 4:
        length = int.from_bytes(stream[:4], "big")
        if length > longest:
            return frames, stream, False
        if len(stream) < 4 + length:
            break
        frame, stream = stream[4 : 4 + length], stream[4 + length :]
        frames.append(frame.ljust(60, b"\0") if len(frame) >= 14 else frame)
    return frames, stream, True
