"""The glTF reader against hand-made files with known triangles, against trimesh, and against files
that lie."""

import base64
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from tar3d.mesh.gltf import MAX_NODE_DEPTH, read_gltf

DATASETS = Path(
    os.environ.get("TAR3D_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets"
)
LIMITS = (10_000, 10_000)
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)
TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], dtype=np.uint16)


def document(**changes: object) -> dict:
    """A tetrahedron in one node; `changes` replace top-level entries."""
    data = CORNERS.tobytes() + TETRAHEDRON.tobytes()
    return {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 12, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": 48},
            {"buffer": 0, "byteOffset": 48, "byteLength": 24},
        ],
        "buffers": [
            {"uri": "data:;base64," + base64.b64encode(data).decode(), "byteLength": len(data)}
        ],
    } | changes


def read(tmp_path: Path, content: dict) -> tuple[np.ndarray, np.ndarray]:
    path = tmp_path / "file.gltf"
    path.write_text(json.dumps(content))
    return read_gltf(path, *LIMITS)


def test_a_plain_file_is_read_as_it_is(tmp_path):
    vertices, faces = read(tmp_path, document())
    assert (vertices == CORNERS).all() and (faces == TETRAHEDRON).all()


def test_node_transforms_multiply_down_the_tree_and_instances_repeat(tmp_path):
    half = np.sqrt(0.5)
    nodes = [
        {"translation": [10, 0, 0], "children": [1, 2]},
        {"rotation": [0, 0, half, half], "scale": [2, 2, 2], "mesh": 0},  # +90 degrees about z
        {"matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 5, 1], "mesh": 0},
    ]
    vertices, faces = read(tmp_path, document(nodes=nodes))
    x, y, z = CORNERS.T
    assert np.allclose(vertices[:4], np.stack([10 - 2 * y, 2 * x, 2 * z], axis=1), atol=1e-12)
    assert np.allclose(vertices[4:], CORNERS + [10, 0, 5])
    assert (faces == np.concatenate([TETRAHEDRON, TETRAHEDRON + 4])).all()


def test_a_mirroring_node_keeps_the_outside_out(tmp_path):
    vertices, faces = read(tmp_path, document(nodes=[{"mesh": 0, "scale": [-1, 1, 1]}]))
    assert (vertices[:, 0] <= 0).all()
    assert trimesh.Trimesh(vertices, faces, process=False).volume == pytest.approx(1.0)


def test_only_the_default_scene_is_read(tmp_path):
    scenes = [{"nodes": [0]}, {"nodes": [1]}]
    nodes = [{"mesh": 0}, {"mesh": 0, "translation": [5, 0, 0]}]
    for scene, start in ((0, 0), (1, 5)):
        assert (
            read(tmp_path, document(scenes=scenes, nodes=nodes, scene=scene))[0]
            == CORNERS + [start, 0, 0]
        ).all()


@pytest.mark.parametrize("count", [3, 4, 5, 6])
@pytest.mark.parametrize("mode", [5, 6])
def test_strips_and_fans_turn_as_the_specification_says(tmp_path, mode, count):
    """glTF 2.0, section 3.7.2.1: strip p_i = (v_i, v_(i+1+i%2), v_(i+2-i%2)); fan p_i = (v_(i+1),
    v_(i+2), v_0)."""
    accessors = document()["accessors"]
    accessors[1]["count"] = count
    primitive = {"attributes": {"POSITION": 0}, "indices": 1, "mode": mode}
    _, faces = read(tmp_path, document(accessors=accessors, meshes=[{"primitives": [primitive]}]))
    v = TETRAHEDRON.ravel().tolist()
    if mode == 5:
        expected = [[v[i], v[i + 1 + i % 2], v[i + 2 - i % 2]] for i in range(count - 2)]
    else:
        expected = [[v[0], v[i + 1], v[i + 2]] for i in range(count - 2)]
    assert faces.tolist() == expected


def test_points_and_lines_are_left_out(tmp_path):
    primitives = [{"attributes": {"POSITION": 0}, "mode": mode} for mode in (0, 1, 2, 3)]
    assert len(read(tmp_path, document(meshes=[{"primitives": primitives}]))[1]) == 0


def test_sparse_and_normalized_accessors(tmp_path):
    data = (
        np.array([1, 3], np.uint8).tobytes()
        + b"\0\0"
        + np.array([[0, 0, 0], [127, -128, 0]], np.int8).tobytes()
    )
    base = np.array([[64, 0, 0], [1, 1, 1], [0, 127, 0], [9, 9, 9]], np.int8).tobytes()
    sparse = {
        "count": 2,
        "indices": {"bufferView": 0, "componentType": 5121},
        "values": {"bufferView": 0, "byteOffset": 4},
    }
    accessor = {
        "bufferView": 1,
        "componentType": 5120,
        "count": 4,
        "type": "VEC3",
        "normalized": True,
        "sparse": sparse,
    }
    vertices, _ = read(
        tmp_path,
        document(
            accessors=[accessor],
            meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 5}]}],
            bufferViews=[
                {"buffer": 0, "byteLength": 10},
                {"buffer": 0, "byteOffset": 10, "byteLength": 12},
            ],
            buffers=[
                {"uri": "data:;base64," + base64.b64encode(data + base).decode(), "byteLength": 22}
            ],
        ),
    )
    assert np.allclose(vertices, [[64 / 127, 0, 0], [0, 0, 0], [0, 1, 0], [1, -1, 0]])


