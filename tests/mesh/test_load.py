"""Loading: the frame, cleaning, what is refused, and bounded memory for files that promise more
than they hold."""

import csv
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import trimesh

from tar3d.config import PointSamplingConfig
from tar3d.contracts import CUBE_FILL
from tar3d.mesh import load
from tar3d.mesh.load import SUPPORTED, MeshError, list_meshes, load_mesh, normalize, weld
from tar3d.mesh.points import sample_shape

DATASETS = Path(
    os.environ.get("TAR3D_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets"
)
BROKEN = DATASETS / "broken"


def manifest() -> list:
    if not (BROKEN / "manifest.csv").is_file():
        reason = "the broken meshes are absent; TAR3D_DATASETS names the folder that holds them"
        return [pytest.param({}, marks=pytest.mark.skip(reason=reason))]
    with (BROKEN / "manifest.csv").open(encoding="utf8") as file:
        return [pytest.param(row, id=row["id"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("row", manifest())
@pytest.mark.filterwarnings("error")
def test_broken_meshes_do_what_their_manifest_expects(row, capfd):
    path = BROKEN / row["file"]
    tracemalloc.start()
    try:
        mesh, refusal = load_mesh(path), None
    except MeshError as e:
        mesh, refusal = None, str(e)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 << 20
    assert "Traceback" not in capfd.readouterr().err
    if refusal is not None:
        assert (
            refusal.startswith(f"{path}: ")
            and "\n" not in refusal
            and len(refusal) > len(str(path)) + 15
        )

    expected = row["suggested_expectation"]
    if "must load" in expected:
        assert mesh is not None, refusal
    if expected.startswith("reject with a clear") and "unless Draco" not in expected:
        assert mesh is None
    if mesh is None:
        return
    assert np.abs(mesh.vertices).max() == pytest.approx(CUBE_FILL, abs=1e-6)
    config = PointSamplingConfig(surface_points=200, volume_points=2000, near_points=200)
    samples, problem = None, ""
    try:
        samples, _ = sample_shape(mesh, config, 0)
    except MeshError as e:
        problem = str(e)
    if samples is None:
        assert "flat" in row["problem"] + row["detail"] and "encloses no volume" in problem
    else:
        assert samples.inside.any() and not samples.inside.all()


def test_normalisation_centres_scales_and_can_be_undone():
    box = trimesh.creation.box(
        (2.0, 8.0, 4.0), trimesh.transformations.translation_matrix((100.0, 5.0, -3.0))
    )
    mesh = normalize(box.vertices, box.faces)
    assert np.allclose(mesh.vertices.max(axis=0), [0.2375, 0.95, 0.475], atol=1e-6)
    assert np.allclose(mesh.vertices.min(axis=0), [-0.2375, -0.95, -0.475], atol=1e-6)
    back = mesh.vertices @ mesh.to_source[:3, :3].T + mesh.to_source[:3, 3]
    assert np.allclose(back, box.vertices, atol=1e-5)


def test_faces_without_area_do_not_move_the_box():
    box, line = (
        trimesh.creation.box(),
        np.array([[500.1, 0, 0], [501.2, 1.1, 3.3], [503.4, 3.3, 9.9]]),
    )
    inner = [[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.4, 0.4, 0.4]]
    for points, kept in ((line, 12), (inner, 13)):
        faces = np.concatenate([box.faces, [[8, 9, 10]]])
        mesh = normalize(np.concatenate([box.vertices, points]), faces)
        assert len(mesh.faces) == kept
        assert mesh.to_source[0, 0] == pytest.approx(0.5 / CUBE_FILL)
    assert len(normalize(line, np.array([[0, 1, 2]])).faces) == 1  # the file has nothing else


def test_vertices_that_no_face_uses_do_not_move_the_box():
    box = trimesh.creation.box()
    mesh = normalize(np.concatenate([box.vertices, [[1000.0, 0.0, np.nan]]]), box.faces)
    assert len(mesh.vertices) == 8 and np.abs(mesh.vertices).max() == pytest.approx(0.95)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_extreme_scales_are_exact_in_float64(scale):
    box = trimesh.creation.box()
    assert (np.abs(normalize(box.vertices * scale, box.faces).vertices) == np.float32(0.95)).all()


@pytest.mark.parametrize(
    ("vertices", "faces", "reason"),
    [
        (np.zeros((3, 3)), [[0, 1, 2]], "degenerate"),
        (np.eye(3), np.zeros((0, 3)), "no triangles"),
        (np.full((3, 3), np.inf), [[0, 1, 2]], "NaN or infinite"),
        (np.eye(3) * 5e-324, [[0, 1, 2]], "too small"),
        (np.eye(3) * 1.7e308, [[0, 1, 2]], "too large"),
        (np.eye(3), [[0, 1, 3]], "index"),
    ],
)
def test_normalize_refuses_by_reason(vertices, faces, reason):
    with pytest.raises(MeshError, match=reason):
        normalize(vertices, np.asarray(faces))


def test_weld_merges_equal_positions_and_drops_repeats():
    soup = trimesh.creation.box()
    vertices = soup.vertices[soup.faces].reshape(-1, 3)
    faces = np.arange(len(vertices)).reshape(-1, 3)
    repeated = np.concatenate([faces, faces[:5, [1, 2, 0]], [[0, 0, 1]]])
    merged_vertices, merged_faces = weld(vertices, repeated)
    assert len(merged_vertices) == 8 and len(merged_faces) == 12
    assert (merged_vertices[merged_faces] == vertices[faces]).all()


def test_weld_keeps_one_side_of_a_double_sided_shell_but_both_sides_where_solids_touch():
    box = trimesh.creation.box()
    double = np.concatenate([box.faces, box.faces[:, ::-1]])
    assert (weld(box.vertices, double)[1] == box.faces).all()
    corners = np.array(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, 0.3, -1]]
    )  # two tetrahedra on one base
    touching = np.array(
        [[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3], [0, 1, 2], [0, 4, 1], [1, 4, 2], [2, 4, 0]]
    )
    assert (weld(corners, touching)[1] == touching).all()


def test_weld_takes_minus_zero_for_zero():
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -0.0, 0], [0, 0, 1]])
    assert len(weld(corners, np.array([[0, 1, 2], [3, 2, 4]]))[0]) == 4


