"""glTF scenes as a viewer shows them: instances, skins, morph targets, visibility, extensions."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from tar3d.mesh.gltf import read_gltf

CODES = {"b": 5120, "B": 5121, "h": 5122, "H": 5123, "I": 5125, "f": 5126}
TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)
TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], dtype=np.uint16)
HALF = np.sqrt(0.5)
TURN_Z = [0, 0, HALF, HALF]  # +90 degrees about z: (x, y, z) -> (-y, x, z)


class Document:
    """A glTF file in the making, with a tetrahedron of volume 1 as mesh 0."""

    def __init__(self, **entries: object) -> None:
        self.json: dict = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": []}
        self._data = b""
        attributes = {"POSITION": self.add(CORNERS)}
        self.primitive: dict = {
            "attributes": attributes,
            "indices": self.add(TETRAHEDRON.reshape(-1, 1)),
        }
        self.json |= {"meshes": [{"primitives": [self.primitive]}], **entries}

    def view(self, array: np.ndarray) -> int:
        self._data += bytes(-len(self._data) % 4)
        self.json["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self._data), "byteLength": array.nbytes}
        )
        self._data += array.tobytes()
        return len(self.json["bufferViews"]) - 1

    def add(self, array: object, dtype: object = None, **entries: object) -> int:
        """The number of a new accessor with the values of `array` (n, width)."""
        array = np.ascontiguousarray(array, dtype=dtype)
        described = {
            "bufferView": self.view(array),
            "componentType": CODES[array.dtype.char],
            "count": len(array),
            "type": TYPES[array.shape[1]],
        }
        self.json["accessors"].append(described | entries)
        return len(self.json["accessors"]) - 1

    def read(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        uri = "data:;base64," + base64.b64encode(self._data).decode()
        path = folder / "scene.gltf"
        path.write_text(
            json.dumps(self.json | {"buffers": [{"uri": uri, "byteLength": len(self._data)}]})
        )
        return read_gltf(path, 1000, 1000)


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    return trimesh.Trimesh(vertices, faces, process=False).volume


# ---- instances ----


def instanced(**attributes: object) -> Document:
    """Instances under a node that moves by 10 along x; `attributes` are (array, dtype) pairs."""
    document = Document()
    added = {
        name: document.add(array, dtype, **({} if dtype == "f" else {"normalized": True}))
        for name, (array, dtype) in attributes.items()
    }
    extension = {"EXT_mesh_gpu_instancing": {"attributes": added}}
    document.json["nodes"] = [{"mesh": 0, "translation": [10, 0, 0], "extensions": extension}]
    document.json["extensionsUsed"] = ["EXT_mesh_gpu_instancing"]
    return document


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(("dtype", "one"), [("f", 1), ("b", 127), ("h", 32767)])
def test_instances_stand_where_their_attributes_put_them(tmp_path, dtype, one, required):
    document = instanced(
        TRANSLATION=([[0, 0, 0], [0, 5, 0], [0, 0, 7]], "f"),
        ROTATION=(np.round(np.array([[0, 0, 0, 1], TURN_Z, [0, 0, 0, 1]]) * one), dtype)
        if dtype != "f"
        else ([[0, 0, 0, 1], TURN_Z, [0, 0, 0, 1]], "f"),
        SCALE=([[1, 1, 1], [2, 2, 2], [-1, 1, 1]], "f"),
    )
    if required:
        document.json["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
    vertices, faces = document.read(tmp_path)
    x, y, z = CORNERS.T
    assert vertices[:4] == pytest.approx(CORNERS + [10, 0, 0])
    turned = np.stack([10 - 2 * y, 5 + 2 * x, 2 * z], axis=1)
    assert vertices[4:8] == pytest.approx(turned, abs=1e-6)
    assert vertices[8:] == pytest.approx(CORNERS * [-1, 1, 1] + [10, 0, 7])
    # the mirrored instance keeps its outward side
    assert volume(vertices, faces) == pytest.approx(1 + 8 + 1, rel=1e-6)


def test_the_node_turns_its_instances(tmp_path):
    document = instanced(TRANSLATION=([[1, 0, 0], [2, 0, 0]], "f"))
    document.json["nodes"][0]["rotation"] = TURN_Z
    vertices, _ = document.read(tmp_path)
    x, y, z = CORNERS.T
    assert vertices[4:] == pytest.approx(np.stack([10 - y, x + 2, z], axis=1), abs=1e-6)


@pytest.mark.parametrize(
    ("lengths", "node", "reason"),
    [
        ((2, 3), {}, "attributes of different lengths"),
        ((400, 400), {}, "more than 1,000 vertices"),
        ((2, 2), {"skin": 0}, "has a skin and EXT_mesh_gpu_instancing"),
    ],
)
def test_instances_that_cannot_be_are_refused(tmp_path, lengths, node, reason):
    document = instanced(
        TRANSLATION=(np.zeros((lengths[0], 3)), "f"), SCALE=(np.ones((lengths[1], 3)), "f")
    )
    document.json["nodes"][0] |= node
    with pytest.raises(ValueError, match=reason):
        document.read(tmp_path)


# ---- skins ----


def skinned(
    joints: object = ((0, 0, 0, 0), (0, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0)),
    weights: object = ((1, 0, 0, 0),) * 4,
    **options: object,
) -> Document:
    """A skinned tetrahedron, whose node has a transform that does not count.

    Joint 0 (node 1) stands at (1, 0, 0); joint 1 (node 2) hangs on it, 5 further along y, and its
    inverse bind matrix takes those 5 back and adds 100 along z.
    """
    document = Document()
    attributes = document.primitive["attributes"]
    attributes["JOINTS_0"] = document.add(joints, options.get("joint_type", "B"))
    kind = options.get("weight_type", "f")
    attributes["WEIGHTS_0"] = document.add(weights, kind, normalized=kind != "f")
    skin: dict = {"joints": [1, 2]}
    if options.get("inverse", True):
        inverse = np.tile(np.eye(4), (2, 1, 1))
        inverse[1, :3, 3] = 0, -5, 100
        skin["inverseBindMatrices"] = document.add(inverse.transpose(0, 2, 1).reshape(2, 16), "f")
    document.json |= {
        "skins": [skin],
        "nodes": [
            {"mesh": 0, "skin": 0, "translation": [50, 50, 50], "scale": [9, 9, -9]},
            {"translation": [1, 0, 0], "children": [2]},
            {"translation": [0, 5, 0]},
        ],
    }
    return document


MOVED = CORNERS + [[1, 0, 0], [1, 0, 0], [1, 0, 100], [1, 0, 100]]


@pytest.mark.parametrize("joint_type", ["B", "H"])
@pytest.mark.parametrize(("weight_type", "one"), [("f", 1), ("B", 255), ("H", 65535), ("f", 2)])
def test_a_skinned_body_stands_in_the_pose_of_its_joints(tmp_path, joint_type, weight_type, one):
    """Weights are scaled to the sum 1, here 2 in the last case."""
    document = skinned(weights=[[one, 0, 0, 0]] * 4, joint_type=joint_type, weight_type=weight_type)
    vertices, faces = document.read(tmp_path)
    assert vertices == pytest.approx(MOVED)
    assert (faces == TETRAHEDRON).all()  # not turned by the mirroring node


def test_weights_blend_the_joints_of_all_sets(tmp_path):
    document = skinned(weights=[[0.25, 0, 0, 0]] * 4, joints=[[0, 0, 0, 0]] * 4)
    attributes = document.primitive["attributes"]
    attributes["JOINTS_1"] = document.add([[0, 1, 0, 0]] * 4, "B")
    attributes["WEIGHTS_1"] = document.add([[0.25, 0.5, 0, 0]] * 4, "f")
    assert document.read(tmp_path)[0] == pytest.approx(CORNERS + [1, 0, 50])


def test_without_inverse_bind_matrices_they_are_the_identity(tmp_path):
    vertices, _ = skinned(inverse=False).read(tmp_path)
    assert vertices == pytest.approx(CORNERS + [[1, 0, 0], [1, 0, 0], [1, 5, 0], [1, 5, 0]])


@pytest.mark.parametrize("nodes", [[0], [0, 1]])
def test_joints_move_their_skin_also_from_outside_the_scene(tmp_path, nodes):
    document = skinned()
    document.json |= {"scene": 0, "scenes": [{"nodes": nodes}]}
    assert document.read(tmp_path)[0] == pytest.approx(MOVED)


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_a_vertex_without_weights_follows_its_first_joint(tmp_path, bad):
    document = skinned(weights=[[1, 0, 0, 0]] * 3 + [[bad] * 4])
    assert document.read(tmp_path)[0] == pytest.approx(MOVED)


def test_a_rigid_part_on_a_joint_and_the_body_share_a_pose(tmp_path):
    """And a part of the skinned mesh that has no weights is rigid."""
    document = skinned()
    document.json["meshes"].append(
        {"primitives": [document.primitive | {"attributes": {"POSITION": 0}}]}
    )
    document.json["nodes"] += [{"mesh": 1}, {"mesh": 1, "skin": 0, "translation": [0, 0, 9]}]
    document.json["nodes"][2]["children"] = [3]
    vertices, _ = document.read(tmp_path)
    assert vertices[:4] == pytest.approx(MOVED)
    assert vertices[4:8] == pytest.approx(CORNERS + [1, 5, 0])
    assert vertices[8:] == pytest.approx(CORNERS + [0, 0, 9])


def test_mirroring_joints_keep_the_outside_out(tmp_path):
    document = skinned(joints=[[0, 0, 0, 0]] * 4)
    document.json["nodes"][1]["scale"] = [-1, 1, 1]
    vertices, faces = document.read(tmp_path)
    assert vertices == pytest.approx(CORNERS * [-1, 1, 1] + [1, 0, 0])
    assert volume(vertices, faces) == pytest.approx(1)


def remove(name: str):
    return lambda document: document.primitive["attributes"].pop(name)


def loop_outside(document: Document) -> None:
    document.json |= {"scene": 0, "scenes": [{"nodes": [0]}]}
    document.json["nodes"][2]["children"] = [1]


BAD_SKINS = {
    "joint": (
        lambda d: d.json["skins"][0].update(joints=[1]),
        "follow joint 1 of a skin, but it has 1",
    ),
    "weights": (remove("WEIGHTS_0"), "only one of JOINTS_0 and WEIGHTS_0"),
    "joints": (remove("JOINTS_0"), "only one of JOINTS_0 and WEIGHTS_0"),
    "inverse": (lambda d: d.json["skins"][0].update(joints=[1, 2, 2]), "has 3 joints, but inverse"),
    "node": (lambda d: d.json["skins"][0].update(joints=[1, 7]), "refers to number 7 of nodes"),
    "loop": (loop_outside, "in a loop"),
    "no skin": (lambda d: d.json.update(skins=[]), "refers to number 0 of skins"),
}


@pytest.mark.parametrize(("change", "reason"), BAD_SKINS.values(), ids=BAD_SKINS)
def test_skins_that_cannot_be_are_refused(tmp_path, change, reason):
    document = skinned()
    change(document)
    with pytest.raises(ValueError, match=reason):
        document.read(tmp_path)


# ---- morph targets ----


def morphing(weights: dict, node: dict | None = None) -> Document:
    """Targets: +x by 1, the last corner by (0, 0, 4) as sparse data, and one without data."""
    document = Document(nodes=[{"mesh": 0} | (node or {})])
    sparse = {
        "count": 1,
        "indices": {"bufferView": document.view(np.uint8([3])), "componentType": 5121},
        "values": {"bufferView": document.view(np.float32([0, 0, 4]))},
    }
    empty = {"componentType": 5126, "count": 4, "type": "VEC3"}
    moved = document.add([[127, 0, 0]] * 4, "b", normalized=True)
    document.json["accessors"] += [empty | {"sparse": sparse}, empty]
    document.primitive["targets"] = [
        {"POSITION": moved},
        {"POSITION": moved + 1},
        {"POSITION": moved + 2},
        {"NORMAL": 0},
    ]
    document.json["meshes"][0] |= weights
    return document


@pytest.mark.parametrize(
    ("mesh", "node", "first", "second"),
    [
        ({}, {}, 0, 0),
        ({"weights": [0, 0, 0, 0]}, {}, 0, 0),
        ({"weights": [0.5, 1, 1, 1]}, {}, 0.5, 1),
        ({"weights": [0.5, 1]}, {"weights": [2, 0.25, 0, 0]}, 2, 0.25),
        ({"weights": [0.5, 1]}, {"weights": [0, 0, 0, 0]}, 0, 0),
    ],
)
def test_morph_weights_move_the_vertices(tmp_path, mesh, node, first, second):
    vertices, _ = morphing(mesh, node).read(tmp_path)
    assert vertices == pytest.approx(
        CORNERS + [first, 0, 0] + second * np.eye(4, 3, -1) * [0, 0, 4]
    )


def test_nodes_with_other_morph_weights_share_a_mesh(tmp_path):
    document = morphing({"weights": [0, 0]})
    document.json["nodes"] += [{"mesh": 0, "weights": [3, 0]}]
    assert document.read(tmp_path)[0][4:] == pytest.approx(CORNERS + [3, 0, 0])


def test_a_morph_target_comes_before_the_skin(tmp_path):
    document = skinned()
    document.primitive["targets"] = [{"POSITION": document.add(CORNERS)}]
    document.json["nodes"][0]["weights"] = [1]
    assert document.read(tmp_path)[0] == pytest.approx(MOVED + CORNERS)


def test_a_morph_target_of_another_length_is_refused(tmp_path):
    document = Document(nodes=[{"mesh": 0, "weights": [1]}])
    document.primitive["targets"] = [{"POSITION": document.add(CORNERS[:3])}]
    with pytest.raises(ValueError, match="moves 3 vertices, but a primitive has 4"):
        document.read(tmp_path)


# ---- extensions and the rest ----


@pytest.mark.parametrize(
    "name",
    [
        *("KHR_xmp_json_ld", "MSFT_texture_dds", "EXT_structural_metadata", "EXT_texture_webp"),
        *("KHR_texture_basisu", "KHR_materials_unlit", "KHR_lights_punctual", "EXT_mesh_features"),
    ],
)
def test_required_extensions_that_move_nothing_are_no_obstacle(tmp_path, name):
    document = Document(nodes=[{"mesh": 0}], extensionsRequired=[name])
    assert (document.read(tmp_path)[0] == CORNERS).all()


def test_unknown_required_extensions_are_refused_by_name(tmp_path):
    document = Document(nodes=[{"mesh": 0}], extensionsRequired=["ACME_bent_space", "KHR_xmp"])
    with pytest.raises(ValueError, match="requires the glTF extension ACME_bent_space, which"):
        document.read(tmp_path)


def test_hidden_nodes_are_not_part_of_the_shape(tmp_path):
    hidden = {"KHR_node_visibility": {"visible": False}}
    nodes = [{"mesh": 0}, {"extensions": hidden, "children": [2]}, {"mesh": 0}]
    assert len(Document(nodes=nodes).read(tmp_path)[1]) == 4


@pytest.mark.parametrize(("dtype", "normalized", "unit"), [("h", False, 1), ("h", True, 1 / 32767)])
def test_quantized_positions_with_padding(tmp_path, dtype, normalized, unit):
    document = Document(nodes=[{"mesh": 0, "scale": [0.5] * 3}])
    document.json["extensionsRequired"] = ["KHR_mesh_quantization"]
    padded = np.concatenate([CORNERS * 100, np.full((4, 1), 77)], axis=1).astype(dtype)
    entry = document.json["accessors"][document.add(padded, normalized=normalized)]
    entry["type"] = "VEC3"
    document.json["bufferViews"][-1]["byteStride"] = 8
    document.primitive["attributes"]["POSITION"] = len(document.json["accessors"]) - 1
    assert document.read(tmp_path)[0] == pytest.approx(CORNERS * 50 * unit)


def test_a_buffer_in_percent_signs_and_whole_numbers_with_a_point(tmp_path):
    document = Document(nodes=[{"mesh": 0}])
    document.read(tmp_path)
    path = tmp_path / "scene.gltf"
    content = json.loads(path.read_text())
    data = base64.b64decode(content["buffers"][0]["uri"].partition(",")[2])
    content["buffers"][0]["uri"] = "data:," + "".join(f"%{byte:02x}" for byte in data)
    content["accessors"][0]["count"] = 4.0
    path.write_text(json.dumps(content))
    assert (read_gltf(path, 1000, 1000)[0] == CORNERS).all()


def test_a_container_with_the_suffix_gltf_is_read(tmp_path):
    path = tmp_path / "box.gltf"
    path.write_bytes(trimesh.creation.box().export(file_type="glb"))
    assert len(read_gltf(path, 1000, 1000)[1]) == 12
