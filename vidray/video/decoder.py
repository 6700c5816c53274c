"""From the bytes of a video file to the frames that a model sees. The only module that imports ``av``.

Which frames: exactly those that PyTorchVideo's ``EncodedVideo.get_clip`` followed by ``UniformTemporalSubsample``
would give for the same span. How it gets them for less:

1. *Scan*: all packets are read, none decoded. Their pts predict the frames, so the few that are kept are known before
   the first is decoded; the last packet tells where the video really ends, whatever the header says.
2. *Runs* (``timeline``): spans that share the way from a key frame are decoded in one go; a run begins at the key
   frame to which PyTorchVideo would seek, so what lies between far spans is never decoded.
3. *Skip*: H.264 frames that are neither kept nor referred to by others are not decoded, where time stamps are sound.
4. *Keep* (``pictures``): only the kept frames are converted, and resized before they become RGB.
5. *Check* (``selection``): the pts of the decoded frames must be those that were predicted, else once more.

Of a file that is fetched in parts (``by_index``) the scan would touch every byte. The demuxer of MP4 takes times, sizes
and places of packets from the index. So in the scan it is given zeros for their contents, and key frames are those of
the index. Each packet that is really read later, and the last, must be what the index said, or else the file is needed
whole.

The bytes are not trusted: no protocol, only well-known container formats, bounded pixels, frames and duration. A hang
or a crash in a codec is the business of the sandbox around this module.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.subtitles.codeccontext  # PyAV would import these with the first file, and NumPy its masked arrays with the
import av.subtitles.stream  # first call of unique(): too late in a sandbox, where no file can be opened any more
import numpy as np
import numpy.ma
from av.video.reformatter import VideoReformatter

from vidray.errors import VideoError
from vidray.types import ClipSpan, Limits, Status, VideoInfo, VideoStream, ViewConfig
from vidray.video.byte_sources import HollowFile, NeedsWholeFileError, SeekableFile, as_file, is_text, size_and_head
from vidray.video.file_size import HEAD_BYTES, promised_size
from vidray.video.frame_converters import Crops, DrawnCrops, FullSize, Picture, Resizer, orientation_of
from vidray.video.frame_selector import Convert, SampledClip, Selector, pictures_at
from vidray.video.mp4_boxes import media_spans
from vidray.video.packet_index import Bounds, Timeline
from vidray.video.packet_times import PacketTimes
from vidray.video.random_crops import ClipDraw
from vidray.video.sampling import pts_bounds, stream_pts

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,asf,ogg,gif,"
    "dv,mxf,yuv4mpegpipe,nut,rm,"
    "mp3,aac,wav,flac"  # sound alone: opened to say so
)
"""Demuxers that may open a file. None of them opens another file or address."""

MAX_KEPT_BYTES = 64 * 1024**2
"""Files up to this size are read once and their packets kept; larger ones are read again to be decoded."""

MAX_PART = 0.5
"""Share of a file that is read in parts, at most: each part costs a request."""

SOUND_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
"""Demuxers whose packets each hold one frame with its own pts."""


INDEXED_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2"})
"""Demuxers that know where every frame is, also where the file ends before it."""


class VideoDecoder:
    """One video file in memory. Implements PyTorchVideo's ``Video`` interface (``duration``, ``get_clip``), and counts
    as a subclass of it where PyTorchVideo is loaded."""

    def __init__(
        self,
        data: bytes | memoryview | SeekableFile,
        limits: Limits | None = None,
        *,
        video_stream: VideoStream = "default",
        num_threads: int = 1,
        max_kept_bytes: int = MAX_KEPT_BYTES,
        is_streamed: bool = False,
        by_index: bool = False,
    ) -> None:
        """Opens and scans the file.

        Args:
            data: the file's bytes, or something to read them from.
            video_stream: which of several, as in ``ViewConfig``.
            num_threads: of the codec. One is right where several decoders run side by side.
            is_streamed: for ``stream`` alone: nothing is kept that grows with the length of the video.
            by_index: read the container's index and the packets of the spans alone.

        Raises:
            VideoError: CORRUPT, UNSUPPORTED, NO_VIDEO or TOO_LARGE.
            NeedsWholeFileError: with ``by_index``, if the index does not say all, or (also later) something else than
                the packets.
        """
        _register_with_pytorchvideo()
        self._limits = limits or Limits()
        self._data, self._num_threads, self._which = data, num_threads, video_stream
        self._by_index, self._places = by_index, list[int]()
        self._last: av.Packet | None = None
        hollow = HollowFile(as_file(data), media_spans(as_file(data))) if by_index else None
        self._open(hollow)
        self._time_base = Fraction(self._stream.time_base or Fraction(1, av.time_base))
        is_small = isinstance(data, bytes | memoryview) and len(data) <= max_kept_bytes
        self._packets: list[av.Packet] | None = [] if is_small and not is_streamed and not by_index else None
        self.timeline = self._scan(hollow, keeps_packets=not is_streamed)
        self._key_packets = frozenset(self.timeline.keys)
        if hollow is not None:  # what FFmpeg holds of it are zeros
            self._container.close()
            self._open()
            self._check_last()
        self._num_joins = self._times.num_joins
        self._shape: tuple[int, int] | None = None
        self._is_turned = False
        self._num_expected: int | None = None
        self._num_decoded: int | None = None
        self.is_doubtful = False

    @classmethod
    def from_path(cls, file: str | os.PathLike[str] | BinaryIO, limits: Limits | None = None) -> VideoDecoder:
        """A local file by its name, or one that is open; as PyTorchVideo's ``EncodedVideo.from_path``, without sound.

        Raises:
            VideoError: as the constructor.
            OSError: the file cannot be read.
        """
        if not isinstance(file, str | os.PathLike):
            return cls(file.read(), limits)
        with open(file, "rb") as opened:
            return cls(opened.read(), limits)

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the file and its packets."""
        self._packets = []
        self._container.close()

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self, file: SeekableFile | None = None) -> None:
        """``file``: None: the video itself."""
        self._container = _open(self._data if file is None else file, self._limits)
        self._stream = _video_stream(self._container, self._which)
        codec, limit = self._stream.codec_context, self._limits.max_pixels
        if codec is None:
            raise VideoError(Status.UNSUPPORTED, "no decoder for the video stream's codec")
        if codec.width * codec.height > limit:
            size = f"{codec.width} x {codec.height}"
            raise VideoError(Status.TOO_LARGE, f"frames of {size} pixels, at most {limit} pixels are decoded")
        codec.options = {"max_pixels": str(limit)}
        codec.thread_count = self._num_threads
        codec.thread_type = "NONE" if self._num_threads == 1 else "AUTO"

    def _scan(self, hollow: HollowFile | None, *, keeps_packets: bool) -> Timeline:
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self._default_duration = max(1, round(1 / (rate * self._time_base)))
        timeline = Timeline(default_duration=self._default_duration, keeps_packets=keeps_packets)
        limit = self._limits.max_frames
        for packet, is_key in self._indexed(hollow) if hollow else ((p, p.is_keyframe) for p in self._repaired()):
            if timeline.num_packets >= limit:
                raise VideoError(Status.TOO_LARGE, f"more than {limit} frames")
            timeline.add(pts=packet.pts, duration=packet.duration, is_key=is_key, is_hidden=packet.is_discard)
            if self._packets is not None:
                self._packets.append(packet)
        timeline.finish()
        self._check_times(timeline)
        return timeline

    def _repaired(self) -> Iterator[av.Packet]:
        """All packets of the file from here on, with times that go on through joins."""
        self._times = PacketTimes(
            format_name=self._container.format.name,
            codec_name=self._stream.codec_context.name,
            time_base=self._time_base,
            default_duration=self._default_duration,
        )
        for packet in _demux(self._container, self._stream):
            self._times.repair(packet)
            yield packet

    def _indexed(self, hollow: HollowFile) -> Iterator[tuple[av.Packet, bool]]:
        """All packets as the container's index has them, empty but for their times, and whether each is a key frame."""
        if self._container.format.name not in INDEXED_FORMATS:
            raise NeedsWholeFileError("only MP4 and QuickTime have an index of all packets")
        entries = [entry for entry in self._stream.index_entries if entry.size]
        keys = {entry.pos for entry in entries if entry.is_keyframe}
        hollow.is_hollow = True
        for packet in self._repaired():
            self._places.append(packet.pos or 0)
            if not packet.is_discard and (self._last is None or _end(packet) > _end(self._last)):
                self._last = packet
            yield packet, packet.pos in keys
        if len(self._places) != len(entries) or self._times.are_repaired:
            raise NeedsWholeFileError("the index does not say all about the packets")

    def _check_last(self) -> None:
        """Raise NeedsWholeFileError if the frame that ends the video is not as the index says: where that gives it no
        duration, FFmpeg takes one from the content."""
        said = self._last
        assert said is not None, "a video without frames is refused before"
        with contextlib.suppress(av.FFmpegError):
            self._container.seek(said.dts or 0, stream=self._stream, any_frame=True)
        there = next((packet for packet in _demux(self._container, self._stream) if packet.pos == said.pos), None)
        if there is None or (there.pts, there.duration) != (said.pts, said.duration):
            raise NeedsWholeFileError("the last frame is not what the index says of it")

    def _check_times(self, timeline: Timeline) -> None:
        start = self._stream.start_time if timeline.is_timed else 0
        self._start_pts = start if start is not None else 0
        if timeline.ends is None:
            raise VideoError(Status.CORRUPT, "the video stream holds no frame")
        if timeline.ends <= self._start_pts:
            raise VideoError(Status.CORRUPT, "the video ends before it starts")
        self._end_pts = timeline.ends
        limit = self._limits.max_duration_seconds
        if self.duration > limit:
            raise VideoError(Status.TOO_LARGE, f"lasts {float(self.duration):.0f} s, at most {limit:.0f} s are decoded")

    # -- what is known ------------------------------------------------------------------------------------------------

    @property
    def duration(self) -> Fraction:
        """Seconds from the stream's start to the end of its last frame: a span that ends here includes that frame.
        (PyTorchVideo's ends where the header says, which may be before the last frame.)"""
        return (self._end_pts - self._start_pts) * self._time_base

    @property
    def info(self) -> VideoInfo:
        """What is known so far; displayed size and frame counts are known after decoding. A skipped frame counts as
        decoded."""
        codec = self._stream.codec_context
        height, width = self._shape or (codec.height, codec.width)
        rate = self._stream.average_rate or self.timeline.num_shown / self.duration
        return VideoInfo(
            duration_seconds=float(self.duration),
            width=width,
            height=height,
            fps=float(rate),
            codec=codec.codec.canonical_name,
            num_frames_expected=self._num_expected,
            num_frames_decoded=self._num_decoded,
            sample_aspect_ratio=1 / self.pixel_aspect if self._is_turned else self.pixel_aspect,
            num_time_jumps=self._num_joins,
        )

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel by its height, as stored. What is not said or absurd is square."""
        ratio = self._stream.sample_aspect_ratio or Fraction(1)
        return float(ratio) if 0.05 <= ratio <= 20 else 1.0

    # -- frames -------------------------------------------------------------------------------------------------------

    def get_clip(self, start_sec: Fraction | float, end_sec: Fraction | float) -> dict[str, Any]:
        """PyTorchVideo's interface: all frames of [start, end) as displayed, at full size.

        Returns:
            "video": float32 tensor (C, T, H, W) in [0, 255], or None if no frame lies in the span. "audio": None.
        """
        import torch

        bounds = self._bounds(start_sec, min(end_sec, self.duration + 1))  # infinity is no time stamp
        if not len(self.timeline.between(bounds)):
            return {"video": None, "audio": None}
        clip = self._sample([bounds], None, full_size())[0]
        frames_THWC = torch.from_numpy(np.stack(clip.pictures))
        return {"video": frames_THWC.permute(3, 0, 1, 2).to(torch.float32), "audio": None}

    def sample(self, spans: Sequence[ClipSpan], *, num_frames: int, convert: Convert) -> list[SampledClip]:
        """For each span the ``num_frames`` frames that PyTorchVideo would choose, each converted once.

        A span in which no frame begins shows the frame before it, as a player would (or else the first after it).

        Args:
            convert: makes a picture of a frame; it must not keep the frame.

        Raises:
            VideoError: CORRUPT if no frame decodes, UNSUPPORTED if frames cannot be converted.
        """
        return self._sample([self._bounds(s.start_seconds, s.end_seconds) for s in spans], num_frames, convert)

    def _bounds(self, start: Fraction | float, end: Fraction | float) -> Bounds:
        return pts_bounds(start, end, time_base=self._time_base, start_pts=self._start_pts)

    def _sample(self, asked: Sequence[Bounds], num_frames: int | None, convert: Convert) -> list[SampledClip]:
        if self._by_index:
            self._check_gain(asked)
        selector = Selector(self, num_frames=num_frames, convert=lambda frame: self._picture(frame, convert))
        clips = selector.sample(asked)
        self._num_expected = selector.num_expected + self._num_missing()
        self._num_decoded = selector.num_decoded
        return clips

    def _check_gain(self, asked: Sequence[Bounds]) -> None:
        """Raise NeedsWholeFileError if the parts that spans need are most of the file."""
        num_bytes = 0
        for run in self.timeline.runs(asked):
            last = self.timeline.last_before(max(asked[span][1] for span in run.spans))
            num_bytes += max(0, self._places[max(last, 0)] - self._places[run.first_packet])
        if num_bytes > MAX_PART * size_and_head(self._data, 0)[0]:
            raise NeedsWholeFileError("most of it is needed")

    def windows(self, spans: Sequence[ClipSpan], *, num_frames: int, convert: Convert) -> Iterator[list[Picture]]:
        """The pictures that `sample` gives, span after span. The spans are sorted by start; each frame is decoded once.
        ``info`` counts the frames of all spans, those decoded so far.

        Raises:
            VideoError: CORRUPT if no frame decodes, UNSUPPORTED if frames cannot be converted.
        """
        selector = Selector(self, num_frames=num_frames, convert=lambda frame: self._picture(frame, convert))
        for clip in selector.stream([self._bounds(s.start_seconds, s.end_seconds) for s in spans]):
            self._num_expected = selector.num_expected + self._num_missing()
            self._num_decoded = selector.num_decoded
            yield clip.pictures

    def stream(
        self, view: ViewConfig, *, convert: Convert, bounds: tuple[Fraction, Fraction] | None = None
    ) -> Iterator[Picture]:
        """The picture on screen at the start of the video, ``view.stride / 30`` s later, and so on, one by one.

        At the end of a damaged file, what does not decode is not there: its last good frame is not shown for longer
        than a frame. ``info`` counts the frames of the video, those decoded so far.

        Args:
            bounds: where in the file the video starts and ends, in seconds, for a decoder that is not ``is_streamed``;
                None: it is the whole file.

        Raises:
            VideoError: CORRUPT if no frame decodes, UNSUPPORTED if frames cannot be converted.
        """
        start, end = bounds or (Fraction(0), self.duration)
        times = stream_pts(
            view=view, start_seconds=start, end_seconds=end, time_base=self._time_base, start_pts=self._start_pts
        )
        timeline = self.timeline
        span = self._bounds(*bounds) if bounds else None
        num_announced = len(timeline.between(span)) if span else timeline.num_shown + self._num_missing()
        self._num_expected, self._num_decoded = num_announced, 0
        yield from pictures_at(
            times,
            self._counted(span),
            convert=lambda frame: self._picture(frame, convert),
            end_of=lambda pts: math.inf if pts == timeline.last_pts else pts + timeline.default_duration,
        )

    def _counted(self, span: Bounds | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames up to the end of a span, from one that is on screen when it starts or from before; None: all."""
        assert self._num_decoded is not None
        for _, pts, frame in self.decoded(self.timeline.landing(span[0]) if span else 0, None):
            self._num_decoded += span is None or span[0] <= pts < span[1]
            yield pts, frame
            if span is not None and pts >= span[1]:
                return

    # -- what Selector needs (its FrameSource) ------------------------------------------------------------------------

    @property
    def may_skip(self) -> bool:
        """True for H.264 where each packet holds one frame with its own pts. (HEVC's "non-reference" frames may be
        referred to by other layers; MPEG-4's are not told from dropped ones; frame threads skip late.)"""
        codec = self._stream.codec_context.name
        return codec == "h264" and self._container.format.name in SOUND_FORMATS and self._num_threads == 1

    @property
    def stops_early(self) -> bool:
        """PyTorchVideo decodes streams without a duration to their end."""
        return self._stream.duration is not None

    def decoded(self, first_packet: int, needed: set[int] | None) -> Iterator[tuple[int, int, av.VideoFrame]]:
        """Frames from a packet on, in the order in which the codec shows them: (last packet fed, pts, frame).

        What does not decode is left out.

        Args:
            needed: the pts of frames that must come out; others need not, if no other frame refers to them. None: all.
        """
        codec = self._stream.codec_context
        codec.flush_buffers()
        num_shown, fed = 0, collections.deque[int | None]()  # pts of packets, for frames still to come
        for index, packet in self._packets_from(first_packet):
            fed.append(packet.pts if packet else None)
            codec.skip_frame = "DEFAULT" if needed is None or packet is None or packet.pts in needed else "NONREF"
            for frame in self._decode(packet):
                pts: int | None
                if not self.timeline.is_timed:
                    pts = num_shown * self._default_duration
                elif self._times.in_storage_order:
                    pts = fed.popleft()
                else:
                    pts = frame.pts
                num_shown += 1
                self.is_doubtful |= frame.interlaced_frame
                if pts is not None:
                    yield index, pts, frame

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            return self._stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.FFmpegError, EOFError):
            self.is_doubtful = True
            return []

    def _packets_from(self, first: int) -> Iterator[tuple[int, av.Packet | None]]:
        """(index, packet) from ``first`` on; at last None, which makes the codec give out what it holds back."""
        packets = self._reread(first) if self._packets is None else self._packets[first:]
        index = first - 1
        for index, packet in enumerate(packets, start=first):
            if self._by_index:
                self._check_index(index, packet)
            yield index, packet
        yield index + 1, None

    def _check_index(self, number: int, packet: av.Packet) -> None:
        said = number < self.timeline.num_packets and self.timeline.packet_pts[number] == packet.pts
        if not said or packet.is_keyframe != (number in self._key_packets):
            raise NeedsWholeFileError("a packet is not what the index says of it")

    def _reread(self, first: int) -> Iterator[av.Packet]:
        """The packets from ``first`` on, out of the file: by seeking to that key frame, or all over again."""
        pts = self.timeline.packet_pts[first] if first else None
        if pts is not None and not self._times.are_repaired:
            try:
                self._container.seek(pts, stream=self._stream)
                arrived = itertools.dropwhile(lambda p: p.pts != pts, _demux(self._container, self._stream))
                key = next(arrived, None)
            except av.FFmpegError:
                key = None
            if key is not None:
                yield from itertools.chain([key], arrived)
                return
            if self._by_index:
                raise NeedsWholeFileError("a key frame is not where the index says")
        self._container.close()
        self._open()
        yield from itertools.islice(self._repaired(), first, None)

    def _picture(self, frame: av.VideoFrame, convert: Convert) -> Picture:
        if self._shape is None:
            self._shape = orientation_of(frame).size(frame.height, frame.width)
            self._is_turned = orientation_of(frame).size(1, 2) != (1, 2)
        try:
            return convert(frame)
        except av.FFmpegError as error:
            raise VideoError(Status.UNSUPPORTED, f"frames of format {frame.format.name}: {error}") from error

    def _num_missing(self) -> int:
        """Frames that the file lacks beyond its last packet. A header that promises more than there is proves nothing
        (it counts what an edit hides, or frames without a picture); bytes that lie beyond the end of the file do."""
        num_bytes, head = size_and_head(self._data, HEAD_BYTES)
        if self._container.format.name in INDEXED_FORMATS:
            return sum(entry.pos >= num_bytes for entry in self._stream.index_entries)
        promised_bytes = promised_size(head)
        if promised_bytes is None or promised_bytes <= num_bytes:
            return 0
        if self._stream.frames:
            return max(0, self._stream.frames - self.timeline.num_packets)
        promised = _tagged_duration(self._stream)
        if promised is None:  # of what there is, in proportion
            return max(1, round(self.timeline.num_packets * (promised_bytes / num_bytes - 1)))
        missing = promised - self._end_pts * self._time_base  # tags count from second 0, not from the stream's start
        num_frames = missing * (self._stream.average_rate or 1 / (self._default_duration * self._time_base))
        return round(num_frames) if num_frames > 2 else 0