def test_suffixes_are_read_in_any_case_and_others_are_named(tmp_path):
    path = tmp_path / "Box (1) 椅子.STL"
    trimesh.creation.box().export(tmp_path / "box.stl")
    (tmp_path / "box.stl").rename(path)
    assert len(load_mesh(path).faces) == 12
    with pytest.raises(
        MeshError,
        match=r"a\.step: the suffix '\.step' is not supported, allowed are \.glb, \.gltf, \.obj",
    ):
        load_mesh(tmp_path / "a.step")
    with pytest.raises(MeshError, match="no such file"):
        load_mesh(tmp_path / "missing.obj")


def test_list_meshes_is_recursive_sorted_and_leaves_out_the_rest(tmp_path):
    for name in ("b/z.OBJ", "a.ply", "b/a.glb", "notes.txt", "b/._z.obj"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in list_meshes(tmp_path)] == [
        "a.ply",
        "b/a.glb",
        "b/z.OBJ",
    ]
    assert list_meshes(tmp_path / "a.ply") == [tmp_path / "a.ply"]
    with pytest.raises(MeshError, match="allowed are"):
        list_meshes(tmp_path / "notes.txt")
    with pytest.raises(MeshError, match="no such file or folder"):
        list_meshes(tmp_path / "missing.ply")


def test_limits_hold_for_every_format(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "MAX_FACES", 100)
    for suffix in SUPPORTED:
        path = tmp_path / f"ball{suffix}"
        if suffix == ".gltf":
            for name, content in trimesh.exchange.gltf.export_gltf(
                trimesh.Scene(trimesh.creation.icosphere(2))
            ).items():
                (tmp_path / name.replace("model", "ball")).write_bytes(content)
        else:
            trimesh.creation.icosphere(2).export(path)
        with pytest.raises(MeshError, match="faces|allowed are 1 to 300"):
            load_mesh(path)
    monkeypatch.setattr(load, "MAX_FILE_BYTES", 1000)
    with pytest.raises(MeshError, match="allowed are 1 to 1,000"):
        load_mesh(tmp_path / "ball.obj")


@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian"])
def test_a_ply_header_cannot_ask_for_more_than_the_file_holds(layout, tmp_path):
    path = tmp_path / "bomb.ply"
    path.write_text(
        f"ply\nformat {layout} 1.0\nelement vertex 2000000000\nproperty float x\n"
        "property float y\nproperty float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n"
    )
    with pytest.raises(MeshError, match="declares 2,000,000,000 of vertex, but the file has"):
        load_mesh(path)


def refusal(path) -> str:
    """The reason why a file is refused, "" if it loads."""
    try:
        load_mesh(path)
    except MeshError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl", ".off"])
def test_damaged_bytes_load_or_are_refused_in_a_sentence(suffix, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / f"ball{suffix}"
    trimesh.creation.icosphere(1).export(path)
    original = path.read_bytes()
    refused = 0
    for trial in range(120):
        damaged = bytearray(original)
        for place in rng.integers(0, min(len(damaged), 1500), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(1, len(damaged))] if trial % 4 == 0 else damaged)
        reason = refusal(path)
        refused += reason != ""
        assert "\n" not in reason
    assert refused > 10
