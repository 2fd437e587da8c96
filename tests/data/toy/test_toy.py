"""The procedural set: what its shapes promise, and that a seed is worth its bytes."""

from __future__ import annotations

import csv
import hashlib
import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("manifold3d")

import itertools

import trimesh

from tar3d.config import ViewConfig
from tar3d.contracts import CUBE_FILL
from tar3d.data.formats.dataset_folder import split_ids
from tar3d.data.toy.__main__ import main
from tar3d.data.toy.make_toy import make_toy_data
from tar3d.data.toy.shapes import CATEGORIES, ToyShape, generate
from tar3d.data.toy.solids import tube
from tar3d.mesh.load import load_mesh
from tar3d.mesh.points import inside
from tar3d.mesh.winding import WindingNumber

SEED, PER_CATEGORY = 11, 20
VIEWS = ViewConfig(count=2, size=32)
MIN_THICKNESS = 0.07


@pytest.fixture(scope="module")
def shapes() -> dict[str, list[ToyShape]]:
    """`PER_CATEGORY` shapes of each category."""
    found: dict[str, list[ToyShape]] = {name: [] for name in CATEGORIES}
    index = 0
    while min(map(len, found.values())) < PER_CATEGORY:
        shape = generate(index, SEED)
        found[shape.category].append(shape)
        index += 1
    return {name: of_one[:PER_CATEGORY] for name, of_one in found.items()}


def solid(shape: ToyShape) -> trimesh.Trimesh:
    return trimesh.Trimesh(shape.mesh.vertices.astype(np.float64), shape.mesh.faces, process=False)


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


@pytest.mark.parametrize("category", CATEGORIES)
def test_shapes_are_closed_outward_and_normalised(shapes, category):
    for shape in shapes[category]:
        mesh = solid(shape)
        assert mesh.is_watertight and mesh.is_winding_consistent, shape.id
        assert mesh.volume > 0.02, shape.id
        assert np.abs(mesh.vertices).max() == pytest.approx(CUBE_FILL, abs=1e-5), shape.id
        assert np.allclose(mesh.bounds.sum(axis=0), 0, atol=1e-5), shape.id
        assert 36 <= len(mesh.faces) <= 5000, (shape.id, len(mesh.faces))


@pytest.mark.parametrize("category", CATEGORIES)
def test_shapes_are_one_piece(shapes, category):
    """No leg hangs in the air, no part is inside out (a piece of its own), no two parts merely
    touch."""
    for shape in shapes[category]:
        assert solid(shape).body_count == 1, f"{shape.id}: {shape.captions[0]}"


def test_a_tube_is_outward():
    path = np.stack([np.linspace(0, 1, 5), np.zeros(5), np.zeros(5)], axis=1)
    assert 0.9 < tube(path, 0.2).volume() / (np.pi * 0.1**2) < 1


def thickness(mesh: trimesh.Trimesh, count: int = 300) -> np.ndarray:
    """Lengths of the rays that leave a surface point inwards and meet the solid's opposite side
    head on."""
    points, face = trimesh.sample.sample_surface(mesh, count, seed=0)
    inward = -mesh.face_normals[face]
    hit, ray, other = mesh.ray.intersects_location(
        points + 1e-4 * inward, inward, multiple_hits=False
    )
    parallel = np.einsum("ij,ij->i", mesh.face_normals[other], inward[ray]) > 0.99
    return np.linalg.norm(hit - points[ray], axis=1)[parallel]


@pytest.mark.parametrize("category", CATEGORIES)
def test_nothing_is_thinner_than_the_limit(shapes, category):
    for shape in shapes[category]:
        measured = thickness(solid(shape))
        assert len(measured) > 0 and measured.min() >= MIN_THICKNESS - 1e-3, (
            shape.id,
            measured.min(),
        )


def test_thickness_is_measured():
    board = trimesh.creation.box((1, 0.05, 1))
    assert thickness(board).min() == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("category", ["mug", "vase"])
