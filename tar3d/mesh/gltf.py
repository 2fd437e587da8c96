"""Reads the triangles of a .glb or .gltf file (glTF 2.0), safely for damaged and hostile files.

Every count, offset and index of the file's JSON is checked against bytes that are present before
memory is spent on it. Read are positions, indices, triangle lists, strips and fans, sparse and
quantized accessors, node transforms, instances, and KHR_draco_mesh_compression when DracoPy is
installed. Skinned meshes stay in their bind pose; morph targets, materials and everything else that
does not move a triangle are ignored. Raises ValueError, with the reason, for anything malformed and
for required extensions that change geometry in a way this reader does not know.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

MAX_NODE_DEPTH = 256  # real scenes stay below 50; a longer chain is a broken or hostile exporter
MAX_NODES = 1_000_000
_COMPONENTS = {
    5120: np.int8,
    5121: np.uint8,
    5122: np.int16,
    5123: np.uint16,
    5125: np.uint32,
    5126: np.float32,
}
_WIDTHS = {"SCALAR": 1, "VEC3": 3}
_DRACO = "KHR_draco_mesh_compression"
# required extensions that change no position, by the beginnings of their names
_HARMLESS = (
    "KHR_materials_",
    "KHR_texture_",
    "EXT_texture_",
    "KHR_lights_",
    "KHR_mesh_quantization",
    "KHR_animation_",
)
_TRIANGLES, _STRIP, _FAN = 4, 5, 6


def read_gltf(path: Path, max_vertices: int, max_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """World-space vertices (V, 3) float64 and faces (F, 3) int64 of the default scene.

    Both may be empty, and coordinates may be infinite or NaN. The limits hold for the scene with
    its instances. A mesh under a mirroring node keeps its outward side. Raises ValueError, and
    OSError for a file that cannot be opened.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return _Document(path, max_vertices, max_faces).triangles()
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as e:
        raise ValueError(f"its glTF structure is malformed ({type(e).__name__}: {e})") from e


def _natural(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"its {what} is {str(value)[:40]}, not a whole number >= 0")
    return value


