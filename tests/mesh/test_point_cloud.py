"""Point cloud files: every format with and without normals, the frame, what is said about them, and
what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import trimesh

from tar3d.contracts import CUBE_FILL, ShapeSamples
from tar3d.data.formats.samples import save_samples
from tar3d.mesh.load import MeshError, normalize
from tar3d.mesh.point_cloud import ESTIMATED, UNEVEN, is_cloud, load_points, splats
from tar3d.mesh.points import sample_surface
from tar3d.mesh.render import render_preview

DATASETS = Path(
    os.environ.get("TAR3D_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets"
)
RING = trimesh.creation.torus(0.7, 0.25)
MOVE, SCALE = np.array([5000.0, -200.0, 30.0]), 1000.0


@pytest.fixture(scope="module")
def surface() -> np.ndarray:
    """(N, 6) float64 in a frame and scale of their own."""
    drawn = sample_surface(
        normalize(RING.vertices, RING.faces), 1500, np.random.default_rng(0)
    ).astype(np.float64)
    drawn[:, :3] = drawn[:, :3] * SCALE + MOVE
    return drawn


LITTLE, BIG = "binary_little_endian", "binary_big_endian"


def ply(
    rows: np.ndarray, form: str = "ascii", extra: str = "", before: tuple[str, bytes] = ("", b"")
) -> bytes:
    names = ["x", "y", "z", "nx", "ny", "nz"][: rows.shape[1]]
    header = (
        f"ply\nformat {form} 1.0\ncomment made for a test\n{before[0]}element vertex {len(rows)}\n"
        + "".join(f"property double {n}\n" for n in names)
        + extra
        + "end_header\n"
    ).encode()
    if form == "ascii":
        return (
            header
            + before[1]
            + b"".join(" ".join(f"{v!r}" for v in row).encode() + b"\n" for row in rows.tolist())
        )
    return header + before[1] + rows.astype("<f8" if form == LITTLE else ">f8").tobytes()


def text(rows: np.ndarray, separator: str = " ") -> bytes:
    lines = [separator.join(f"{v!r}" for v in row) for row in rows.tolist()]
    return ("# a comment\n\n" + "\n".join(lines) + "  // and another\n").encode()


def write(path: Path, rows: np.ndarray) -> Path:
    """`path` names the format and the variety: <variety>.<suffix>."""
    points, normals = rows[:, :3], rows[:, 3:]
    match path.name.split("."):
        case ["arrays", "npz"]:
            np.savez(path, points=points, **({"normals": normals} if normals.size else {}))
        case ["compressed", "npz"]:
            np.savez_compressed(path, points=rows)
        case ["shapenet", "npz"]:
            np.savez(
                path,
                points=points,
                normals=normals,
                loc=np.ones(3),
                scale=2.0,
                pickled=np.array([{}], dtype=object),
            )
        case [_, "npy"]:
            np.save(path, rows)
        case ["commas", _]:
            path.write_bytes(text(rows, ", "))
        case ["tabs", _]:
            path.write_bytes(text(rows, "\t").replace(b"\n", b"\r\n"))
        case ["ascii", "ply"]:
            path.write_bytes(ply(rows))
        case ["little", "ply"]:
            path.write_bytes(ply(rows, LITTLE))
        case ["big", "ply"]:
            path.write_bytes(
                ply(rows, BIG, extra="element face 0\nproperty list uchar int vertex_indices\n")
            )
        case ["later", "ply"]:
            before = "element camera 2\nproperty uchar id\nproperty float focus\n"
            path.write_bytes(ply(rows, LITTLE, before=(before, bytes(10))))
        case ["trimesh", "ply"]:
            trimesh.PointCloud(points).export(path)
        case _:
            path.write_bytes(text(rows))
    return path


FILES = [
    "arrays.npz",
    "compressed.npz",
    "array.npy",
    "spaces.xyz",
    "commas.TXT",
    "tabs.xyz",
    "ascii.ply",
    "little.ply",
    "big.ply",
    "later.ply",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("columns", [3, 6])
def test_every_format_brings_the_points_and_their_frame(surface, tmp_path, name, columns):
    path = write(tmp_path / name, surface[:, :columns])
    cloud = load_points(path)
    assert is_cloud(path) and cloud.points.dtype == cloud.normals.dtype == np.float32
    low, high = cloud.points.min(axis=0), cloud.points.max(axis=0)
    assert np.allclose(low, -high, atol=1e-6) and high.max() == pytest.approx(CUBE_FILL)
    back = cloud.points @ cloud.to_source[:3, :3].T + cloud.to_source[:3, 3]
    assert np.allclose(back, surface[:, :3], atol=1e-3)
    assert cloud.estimated == (columns == 3) and cloud.notes == (
        (ESTIMATED,) if columns == 3 else ()
    )
    cosine = np.einsum("ij,ij->i", cloud.normals, surface[:, 3:])
    assert (cosine > 0).mean() >= 0.98 and (columns == 3 or np.allclose(cosine, 1, atol=1e-5))


def test_files_of_others(surface, tmp_path):
    cloud = load_points(
        write(tmp_path / "shapenet.npz", surface)
    )  # loc and scale lead to a frame that is not the file's
    assert np.allclose(
        cloud.points @ cloud.to_source[:3, :3].T + cloud.to_source[:3, 3], surface[:, :3], atol=1e-3
    )
    assert load_points(write(tmp_path / "trimesh.ply", surface)).estimated


def test_sample_files_are_in_the_frame_already_and_bring_their_way_back(tmp_path):
    mesh = normalize(RING.vertices * SCALE + MOVE, RING.faces)
    drawn = sample_surface(mesh, 500, np.random.default_rng(0))
    samples = ShapeSamples(
        drawn, np.zeros((8, 3), np.float32), np.zeros(8, bool), np.zeros(8, bool), mesh.to_source
    )
    save_samples(samples, tmp_path / "ring.npz")
    cloud = load_points(tmp_path / "ring.npz")
    assert (cloud.points == drawn[:, :3].astype(np.float16)).all() and (
        cloud.normals == drawn[:, 3:].astype(np.float16)
    ).all()
    assert (cloud.to_source == mesh.to_source).all() and not cloud.notes


def test_arrays_are_known_by_their_content(surface, tmp_path):
    write(tmp_path / "array.npy", surface).rename(tmp_path / "array.npz")
    write(tmp_path / "arrays.npz", surface).rename(tmp_path / "arrays.npy")
    assert all(
        len(load_points(tmp_path / name).points) == 1500 for name in ("array.npz", "arrays.npy")
    )


def test_a_ply_with_faces_is_a_mesh(tmp_path):
    RING.export(tmp_path / "ring.ply")
    assert not is_cloud(tmp_path / "ring.ply")
    with pytest.raises(MeshError, match="it has faces, so it is a mesh"):
        load_points(tmp_path / "ring.ply")
    (tmp_path / "broken.ply").write_bytes(b"ply\nformat")
    assert not is_cloud(tmp_path / "broken.ply")


def test_inward_normals_are_turned_and_their_length_does_not_matter(surface, tmp_path):
    np.savez(tmp_path / "a.npz", points=surface[:, :3], normals=-7 * surface[:, 3:])
    cloud = load_points(tmp_path / "a.npz")
    assert np.allclose(cloud.normals, surface[:, 3:], atol=1e-5) and cloud.notes == (
        "normals looked inward and were turned",
    )


@pytest.mark.parametrize("missing, value", [(10, 0.0), (10, np.nan), (100, 0.0), (1500, 0.0)])
def test_normals_without_length_are_left_out_or_estimated(surface, tmp_path, missing, value):
    normals = surface[:, 3:].copy()
    normals[:missing] = value
    np.savez(tmp_path / "a.npz", points=surface[:, :3], normals=normals)
    cloud = load_points(tmp_path / "a.npz")
    assert cloud.estimated == (missing > 15) and len(cloud.points) == (
        1500 if cloud.estimated else 1490
    )
    assert f"{missing:,}" in cloud.notes[0] and np.allclose(
        np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-5
    )


def test_repeated_points_are_merged_but_not_the_two_sides_of_a_sheet(surface, tmp_path):
    doubled = np.concatenate([surface, surface[:100]])
    for columns in (3, 6):
        cloud = load_points(write(tmp_path / "array.npy", doubled[:, :columns]))
        assert len(cloud.points) == 1500 and "100 repeated points were merged" in cloud.notes
    sheet = np.concatenate([surface, surface * [1, 1, 1, -1, -1, -1]])
    assert len(load_points(write(tmp_path / "array.npy", sheet)).points) == 3000


def test_vertices_of_a_mesh_are_taken_with_a_warning(tmp_path):
    globe = trimesh.creation.uv_sphere(count=(100, 100))
    assert UNEVEN in load_points(write(tmp_path / "array.npy", globe.vertices)).notes


def test_very_large_clouds_are_thinned_out_before_normals_are_estimated(
    surface, tmp_path, monkeypatch
):
    monkeypatch.setattr("tar3d.mesh.point_cloud.MAX_ESTIMATED", 1000)
    cloud = load_points(write(tmp_path / "array.npy", surface[:, :3]))
    assert len(cloud.points) == 1000 and "thinned out to 1,000 points" in cloud.notes


def test_points_are_drawn_once_each(surface, tmp_path):
    cloud = load_points(write(tmp_path / "array.npy", surface))
    drawn = cloud.draw(700, np.random.default_rng(0))
    assert drawn.shape == (700, 6) and len(np.unique(drawn, axis=0)) == 700
    everything = cloud.draw(5000, np.random.default_rng(0))
    assert (everything == np.concatenate([cloud.points, cloud.normals], axis=1)).all()


def test_a_picture_of_points_shows_where_they_are():
    ball = trimesh.creation.icosphere(3)
    mesh = normalize(ball.vertices, ball.faces)
    drawn, solid = (
        render_preview(m)[..., 0] < 255
        for m in (splats(sample_surface(mesh, 20_000, np.random.default_rng(0))), mesh)
    )
    assert (drawn & solid).sum() > 0.95 * (drawn | solid).sum()


# refusals


def refusal(path) -> str:
    """The reason why a file is refused, "" if it loads."""
    try:
        load_points(path)
    except MeshError as e:
        return str(e)
    return ""


def table(count: int = 200) -> list[str]:
    return [f"{x} {y} {z}" for x, y, z in np.random.default_rng(0).random((count, 3)).tolist()]


@pytest.mark.parametrize(
    "lines, reason",
    [
        (table(99), "it has 99 different points, a shape needs at least 100"),
        (table(99) * 3, "it has 99 different points"),
        (["1 1 1"] * 300, "it has 1 different points"),
        (["# nothing"], "it holds no points"),
        ([*table(7), "1 2"], "line 8 has 2 numbers, allowed are 3 or 6: x y z, or x y z nx ny nz"),
        (
            ["# x y z", "", *table(7), "1 2 3 0 0 1"],
            r"line 10 has 6 numbers, allowed are as many as before \(3\)",
        ),
        (["120", *table()], "line 1 has 1 numbers"),
        ([f"{row} 1 0 0 7" for row in table()], "line 1 has 7 numbers"),
        ([*table(3), "1 2 x3"], "line 4 holds 'x3', which is no number"),
        ([*table(), "1 2 nan"], "1 of its 201 points have NaN or infinite coordinates"),
        ([*table(), "1 2 1e999"], "1 of its 201 points have NaN or infinite coordinates"),
        ([*table(), "1 2 1.7e308", "1 2 -1.7e308"], "its extent is .*too large"),
        (
            [f"{row} 200 100 50" for row in table()],
            "typical length of 229: if they are colours, leave them out",
        ),
        (
            [f"{row} {row}" for row in table()],
            "columns 4 to 6 of its rows are no unit normals, nor is one of them below 0: if they "
            "are colours",
        ),
        (
            ["# x y z", *(row.replace(".", ",") for row in table())],
            r"line 2 holds '0,\d+': a decimal comma must be a point, as in 0\.",
        ),
        (
            ["0,5;1;-2,25e1", *(row.replace(".", ",") for row in table())],
            "line 1 holds '0,5': a decimal comma",
        ),
    ],
)
def test_refusals_of_text(tmp_path, lines, reason):
    path = tmp_path / "a.xyz"
    path.write_text("\n".join(lines))
    with pytest.raises(MeshError, match=reason) as e:
        load_points(path)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "arrays, reason",
    [
        ({"vertices": np.zeros((200, 3))}, "no array points or surface, only vertices"),
        (
            {"points": np.zeros((200, 4))},
            r"points must be numbers, \(N, 3\) or with normals \(N, 6\), but is float64 \(200, 4\)",
        ),
        ({"points": np.zeros(200)}, "points must be numbers"),
        ({"points": np.zeros((0, 3))}, "it has 0 different points"),
        ({"points": np.full((200, 3), "a")}, "points must be numbers"),
        ({"points": np.zeros((200, 3), complex)}, "points must be numbers"),
        (
            {"points": np.zeros((200, 3), object)},
            "cannot be read as a file of numpy arrays .*allow_pickle=False",
        ),
        (
            {"points": np.random.rand(200, 3), "normals": np.ones((100, 3))},
            r"normals must be numbers, \(200, 3\) as points",
        ),
        (
            {
                "surface": np.tile([9.0, 0, 0, 0, 0, 1], (200, 1)) * np.arange(200)[:, None] / 199
                + [0, 0, 0, 0, 0, 0.01],
                "transform": np.eye(4),
            },
            "leaves the cube",
        ),
        (
            {"surface": np.ones((200, 6)) / 2, "transform": np.eye(3)},
            r"transform must be a finite \(4, 4\) matrix",
        ),
    ],
)
def test_refusals_of_arrays(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(MeshError, match=reason):
        load_points(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content, reason",
    [
        (
            ply(np.random.rand(200, 3)).replace(b"property double z\n", b""),
            "declares no vertices with z",
        ),
        (ply(np.random.rand(200, 2)), "declares no vertices with z"),
        (
            ply(np.random.rand(200, 3), LITTLE).replace(b"vertex 200", b"vertex 201"),
            "declares 201 of vertex, but the file has",
        ),
        (
            ply(np.random.rand(200, 3)).replace(b"vertex 200", b"vertex 201"),
            "it ends after 200 of 201 of vertex",
        ),
        (
            ply(np.random.rand(200, 3)).replace(b"vertex 200", b"vertex 99999999"),
            "declares 99,999,999 of vertex",
        ),
        (
            ply(np.random.rand(200, 3)).replace(b"double z", b"quad z"),
            "'property quad z', which is not understood",
        ),
        (
            ply(np.random.rand(200, 3)).replace(b"double z", b"list uchar int z"),
            "properties that are lists",
        ),
        (ply(np.random.rand(200, 3)).replace(b"format ascii 1.0\n", b""), "names no format"),
        (ply(np.random.rand(200, 3))[:60], "PLY header does not end"),
    ],
)
def test_refusals_of_ply(tmp_path, content, reason):
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(MeshError, match=reason):
        load_points(tmp_path / "a.ply")


def test_normals_of_pcl_and_ros_are_read(surface, tmp_path):
    content = ply(surface, LITTLE)
    for axis in b"xyz":
        content = content.replace(b"double n%c" % axis, b"double normal_%c" % axis)
    (tmp_path / "a.ply").write_bytes(content)
    cloud = load_points(tmp_path / "a.ply")
    assert not cloud.estimated and np.allclose(cloud.normals, surface[:, 3:], atol=1e-5)


def test_colours_of_a_ply_are_no_normals(surface, tmp_path):
    content = ply(surface, LITTLE)
    for axis, colour in zip(b"xyz", (b"red", b"green", b"blue"), strict=True):
        content = content.replace(b"double n%c" % axis, b"double " + colour)
    (tmp_path / "a.ply").write_bytes(content)
    assert load_points(tmp_path / "a.ply").estimated


@pytest.mark.parametrize(
    "names",
    [
        ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "opacity", "scale_0", "rot_0"],
        ["packed_position", "packed_rotation", "packed_scale", "packed_color"],
    ],
)
def test_gaussian_splats_are_named(tmp_path, names):
    header = "".join(f"property float {name}\n" for name in names)
    rows = np.random.default_rng(0).random((200, len(names))).astype("<f4").tobytes()
    (tmp_path / "a.ply").write_bytes(
        f"ply\nformat {LITTLE} 1.0\nelement vertex 200\n{header}end_header\n".encode() + rows
    )
    assert is_cloud(tmp_path / "a.ply")
    with pytest.raises(MeshError, match="it holds Gaussian splats, .* extract a mesh"):
        load_points(tmp_path / "a.ply")


def test_a_bad_row_of_an_ascii_ply_is_named_by_its_line(tmp_path):
    content = ply(np.random.rand(200, 3)).split(b"\n")
    content[50] = b"1 2 z"
    (tmp_path / "a.ply").write_bytes(b"\n".join(content))
    with pytest.raises(MeshError, match="line 51 holds 'z'"):
        load_points(tmp_path / "a.ply")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["arrays.npz", "compressed.npz", "array.npy", "spaces.xyz", "ascii.ply", "little.ply"]
)
def test_damaged_files_are_read_or_refused_in_a_sentence(surface, tmp_path, name):
    whole = write(tmp_path / name, surface[:300]).read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:cut] for cut in rng.integers(0, len(whole), 25)]
    for _ in range(25):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(0, len(content) if rng.random() < 0.5 else 200, 4)] = rng.integers(
            0, 256, 4
        )
        damaged.append(content.tobytes())
    for content in [
        *damaged,
        b"",
        b"\0" * 500,
        rng.bytes(500),
        b"version https://git-lfs.github.com/spec/v1\n",
    ]:
        (tmp_path / name).write_bytes(content)
        reason = refusal(tmp_path / name)
        assert not reason or (reason.startswith(f"{tmp_path / name}: ") and "\n" not in reason)


def test_files_that_are_no_clouds(tmp_path):
    with pytest.raises(
        MeshError, match="suffix '.pcd' is not supported, allowed are .ply, .txt, .xyz, .npz, .npy"
    ):
        load_points(tmp_path / "a.pcd")
    with pytest.raises(MeshError, match="there is no such file"):
        load_points(tmp_path / "a.xyz")


@pytest.mark.skipif(
    not (DATASETS / "broken" / "files").is_dir(),
    reason="the broken meshes are absent; TAR3D_DATASETS",
)
@pytest.mark.parametrize(
    "name, reason",
    [
        ("points_bin.ply", "it has 5 different points"),
        ("points_emptyface.ply", None),
        ("points_cloudcompare.xyz", "line 1 has 7 numbers"),
        ("ply_empty_header.ply", "PLY header does not end|declares no vertices"),
    ],
)
def test_broken_files(name, reason):
    path = DATASETS / "broken" / "files" / name
    if reason is None:
        assert load_points(path).estimated
    else:
        with pytest.raises(MeshError, match=reason):
            load_points(path)
