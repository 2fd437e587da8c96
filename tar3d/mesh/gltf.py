"""Reads the triangles of a .glb or .gltf file (glTF 2.0), safely for damaged and hostile files.

The scene is read as a viewer shows it before any animation plays. Node transforms, skins, morph
weights and the instances of EXT_mesh_gpu_instancing are applied, so that a skinned body and the
rigid parts on its joints stand in one pose, the one of the nodes. Data compressed by
KHR_draco_mesh_compression, EXT_ and KHR_meshopt_compression is decompressed. Materials and
everything else that does not move a triangle are ignored. Raises ValueError, with the reason, for
anything malformed and for required extensions that are unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tar3d.mesh.gltf_file import MESHOPT, GltfFile
from tar3d.mesh.gltf_mesh import DRACO, Primitive, read_mesh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import ArrayLike

MAX_NODE_DEPTH = 256  # real scenes stay below 50; a longer chain is a broken or hostile exporter
MAX_NODES = 1_000_000
_VERTICES_AT_ONCE = 1 << 16  # bounds the memory of skinning
_INSTANCES = "EXT_mesh_gpu_instancing"
_VISIBILITY = "KHR_node_visibility"
_READ = (DRACO, *MESHOPT, _INSTANCES, _VISIBILITY)
# required extensions that change no position at rest, by the beginnings of their names
_HARMLESS = (
    # the stored numbers are read as they are
    "KHR_mesh_quantization",
    # surfaces, textures, lights
    *("KHR_materials_", "KHR_texture_", "KHR_techniques_webgl", "KHR_lights_", "KHR_environment_"),
    *("EXT_texture", "EXT_lights_", "MSFT_texture_", "MSFT_packing_", "NV_materials_"),
    *("ADOBE_materials_", "BENTLEY_materials_", "CESIUM_primitive_outline"),
    *("EXT_mesh_primitive_edge_visibility", "VRMC_materials_"),
    # metadata
    *("KHR_xmp", "EXT_structural_metadata", "EXT_mesh_features", "EXT_instance_features"),
    *("EXT_feature_metadata", "EXT_mesh_manifold", "AGI_stk_metadata", "FB_geometry_metadata"),
    *("GRIFFEL_bim_data", "GODOT_single_root", "VRM", "MSFT_lod"),
    # behaviour
    *("KHR_animation_", "KHR_node_", "KHR_interactivity", "KHR_audio", "MSFT_audio_emitter"),
    *("KHR_physics_", "KHR_collision_", "KHR_implicit_shapes", "OMI_"),
)


def read_gltf(path: Path, max_vertices: int, max_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """World-space vertices (V, 3) float64 and faces (F, 3) int64 of the default scene.

    Both may be empty, and coordinates may be infinite or NaN. The limits hold for the scene with
    its instances. A mesh under a mirroring node or joint keeps its outward side. Raises ValueError,
    and OSError for a file that cannot be opened.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return _Scene(GltfFile(path), max_vertices, max_faces).triangles()
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as e:
        raise ValueError(f"its glTF structure is malformed ({type(e).__name__}: {e})") from e


def _transform(translation: ArrayLike, rotation: ArrayLike, scale: ArrayLike) -> np.ndarray:
    """The matrix (4, 4) of a translation (3,), a unit quaternion x y z w, and a scale (3,)."""
    x, y, z, w = np.array(rotation, dtype=np.float64)
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array(scale, dtype=np.float64)
    matrix[:3, 3] = np.array(translation, dtype=np.float64)
    return matrix


def _node_transform(index: int, node: dict) -> np.ndarray:
    if "matrix" in node:
        matrix = np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    else:
        matrix = _transform(
            node.get("translation", (0, 0, 0)),
            node.get("rotation", (0, 0, 0, 1)),
            node.get("scale", (1, 1, 1)),
        )
    if not np.isfinite(matrix).all():
        raise ValueError(f"its node {index} has a transform that is not finite")
    return matrix


