"""Looks of rendered meshes: each variation is seen, is reproducible, and stands by itself."""

import numpy as np
import pytest
from trimesh.creation import box

from tar3d.contracts import Mesh
from tar3d.mesh import looks
from tar3d.mesh.cameras import orbit
from tar3d.mesh.render import Renderer

CAMERA = orbit(30, 20, 5.5, 35.0)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    parts = [box((0.5, 1.0, 0.5)).apply_translation((x, 0, 0)) for x in (-0.5, 0.5)]
    both = parts[0] + parts[1]
    return Renderer(Mesh(both.vertices, both.faces))


def picture(renderer: Renderer, look: looks.Look) -> np.ndarray:
    return renderer.render(CAMERA, 48, look=look).color


@pytest.mark.parametrize("name", looks.LOOKS)
def test_each_variation_is_seen_on_some_looks(renderer, name):
    plain = picture(renderer, looks.Look())
    varied = [
        looks.LOOKS[name](looks.Look(colours=((1, 0, 0), (0, 0, 1))), np.random.default_rng(k), 1.0)
        for k in range(12)
    ]
    assert any((picture(renderer, look) != plain).any() for look in varied)


def test_parts_are_told_apart(renderer):
    assert len(np.unique(renderer.parts)) == 2
    look = looks.Look(part_colours=np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32))
    seen = picture(renderer, look)
    assert (seen[..., 0] > seen[..., 1]).any() and (seen[..., 1] > seen[..., 0]).any()


def test_lines_are_dark_at_the_outline_alone_of_a_drawing(renderer):
    view = renderer.render(CAMERA, 48, look=looks.Look(lines=1.0, paper=1.0), background=(255,) * 3)
    white = (view.color == 255).all(axis=-1)
    dark = view.color.max(axis=-1) < 128
    assert (white & (view.mask > 0)).sum() > 0.2 * (view.mask > 0).sum()
    assert 0 < dark.sum() < 0.6 * (view.mask > 0).sum()
    assert (view.color[view.mask == 0] == 255).all()


def test_a_further_variation_leaves_the_others_as_they_were(renderer, monkeypatch):
    before = looks.draw_look(np.random.default_rng(5), 0.7)
    again = looks.draw_look(np.random.default_rng(5), 0.7)
    assert np.array_equal(picture(renderer, before), picture(renderer, again))
    seen = []
    monkeypatch.setitem(
        looks.LOOKS, "mine", lambda look, _, strength: seen.append(strength) or look
    )
    after = looks.draw_look(np.random.default_rng(5), 0.7)
    assert seen == [0.7]
    assert np.array_equal(picture(renderer, before), picture(renderer, after))