def test_vessels_are_hollow_and_open_above(shapes, category):
    """Near the rim the axis is empty, and the wall around it is not: seen as winding numbers 0 and
    1."""
    for shape in shapes[category]:
        vertices = shape.mesh.vertices
        top = vertices[:, 1].max()
        rim = vertices[vertices[:, 1] > top - 1e-4]
        axis_x, axis_z = (rim[:, [0, 2]].min(axis=0) + rim[:, [0, 2]].max(axis=0)) / 2
        column = np.array([[axis_x, y, axis_z] for y in np.linspace(top - 0.3, top + 0.04, 9)])
        assert np.allclose(WindingNumber(shape.mesh)(column), 0, atol=0.05), shape.id
        assert inside(
            shape.mesh, np.array([[axis_x, vertices[:, 1].min() + 0.04, axis_z]])
        ).all(), f"{shape.id} has no floor"


@pytest.mark.parametrize("category", CATEGORIES)
def test_parameters_vary(shapes, category):
    drawn = [shape.parameters for shape in shapes[category]]
    always = set.intersection(*(set(p) for p in drawn))
    continuous = [k for k in always if type(drawn[0][k]) is float]
    discrete = [
        k
        for k in {k for p in drawn for k in p}
        if any(type(p[k]) is not float for p in drawn if k in p)
    ]
    assert len(continuous) >= 5 and len(discrete) >= 2, (continuous, discrete)
    for name in continuous:
        assert len({p[name] for p in drawn}) > PER_CATEGORY // 2, f"{category}.{name} hardly varies"
    volumes = {round(solid(shape).volume, 5) for shape in shapes[category]}
    assert len(volumes) == PER_CATEGORY


@pytest.mark.parametrize("category", CATEGORIES)
def test_captions_read_well(shapes, category):
    for caption in (caption for shape in shapes[category] for caption in shape.captions):
        words = caption.replace(",", "").replace(";", "").split()
        assert (
            "  " not in caption
            and caption == caption.strip()
            and not caption.endswith((",", "with", "and"))
        ), caption
        assert "None" not in caption and "True" not in caption and "_" not in caption, caption
        for a, b in itertools.pairwise(words):
            assert a != "a" or b[0] not in "aeiou" or b.startswith("one"), caption
            assert a != "an" or b[0] in "aeiou", caption


def test_further_captions_say_less_of_the_same_shape(shapes):
    def said(caption: str) -> set[str]:
        plain = caption.replace("a 3D model of ", "").replace(",", "").replace("; it has", "")
        return set(plain.split()) - {"a", "an", "and", "with"}

    lengths = []
    for shape in (shape for of_one in shapes.values() for shape in of_one):
        full, *further = map(said, shape.captions)
        assert len(shape.captions) == len(set(shape.captions)) and all(
            words <= full for words in further
        ), shape.captions
        lengths += [len(words) / len(full) for words in further]
    assert 0.5 < np.mean(lengths) < 0.8 and min(lengths) < 0.3, (
        "from next to nothing to everything in another form"
    )


def test_captions_tell_discrete_choices_apart():
    """Of many shapes, those with a choice say its word and the others do not."""
    words = {
        "mug": ("handle", {"round": "round handle", "square": "square handle"}),
        "sofa": ("arms", {"round": "round arms", "square": "square arms", "no": "no arms"}),
    }
    checked = 0
    for shape in (generate(index, 3) for index in range(120)):
        if shape.category in words:
            key, said = words[shape.category]
            for value, phrase in said.items():
                assert (phrase in shape.captions[0]) == (shape.parameters[key] == value), (
                    shape.captions[0]
                )
                checked += 1
    assert checked > 10


def test_one_index_and_seed_is_one_shape():
    a, b, other, next_one = generate(5, 7), generate(5, 7), generate(5, 8), generate(6, 7)
    assert (
        a.id == b.id == f"{a.category}_7_000005"
        and a.captions == b.captions
        and a.parameters == b.parameters
    )
    assert (
        a.mesh.vertices.tobytes() == b.mesh.vertices.tobytes()
        and a.mesh.faces.tobytes() == b.mesh.faces.tobytes()
    )
    assert a.parameters != other.parameters and a.parameters != next_one.parameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_toy_data(tmp_path_factory.mktemp("toy") / "one", 6, 4, VIEWS, workers=1)


