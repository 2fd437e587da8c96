"""Decodes buffer views that meshoptimizer compressed (EXT_ and KHR_meshopt_compression of glTF).

Follows appendices A (bitstream) and B (filters) of KHR_meshopt_compression. Raises ValueError for
data that is malformed or ends early. The filters of normals and colours are refused, because no
position, index, weight or instance is stored with them.
"""

from __future__ import annotations

import numpy as np

_MAX_BYTES = 1 << 30  # of a decompressed view; compressed data may be a thousand times smaller
_BLOCK_BYTES, _BLOCK_ELEMENTS, _GROUP = 8192, 256, 16
_TAIL_BYTES = {0: 32, 1: 24}
_EARLY = "the compressed data ends early"


def decode_view(data: bytes, count: int, stride: int, mode: str, filter_: str) -> bytes:
    """The `count` elements of `stride` bytes that `data` holds.

    `mode` is "ATTRIBUTES", "TRIANGLES" or "INDICES", `filter_` "NONE", "EXPONENTIAL" or
    "QUATERNION".
    """
    if count * stride > _MAX_BYTES:
        raise ValueError(f"it declares {count * stride:,} bytes, allowed are {_MAX_BYTES:,}")
    try:
        if mode == "ATTRIBUTES":
            if stride % 4 or not 0 < stride <= 256:
                raise ValueError(f"its stride is {stride}, allowed are 4, 8, ... 256")
            return _filtered(_attributes(data, count, stride), filter_)
        read = {"TRIANGLES": _triangles, "INDICES": _sequence}.get(mode)
        if read is None:
            raise ValueError(f"its mode {mode[:40]!r} is unknown")
        if stride not in (2, 4) or filter_ != "NONE":
            raise ValueError(f"it has indices of {stride} bytes with the filter {filter_[:40]!r}")
        indices = read(data, count)
    except IndexError as e:
        raise ValueError(_EARLY) from e
    return np.array(indices, dtype=np.uint32).astype(f"<u{stride}").tobytes()


# ---- attributes ----


