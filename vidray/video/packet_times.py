"""Time stamps of packets, repaired where a container joins streams or never had them. No codec.

What is repaired, as players do:

- Times that start anew (files put one behind the other, the cells of a DVD) or jump far ahead: what follows is moved
  to where the last packet ended.
- AVI stores no pts. FFmpeg's guess for H.264 and HEVC, and for MPEG-4 whose B-frames share a packet with another frame
  (DivX), is in the order of storage, so that the times of reordered frames would jump back and forth; a frame gets the
  first time that is not yet taken.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

_BACK_SECONDS = 0.25
"""A smaller step back is one damaged or badly rounded time, not a new beginning."""
_AHEAD_SECONDS = 10.0
"""A longer step ahead is a new beginning in formats that are joined by writing one file behind another; FFmpeg's
``dts_delta_threshold``."""
_AHEAD_SECONDS_ELSEWHERE = 3600.0
"""In other formats a still picture may stay for long."""
_JOINED_FORMATS = frozenset({"mpegts", "mpeg", "flv"})


_UNGUESSED_CODECS = frozenset({"h264", "hevc"})
"""FFmpeg finds out the pts of other codecs' frames in AVI."""
_PACKED = re.compile(rb"DivX\d+(?:b|Build)\d+p")
"""What an MPEG-4 encoder calls itself if it packs B-frames together with others."""


class PacketTimes:
    """Rewrites pts and dts of the packets of one stream, fed in the order in which they are stored."""

    def __init__(self, *, format_name: str, codec_name: str, time_base: Fraction, default_duration: int) -> None:
        """Args:
        default_duration: of a packet that does not tell, in pts.
        """
        ahead = _AHEAD_SECONDS if format_name in _JOINED_FORMATS else _AHEAD_SECONDS_ELSEWHERE
        self._most_back, self._most_ahead = int(_BACK_SECONDS / time_base), int(ahead / time_base)
        self._default_duration = default_duration
        self.in_storage_order = format_name == "avi" and codec_name in _UNGUESSED_CODECS
        """True: a decoded frame has the first pts that is not yet taken, not its packet's."""
        self._may_be_packed = format_name == "avi" and codec_name == "mpeg4"
        """Until the first packet."""
        self._offset = 0
        self._next_dts: int | None = None
        self.num_joins = 0
        """How often the times started anew or jumped."""

    @property
    def are_repaired(self) -> bool:
        """True if they are not those that a seek in the file goes by."""
        return self.in_storage_order or self.num_joins > 0

    def repair(self, packet: Any) -> None:
        """Sets the packet's pts and dts."""
        if self._may_be_packed:
            self.in_storage_order, self._may_be_packed = _PACKED.search(bytes(packet)) is not None, False
        if self.in_storage_order and packet.dts is not None:
            packet.pts = packet.dts
        if packet.dts is not None:
            self._look(packet.dts)
            self._next_dts = packet.dts + self._offset + (packet.duration or self._default_duration)
        if self._offset:
            packet.pts = None if packet.pts is None else packet.pts + self._offset
            packet.dts = None if packet.dts is None else packet.dts + self._offset

    def _look(self, dts: int) -> None:
        step = 0 if self._next_dts is None else dts + self._offset - self._next_dts
        if step < -self._most_back or step > self._most_ahead:
            self._offset -= step
            self.num_joins += 1