class _Document:
    """One opened file: its JSON and the buffers that were read so far."""

    def __init__(self, path: Path, max_vertices: int, max_faces: int) -> None:
        self._folder, self._max_vertices, self._max_faces = path.parent, max_vertices, max_faces
        self._buffers: dict[int, bytes] = {}
        content = path.read_bytes()
        if path.suffix.lower() == ".glb":
            content = self._open_container(content)
        try:
            self._json = json.loads(content)
        except ValueError as e:  # also for text that is not UTF-8
            raise ValueError(f"its glTF JSON cannot be parsed ({e})") from e
        version = str(self._json["asset"]["version"])
        if version.split(".")[0] != "2":
            raise ValueError(f"it is glTF version {version[:20]!r}, only version 2 is read")
        for name in self._json.get("extensionsRequired", []):
            if name != _DRACO and not name.startswith(_HARMLESS):
                raise ValueError(f"it requires the glTF extension {name}, which is not supported")

    def _open_container(self, content: bytes) -> bytes:
        """Checks the GLB chunks, keeps the binary one as buffer 0, and returns the JSON one."""
        if content[:4] != b"glTF":
            raise ValueError("it does not start with the glTF magic, so it is not a GLB file")
        if len(content) < 20:
            raise ValueError(
                f"it is truncated: {len(content)} bytes hold no GLB header and JSON chunk"
            )
        length = struct.unpack_from("<I", content, 8)[0]
        if length != len(content):
            raise ValueError(
                f"its GLB header declares {length:,} bytes, but the file has {len(content):,}"
            )
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

    def _item(self, group: str, index: object) -> dict:
        items = self._json.get(group, [])
        if _natural(index, f"index into {group}") >= len(items):
            raise ValueError(f"it refers to number {index} of {group}, but there are {len(items)}")
        return items[index]

    def _buffer(self, index: int) -> bytes:
        declared = self._item("buffers", index)
        uri = declared.get("uri")
        if index not in self._buffers or (index == 0 and uri is not None):
            self._buffers[index] = self._read_uri(uri, index)
        content, length = self._buffers[index], _natural(declared["byteLength"], "buffer length")
        if len(content) < length:
            raise ValueError(
                f"its buffer {index} declares {length:,} bytes, but only {len(content):,} are "
                "present"
            )
        return content

    def _read_uri(self, uri: str | None, index: int) -> bytes:
        if uri is None:
            raise ValueError(f"its buffer {index} has no data")
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
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

    def _view(self, index: object) -> tuple[memoryview, int | None]:
        """The bytes of a buffer view and its stride."""
        view = self._item("bufferViews", index)
        start = _natural(view.get("byteOffset", 0), "byteOffset")
        length = _natural(view["byteLength"], "byteLength")
        content = self._buffer(_natural(view["buffer"], "buffer index"))
        if start + length > len(content):
            raise ValueError(
                f"its bufferView {index} ends at byte {start + length:,} of a buffer of "
                f"{len(content):,}"
            )
        stride = view.get("byteStride")
        if stride is not None:
            stride = _natural(stride, "byteStride")
        return memoryview(content)[start : start + length], stride

    def _elements(self, source: dict, count: int, width: int, component: int) -> np.ndarray:
        """Elements (count, width) at the bufferView and byteOffset of `source`."""
        content, stride = self._view(source["bufferView"])
        offset = _natural(source.get("byteOffset", 0), "byteOffset")
        dtype = np.dtype(_COMPONENTS[component]).newbyteorder("<")
        stride = stride or width * dtype.itemsize
        end = offset + (count - 1) * stride + width * dtype.itemsize
        if end > len(content):
            raise ValueError(
                f"its accessor of {count:,} elements needs {end:,} bytes, but its bufferView has "
                f"{len(content):,}"
            )
        return np.ndarray((count, width), dtype, content, offset, (stride, dtype.itemsize))

    def _declared(self, index: object, limit: int) -> tuple[dict, int]:
        """An accessor and its element count, which must not exceed `limit`."""
        accessor = self._item("accessors", index)
        count = _natural(accessor["count"], "accessor count")
        if not 0 < count <= limit:
            raise ValueError(
                f"its accessor {index} declares {count:,} elements, allowed are 1 to {limit:,}"
            )
        return accessor, count

    def _accessor(self, index: object, limit: int) -> np.ndarray:
        """Accessor values (count, width), as integers or, when float or normalized, as float64."""
        accessor, count = self._declared(index, limit)
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
            changed = _natural(sparse["count"], "sparse count")
            rows = self._elements(
                sparse["indices"], changed, 1, sparse["indices"]["componentType"]
            ).ravel()
            if changed > count or (changed and rows.max() >= count):
                raise ValueError(f"its sparse accessor {index} changes elements that do not exist")
            values[rows] = self._elements(sparse["values"], changed, width, component)
        if accessor.get("normalized") and component != 5126:
            return np.maximum(values.astype(np.float64) / np.iinfo(values.dtype).max, -1.0)
        return values.astype(np.float64 if component == 5126 else np.int64)

    def _primitive(self, primitive: dict) -> tuple[np.ndarray, np.ndarray] | None:
        """Vertices (V, 3) and faces (F, 3); None for points and lines."""
        mode = primitive.get("mode", _TRIANGLES)
        if mode not in (_TRIANGLES, _STRIP, _FAN) or "POSITION" not in primitive["attributes"]:
            return None
        if _DRACO in primitive.get("extensions", {}):
            return self._draco(primitive)
        positions = self._accessor(primitive["attributes"]["POSITION"], self._max_vertices)
        vertices = positions.astype(np.float64)
        if vertices.shape[1] != 3:
            raise ValueError("its positions are not three-dimensional")
        index = np.arange(len(vertices))
        if "indices" in primitive:
            index = self._accessor(primitive["indices"], 3 * self._max_faces).ravel()
            if index.dtype != np.int64 or index.min() < 0 or index.max() >= len(vertices):
                raise ValueError(
                    f"its faces index vertices up to {index.max()}, but a primitive has "
                    f"{len(vertices):,}"
                )
        if mode == _TRIANGLES:
            return vertices, index[: len(index) // 3 * 3].reshape(-1, 3)
        first, second, third = index[:-2].copy(), index[1:-1].copy(), index[2:].copy()
        if mode == _FAN:
            first[:] = index[:1]
        else:  # every other triangle of a strip runs backwards
            second[1::2], third[1::2] = index[3::2], index[2:-1:2]
        return vertices, np.stack([first, second, third], axis=-1)

    def _draco(self, primitive: dict) -> tuple[np.ndarray, np.ndarray]:
        try:
            import DracoPy
        except ImportError as e:
            raise ValueError(
                "it is compressed with Draco, which needs the package DracoPy (pip install DracoPy)"
            ) from e
        extension = primitive["extensions"][_DRACO]
        _, count = self._declared(primitive["attributes"]["POSITION"], self._max_vertices)
        self._declared(primitive["indices"], 3 * self._max_faces)
        try:
            decoded = DracoPy.decode(bytes(self._view(extension["bufferView"])[0]))
        except (DracoPy.FileTypeException, DracoPy.EncodingFailedException) as e:
            raise ValueError(f"its Draco data cannot be decoded ({e})") from e
        positions = [
            a["data"]
            for a in decoded.attributes
            if a["unique_id"] == extension["attributes"]["POSITION"]
        ]
        if len(positions) != 1 or positions[0].shape != (count, 3):
            raise ValueError(
                f"its Draco data does not hold the {count:,} positions that the glTF declares"
            )
        return positions[0].astype(np.float64), np.asarray(decoded.faces, dtype=np.int64)

    def _transform(self, index: int, node: dict) -> np.ndarray:
        if "matrix" in node:
            matrix = np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
        else:
            x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), dtype=np.float64)
            rotation = np.array(
                [
                    [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                    [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                    [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
                ]
            )
            matrix = np.eye(4)
            matrix[:3, :3] = rotation * np.array(node.get("scale", (1, 1, 1)), dtype=np.float64)
            matrix[:3, 3] = node.get("translation", (0, 0, 0))
        if not np.isfinite(matrix).all():
            raise ValueError(f"its node {index} has a transform that is not finite")
        return matrix

    def _roots(self) -> list[int]:
        """Root nodes of the default scene; without scenes, all nodes that are no child."""
        if self._json.get("scenes"):
            return list(self._item("scenes", self._json.get("scene", 0)).get("nodes", []))
        nodes = self._json.get("nodes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [i for i in range(len(nodes)) if i not in children]
        if nodes and not roots:
            raise ValueError("its nodes form a loop")
        return roots

    def triangles(self) -> tuple[np.ndarray, np.ndarray]:
        """The scene flattened, see `read_gltf`."""
        meshes: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        vertices, faces = [np.empty((0, 3))], [np.empty((0, 3), dtype=np.int64)]
        num_vertices, num_faces = 0, 0
        seen: set[int] = set()
        stack = [(index, np.eye(4), 1) for index in reversed(self._roots())]
        while stack:
            index, parent, depth = stack.pop()
            node = self._item("nodes", index)
            if index in seen:
                raise ValueError(
                    f"its node {index} is reached twice: the nodes form a loop or share a child"
                )
            if depth > MAX_NODE_DEPTH or len(seen) >= MAX_NODES:
                raise ValueError(
                    f"its nodes are nested deeper than {MAX_NODE_DEPTH} or number more than "
                    f"{MAX_NODES:,}"
                )
            seen.add(index)
            world = parent @ self._transform(index, node)
            stack += [(child, world, depth + 1) for child in reversed(node.get("children", []))]
            if "mesh" not in node:
                continue
            if node["mesh"] not in meshes:
                primitives = self._item("meshes", node["mesh"])["primitives"]
                meshes[node["mesh"]] = [
                    part for part in map(self._primitive, primitives) if part is not None
                ]
            mirrored = np.linalg.det(world[:3, :3]) < 0
            for local, triangles in meshes[node["mesh"]]:
                faces.append((triangles[:, ::-1] if mirrored else triangles) + num_vertices)
                vertices.append(local @ world[:3, :3].T + world[:3, 3])
                num_vertices, num_faces = num_vertices + len(local), num_faces + len(triangles)
                if num_vertices > self._max_vertices or num_faces > self._max_faces:
                    raise ValueError(
                        f"its scene has more than {self._max_vertices:,} vertices or "
                        f"{self._max_faces:,} faces"
                    )
        return np.concatenate(vertices), np.concatenate(faces)