def _attributes(data: bytes, count: int, stride: int) -> np.ndarray:
    """Elements (count, stride) uint8 of an attribute stream."""
    if not data or data[0] not in (0xA0, 0xA1):
        raise ValueError("it is no attribute stream of version 0 or 1")
    version = data[0] & 1
    tail = stride + (stride // 4 if version else 0)
    end = len(data) - max(tail, _TAIL_BYTES[version])
    if end < 1:
        raise ValueError(_EARLY)
    baseline = np.frombuffer(data, np.uint8, stride, len(data) - tail)
    channels = data[len(data) - stride // 4 :] if version else bytes(stride // 4)
    size = min(_BLOCK_BYTES // stride & ~(_GROUP - 1), _BLOCK_ELEMENTS)
    # A block of version 1 takes at least its control bytes, one of version 0 its headers.
    if (end - 1) * size < count * (stride // 4):
        raise ValueError(_EARLY)
    elements = np.empty((count, stride), dtype=np.uint8)
    reader = _Deltas(data, end)
    for start in range(0, count, size):
        block = elements[start : start + size]
        control = reader.take(stride // 4) if version else b""
        deltas = np.empty((stride, len(block)), dtype=np.uint8)
        for byte in range(stride):
            bits = (control[byte // 4] >> 2 * (byte % 4)) & 3 if version else None
            deltas[byte] = reader.channel(len(block), bits)
        for k, channel in enumerate(channels):
            part = slice(4 * k, 4 * k + 4)
            block[:, part] = _undo_deltas(deltas[part].T, baseline[part], channel)
        baseline = block[-1]
    if reader.start != end:
        raise ValueError("unused bytes follow the attributes")
    return elements


class _Deltas:
    """Reads the byte deltas of an attribute stream from `start` on, up to `end`."""

    def __init__(self, data: bytes, end: int) -> None:
        self._data, self._end, self.start = data, end, 1

    def take(self, count: int) -> bytes:
        if self.start + count > self._end:
            raise ValueError(_EARLY)
        self.start += count
        return self._data[self.start - count : self.start]

    def channel(self, count: int, control: int | None) -> np.ndarray:
        """Deltas (count,) uint8 of one byte of a block; `control` is None in version 0."""
        if control == 2:
            return np.zeros(count, dtype=np.uint8)
        if control == 3:
            return np.frombuffer(self.take(count), np.uint8)
        widths = {None: (0, 2, 4, 8), 0: (0, 1, 2, 4), 1: (1, 2, 4, 8)}[control]
        groups = -(-count // _GROUP)
        header = self.take(-(-groups // 4))
        values = np.zeros((groups, _GROUP), dtype=np.uint8)
        for group in range(groups):
            width = widths[(header[group // 4] >> 2 * (group % 4)) & 3]
            if width:
                values[group] = self._group(width)
        return values.ravel()[:count]

    def _group(self, width: int) -> np.ndarray:
        """The 16 deltas of a group, stored in `width` bits or, where that is too little, a byte."""
        packed = np.frombuffer(self.take(2 * width), np.uint8)
        if width == 8:
            return packed
        shifts = np.arange(0, 8, width)
        if width > 1:
            shifts = shifts[::-1]
        values = ((packed[:, None] >> shifts) & ((1 << width) - 1)).astype(np.uint8).ravel()
        escaped = values == (1 << width) - 1
        values[escaped] = np.frombuffer(self.take(int(escaped.sum())), np.uint8)
        return values


def _undo_deltas(deltas: np.ndarray, baseline: np.ndarray, channel: int) -> np.ndarray:
    """Four bytes of each element (n, 4) uint8, from their `deltas` and the element before."""
    mode, rotation = channel & 15, channel >> 4
    if mode > 2 or (mode < 2 and rotation):
        raise ValueError(f"its channel mode {channel} is unknown")
    dtype = ("<u1", "<u2", "<u4")[mode]
    values = np.ascontiguousarray(deltas).view(dtype)
    before = np.ascontiguousarray(baseline).view(dtype)
    if mode == 2:
        if rotation:  # to the left when they were encoded
            values = (values >> rotation) | (values << (32 - rotation))
        result = np.bitwise_xor.accumulate(np.concatenate([before[None], values]))[1:]
    else:
        signed = (values >> 1) ^ -(values & 1)  # zigzag, modulo the width
        result = before + np.cumsum(signed, axis=0, dtype=dtype)
    return result.astype(dtype).view(np.uint8)


# ---- indices ----


def _index(data: bytes, start: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where the next one starts."""
    value = 0
    for shift in range(0, 35, 7):
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFF, start
    raise ValueError("a number takes more than five bytes")


def _zigzag(value: int) -> int:
    return ~(value >> 1) if value & 1 else value >> 1


def _sequence(data: bytes, count: int) -> list[int]:
    """Indices of any topology, each a delta to one of two running values."""
    if not data or data[0] != 0xD1:
        raise ValueError("it is no index stream of version 1")
    end, start = len(data) - 4, 1
    last, indices = [0, 0], []
    for _ in range(count):
        if start >= end:
            raise ValueError(_EARLY)
        value, start = _index(data, start)
        last[value & 1] = (last[value & 1] + _zigzag(value >> 1)) & 0xFFFFFFFF
        indices.append(last[value & 1])
    if start != end:
        raise ValueError("unused bytes follow the indices")
    return indices


# longer than 60 lines: one state machine, whose cases are those of the specification
def _triangles(data: bytes, count: int) -> list[int]:
    """Indices of a triangle list, from one code a triangle and what was met lately."""
    if not data or data[0] != 0xE1 or count % 3:
        raise ValueError("it is no triangle stream of version 1")
    end, start = len(data) - 16, 1 + count // 3
    if start > end:
        raise ValueError(_EARLY)
    table = data[end:]
    edges: list[tuple[int, int]] = [(0, 0)] * 16  # the latest at the end
    recent = [0] * 16
    following, last, indices = 0, 0, []

    def explicit() -> int:
        nonlocal start, last
        if start >= end:
            raise ValueError(_EARLY)
        value, start = _index(data, start)
        last = (last + _zigzag(value)) & 0xFFFFFFFF
        return last

    def corner(code: int) -> tuple[int, bool]:
        """The vertex that four bits name, and whether it is new."""
        nonlocal following
        if code == 0:
            following += 1
            return following - 1, True
        if code == 15:
            return explicit(), True
        return recent[-code], False

    for code in data[1 : 1 + count // 3]:
        if code < 0xF0:
            a, b = edges[-1 - (code >> 4)]
            low = code & 15
            if low in (13, 14):  # a neighbour of the last explicit index
                last = c = (last + (1 if low == 14 else -1)) & 0xFFFFFFFF
                is_new = True
            elif 0 < low < 13:
                c, is_new = recent[-1 - low], False
            else:
                c, is_new = corner(low)
            edges += [(c, b), (a, c)]
            recent += [c] * is_new
        else:
            pair = table[code & 15]
            if code >= 0xFE:
                if start >= end:
                    raise ValueError(_EARLY)
                pair = data[start]
                start += 1
                if pair == 0:
                    following = 0
            a, _ = corner(15 if code == 0xFF else 0)
            b, b_is_new = corner(pair >> 4)
            c, c_is_new = corner(pair & 15)
            edges += [(b, a), (c, b), (a, c)]
            recent += [a] + [b] * b_is_new + [c] * c_is_new
        indices += [a, b, c]
        if len(edges) > 4096:
            del edges[:-16], recent[:-16]
    if start != end:
        raise ValueError("unused bytes follow the triangles")
    return indices


# ---- filters ----


def _filtered(elements: np.ndarray, filter_: str) -> bytes:
    """The bytes of `elements` (n, stride) uint8 after a filter."""
    if filter_ == "NONE":
        return elements.tobytes()
    if filter_ == "EXPONENTIAL":  # exponent in the upper 8 bits, mantissa in the lower 24
        packed = elements.view("<i4")
        return np.ldexp((packed << 8 >> 8).astype(np.float64), packed >> 24).astype("<f4").tobytes()
    if filter_ == "QUATERNION" and elements.shape[1] == 8:
        return _quaternions(elements.view("<i2")).astype("<i2").tobytes()
    raise ValueError(f"its filter {filter_[:40]!r} is not read for {elements.shape[1]} bytes")


def _quaternions(packed: np.ndarray) -> np.ndarray:
    """Quaternions (n, 4) as 16-bit normalized integers; the largest component was left out."""
    largest = packed[:, 3] & 3
    scale = (packed[:, 3] | 3).astype(np.float64)
    others = packed[:, :3] / scale[:, None] / np.sqrt(2)
    rest = np.sqrt(np.maximum(0, 1 - (others**2).sum(axis=1)))
    result = np.empty((len(packed), 4))
    rows = np.arange(len(packed))
    result[rows, largest] = rest
    for k in range(3):
        result[rows, (largest + 1 + k) % 4] = others[:, k]
    return np.round(result * 32767)