def _open(data: bytes | memoryview | SeekableFile, limits: Limits) -> av.container.InputContainer:
    options = {
        "protocol_whitelist": "none",
        "format_whitelist": FORMATS,
        "max_pixels": str(limits.max_pixels),
        "probesize": "5000000",
        "analyzeduration": "5000000",
    }
    try:
        return av.open(as_file(data), "r", options=options, metadata_errors="replace")
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise VideoError(*_why_not_opened(data, error)) from error


def _why_not_opened(data: bytes | memoryview | SeekableFile, error: Exception) -> tuple[Status, str]:
    head = as_file(data).read(1024)
    if isinstance(error, av.error.ArgumentError):
        return Status.UNSUPPORTED, "the file's format is not one of those that are opened"
    if is_text(head):
        return Status.UNSUPPORTED, "a text, not a video"
    return Status.CORRUPT, "not a video, or damaged beyond recognition" if head else "empty"


def _video_stream(container: av.container.InputContainer, which: VideoStream) -> av.VideoStream:
    """``default``: the first video stream that the container marks so, or else the first. ``first``: as PyTorchVideo.
    A cover picture is none."""
    kinds = av.stream.Disposition
    streams = [stream for stream in container.streams.video if not stream.disposition & kinds.attached_pic]
    if not streams:
        raise VideoError(Status.NO_VIDEO, "no video stream")
    marked = [stream for stream in streams if stream.disposition & kinds.default and which == "default"]
    return (marked or streams)[0]


