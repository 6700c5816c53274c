"""Small generated videos for tests, whose frame numbers can be read off the pixels.

A numbered frame is a 4 × 4 board of black and white fields: the bits of its number, lowest bit at the top left. It
survives resizing and lossy codecs; ``frame_number`` reads it back.

    >>> data = make_video(num_frames=30, fps=25)
    >>> frame_number(decoded_frame)
    7
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BOARD = 4
MAX_NUMBER = 2 ** (BOARD * BOARD)

Draw = Callable[[int, int, int], np.ndarray]
"""(frame number, width, height) -> (H, W, 3) uint8 RGB."""

LOSSLESS = {
    "libx264": {"qp": "0", "preset": "ultrafast"},
    "libx264rgb": {"qp": "0"},
    "libx265": {"x265-params": "lossless=1:log-level=0"},
}


def numbered_frame(number: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the board of ``number``."""
    if not 0 <= number < MAX_NUMBER:
        raise ValueError(f"a frame number must be in [0, {MAX_NUMBER}), got {number}")
    bits = np.array([(number >> i) & 1 for i in range(BOARD * BOARD)], dtype=np.uint8).reshape(BOARD, BOARD)
    rows = np.arange(height) * BOARD // height
    columns = np.arange(width) * BOARD // width
    luma = 16 + 219 * bits[rows][:, columns]
    return np.repeat(luma[:, :, None], 3, axis=2).astype(np.uint8)


def noisy_frame(number: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB that does not compress, another for each number: for files that are large soon."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def noisy_video(*, num_frames: int = 600, **how: Any) -> bytes:
    """A large file, 2.5 kB a frame of 64 × 48, with a key frame every ten."""
    options = {"preset": "ultrafast", "crf": "20"}
    return make_video(num_frames=num_frames, gop_size=10, options=options, draw=noisy_frame, **how)


def frame_number(frame: np.ndarray) -> int:
    """The number of a (H, W, 3) frame made by ``numbered_frame``; not cropped, not rotated."""
    height, width = frame.shape[:2]
    rows = (2 * np.arange(BOARD) + 1) * height // (2 * BOARD)
    columns = (2 * np.arange(BOARD) + 1) * width // (2 * BOARD)
    bits = frame[rows][:, columns].mean(axis=2) > 127
    return sum(int(bit) << i for i, bit in enumerate(bits.reshape(-1)))


def frame_numbers(frames: Iterable[np.ndarray]) -> list[int]:
    """The numbers of (T, H, W, 3) frames."""
    return [frame_number(np.asarray(frame)) for frame in frames]


def make_video(
    *,
    num_frames: int = 30,
    fps: Fraction | int = 30,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    container: str = "mp4",
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    start_pts: int = 0,
    gop_size: int = 12,
    max_b_frames: int = 0,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    with_audio: bool = False,
    num_video_streams: int = 1,
    default_stream: int | None = None,
    sample_aspect_ratio: Fraction | None = None,
    draw: Draw = numbered_frame,
) -> bytes:
    """A video file of numbered frames, in memory.

    Args:
        codec: an encoder's name; libx264 and libx265 are lossless unless ``options`` says otherwise, ffv1 (mkv, avi)
            always is, mpeg4, mpeg2video, libvpx-vp9 and libsvtav1 are not.
        container: a muxer's name: mp4, mov, matroska, webm, avi, mpegts, mpeg, flv.
        pts: when each frame is shown, in ``time_base`` units: a variable frame rate. None: one frame each 1/fps.
        start_pts: added to every pts.
        rotation: degrees counterclockwise by which a player turns the picture (metadata; mp4 and mov keep it).
        num_video_streams: further streams show the same frames counted from 1000, 2000, ....
        default_stream: the one that is marked as the default. None: as the muxer likes.
        sample_aspect_ratio: width of a pixel by its height, as displayed.
    """
    time_base = time_base or 1 / Fraction(fps)
    encoder_options = {**LOSSLESS.get(codec, {}), **(options or {})}
    # A real file, not BytesIO: moving an mp4's index to the front opens the output a second time, by name.
    with (
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=container, container_options=container_options or {}) as output,
    ):
        streams = []
        for _ in range(num_video_streams):
            stream = output.add_stream(codec, rate=Fraction(fps), options=encoder_options)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.codec_context.time_base = time_base
            stream.codec_context.gop_size = gop_size
            stream.codec_context.max_b_frames = max_b_frames
            if rotation:
                stream.set_display_rotation(rotation)
            if sample_aspect_ratio:
                stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
            if default_stream is not None:
                stream.disposition = (
                    av.stream.Disposition.default if len(streams) == default_stream else av.stream.Disposition(0)
                )
            streams.append(stream)
        audio = output.add_stream("aac" if container != "webm" else "libopus", rate=48000) if with_audio else None
        for i in range(num_frames):
            for number, stream in enumerate(streams):
                frame = av.VideoFrame.from_ndarray(draw(i + 1000 * number, width, height), format="rgb24")
                frame = frame.reformat(format=pix_fmt)
                frame.pts = start_pts + (pts[i] if pts is not None else i)
                frame.time_base = time_base
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
        if audio is not None:
            _mux_tone(output, audio, seconds=num_frames / Fraction(fps))
        output.close()
        return Path(file.name).read_bytes()


