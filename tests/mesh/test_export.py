"""What is written comes back: place, scale, handedness and winding, for every format."""

import json

import numpy as np
import pytest
import trimesh

from tar3d.contracts import Mesh
from tar3d.mesh.export import FORMATS, save_mesh
from tar3d.mesh.load import load_mesh, normalize


@pytest.fixture
def one_armed() -> Mesh:
    """No mirror image of itself: arms of length 1, 2 and 3 along +x, +y, +z, in millimetres far
    from the origin."""
    parts = [trimesh.creation.box((0.5, 0.5, 0.5))]
    for axis in range(3):
        extents = np.full(3, 0.3)
        extents[axis] = axis + 1
        place = np.zeros(3)
        place[axis] = extents[axis] / 2
        parts.append(
            trimesh.creation.box(extents, trimesh.transformations.translation_matrix(place))
        )
    shape = trimesh.util.concatenate(parts)
    return normalize(shape.vertices * 25.4 + [100, -40, 7], shape.faces)


def corners(mesh_vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Triangles (F, 9), each turned so that its smallest corner is first, sorted: equal for equal
    oriented surfaces."""
    triangles = np.round(np.asarray(mesh_vertices, dtype=np.float64)[faces], 3) + 0.0
    turned = [min(t[i:].tolist() + t[:i].tolist() for i in range(3)) for t in triangles]
    return np.array(sorted(turned)).reshape(len(faces), 9)


def in_source(mesh: Mesh) -> np.ndarray:
    return mesh.vertices.astype(np.float64) @ mesh.to_source[:3, :3].T + mesh.to_source[:3, 3]


@pytest.mark.parametrize("suffix", FORMATS)
def test_export_and_load_return_to_the_source_frame(one_armed, suffix, tmp_path):
    path = save_mesh(one_armed, tmp_path / f"shape{suffix}", frame="source")
    loaded = load_mesh(path)
    assert len(loaded.vertices) == len(one_armed.vertices)
    assert np.allclose(loaded.to_source, one_armed.to_source, atol=1e-4)
    assert np.allclose(
        corners(in_source(loaded), loaded.faces),
        corners(in_source(one_armed), one_armed.faces),
        atol=2e-3,
    )
    written = trimesh.load_mesh(path, process=False)  # an independent reader
    assert np.allclose(
        written.bounds[0], [100 - 0.25 * 25.4, -40 - 0.25 * 25.4, 7 - 0.25 * 25.4], atol=1e-4
    )
    assert np.allclose(written.bounds[1], [125.4, -40 + 50.8, 7 + 76.2], atol=1e-4)
    assert written.volume > 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_normalized_vertices_come_back_bit_for_bit(one_armed, suffix, tmp_path):
    written = trimesh.load_mesh(
        save_mesh(one_armed, tmp_path / f"shape{suffix.upper()}"), process=False
    )
    assert (
        np.asarray(written.vertices, dtype=np.float32)[written.faces]
        == one_armed.vertices[one_armed.faces]
    ).all()
    if suffix != ".stl":
        assert len(written.vertices) == len(one_armed.vertices)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("suffix", FORMATS)
def test_tiny_and_huge_shapes_keep_their_digits(one_armed, suffix, scale, tmp_path):
    mesh = Mesh(one_armed.vertices, one_armed.faces, np.diag([scale, scale, scale, 1.0]))
    loaded = load_mesh(save_mesh(mesh, tmp_path / f"shape{suffix}", frame="source"))
    assert np.allclose(
        loaded.vertices[loaded.faces], one_armed.vertices[one_armed.faces], atol=1e-6
    )


# georeferenced metres, far off in all axes, micrometres beside 1, and beyond float32
FAR = [(2.7, (5.4e5, 5.4e6, 120.0)), (1.0, (1e7, -1e7, 1e7)), (1e-6, (1.0, 1.0, 1.0))]


@pytest.mark.parametrize(("scale", "shift"), [*FAR, (1e60, (0.0, 0.0, 0.0))])
@pytest.mark.parametrize("suffix", FORMATS)
def test_shapes_far_from_the_origin_keep_their_digits(one_armed, suffix, scale, shift, tmp_path):
    to_source = np.diag([scale, scale, scale, 1.0])
    to_source[:3, 3] = shift
    mesh = Mesh(one_armed.vertices, one_armed.faces, to_source)
    path = tmp_path / f"shape{suffix}"
    if scale == 1e60 and suffix == ".glb":
        with pytest.raises(ValueError, match="float32 of a GLB cannot hold"):
            save_mesh(mesh, path, frame="source")
        return
    loaded = load_mesh(save_mesh(mesh, path, frame="source"))
    assert len(loaded.faces) == len(mesh.faces)
    moved = in_source(loaded)[loaded.faces] - in_source(mesh)[mesh.faces]
    assert np.abs(moved).max() < 1e-6 * scale
    if scale < 1e60:
        written = trimesh.load_mesh(path, process=False)  # an independent reader
        bounds = written.bounds - np.asarray(shift)
        expected = scale * np.stack([f(one_armed.vertices, axis=0) for f in (np.min, np.max)])
        assert np.abs(bounds - expected).max() < 1e-6 * scale


def test_the_vertices_of_a_glb_far_away_are_small_and_within_their_bounds(one_armed, tmp_path):
    to_source = np.eye(4)
    to_source[:3, 3] = FAR[0][1]
    mesh = Mesh(one_armed.vertices, one_armed.faces, to_source)
    content = save_mesh(mesh, tmp_path / "shape.glb", frame="source").read_bytes()
    length = int.from_bytes(content[12:16], "little")
    described = json.loads(content[20 : 20 + length])
    (primitive,) = described["meshes"][0]["primitives"]
    positions = described["accessors"][primitive["attributes"]["POSITION"]]
    view = described["bufferViews"][positions["bufferView"]]
    values = np.frombuffer(
        content, "<f4", 3 * positions["count"], 28 + length + view.get("byteOffset", 0)
    ).reshape(-1, 3)
    assert np.abs(values).max() < 1
    assert (values.min(axis=0) == np.float32(positions["min"])).all()
    assert (values.max(axis=0) == np.float32(positions["max"])).all()
    moved = next(node for node in described["nodes"] if "mesh" in node)
    assert np.allclose(moved["matrix"][12:15], FAR[0][1], rtol=0, atol=1e-6)


def test_z_up_turns_without_mirroring(one_armed, tmp_path):
    written = trimesh.load_mesh(save_mesh(one_armed, tmp_path / "shape.ply", up="z"), process=False)
    x, y, z = one_armed.vertices.T
    assert np.allclose(written.vertices, np.stack([x, -z, y], axis=1))
    assert written.volume == pytest.approx(
        trimesh.Trimesh(one_armed.vertices, one_armed.faces, process=False).volume, rel=1e-5
    )


def test_the_longest_side_is_what_is_asked_for(one_armed, tmp_path):
    plain, sized = (
        trimesh.load_mesh(save_mesh(one_armed, tmp_path / "shape.stl", size=size))
        for size in (None, 80.0)
    )
    assert sized.extents.max() == pytest.approx(80.0, rel=1e-6)
    assert np.allclose(
        sized.bounds, plain.bounds * 80 / plain.extents.max(), rtol=1e-5
    )  # about the origin
    for size in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="with a longest side of .*: both must be positive"):
            save_mesh(one_armed, tmp_path / "shape.stl", size=size)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.fbx", {}), ("a", {}), ("a.glb", {"frame": "world"}), ("a.glb", {"up": "x"})],
)
def test_unknown_choices_are_refused_before_anything_is_written(one_armed, name, options, tmp_path):
    with pytest.raises(ValueError, match="allowed are"):
        save_mesh(one_armed, tmp_path / "sub" / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_older_file(one_armed, tmp_path, monkeypatch):
    path = save_mesh(one_armed, tmp_path / "shape.glb")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tar3d.mesh.export.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_mesh(one_armed, path, frame="source")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["shape.glb"]


def test_a_glb_is_no_metal(one_armed, tmp_path):
    """Which is what glTF takes a mesh without a material for, and many viewers draw black."""
    content = save_mesh(one_armed, tmp_path / "shape.glb").read_bytes()
    described = json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])
    (primitive,) = described["meshes"][0]["primitives"]
    surface = described["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert (
        surface["metallicFactor"] == 0
        and min(surface["baseColorFactor"][:3]) > 0
        and surface["baseColorFactor"][3] == 1
    )
