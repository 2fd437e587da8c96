"""A reader of .npz files that copies nothing.

Arrays are views of the bytes that were read or mapped, so only the rows that are used are copied.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import zipfile
import zlib
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# bytes of a zip's local header before the name and the extra field; their lengths are at 26 and 28
_LOCAL_HEADER = 30
DIRECTORY_BYTES = 4096  # end of an .npz that holds the directory of some twenty arrays


def read_npz(content: bytes, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz among `keys`, read only, each checked by its CRC-32.

    Values are those of numpy.load(allow_pickle=False). An uncompressed member is a view of
    `content`, a compressed one is inflated as a whole. A ValueError says what is damaged.
    """
    return _arrays(io.BytesIO(content), content, keys)


def map_npz(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Like `read_npz`, but reads from disk only the rows that are used.

    For that reason the CRC-32 of uncompressed members is not checked. A ValueError names the file.
    """
    try:
        with path.open("rb") as f:
            return _arrays(f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), keys)
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is not a readable .npz file ({e})") from e


def npz_checksums(end: bytes) -> str:
    """Names, sizes and CRC-32 of the arrays of an .npz, as text, from the last bytes of the file.

    They change whenever an array does, and are read in microseconds however large the file is. A
    ValueError says what is damaged, or that `end` (see `DIRECTORY_BYTES`) is too short.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(end)) as archive:
            members = archive.infolist()
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as e:
        raise ValueError(str(e)) from e
    return " ".join(f"{m.filename} {m.file_size} {m.CRC:08x}" for m in members)


def file_checksums(path: Path) -> str:
    """`npz_checksums` of a file. A ValueError names it."""
    try:
        with path.open("rb") as f:
            f.seek(max(0, f.seek(0, io.SEEK_END) - DIRECTORY_BYTES))
            return npz_checksums(f.read())
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is not a readable .npz file ({e})") from e


def _arrays(
    file: BinaryIO, content: bytes | mmap.mmap, keys: Iterable[str]
) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
        return {
            key: _array(content, members[f"{key}.npy"]) for key in keys if f"{key}.npy" in members
        }
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
        raise ValueError(str(e)) from e


def _array(content: bytes | mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
    begin, view = info.header_offset, memoryview(content)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{info.filename!r} is compressed by method {info.compress_type}; "
            "numpy writes none or deflate"
        )
    name, extra = (int.from_bytes(view[begin + at : begin + at + 2], "little") for at in (26, 28))
    start = begin + _LOCAL_HEADER + name + extra
    data = view[start : start + info.compress_size]
    inflated = info.compress_type == zipfile.ZIP_DEFLATED
    if inflated:
        data = memoryview(zlib.decompress(data, -zlib.MAX_WBITS, info.file_size))
    if len(data) != info.file_size:
        raise ValueError(f"the file ends inside {info.filename!r}")
    if (inflated or isinstance(content, bytes)) and zlib.crc32(data) != info.CRC:
        raise ValueError(f"Bad CRC-32 for file {info.filename!r}")
    length = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _parse_header(bytes(data[:length]))
    return np.frombuffer(data, dtype, math.prod(shape), length).reshape(
        shape, order="F" if fortran else "C"
    )


@functools.lru_cache(64)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and dtype.

    Cached: files of one set have few different headers, and numpy takes longer to parse one than
    to read the array.
    """
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array is not in version 1.0 of the .npy format")
    return np.lib.format.read_array_header_1_0(stream)


def float32(stored: np.ndarray) -> np.ndarray:
    """Converts to float32; a copy, unless it is float32 and writable already."""
    import torch  # here, so that processes that only write samples start without it

    # six times as fast as numpy's astype
    return torch.from_numpy(np.require(stored, requirements="W")).float().numpy()