def audio_only(*, container: str = "mp4", seconds: int = 1) -> bytes:
    """A file with a sound and no picture."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        _mux_tone(output, output.add_stream("aac", rate=48000), seconds=Fraction(seconds))
    return file.getvalue()


def truncated(data: bytes, fraction: float) -> bytes:
    """The first part of a file. An mp4 keeps its index only if it was made with ``FASTSTART``."""
    return data[: int(len(data) * fraction)]


FASTSTART = {"movflags": "faststart"}
"""``container_options`` that put an mp4's index in front, so that a truncated file still opens."""


def resized_midway(*, num_frames: int = 20, sizes: Sequence[tuple[int, int]] = ((64, 48), (96, 32))) -> bytes:
    """An MPEG transport stream whose (width, height) changes every ``num_frames / len(sizes)`` frames: parts of H.264
    put one after the other, with pts that go on."""
    per_part = num_frames // len(sizes)
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as output:
        stream = None
        for part, (width, height) in enumerate(sizes):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base = Fraction(1, 25)
            encoder.framerate = Fraction(25)
            encoder.options = LOSSLESS["libx264"]
            encoder.max_b_frames = 0
            if stream is None:
                stream = output.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            packets = []
            for i in range(part * per_part, (part + 1) * per_part):
                frame = av.VideoFrame.from_ndarray(numbered_frame(i, width, height), format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode(None):
                packet.stream = stream
                packet.time_base = Fraction(1, 25)
                output.mux(packet)
    return file.getvalue()


def repeated(data: bytes, times: int) -> bytes:
    """An mp4 file of an mp4 without B-frames, played ``times`` times: its packets, with times that go on."""
    with av.open(io.BytesIO(data)) as source:
        packets = [(bytes(p), p.pts, p.is_keyframe) for p in source.demux(video=0) if p.size]
        stream = source.streams.video[0]
        length = packets[-1][1] + packets[1][1] - packets[0][1]
        with tempfile.NamedTemporaryFile() as file:
            with av.open(file.name, "w", format="mp4") as output:
                copy = output.add_stream_from_template(stream)
                copy.time_base = stream.time_base
                for number in range(times):
                    for content, pts, is_key in packets:
                        packet = av.Packet(content)
                        packet.stream, packet.is_keyframe, packet.time_base = copy, is_key, stream.time_base
                        packet.pts = packet.dts = pts + number * length
                        output.mux(packet)
            return Path(file.name).read_bytes()


def _mux_tone(output: av.container.OutputContainer, stream: av.AudioStream, *, seconds: Fraction) -> None:
    samples = np.sin(np.arange(int(seconds * 48000)) * 0.05).astype(np.float32)
    for start in range(0, len(samples), 960):
        piece = samples[None, start : start + 960].repeat(2, axis=0)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))