def test_the_bytes_do_not_depend_on_the_workers(folder, tmp_path):
    assert bytes_of(make_toy_data(tmp_path / "two", 6, 4, VIEWS, workers=2)) == bytes_of(folder)


def table(path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def test_files_belong_together(folder):
    manifest = table(folder / "manifest.csv")
    captions: dict[str, list[str]] = {}
    for row in table(folder / "captions.csv"):
        captions.setdefault(row["id"], []).append(row["caption"])
    splits = json.loads((folder / "splits.json").read_text())
    assert [r["id"] for r in manifest] == [generate(i, 4).id for i in range(6)]
    assert sorted(chain(*splits.values())) == sorted(captions) == sorted(r["id"] for r in manifest)
    for i, row in enumerate(manifest):
        shape, mesh = generate(i, 4), load_mesh(folder / "meshes" / f"{row['id']}.glb")
        assert json.loads(row["parameters"]) == shape.parameters and captions[row["id"]] == list(
            shape.captions
        )
        assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).is_watertight
        assert float(row["volume"]) == pytest.approx(solid(shape).volume, rel=1e-4) and int(
            row["faces"]
        ) == len(shape.mesh.faces)
        assert (
            len(json.loads((folder / "views" / row["id"] / "cameras.json").read_text()))
            == VIEWS.count
        )
        assert len(list((folder / "views" / row["id"]).glob("*.png"))) == VIEWS.count
    assert not list(folder.rglob("*.part"))


def test_an_interrupted_or_smaller_set_is_completed(folder, tmp_path):
    made = make_toy_data(tmp_path / "set", 3, 4, VIEWS, workers=1)
    lost = next((made / "meshes").iterdir())
    kept = max((made / "meshes").iterdir())
    lost.unlink()
    before = kept.stat().st_mtime_ns
    make_toy_data(made, 6, 4, VIEWS, workers=1)
    assert bytes_of(made) == bytes_of(folder)
    assert kept == lost or kept.stat().st_mtime_ns == before, "a finished shape was written again"


def test_other_settings_are_refused(folder):
    with pytest.raises(ValueError, match="delete"):
        make_toy_data(folder, 6, 5, VIEWS, workers=1)
    with pytest.raises(ValueError, match="delete"):
        make_toy_data(folder, 6, 4, None, workers=1)


def test_a_set_from_before_a_setting_was_known_is_completed(folder, tmp_path, capsys):
    command = [
        "--out",
        str(tmp_path),
        "--num",
        "2",
        "--seed",
        "4",
        "--workers",
        "1",
        "views.count=2",
        "views.size=32",
    ]
    assert main(command) == 0
    stamp = json.loads((tmp_path / "toy.json").read_text())
    del stamp["views"]["background"]
    (tmp_path / "toy.json").write_text(json.dumps(stamp))
    assert main(command) == 0
    assert all(
        (folder / name).read_bytes() == (tmp_path / name).read_bytes()
        for name in bytes_of(tmp_path)
        if name.startswith("views/")
    )
    with pytest.raises(SystemExit):
        main([*command, "views.background=white"])
    assert "delete" in capsys.readouterr().err


def test_splits_are_disjoint_and_stable_when_the_set_grows():
    ids = [f"chair_0_{i:06d}" for i in range(4000)]
    small, large = split_ids(ids[:1000]), split_ids(ids)
    for name in large:
        assert set(small[name]) == set(large[name]) & set(ids[:1000])
    assert sum(map(len, large.values())) == len(set().union(*large.values())) == 4000
    for name, share in (("train", 0.90), ("val", 0.05), ("test", 0.05)):
        assert len(large[name]) / 4000 == pytest.approx(share, abs=0.02)
