"""Files made to do harm: each ends as views or as a `VideoError`, within bounds; nothing else is read, nobody called.

What must hold is shown twice, for `decode_views` itself, which has to refuse, and for the `Sandbox` around it, which
would hold if it did not. Controls show that an unguarded FFmpeg does what is guarded against, so the tests can fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import io
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.videos import FASTSTART, audio_only, make_video, resized_midway, truncated
from vidray.errors import VideoError
from vidray.sandbox.sandbox import Sandbox
from vidray.types import Limits, Status, VideoInfo, ViewConfig
from vidray.video.views import decode_views

VIEW = ViewConfig(num_frames=4, size=32, num_clips=2)
LIMITS = Limits(decode_timeout_seconds=20, decode_memory_bytes=512 * 1024**2, max_frames=100_000)
REFUSED = (Status.UNSUPPORTED, Status.CORRUPT, Status.NO_VIDEO)
FOUND_BY_DECODER = (*REFUSED, Status.TOO_LARGE, Status.OUT_OF_MEMORY)

Decode = Callable[[bytes], tuple[np.ndarray, VideoInfo]]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(view=VIEW, limits=LIMITS) as sandbox:
        yield sandbox


@pytest.fixture(params=["decode_views", "sandbox"])
def decode(request: pytest.FixtureRequest, sandbox: Sandbox) -> Decode:
    if request.param == "sandbox":
        return sandbox.decode
    return functools.partial(decode_views, view=VIEW, limits=LIMITS)


def outcome(decode: Decode, data: bytes) -> Status:
    """How ``data`` ends: well-formed views, or a status of those that a decoder can find. All else fails the test."""
    start = time.monotonic()
    failure: VideoError | None = None
    try:
        views_VTHWC, info = decode(data)
    except VideoError as error:
        failure = error
    assert time.monotonic() - start < LIMITS.decode_timeout_seconds
    if failure is not None:
        assert failure.status in FOUND_BY_DECODER, failure
        assert failure.message
        return failure.status
    assert views_VTHWC.shape == VIEW.views_shape
    assert views_VTHWC.dtype == np.uint8
    assert info.num_frames_decoded is None or info.num_frames_decoded > 0
    return Status.OK


# -- files that name other files and addresses -----------------------------------------------------------------------


class Listener:
    """A port of this machine that knows whether somebody came, and hangs up on who does."""

    def __init__(self) -> None:
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self.port))
        self._num_connections = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._tcp.accept()
                self._num_connections += 1
                connection.close()

    def was_reached(self) -> bool:
        """Comes itself, once: connections are taken in order, so all that came before are counted when it is let go."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            assert connection.recv(1) == b""
        return self._num_connections > 1 or bool(select.select([self._udp], [], [], 0)[0])

    def close(self) -> None:
        self._tcp.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._tcp.close()
        self._udp.close()


