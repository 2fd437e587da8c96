"""Attributes from geometry, on solids whose legs, tops and arms are known, and what captions say
about them."""

import json

import numpy as np
import pytest

from tar3d.contracts import Mesh
from tar3d.data.toy.shapes import generate
from tar3d.data.toy.solids import both_sides, box, cylinder, disk, loft, union
from tar3d.evaluation import attributes
from tar3d.evaluation.attributes import ATTRIBUTES, measure, score, stated
from tar3d.mesh.export import save_mesh
from tar3d.mesh.load import normalize

PLACES = {
    1: [(0, 0)],
    2: [(-0.4, 0), (0.4, 0)],
    3: [(0, 0.45), (-0.4, -0.4), (0.4, -0.4)],
    4: [(-0.4, -0.4), (0.4, -0.4), (-0.4, 0.4), (0.4, 0.4)],
}


def plate(shape: str) -> list:
    return [
        cylinder(0.8, (0.4, 0.52))
        if shape == "round"
        else box((-0.8, 0.8), (0.4, 0.52), (-0.6, 0.6))
    ]


def back() -> list:
    return [box((-0.8, 0.8), (0.45, 1.4), (-0.6, -0.48))]


def arms() -> list:
    rest, post = (
        box((0.66, 0.8), (0.75, 0.87), (-0.6, 0.4)),
        box((0.66, 0.8), (0.45, 0.8), (0.28, 0.4)),
    )
    return [*both_sides(rest), *both_sides(post)]


def chair(shape: str, count: int, *more: list) -> list:
    return [
        *plate(shape),
        *back(),
        *legs(count, low=-0.9),
        *(part for parts in more for part in parts),
    ]


def legs(count: int, low: float = -0.6) -> list:
    ring = disk(0.08, segments=20)
    return [loft((low, 0.45), ring + [x, z], ring + [x, z]) for x, z in PLACES[count]]


def mesh_of(parts: list) -> Mesh:
    pieces = union(parts).to_mesh()
    return normalize(pieces.vert_properties[:, :3], pieces.tri_verts)


@pytest.mark.parametrize("count", PLACES)
@pytest.mark.parametrize("top", ["round", "square"])
@pytest.mark.parametrize("category", ["stool", "table"])
def test_legs_are_counted_and_tops_told_apart(count, top, category):
    assert measure(mesh_of(plate(top) + legs(count)), category) == {"legs": count, "top": top}


@pytest.mark.parametrize("has_arms", [True, False])
@pytest.mark.parametrize("top", ["round", "square"])
def test_arms_are_what_stands_over_the_front_of_a_seat(top, has_arms):
    mesh = mesh_of(chair(top, 4, arms() if has_arms else []))
    assert measure(mesh, "chair") == {"legs": 4, "top": top, "arms": has_arms}


def test_one_arm_is_no_pair_of_arms():
    assert not measure(mesh_of(chair("square", 4, arms()[::2])), "chair")["arms"]


def test_bumps_and_specks_change_nothing():
    specks = [box((x, x + 0.06), (-0.9, -0.84), (0.5, 0.56)) for x in (-0.7, 0.5)]
    fine = union(chair("square", 3, arms())).refine_to_length(0.06)
    mesh = mesh_of([fine, *specks])
    rough = mesh.vertices + np.random.default_rng(0).normal(0, 0.008, mesh.vertices.shape)
    for one in (mesh, Mesh(rough, mesh.faces)):
        assert measure(one, "chair") == {"legs": 3, "top": "square", "arms": True}


def test_procedural_shapes_have_what_they_were_made_with():
    made = [shape for shape in (generate(i, 3) for i in range(60)) if shape.category in ATTRIBUTES]
    assert len(made) > 8
    for shape in made:
        assert measure(shape.mesh, shape.category) == stated(shape.parameters, shape.category), (
            shape.parameters
        )
        assert all(score(shape.mesh, shape.captions[0], shape.category).values()), shape.captions[0]


def test_the_wrong_shape_is_told():
    table = mesh_of(plate("round") + legs(3))
    assert score(table, "a round table with three legs", "table") == {"legs": True, "top": True}
    assert score(table, "a square table with four legs", "table") == {"legs": False, "top": False}
    assert score(table, "a low table", "table") == {}
    assert score(None, "a round table", "table") == {"top": False}, "no mesh has no round top"


def test_a_mesh_with_nothing_in_it_is_not_measured():
    sheet = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    assert measure(sheet, "chair") == {"legs": None, "top": None, "arms": None}
    assert score(sheet, "a chair with arms", "chair") == {"arms": False}


def test_a_category_without_attributes_is_refused():
    for ask in (lambda: measure(mesh_of(plate("round")), "boat"), lambda: stated("a boat", "boat")):
        with pytest.raises(
            ValueError, match="measured of chair, stool, table, got the category 'boat'"
        ):
            ask()


@pytest.mark.parametrize(
    "caption, category, said",
    [
        (
            "a 3D model of a low chair with a solid back, a round seat, three thin square legs "
            "and arms",
            "chair",
            {"legs": 3, "top": "round", "arms": True},
        ),
        ("a chair with four thick round legs", "chair", {"legs": 4}),
        ("A chair with no arms and a square seat", "chair", {"top": "square", "arms": False}),
        ("an armless chair", "chair", {"arms": False}),
        (
            "a stool with a pedestal and a thin seat, low and round",
            "stool",
            {"legs": 1, "top": "round"},
        ),
        ("a stool with one seat and four legs", "stool", {"legs": 4}),
        ("a three-legged stool", "stool", {"legs": 3}),
        ("a table with 4 square legs", "table", {"legs": 4}),
        ("a table with a square top and three round legs", "table", {"legs": 3, "top": "square"}),
        ("a long square table; it has two side panels", "table", {"legs": 2, "top": "square"}),
        ("a round square table", "table", {}),
        ("a table", "table", {}),
        ("", "chair", {}),
    ],
)
def test_captions_say_what_they_say(caption, category, said):
    assert stated(caption, category) == said


def test_parameters_say_everything():
    assert stated({"legs": 3, "seat": "round", "arms": False, "half_width": 0.5}, "chair") == {
        "legs": 3,
        "top": "round",
        "arms": False,
    }
    assert stated({"base": "panels", "top": "square"}, "table") == {"legs": 2, "top": "square"}


def test_the_command_compares_with_the_manifest(tmp_path, capsys):
    (tmp_path / "samples").mkdir()
    made = [mesh_of(plate("round") + legs(n)) for n in (3, 4)]
    rows, files = ["id,category,parameters"], ["id,file"]
    for name, mesh in zip("ab", made, strict=True):
        files.append(f"{name},{save_mesh(mesh, tmp_path / f'{name}.glb')}")
        rows.append(
            f'{name},table,"{{""base"": ""three legs"", ""top"": ""round""}}"'
        )  # of b that is a lie
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    (tmp_path / "report.csv").write_text("\n".join(files))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": []}))
    assert attributes.main([str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["truth", "table", "legs", "3", "1", "of", "2", "50.0%"],
        ["truth", "table", "top", "round", "2", "of", "2", "100.0%"],
        ["truth", "all", "3", "of", "4", "75.0%"],
    ]