class _Scene:
    """The default scene of a file, flattened by `triangles`."""

    def __init__(self, file: GltfFile, max_vertices: int, max_faces: int) -> None:
        self._file, self._max_vertices, self._max_faces = file, max_vertices, max_faces
        self._worlds: dict[int, np.ndarray] = {}  # transforms (4, 4) of nodes to the scene
        self._parents: dict[int, int] | None = None
        self._skins: dict[int, np.ndarray] = {}
        unknown = [
            name for name in sorted(file.required - {*_READ}) if not name.startswith(_HARMLESS)
        ]
        if unknown:
            raise ValueError(
                f"it requires the glTF extension {', '.join(unknown)[:200]}, which is not supported"
            )

    def triangles(self) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (V, 3) and faces (F, 3) of the scene, see `read_gltf`."""
        meshes: dict[tuple, list[Primitive]] = {}
        vertices, faces = [np.empty((0, 3))], [np.empty((0, 3), dtype=np.int64)]
        num_vertices, num_faces = 0, 0
        # all transforms first, because a joint may come after the mesh that it moves
        for index, node in list(self._nodes_with_mesh()):
            key = (
                node["mesh"],
                "skin" in node,
                tuple(node["weights"]) if "weights" in node else None,
            )
            if key not in meshes:
                meshes[key] = read_mesh(self._file, node, self._max_vertices, self._max_faces)
            for placed, triangles in self._placed(index, node, meshes[key]):
                faces.append(triangles + num_vertices)
                vertices.append(placed)
                num_vertices, num_faces = num_vertices + len(placed), num_faces + len(triangles)
                self._check_size(num_vertices, num_faces)
        return np.concatenate(vertices), np.concatenate(faces)

    def _check_size(self, num_vertices: int, num_faces: int) -> None:
        if num_vertices > self._max_vertices or num_faces > self._max_faces:
            raise ValueError(
                f"its scene has more than {self._max_vertices:,} vertices or "
                f"{self._max_faces:,} faces"
            )

    # ---- nodes ----

    def _roots(self) -> list[int]:
        """Root nodes of the default scene; without scenes, all nodes that are no child."""
        if self._file.json.get("scenes"):
            scene = self._file.item("scenes", self._file.json.get("scene", 0))
            return list(scene.get("nodes", []))
        nodes = self._file.json.get("nodes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [i for i in range(len(nodes)) if i not in children]
        if nodes and not roots:
            raise ValueError("its nodes form a loop")
        return roots

    def _nodes_with_mesh(self) -> Iterator[tuple[int, dict]]:
        """Visible nodes that have a mesh, from the roots down; fills `_worlds` on the way."""
        stack = [(index, np.eye(4), 1, True) for index in reversed(self._roots())]
        while stack:
            index, parent, depth, visible = stack.pop()
            node = self._file.item("nodes", index)
            if index in self._worlds:
                raise ValueError(
                    f"its node {index} is reached twice: the nodes form a loop or share a child"
                )
            if depth > MAX_NODE_DEPTH or len(self._worlds) >= MAX_NODES:
                raise ValueError(
                    f"its nodes are nested deeper than {MAX_NODE_DEPTH} or number more than "
                    f"{MAX_NODES:,}"
                )
            world = self._worlds[index] = parent @ _node_transform(index, node)
            visible = visible and node.get("extensions", {}).get(_VISIBILITY, {}).get(
                "visible", True
            )
            stack += [
                (child, world, depth + 1, visible) for child in reversed(node.get("children", []))
            ]
            if visible and "mesh" in node:
                yield index, node

    def _world(self, index: int) -> np.ndarray:
        """The transform (4, 4) of any node, also of a joint outside the scene."""
        if self._parents is None:
            self._parents = {
                child: parent
                for parent, node in enumerate(self._file.json.get("nodes", []))
                for child in node.get("children", [])
            }
        chain = []
        at: int | None = index
        while at is not None and at not in self._worlds:
            chain.append(at)
            at = self._parents.get(at)
            if len(chain) > MAX_NODE_DEPTH:
                raise ValueError(
                    f"its joint {index} is nested deeper than {MAX_NODE_DEPTH} nodes or in a loop"
                )
        world = np.eye(4) if at is None else self._worlds[at]
        for node in reversed(chain):
            world = world @ _node_transform(node, self._file.item("nodes", node))
            self._worlds[node] = world
        return world

    # ---- placement ----

    def _placed(
        self, index: int, node: dict, primitives: list[Primitive]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Vertices (V, 3) and faces (F, 3) in the scene, of each primitive and instance."""
        worlds = [self._worlds[index]]
        if _INSTANCES in node.get("extensions", {}):
            if "skin" in node:
                raise ValueError(
                    f"its node {index} has a skin and {_INSTANCES}, which have no meaning together"
                )
            instances = self._instances(node["extensions"][_INSTANCES], primitives)
            worlds = [worlds[0] @ instance for instance in instances]
        for world in worlds:
            mirrored = np.linalg.det(world[:3, :3]) < 0
            for part in primitives:
                if "skin" in node and part.joints is not None:
                    yield self._skinned(part, self._joint_matrices(node["skin"]))
                else:
                    yield (
                        part.positions @ world[:3, :3].T + world[:3, 3],
                        part.faces[:, ::-1] if mirrored else part.faces,
                    )

    def _instances(self, extension: dict, primitives: list[Primitive]) -> list[np.ndarray]:
        """Transforms (4, 4) of the instances of a node, to be applied before its own."""
        file, names = self._file, ("TRANSLATION", "ROTATION", "SCALE")
        given = {
            name: extension["attributes"][name] for name in names if name in extension["attributes"]
        }
        counts = {file.declared(accessor, self._max_faces)[1] for accessor in given.values()}
        if len(counts) > 1:
            raise ValueError(f"its {_INSTANCES} has attributes of different lengths")
        count = counts.pop() if counts else 1
        self._check_size(
            count * sum(len(part.positions) for part in primitives),
            count * sum(len(part.faces) for part in primitives),
        )
        if not primitives:
            return []
        values = {
            "TRANSLATION": np.zeros((count, 3)),
            "ROTATION": np.tile([0.0, 0.0, 0.0, 1.0], (count, 1)),
            "SCALE": np.ones((count, 3)),
        }
        for name, accessor in given.items():
            stored = file.accessor(accessor, self._max_faces).astype(np.float64)
            if stored.shape != values[name].shape:
                raise ValueError(f"its {_INSTANCES} has a {name} of {stored.shape[1]} numbers")
            values[name] = stored
        length = np.linalg.norm(values["ROTATION"], axis=1, keepdims=True)
        values["ROTATION"] /= np.where(length > 0, length, 1)  # bytes hold no exact unit length
        return [_transform(*rows) for rows in zip(*(values[name] for name in names), strict=True)]

    def _joint_matrices(self, index: int) -> np.ndarray:
        """Matrices (J, 4, 4) of a skin from its mesh's own space to the scene."""
        if index not in self._skins:
            skin = self._file.item("skins", index)
            worlds = np.stack([self._world(joint) for joint in skin["joints"]])
            if "inverseBindMatrices" in skin:
                inverse = self._file.accessor(skin["inverseBindMatrices"], MAX_NODES)
                if inverse.shape[1] != 16 or len(inverse) < len(worlds):
                    raise ValueError(
                        f"its skin {index} has {len(worlds)} joints, but inverse bind matrices of "
                        f"shape {inverse.shape}"
                    )
                inverse = inverse[: len(worlds)].reshape(-1, 4, 4).transpose(0, 2, 1)
                worlds = worlds @ inverse
            if not np.isfinite(worlds).all():
                raise ValueError(f"its skin {index} has a joint transform that is not finite")
            self._skins[index] = worlds
        return self._skins[index]

    @staticmethod
    def _skinned(part: Primitive, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vertices and faces moved by the joints; the node's own transform does not count.

        Section 3.7.3.3 of glTF 2.0. A face is turned where its corners are mirrored.
        """
        assert part.joints is not None
        assert part.weights is not None
        joints = np.where(part.weights == 0, 0, part.joints)
        if len(joints) and joints.max() >= len(matrices):
            raise ValueError(
                f"its vertices follow joint {joints.max()} of a skin, but it has {len(matrices)}"
            )
        placed, mirrored = np.empty_like(part.positions), np.empty(len(joints), dtype=bool)
        for start in range(0, len(joints), _VERTICES_AT_ONCE):
            rows = slice(start, start + _VERTICES_AT_ONCE)
            blend = np.zeros((len(joints[rows]), 3, 4))
            for joint, weight in zip(joints[rows].T, part.weights[rows].T, strict=True):
                blend += weight[:, None, None] * matrices[joint, :3]
            turn, shift = blend[:, :, :3], blend[:, :, 3]
            placed[rows] = np.einsum("vij,vj->vi", turn, part.positions[rows]) + shift
            mirrored[rows] = np.linalg.det(turn) < 0
        turned = mirrored[part.faces].sum(axis=1, keepdims=True) >= 2
        return placed, np.where(turned, part.faces[:, ::-1], part.faces)
