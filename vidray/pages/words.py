"""How numbers and strings are written for people. Strings from outside are made harmless to read, not only to parse."""

from __future__ import annotations

import unicodedata

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of what is not seen but acts: control characters, marks of direction, lone surrogates."""
_KEPT = frozenset("\u200c\u200d")
"""Joiners: Persian, Indic scripts and emoji are written with them."""


def visible(text: str) -> str:
    r"""The same text with every invisible character as an escape, such as ``\u202e``, and white space as one blank."""
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def _visible(letter: str) -> str:
    if letter.isspace():
        return " "
    if unicodedata.category(letter) not in _UNSEEN or letter in _KEPT:
        return letter
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


def short(text: str, length: int) -> str:
    """At most ``length`` characters: what is longer lacks its middle, since names differ at their ends."""
    if len(text) <= length:
        return text
    start = (length - 1) // 3
    return f"{text[:start]}…{text[len(text) - (length - 1 - start) :]}"


def file_name(uri: str) -> str:
    """The last part of a URI, or all of one that ends with a slash."""
    return uri.rpartition("/")[2] or uri


def percent(share: float) -> str:
    """``0.123`` → ``12%``; near the ends with as many digits as tell it from them."""
    if 0 < share < 0.01 or 0.99 < share < 1:
        return f"{100 * share:.2g}%" if share < 0.5 else f"{min(100 * share, 99.99):.4g}%"
    return f"{100 * share:.0f}%"


def count(number: int, noun: str) -> str:
    """``1, "video"`` → ``1 video``; ``2000, "video"`` → ``2,000 videos``."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def seconds(value: float) -> str:
    """A time within a video: ``7.25 s``, ``12:05``, ``1:02:03``."""
    if value < 60:
        return f"{value:.2f}".rstrip("0").rstrip(".") + " s"
    whole = round(value)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
