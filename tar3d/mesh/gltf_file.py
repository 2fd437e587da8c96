"""Reads the structure of a .glb or .gltf file: its JSON, its buffers, its accessors.

Every count, offset and index of the JSON is checked against bytes that are present before memory is
spent on it. Raises ValueError, with the reason, for anything malformed.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from tar3d.mesh.meshopt import decode_view

if TYPE_CHECKING:
    from pathlib import Path

_COMPONENTS = {
    5120: np.int8,
    5121: np.uint8,
    5122: np.int16,
    5123: np.uint16,
    5125: np.uint32,
    5126: np.float32,
}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}
# the bufferView extension, and the name under which it became a Khronos one
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
_MESHOPT_SIZE = ("count", "byteStride")


def natural(value: object, what: str) -> int:
    """The whole number >= 0 that `value` of a file's JSON is; ValueError for anything else."""
    if isinstance(value, float) and value.is_integer() and value < 2**53:  # 48.0 is 48 in JSON
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"its {what} is {str(value)[:40]}, not a whole number >= 0")
    return value


class GltfFile:
    """One opened file: its `json`, and the buffers that were read so far."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._buffers: dict[int, bytes] = {}
        self._decompressed: dict[int, bytes] = {}
        content = path.read_bytes()
        is_text = content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
        if content[:4] == b"glTF" or (path.suffix.lower() == ".glb" and not is_text):
            content = self._open_container(content)
        try:
            self.json = json.loads(content)
        except ValueError as e:  # also for text that is not UTF-8
            raise ValueError(f"its glTF JSON cannot be parsed ({e})") from e
        version = str(self.json["asset"]["version"])
        if version.split(".")[0] != "2":
            raise ValueError(f"it is glTF version {version[:20]!r}, only version 2 is read")
        self.required = frozenset(self.json.get("extensionsRequired", []))

    def _open_container(self, content: bytes) -> bytes:
        """Checks the GLB chunks, keeps the binary one as buffer 0, and returns the JSON one."""
        if content[:4] != b"glTF":
            raise ValueError("it does not start with the glTF magic, so it is not a GLB file")
        if len(content) < 20:
            raise ValueError(
                f"it is truncated: {len(content)} bytes hold no GLB header and JSON chunk"
            )
        length = struct.unpack_from("<I", content, 8)[0]
        # bytes behind the declared end are no part of the file, unless another file was appended
        if length > len(content) or content[length : length + 4] == b"glTF":
            raise ValueError(
                f"its GLB header declares {length:,} bytes, but the file has {len(content):,}"
            )
        content = content[:length]
        chunks: list[tuple[bytes, bytes]] = []
        start = 12
        while start + 8 <= len(content):
            size, chunk_type = struct.unpack_from("<I4s", content, start)
            if start + 8 + size > len(content):
                raise ValueError(
                    f"its GLB chunk {len(chunks)} declares {size:,} bytes and runs past the end "
                    "of the file"
                )
            chunks.append((chunk_type, content[start + 8 : start + 8 + size]))
            start += 8 + size
        if chunks[0][0] != b"JSON":
            raise ValueError("its first GLB chunk is not JSON")
        if len(chunks) > 1 and chunks[1][0] == b"BIN\0":
            self._buffers[0] = chunks[1][1]
        return chunks[0][1]

    def item(self, group: str, index: object) -> dict:
        """Entry `index` of the top-level list `group`."""
        items = self.json.get(group, [])
        number = natural(index, f"index into {group}")
        if number >= len(items):
            raise ValueError(f"it refers to number {number} of {group}, but there are {len(items)}")
        return items[number]

    def _buffer(self, index: int) -> bytes:
        declared = self.item("buffers", index)
        uri = declared.get("uri")
        if index not in self._buffers or (index == 0 and uri is not None):
            self._buffers[index] = self._read_uri(uri, index)
        content, length = self._buffers[index], natural(declared["byteLength"], "buffer length")
        # some writers count the padding of a GLB chunk, at most 3 bytes, that they do not write
        padding = 3 if uri is None else 0
        if len(content) + padding < length:
            raise ValueError(
                f"its buffer {index} declares {length:,} bytes, but only {len(content):,} are "
                "present"
            )
        return content

    def _read_uri(self, uri: str | None, index: int) -> bytes:
        if uri is None:
            raise ValueError(f"its buffer {index} has no data")
        if uri.startswith("data:"):
            kind, _, data = uri.partition(",")
            if not kind.endswith(";base64"):
                return unquote_to_bytes(data)
            try:
                return base64.b64decode(unquote_to_bytes(data))
            except ValueError as e:
                raise ValueError(f"its buffer {index} is no valid base64 ({e})") from e
        name = unquote(uri)
        target = (self._folder / name).resolve()
        if not target.is_relative_to(self._folder.resolve()):
            raise ValueError(f"its buffer {index} is {name[:80]!r}, outside the file's folder")
        if not target.is_file():
            raise ValueError(
                f"its buffer file {name[:80]!r} is missing beside it; keep the two together or use "
                ".glb"
            )
        return target.read_bytes()

    def view(self, index: object) -> tuple[memoryview, int | None]:
        """The bytes of a buffer view, decompressed, and its stride."""
        view = self.item("bufferViews", index)
        stride = view.get("byteStride")
        if stride is not None:
            stride = natural(stride, "byteStride")
        for name in MESHOPT:
            if name in view.get("extensions", {}):
                return self._decompress(index, view, view["extensions"][name]), stride
        return self._range(index, view), stride

    def _range(self, index: object, view: dict) -> memoryview:
        """The bytes from `byteOffset`, `byteLength` many, of a buffer."""
        start = natural(view.get("byteOffset", 0), "byteOffset")
        length = natural(view["byteLength"], "byteLength")
        content = self._buffer(natural(view["buffer"], "buffer index"))
        if start + length > len(content):
            raise ValueError(
                f"its bufferView {index} ends at byte {start + length:,} of a buffer of "
                f"{len(content):,}"
            )
        return memoryview(content)[start : start + length]

    def _decompress(self, index: object, view: dict, packed: dict) -> memoryview:
        """The bytes of a view that meshoptimizer compressed; each view is decoded once."""
        number = natural(index, "index into bufferViews")
        if number not in self._decompressed:
            count, stride = (natural(packed[key], f"{key} of meshopt") for key in _MESHOPT_SIZE)
            if count * stride != natural(view["byteLength"], "byteLength"):
                raise ValueError(
                    f"its bufferView {number} has {view['byteLength']:,} bytes, but its "
                    f"compressed data {count:,} times {stride:,}"
                )
            try:
                self._decompressed[number] = decode_view(
                    bytes(self._range(number, packed)),
                    count,
                    stride,
                    str(packed["mode"]),
                    str(packed.get("filter", "NONE")),
                )
            except ValueError as e:
                raise ValueError(f"its meshopt bufferView {number} cannot be decoded: {e}") from e
        return memoryview(self._decompressed[number])

    def _elements(self, source: dict, count: int, width: int, component: int) -> np.ndarray:
        """Elements (count, width) at the bufferView and byteOffset of `source`."""
        content, stride = self.view(source["bufferView"])
        offset = natural(source.get("byteOffset", 0), "byteOffset")
        dtype = np.dtype(_COMPONENTS[component]).newbyteorder("<")
        stride = stride or width * dtype.itemsize
        end = offset + (count - 1) * stride + width * dtype.itemsize
        if end > len(content):
            raise ValueError(
                f"its accessor of {count:,} elements needs {end:,} bytes, but its bufferView has "
                f"{len(content):,}"
            )
        return np.ndarray((count, width), dtype, content, offset, (stride, dtype.itemsize))

    def declared(self, index: object, limit: int) -> tuple[dict, int]:
        """An accessor and its element count, which must not exceed `limit`."""
        accessor = self.item("accessors", index)
        count = natural(accessor["count"], "accessor count")
        if not 0 < count <= limit:
            raise ValueError(
                f"its accessor {index} declares {count:,} elements, allowed are 1 to {limit:,}"
            )
        return accessor, count

    def accessor(self, index: object, limit: int) -> np.ndarray:
        """Accessor values (count, width), as integers or, when float or normalized, as float64."""
        accessor, count = self.declared(index, limit)
        component, width = accessor["componentType"], _WIDTHS.get(accessor["type"])
        if component not in _COMPONENTS or width is None:
            raise ValueError(
                f"its accessor {index} is {accessor['type']} of component type {component}, which "
                "no mesh uses"
            )
        if "bufferView" in accessor:
            values = self._elements(accessor, count, width, component)
        elif "sparse" in accessor:
            values = np.zeros((count, width), _COMPONENTS[component])
        else:
            raise ValueError(f"its accessor {index} declares {count:,} elements but has no data")
        if "sparse" in accessor:
            values = values.copy()
            sparse = accessor["sparse"]
            changed = natural(sparse["count"], "sparse count")
            rows = self._elements(
                sparse["indices"], changed, 1, sparse["indices"]["componentType"]
            ).ravel()
            if changed > count or (changed and not 0 <= rows.min() <= rows.max() < count):
                raise ValueError(f"its sparse accessor {index} changes elements that do not exist")
            values[rows] = self._elements(sparse["values"], changed, width, component)
        return decoded_values(values, accessor)


def decoded_values(values: np.ndarray, accessor: dict) -> np.ndarray:
    """Stored values as float64 (floats, and normalized integers in [-1, 1]) or as int64."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    if accessor.get("normalized"):
        return np.maximum(values.astype(np.float64) / np.iinfo(values.dtype).max, -1.0)
    return values.astype(np.int64)
