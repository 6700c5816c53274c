"""Reads the tensors of a TensorFlow checkpoint (``ckpt-1.index``, ``ckpt-1.data-00000-of-00001``) without TensorFlow.

The index is a table in LevelDB's format: blocks of sorted keys, where each key drops the prefix that it shares with
the one before; a block that lists the blocks; a footer of 48 bytes that says where that one is. Values are protocol
buffers (``tensor_bundle.proto``): under the empty key the header, under each tensor's name where its bytes are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5
"""After each block: one byte that says how it is compressed, and a checksum."""
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 10: "?", 19: "<f2"}
"""``types.proto``: float, double, int32, int64, bool, half."""

_Fields = dict[int, list[int | bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """Where one tensor is."""

    dtype_code: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    """In bytes."""


class TensorFlowCheckpoint:
    """The tensors of one checkpoint, read when asked for.

    Args: prefix: what the files' names have in common, ``.../ckpt-1``; the name of the index file will do too.

    Raises: FileNotFoundError; ValueError if the index is damaged or not one.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(str(prefix).removesuffix(".index"))
        self._index = self.prefix.with_name(f"{self.prefix.name}.index")
        try:
            values = dict(_read_table(self._index.read_bytes()))
            header = _read_message(values.pop(b""))
            self._entries = {key.decode(): _read_entry(value) for key, value in values.items()}
        except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"{self._index} is not the index of a TensorFlow checkpoint, or is damaged") from error
        self._num_shards = _integer(header, 1)
        if _integer(header, 2):
            raise ValueError(f"{self._index}: written on a big-endian machine, only little-endian can be read")

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._entries)

    def read(self, name: str) -> np.ndarray:
        """One tensor. Raises: KeyError; ValueError for a dtype that is not a number, or a short data file."""
        entry = self._entries[name]
        if entry.dtype_code not in _DTYPES:
            raise ValueError(f"{name} has the TensorFlow dtype {entry.dtype_code}, can read {sorted(_DTYPES)}")
        dtype = np.dtype(_DTYPES[entry.dtype_code])
        path = self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard:05d}-of-{self._num_shards:05d}")
        with path.open("rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        if not len(data) == entry.size == math.prod(entry.shape) * dtype.itemsize:
            raise ValueError(f"{path}: {name} {entry.shape} should have {entry.size} bytes, got {len(data)}")
        return np.frombuffer(data, dtype).reshape(entry.shape)


def _read_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in order."""
    footer = table[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise IndexError("no footer")
    _, position = _read_handle(footer, 0)  # of the block of filters, which TensorFlow does not use
    index, _ = _read_handle(footer, position)
    for _, handle in _read_block(table, *index):
        yield from _read_block(table, *_read_handle(handle, 0)[0])


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """(offset, size) of a block, and the position after it."""
    offset, position = _read_varint(data, position)
    size, position = _read_varint(data, position)
    return (offset, size), position


def _read_block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block. It ends with the positions of keys that drop nothing, and their number."""
    block = table[offset : offset + size]
    if table[offset + size] != 0:
        raise ValueError("the index is compressed, as TensorFlow never writes it")
    (num_restarts,) = struct.unpack("<I", block[-4:])
    end = size - 4 * (num_restarts + 1)
    position, key = 0, b""
    while position < end:
        shared, position = _read_varint(block, position)
        unshared, position = _read_varint(block, position)
        value_size, position = _read_varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + value_size]
        position += value_size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _read_message(data: bytes) -> _Fields:
    """The fields of a protocol buffer by number. Nested messages stay bytes."""
    fields: _Fields = {}
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        value: int | bytes
        if wire_type == 0:
            value, position = _read_varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type)
            if size is None:
                size, position = _read_varint(data, position)
            value = data[position : position + size]
            position += size
        fields.setdefault(number, []).append(value)
    return fields


def _integer(fields: _Fields, number: int) -> int:
    """The last value of an integer field; a field that is 0 is not written."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise IndexError(f"field {number} is not an integer")
    return value


def _read_entry(data: bytes) -> _Entry:
    """A ``BundleEntryProto``."""
    fields = _read_message(data)
    shape = _read_message(b"".join(part for part in fields.get(2, []) if isinstance(part, bytes)))
    dims = [_integer(_read_message(dim), 1) for dim in shape.get(2, []) if isinstance(dim, bytes)]
    return _Entry(
        dtype_code=_integer(fields, 1),
        shape=tuple(dims),
        shard=_integer(fields, 3),
        offset=_integer(fields, 4),
        size=_integer(fields, 5),
    )