def test_a_stride_skips_other_attributes(tmp_path):
    rows = np.concatenate([CORNERS, np.full((4, 3), 7, np.float32)], axis=1)
    content = document(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 5}]}])
    content["buffers"] = [
        {"uri": "data:;base64," + base64.b64encode(rows.tobytes()).decode(), "byteLength": 96}
    ]
    content["bufferViews"] = [{"buffer": 0, "byteLength": 96, "byteStride": 24}]
    assert (read(tmp_path, content)[0] == CORNERS).all()


def test_a_buffer_beside_the_file_is_read_and_one_elsewhere_is_not(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    data = CORNERS.tobytes() + TETRAHEDRON.tobytes()
    (folder / "a b.bin").write_bytes(data)
    (tmp_path / "secret.bin").write_bytes(data)
    assert len(read(folder, document(buffers=[{"uri": "a%20b.bin", "byteLength": 72}]))[1]) == 4
    for uri in ("../secret.bin", str(tmp_path / "secret.bin")):
        with pytest.raises(ValueError, match="outside the file's folder"):
            read(folder, document(buffers=[{"uri": uri, "byteLength": 72}]))
    with pytest.raises(ValueError, match="is missing beside it"):
        read(folder, document(buffers=[{"uri": "other.bin", "byteLength": 72}]))


def chain(length: int) -> list[dict]:
    return [{"children": [i + 1]} for i in range(length - 1)] + [{"mesh": 0}]


def changed(group: str, index: int, **values: object) -> dict:
    """The document with entry `index` of `group` changed."""
    content = document()
    content[group][index] = content[group][index] | values
    return content


LIES = {
    "count past the bytes": (
        changed("accessors", 0, count=5),
        "needs 60 bytes, but its bufferView has 48",
    ),
    "offset past the bytes": (changed("accessors", 0, byteOffset=4), "needs 52 bytes"),
    "count above the limit": (
        changed("accessors", 0, count=2_000_000_000),
        "declares 2,000,000,000 elements",
    ),
    "count without data": (
        document(accessors=[{"componentType": 5126, "count": 9, "type": "VEC3"}] * 2),
        "has no data",
    ),
    "half a triangle": (changed("accessors", 1, count=11), "11 corners, which is no multiple"),
    "count of zero": (changed("accessors", 0, count=0), "declares 0 elements"),
    "negative offset": (changed("bufferViews", 1, byteOffset=-48), "not a whole number >= 0"),
    "offset that is text": (changed("bufferViews", 1, byteOffset="48"), "not a whole number >= 0"),
    "view past the buffer": (
        changed("bufferViews", 1, byteLength=25),
        "ends at byte 73 of a buffer of 72",
    ),
    "buffer shorter than declared": (
        changed("buffers", 0, byteLength=73),
        "declares 73 bytes, but only 72",
    ),
    "index past the vertices": (
        changed("accessors", 1, byteOffset=0, bufferView=0),
        "index vertices up to",
    ),
    "missing accessor": (
        document(accessors=[]),
        "refers to number 0 of accessors, but there are 0",
    ),
    "missing mesh": (document(nodes=[{"mesh": 3}]), "refers to number 3 of meshes"),
    "component type": (changed("accessors", 0, componentType=5130), "component type 5130"),
    "matrix": (document(nodes=[{"mesh": 0, "matrix": [1, 2]}]), "reshape|malformed"),
    "transform": (document(nodes=[{"mesh": 0, "scale": [1, 1e999, 1]}]), "not finite"),
    "children that are text": (document(nodes=[{"children": "abc"}]), "not a whole number"),
    "nodes that are a number": (document(nodes=5), "malformed"),
    "loop": (document(nodes=[{"children": [1]}, {"children": [0]}]), "loop"),
    "shared child": (document(nodes=[{"children": [1, 1]}, {"mesh": 0}]), "reached twice"),
    "deep chain": (document(nodes=chain(MAX_NODE_DEPTH + 1)), "nested deeper than"),
    "many instances": (
        document(nodes=[{"mesh": 0}] * 3000, scenes=[{"nodes": list(range(3000))}]),
        "more than 10,000 vertices",
    ),
    "version": (document(asset={"version": "1.0"}), "only version 2"),
    "required extension": (
        document(extensionsRequired=["ACME_bent_space"]),
        "ACME_bent_space",
    ),
}


@pytest.mark.parametrize(("content", "reason"), LIES.values(), ids=LIES)
def test_files_that_lie_are_refused_by_reason(tmp_path, content, reason):
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, content)