class Watch:
    """Tells whether files were opened or read, through inotify."""

    def __init__(self, *paths: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        opened_or_read = 0x20 | 0x01
        for path in paths:
            assert libc.inotify_add_watch(self._fd, os.fsencode(path), opened_or_read) > 0

    def was_read(self) -> bool:
        try:
            return bool(os.read(self._fd, 65536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with contextlib.closing(Listener()) as listener:
        yield listener


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good video in the folder that the test runs in; a decoder that follows a reference to it has views to show."""
    path = tmp_path / "canary.ts"
    path.write_bytes(make_video(container="mpegts"))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def watch(canary: Path) -> Iterator[Watch]:
    with contextlib.closing(Watch(canary)) as watch:
        yield watch


def ffconcat(target: str) -> bytes:
    return f"ffconcat version 1.0\nfile '{target}'\nduration 1\n".encode()


def hls(target: str) -> bytes:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n"
    return f"{head}#EXTINF:5.0,\n{target}\n#EXT-X-ENDLIST\n".encode()


def dash(target: str) -> bytes:
    return f"""<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" bandwidth="1000"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>
""".encode()


def sdp(port: int) -> bytes:
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=x", "c=IN IP4 127.0.0.1", "t=0 0", f"m=video {port} RTP/AVP 96"]
    return "\r\n".join([*lines, "a=rtpmap:96 H264/90000", ""]).encode()


@pytest.mark.parametrize("target", ["relative", "absolute", "file", "http"])
@pytest.mark.parametrize("text", [ffconcat, hls, dash])
def test_text_that_names_a_file_or_address_is_refused(
    decode: Decode, text: Callable[[str], bytes], target: str, canary: Path, watch: Watch, listener: Listener
) -> None:
    names = {
        "relative": canary.name,
        "absolute": str(canary),
        "file": f"file:{canary}",
        "http": f"http://127.0.0.1:{listener.port}/canary.ts",
    }
    assert outcome(decode, text(names[target])) in REFUSED
    assert not watch.was_read()
    assert not listener.was_reached()


def test_session_description_is_refused(decode: Decode, listener: Listener) -> None:
    assert outcome(decode, sdp(listener.port)) in REFUSED
    assert not listener.was_reached()


def unguarded(text: bytes, *, name: str) -> av.container.InputContainer:
    """FFmpeg as it is where nobody took care: the bytes have a name, every protocol is allowed."""
    file = io.BytesIO(text)
    file.name = name  # type: ignore[attr-defined]
    options = {"safe": "0", "protocol_whitelist": "file,http,tcp"}
    return av.open(file, options=options)


@pytest.mark.parametrize(("text", "name"), [(ffconcat, "video.mp4"), (hls, "video.m3u8")])
def test_control_an_unguarded_decoder_reads_the_file(
    text: Callable[[str], bytes], name: str, canary: Path, watch: Watch
) -> None:
    with unguarded(text(str(canary)), name=name) as container:
        assert next(container.decode(video=0)).width == 64
    assert watch.was_read()


@pytest.mark.parametrize(("text", "name"), [(ffconcat, "video.mp4"), (hls, "video.m3u8")])
def test_control_an_unguarded_decoder_reaches_the_listener(
    text: Callable[[str], bytes], name: str, listener: Listener
) -> None:
    with contextlib.suppress(av.FFmpegError), unguarded(text(f"http://127.0.0.1:{listener.port}/a.ts"), name=name):
        pass
    assert listener.was_reached()


# -- sizes that cost memory or time ----------------------------------------------------------------------------------


def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def _golomb(value: int) -> str:
    """Unsigned Exp-Golomb code (H.264, 9.1)."""
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def _skip_golomb(bits: str, position: int) -> int:
    num_zeros = bits.index("1", position) - position
    return position + 2 * num_zeros + 1


def _with_size(sps: bytes, *, width: int, height: int) -> bytes:
    """A baseline sequence parameter set (H.264, 7.3.2.1.1) that claims another size, a multiple of 16."""
    bits = _bits(sps.replace(b"\0\0\3", b"\0\0"))
    position = 8 * 4  # NAL header, profile, constraints, level
    for _ in range(2):  # id, log2_max_frame_num
        position = _skip_golomb(bits, position)
    assert bits[position : position + 3] == "011", "pic_order_cnt_type must be 2, as without B-frames"
    position = _skip_golomb(bits, position + 3) + 1  # max_num_ref_frames, gaps_in_frame_num
    end = _skip_golomb(bits, _skip_golomb(bits, position))
    bits = bits[:position] + _golomb(width // 16 - 1) + _golomb(height // 16 - 1) + bits[end:]
    bits += "0" * (-len(bits) % 8)
    rewritten = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return rewritten.replace(b"\0\0\0", b"\0\0\3\0").replace(b"\0\0\1", b"\0\0\3\1")


def h264(*, width: int = 64, height: int = 48, claims: tuple[int, int] | None = None, num_frames: int = 10) -> bytes:
    """A raw H.264 stream, whose headers may claim another size than its pictures have."""
    options = {"profile": "baseline", "qp": "20", "x264-params": "annexb=1:repeat-headers=1"}
    data = make_video(container="h264", width=width, height=height, num_frames=num_frames, options=options)
    if claims is None:
        return data
    units = data.split(b"\0\0\1")
    units = [_with_size(u, width=claims[0], height=claims[1]) if u[:1] and u[0] & 31 == 7 else u for u in units]
    return b"\0\0\1".join(units)


GIANT = (16000, 16000)


def open_raw(data: bytes) -> av.container.InputContainer:
    """A raw H.264 stream to take packets from; a giant picture is not decoded to probe it, which takes 6 s."""
    return av.open(io.BytesIO(data), format="h264", options={"max_pixels": "1000000"})


def in_transport_stream(data: bytes) -> bytes:
    """The packets of a raw H.264 stream in a container that gives them times."""
    file = io.BytesIO()
    with open_raw(data) as source, av.open(file, "w", format="mpegts") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            target.mux(packet)
    return file.getvalue()


def test_control_the_giant_claims_what_it_should() -> None:
    with open_raw(h264(claims=GIANT)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.width, codec.height) == GIANT


@pytest.mark.parametrize("wrap", [bytes, in_transport_stream], ids=["raw", "mpegts"])
def test_giant_frames_are_too_large(decode: Decode, wrap: Callable[[bytes], bytes]) -> None:
    assert outcome(decode, wrap(h264(claims=GIANT))) is Status.TOO_LARGE


@pytest.mark.parametrize("wrap", [bytes, in_transport_stream], ids=["raw", "mpegts"])
def test_a_jump_to_giant_frames_is_survived(sandbox: Sandbox, wrap: Callable[[bytes], bytes]) -> None:
    data = wrap(h264() + h264(claims=GIANT) + h264())
    assert outcome(sandbox.decode, data) in (Status.OK, Status.TOO_LARGE, Status.CORRUPT)


def test_giant_frames_that_are_allowed_end_at_the_memory_limit() -> None:
    limits = dataclasses.replace(LIMITS, max_pixels=GIANT[0] * GIANT[1], decode_memory_bytes=128 * 1024**2)
    with Sandbox(view=VIEW, limits=limits) as sandbox:
        with pytest.raises(VideoError) as caught:
            sandbox.decode(h264(claims=GIANT))
        assert caught.value.status in (Status.OUT_OF_MEMORY, Status.CORRUPT)
        sandbox.decode(make_video())


@pytest.mark.parametrize("sizes", [((64, 48), (96, 32)), ((64, 48), (1920, 1088)), ((320, 240), (16, 16), (48, 64))])
def test_frames_that_change_size_are_views_like_others(decode: Decode, sizes: tuple[tuple[int, int], ...]) -> None:
    assert outcome(decode, resized_midway(num_frames=12, sizes=sizes)) is Status.OK


@pytest.fixture(scope="module")
def many_frames() -> bytes:
    """An AVI file of 200,000 frames of 16 × 16 pixels, each the same key frame."""
    with av.open(io.BytesIO(make_video(num_frames=1, width=16, height=16, codec="mpeg4", container="avi"))) as source:
        picture = bytes(next(packet for packet in source.demux(video=0) if packet.size))
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as target:
        stream = target.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in range(200_000):
            packet = av.Packet(picture)
            packet.stream, packet.is_keyframe = stream, True
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = number
            target.mux(packet)
    return file.getvalue()


def test_too_many_frames_are_too_large(decode: Decode, many_frames: bytes) -> None:
    assert outcome(decode, many_frames) is Status.TOO_LARGE


def test_many_frames_decode_in_bounded_time_where_they_are_allowed(many_frames: bytes) -> None:
    limits = dataclasses.replace(LIMITS, max_frames=200_000, decode_timeout_seconds=100)
    with Sandbox(view=dataclasses.replace(VIEW, span="full"), limits=limits) as sandbox:
        views_VTHWC, info = sandbox.decode(many_frames)
    assert views_VTHWC.shape == VIEW.views_shape
    assert info.num_frames_decoded == 200_000


def test_too_long_a_video_is_too_large() -> None:
    with Sandbox(view=VIEW, limits=dataclasses.replace(LIMITS, max_duration_seconds=60)) as sandbox:
        assert outcome(sandbox.decode, make_video(num_frames=3, fps=Fraction(1, 30))) is Status.TOO_LARGE


# -- broken files ----------------------------------------------------------------------------------------------------


GOOD_FILES: dict[str, Callable[[], bytes]] = {
    "mp4": make_video,
    "mp4, index in front": lambda: make_video(container_options=FASTSTART, max_b_frames=2),
    "mkv": lambda: make_video(container="matroska"),
    "ts": lambda: make_video(container="mpegts"),
    "avi": lambda: make_video(codec="mpeg4", container="avi"),
    "flv": lambda: make_video(codec="flv", container="flv"),
    "mpeg": lambda: make_video(codec="mpeg2video", container="mpeg", fps=25, width=64, height=64),
    "webm": lambda: make_video(codec="libvpx", container="webm", options={"deadline": "realtime", "cpu-used": "8"}),
    "with sound": lambda: make_video(with_audio=True),
    "turned": lambda: make_video(rotation=90),
    "h264": h264,
}
"""One small good video of each common kind."""


@functools.cache
def good_file(kind: str) -> bytes:
    return GOOD_FILES[kind]()


@pytest.mark.parametrize("kind", GOOD_FILES)
def test_control_good_files_are_good(decode: Decode, kind: str) -> None:
    assert outcome(decode, good_file(kind)) is Status.OK


@pytest.mark.parametrize("kind", GOOD_FILES)
def test_truncated_files_end_with_a_status(sandbox: Sandbox, kind: str) -> None:
    data = good_file(kind)
    for fraction in (0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        outcome(sandbox.decode, truncated(data, fraction))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", bytes(1_000_000), b"\xff" * 100_000, b"RIFF", b"\x1aE\xdf\xa3", b"\0\0\0\x18ftypmp42",
        b"<html>404 Not Found</html>", b"{}" * 5000, b"GIF89a",
    ],
    ids=lambda data: f"{len(data)} {data[:8]!r}",
)  # fmt: skip
def test_what_is_no_video_is_refused(decode: Decode, data: bytes) -> None:
    assert outcome(decode, data) in REFUSED


def test_a_stream_that_begins_late_is_no_harm(decode: Decode) -> None:
    """Found by flipping bytes: PyAV raises IndexError on a packet of a stream that was not there at the start."""
    data = make_video(codec="flv", container="flv", num_frames=300)
    starts = [13]  # of tags, after the header: kind, 3 bytes of length, 7 more, the body, 4 bytes of total length
    while starts[-1] < len(data):
        starts.append(starts[-1] + 15 + int.from_bytes(data[starts[-1] + 1 : starts[-1] + 4], "big"))
    sound = b"\x3e" + bytes(99)
    tag = b"\x08" + len(sound).to_bytes(3, "big") + bytes(7) + sound + (11 + len(sound)).to_bytes(4, "big")
    late = starts[len(starts) * 3 // 4]
    assert outcome(decode, data[:late] + tag * 3 + data[late:]) is Status.OK


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_sound_alone_is_no_video(decode: Decode, container: str) -> None:
    assert outcome(decode, audio_only(container=container)) is Status.NO_VIDEO


Flip = tuple[float, int]
"""Where, as a fraction of the file, and what to add to the byte there."""


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(GOOD_FILES)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=20),
    in_header=st.booleans(),
)
def test_flipped_bytes_end_with_a_status(sandbox: Sandbox, kind: str, flips: list[Flip], in_header: bool) -> None:
    data = bytearray(good_file(kind))
    length = min(len(data), 1000) if in_header else len(data)
    for where, change in flips:
        position = int(where * length)
        data[position] = (data[position] + change) % 256
    outcome(sandbox.decode, bytes(data))