def _demux(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets that hold something, up to the end or to what cannot be read."""
    while True:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    yield packet
            return
        except MemoryError:
            raise
        except IndexError:  # a packet of a stream that begins later, such as sound: PyAV looks it up in vain
            continue  # with the packet after it
        except (av.FFmpegError, EOFError):
            return


def _end(packet: av.Packet) -> int:
    return (packet.pts or 0) + (packet.duration or 0)


def _tagged_duration(stream: av.VideoStream) -> Fraction | None:
    """Seconds that Matroska's DURATION tag of a stream promises."""
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].strip("\0").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except (KeyError, ValueError):
        return None


def _register_with_pytorchvideo() -> None:
    """Makes `VideoDecoder` a virtual subclass of PyTorchVideo's ``Video``, if somebody has loaded that."""
    module = sys.modules.get("pytorchvideo.data.video")
    if module is not None:
        module.Video.register(VideoDecoder)


def rgb_frame(picture_HWC: np.ndarray) -> av.VideoFrame:
    """A frame of (H, W, 3) uint8 RGB pixels, for converters."""
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture_HWC), format="rgb24")


def full_size() -> FullSize:
    """A converter to pictures of the stored size, for ``VideoDecoder.sample``."""
    return FullSize(VideoReformatter())


def view_crops(view: ViewConfig, *, pixel_aspect: float = 1.0) -> Crops:
    """A converter to the crops of a view config, for ``VideoDecoder.sample``.

    Args:
        pixel_aspect: the file's, where the picture is to be squared.
    """
    return Crops(
        short_side=view.short_side or view.size,
        squeeze=view.squeeze,
        size=view.size,
        num_crops=view.num_crops,
        pixel_aspect=pixel_aspect,
        resizer=_resizer(),
    )


def drawn_crops(size: int, draw: ClipDraw, *, pixel_aspect: float = 1.0) -> DrawnCrops:
    """A converter to the crops of one training clip; as `view_crops`."""
    return DrawnCrops(size=size, draw=draw, pixel_aspect=pixel_aspect, resizer=_resizer(), box_resizer=_resizer())


def _resizer() -> Resizer:
    return Resizer(resize=VideoReformatter(), to_rgb=VideoReformatter())


_register_with_pytorchvideo()  # here if it came first, else with the first file that is opened
