"""The meshes of a glTF file: positions, faces and skin weights of each primitive, before placement.

Read are triangle lists, strips and fans, morph targets with the weights of the mesh or node, and
KHR_draco_mesh_compression. Raises ValueError, with the reason, for anything malformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tar3d.mesh.gltf_file import decoded_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.mesh.gltf_file import GltfFile

DRACO = "KHR_draco_mesh_compression"
_TRIANGLES, _STRIP, _FAN = 4, 5, 6


@dataclass(frozen=True)
class Primitive:
    """Triangles of one material: `positions` (V, 3) float64, `faces` (F, 3) int64.

    `joints` (V, K) int64 and `weights` (V, K) float64, of sum 1, are None without skin weights.
    """

    positions: np.ndarray
    faces: np.ndarray
    joints: np.ndarray | None = None
    weights: np.ndarray | None = None


def read_mesh(file: GltfFile, node: dict, max_vertices: int, max_faces: int) -> list[Primitive]:
    """The primitives with triangles of the mesh of a `node`, with skin weights if it has a skin.

    Morph weights of the node replace those of its mesh. An accessor must not have more elements
    than `max_vertices`, or 3 `max_faces` for indices.
    """
    mesh = file.item("meshes", node["mesh"])
    morph = node.get("weights", mesh.get("weights", []))
    primitives = (
        _PrimitiveReader(file, primitive, max_vertices, max_faces).read(morph, "skin" in node)
        for primitive in mesh["primitives"]
    )
    return [primitive for primitive in primitives if primitive is not None]


class _PrimitiveReader:
    """One primitive of a file."""

    def __init__(self, file: GltfFile, primitive: dict, max_vertices: int, max_faces: int) -> None:
        self._file, self._json = file, primitive
        self._max_vertices, self._max_faces = max_vertices, max_faces
        self._draco: dict[str, np.ndarray] = {}  # decompressed attributes by name

    def read(self, morph: Sequence[float], has_skin: bool) -> Primitive | None:
        """The primitive with morph weights applied; None for points and lines."""
        mode = self._json.get("mode", _TRIANGLES)
        if mode not in (_TRIANGLES, _STRIP, _FAN) or "POSITION" not in self._json["attributes"]:
            return None
        compressed = DRACO in self._json.get("extensions", {})
        faces = self._decompress() if compressed else None
        positions = self._attribute("POSITION").astype(np.float64)
        if positions.shape[1] != 3:
            raise ValueError("its positions are not three-dimensional")
        if faces is None:
            faces = self._indexed_faces(mode, len(positions))
        if len(faces) and not 0 <= faces.min() <= faces.max() < len(positions):
            raise ValueError(
                f"its faces index vertices up to {faces.max()}, but a primitive has "
                f"{len(positions):,}"
            )
        joints, weights = self._skin(len(positions)) if has_skin else (None, None)
        return Primitive(self._morphed(positions, morph), faces, joints, weights)

    def _attribute(self, name: str) -> np.ndarray:
        if name in self._draco:
            return self._draco[name]
        return self._file.accessor(self._json["attributes"][name], self._max_vertices)

    def _indexed_faces(self, mode: int, num_vertices: int) -> np.ndarray:
        """Triangles (F, 3) of a list, strip or fan (section 3.7.2.1 of glTF 2.0)."""
        index = np.arange(num_vertices)
        if "indices" in self._json:
            index = self._file.accessor(self._json["indices"], 3 * self._max_faces).ravel()
            if index.dtype != np.int64:
                raise ValueError("its faces are indexed by numbers that are not whole")
        if mode == _TRIANGLES:
            if len(index) % 3:
                raise ValueError(
                    f"its triangles have {len(index):,} corners, which is no multiple of 3"
                )
            return index.reshape(-1, 3)
        first, second, third = index[:-2].copy(), index[1:-1].copy(), index[2:].copy()
        if mode == _FAN:
            first[:] = index[:1]
        else:  # every other triangle of a strip runs backwards
            second[1::2], third[1::2] = index[3::2], index[2:-1:2]
        return np.stack([first, second, third], axis=-1)

    def _morphed(self, positions: np.ndarray, morph: Sequence[float]) -> np.ndarray:
        """`positions` (V, 3) moved by the targets whose weight is not 0."""
        weights = np.array(morph, dtype=np.float64).ravel()
        if not np.isfinite(weights).all():
            raise ValueError("its morph weights are not finite")
        for weight, target in zip(weights, self._json.get("targets", []), strict=False):
            if weight == 0 or "POSITION" not in target:
                continue
            accessor = self._file.item("accessors", target["POSITION"])
            if "bufferView" not in accessor and "sparse" not in accessor:
                continue  # zeros, by the specification
            moves = self._file.accessor(target["POSITION"], self._max_vertices)
            if moves.shape != positions.shape:
                raise ValueError(
                    f"its morph target moves {len(moves):,} vertices, but a primitive has "
                    f"{len(positions):,}"
                )
            positions = positions + weight * moves
        return positions

    def _skin(self, num_vertices: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Joints and weights (V, K) of all sets JOINTS_n and WEIGHTS_n; None without any.

        The weights of a vertex are scaled to the sum 1. A vertex whose weights are all 0 or NaN
        follows its first joint, as in common viewers.
        """
        attributes = self._json["attributes"]
        sets: list[list[np.ndarray]] = []
        while any(f"{name}_{len(sets)}" in attributes for name in ("JOINTS", "WEIGHTS")):
            names = f"JOINTS_{len(sets)}", f"WEIGHTS_{len(sets)}"
            if not set(names) <= set(attributes):
                raise ValueError(f"its primitive has only one of {' and '.join(names)}")
            sets.append([self._attribute(name) for name in names])
            if any(values.shape != (num_vertices, 4) for values in sets[-1]):
                raise ValueError(f"its {' and '.join(names)} do not fit {num_vertices:,} vertices")
        if not sets:
            return None, None
        joints, weights = (np.concatenate(parts, axis=1) for parts in zip(*sets, strict=True))
        weights = np.where(np.isfinite(weights), weights, 0.0)
        total = weights.sum(axis=1, keepdims=True)
        usable = total > 0
        weights = np.where(usable, weights / np.where(usable, total, 1.0), 0.0)
        weights[~usable[:, 0], 0] = 1.0
        return joints.astype(np.int64), weights

    def _decompress(self) -> np.ndarray:
        """Faces (F, 3) of Draco data; its attributes are kept for `_attribute`."""
        try:
            import DracoPy
        except ImportError as e:
            raise ValueError(
                "it is compressed with Draco, which needs the package DracoPy (pip install DracoPy)"
            ) from e
        extension = self._json["extensions"][DRACO]
        attributes = self._json["attributes"]
        _, count = self._file.declared(attributes["POSITION"], self._max_vertices)
        self._file.declared(self._json["indices"], 3 * self._max_faces)
        try:
            decoded = DracoPy.decode(bytes(self._file.view(extension["bufferView"])[0]))
        except (DracoPy.FileTypeException, DracoPy.EncodingFailedException) as e:
            raise ValueError(f"its Draco data cannot be decoded ({e})") from e
        stored = {attribute["unique_id"]: attribute["data"] for attribute in decoded.attributes}
        for name, unique_id in extension["attributes"].items():
            if name in attributes and unique_id in stored:
                accessor = self._file.item("accessors", attributes[name])
                self._draco[name] = decoded_values(stored[unique_id], accessor)
        if "POSITION" not in self._draco or self._draco["POSITION"].shape != (count, 3):
            raise ValueError(
                f"its Draco data does not hold the {count:,} positions that the glTF declares"
            )
        return np.asarray(decoded.faces, dtype=np.int64).reshape(-1, 3)