def test_a_chain_within_the_limit_is_read(tmp_path):
    assert len(read(tmp_path, document(nodes=chain(MAX_NODE_DEPTH)))[1]) == 4


@pytest.mark.parametrize("damage", ["magic", "length", "chunk", "json"])
def test_damaged_containers_are_refused(tmp_path, damage):
    path = tmp_path / "file.glb"
    content = bytearray(trimesh.creation.box().export(file_type="glb"))
    if damage == "magic":
        content[0] = 0
    elif damage == "length":
        content = content[:-4]
    elif damage == "chunk":
        struct.pack_into("<I", content, 12, len(content))
    else:
        content[20:24] = b"{{{{"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="magic|declares|JSON"):
        read_gltf(path, *LIMITS)


def glb(content: dict, data: bytes, declared: int = 0) -> bytes:
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, declared or 12 + len(chunks)) + chunks


def test_containers_with_bytes_behind_them_without_padding_and_as_text_are_read(tmp_path):
    path, data = tmp_path / "file.glb", CORNERS.tobytes() + TETRAHEDRON.tobytes()
    for surplus in (0, 3):
        whole = glb(document(buffers=[{"byteLength": len(data) + surplus}]), data)
        for content in (whole, whole + bytes(7), whole + b"\nbehind"):
            path.write_bytes(content)
            assert (read_gltf(path, *LIMITS)[1] == TETRAHEDRON).all()
    path.write_bytes(b"\xef\xbb\xbf\n" + json.dumps(document()).encode())
    assert (read_gltf(path, *LIMITS)[1] == TETRAHEDRON).all()
    for content, reason in (
        (glb(document(buffers=[{"byteLength": len(data) + 4}]), data), "declares 76 bytes, but on"),
        (whole + whole, "GLB header declares"),
        (glb(document(), data, declared=60), "runs past the end"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            read_gltf(path, *LIMITS)


def draco_box() -> trimesh.Trimesh:
    return trimesh.creation.box((1, 2, 3))


def draco_file(tmp_path: Path) -> Path:
    draco = pytest.importorskip("DracoPy")
    box = draco_box()
    data = draco.encode(
        box.vertices.astype(np.float32), faces=box.faces, quantization_bits=14, preserve_order=True
    )
    unique_id = draco.decode(data).attributes[0]["unique_id"]
    extension = {
        "KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": unique_id}}
    }
    content = document(
        extensionsRequired=["KHR_draco_mesh_compression"],
        meshes=[
            {"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "extensions": extension}]}
        ],
        accessors=[
            {"componentType": 5126, "count": 8, "type": "VEC3"},
            {"componentType": 5125, "count": 36, "type": "SCALAR"},
        ],
        bufferViews=[{"buffer": 0, "byteLength": len(data)}],
        buffers=[
            {"uri": "data:;base64," + base64.b64encode(data).decode(), "byteLength": len(data)}
        ],
    )
    path = tmp_path / "box.gltf"
    path.write_text(json.dumps(content))
    return path


def test_draco_is_decoded(tmp_path):
    vertices, faces = read_gltf(draco_file(tmp_path), *LIMITS)
    assert np.allclose(vertices, draco_box().vertices, atol=1e-3)
    assert trimesh.Trimesh(vertices, faces, process=False).volume == pytest.approx(6, rel=1e-3)


def test_draco_without_its_package_is_refused_by_name(tmp_path, monkeypatch):
    path = draco_file(tmp_path)
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    with pytest.raises(ValueError, match="pip install DracoPy"):
        read_gltf(path, *LIMITS)


def real_files() -> list[Path]:
    special = [
        DATASETS / "broken" / "files" / "triangle_strip.gltf",
        DATASETS / "dev" / "raw_formats" / "nested.glb",
    ]
    return sorted((DATASETS / "dev" / "meshes").rglob("*.glb"))[::40] + [
        path for path in special if path.is_file()
    ]


@pytest.mark.skipif(
    not real_files(), reason="no real meshes; TAR3D_DATASETS names the folder that holds them"
)
def test_real_files_are_read_as_trimesh_reads_them():
    def oriented(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
        corners = np.asarray(vertices)[np.asarray(faces)]
        area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return np.concatenate([corners.mean(axis=1), area], axis=1)  # (F, 6)

    for path in real_files():
        ours = oriented(*read_gltf(path, 10**7, 10**7))
        scene = trimesh.load_scene(path, process=False).to_mesh()
        theirs = oriented(scene.vertices, scene.faces)
        scale = np.abs(theirs).max()
        assert ours.shape == theirs.shape, path
        order = [np.lexsort(np.round(rows / scale, 4).T) for rows in (ours, theirs)]
        assert np.allclose(ours.sum(axis=0), theirs.sum(axis=0), atol=1e-4 * scale), path
        assert np.median(np.abs(ours[order[0]] - theirs[order[1]])) < 1e-5 * scale, path
