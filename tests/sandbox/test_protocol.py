"""Nothing that a child sends can do more than fail."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidray.sandbox.confinement import Confinement
from vidray.sandbox.protocol import (
    MAX_MESSAGE_BYTES,
    REPLY_BYTES,
    Reply,
    Request,
    WireError,
    pack_config,
    pack_ready,
    pack_reply,
    pack_request,
    unpack_config,
    unpack_ready,
    unpack_reply,
    unpack_request,
)
from vidray.types import Limits, Status, TimeRange, VideoInfo, ViewConfig
from vidray.video.random_crops import CropConfig

INFO = VideoInfo(
    duration_seconds=1.5,
    width=320,
    height=240,
    fps=29.97,
    codec="h264",
    num_frames_expected=45,
    num_frames_decoded=44,
    sample_aspect_ratio=64 / 45,
    num_time_jumps=2,
)


def test_config_survives_the_way_to_the_child() -> None:
    view, limits = ViewConfig(num_frames=8, size=32, num_clips=2, short_side=40), Limits(decode_timeout_seconds=0.25)
    crop = CropConfig(mode="resized", min_short_side=32, max_short_side=40)
    assert unpack_config(pack_config(view=view, limits=limits)) == (view, limits, None)
    assert unpack_config(pack_config(view=view, limits=limits, crop=crop)) == (view, limits, crop)


def test_request_survives_the_way_to_the_child() -> None:
    whole = Request(request_id=7, num_bytes=1 << 40)
    part = Request(request_id=7, num_bytes=1, seed=2**64 - 1, time_range=TimeRange(start_seconds=0.1, end_seconds=7.3))
    more = Request(request_id=8, num_bytes=0, is_next=True)
    assert [unpack_request(pack_request(request)) for request in (whole, part, more)] == [whole, part, more]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(request_id=3, status=Status.OK, shape=(5, 16, 224, 224, 3), info=INFO),
        Reply(request_id=3, status=Status.OK, shape=(1, 1, 1, 1, 3)),
        Reply(request_id=3, status=Status.OK, info=VideoInfo(num_frames_decoded=0, num_frames_expected=0)),
        Reply(request_id=3, status=Status.CORRUPT, message="größer als erlaubt"),
    ],
    ids=["all known", "nothing known", "zero is not unknown", "a message"],
)
def test_reply_survives_the_way_back(reply: Reply) -> None:
    assert unpack_reply(pack_reply(reply), request_id=3) == reply


@pytest.mark.parametrize(
    "confinement",
    [
        Confinement(landlock_version=7),
        Confinement(landlock_version=0, landlock_error=38, filter_error=4095, has_network_namespace=True),
        Confinement(landlock_version=255, filter_error=1, has_fixed_limits=False),
    ],
)
def test_ready_survives_the_way_back(confinement: Confinement) -> None:
    assert unpack_ready(pack_ready(confinement)) == confinement


READY = pack_ready(Confinement(landlock_version=7))


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"", "10 bytes, got 0"),
        (READY + b"\0", "10 bytes, got 11"),
        (b"vrA1" + READY[4:], "starts with b'vrC1', got b'vrA1'"),
        (READY[:4] + b"\0" + READY[5:], "a version or an error: 0, 0"),
        (READY[:5] + b"\1\0" + READY[7:], "a version or an error: 7, 1"),
        (READY[:7] + b"\0\x10" + READY[9:], "numbered 0 to 4095, got 4096"),
        (READY[:9] + b"\4", "flags are 0 to 3, got 4"),
    ],
)
def test_a_wrong_ready_is_refused(message: bytes, error: str) -> None:
    with pytest.raises(WireError, match=error):
        unpack_ready(message)


def test_seconds_are_the_parents_to_measure() -> None:
    reply = Reply(request_id=1, status=Status.OK, info=dataclasses.replace(INFO, decode_seconds=1e9))
    assert unpack_reply(pack_reply(reply), request_id=1).info == INFO


def test_long_and_odd_messages_become_one_printable_line() -> None:
    text = "a\nb\x1b[31m\x00\udcff" + "é" * MAX_MESSAGE_BYTES
    message = unpack_reply(pack_reply(Reply(request_id=1, status=Status.CORRUPT, message=text)), request_id=1).message
    assert message.startswith("a b [31m")
    assert message.isprintable()
    assert len(message) <= MAX_MESSAGE_BYTES


def test_a_child_cannot_say_what_became_of_the_object() -> None:
    reply = Reply(request_id=1, status=Status.NOT_FOUND, message="gone")
    assert unpack_reply(pack_reply(reply), request_id=1).status is Status.DECODER_CRASHED


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=64) | st.binary(min_size=REPLY_BYTES, max_size=REPLY_BYTES))
def test_random_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(WireError):
        unpack_reply(message, request_id=1)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.integers(0, REPLY_BYTES - 1), st.binary(min_size=1, max_size=24))
def test_a_patched_reply_is_refused_or_within_bounds(offset: int, patch: bytes) -> None:
    good = pack_reply(Reply(request_id=1, status=Status.OK, shape=(5, 16, 224, 224, 3), info=INFO))
    patched = (good[:offset] + patch + good[offset + len(patch) :])[:REPLY_BYTES]
    try:
        reply = unpack_reply(patched, request_id=1)
    except WireError:
        return
    assert reply.message.isprintable()
    for name in ("width", "height", "num_frames_expected", "num_frames_decoded", "num_time_jumps"):
        assert getattr(reply.info, name) is None or 0 <= getattr(reply.info, name) <= 2**53
