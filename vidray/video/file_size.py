"""How long a file should be, by its own header: one that is shorter was cut off."""

from __future__ import annotations

HEAD_BYTES = 4096
"""What ``promised_size`` wants to see."""

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def promised_size(head: bytes) -> int | None:
    """Bytes that an AVI's (RIFF) or a Matroska's (RFC 8794, RFC 9559) first chunk reaches to, or that an ASF's file
    properties say (ASF specification, 3.2). None: it does not say, or is another kind of file.

    Args:
        head: the file's first ``HEAD_BYTES`` bytes.
    """
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if 0 < size < 2**32 - 1 else None  # the writer never came to fill it in
    if head[:4] == _EBML:
        header, start = _variable_size(head, 4)
        if header is not None and head[start + header : start + header + 4] == _SEGMENT:
            segment, start = _variable_size(head, start + header + 4)
            return None if segment is None else start + segment
    if head[:16] == _ASF_HEADER and (at := head.find(_ASF_FILE_PROPERTIES)) > 0:
        return int.from_bytes(head[at + 40 : at + 48], "little") or None  # after two GUIDs and the object's size
    return None


def _variable_size(head: bytes, at: int) -> tuple[int | None, int]:
    """An EBML size, and where it ends. None: unknown (all ones), or not one."""
    if at >= len(head) or head[at] == 0:
        return None, at
    length = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length
