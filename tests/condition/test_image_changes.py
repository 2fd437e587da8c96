"""Changes of training images: each is seen, is reproducible, and keeps to an object on white."""

import numpy as np
import pytest

from tar3d.condition import image_changes
from tar3d.condition.image_changes import CHANGES, change_image


def picture() -> np.ndarray:
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[6:26, 10:22] = np.linspace(30, 220, 20, dtype=np.uint8)[:, None, None]
    pixels[6:26, 10:16, 0] //= 2
    pixels[12:14, 14:16] = 255  # white on the object belongs to it
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_seen_and_the_corners_stay_white(name, monkeypatch):
    monkeypatch.setattr(image_changes, "CHANGES", {name: (1.0, CHANGES[name][1])})
    changed = change_image(picture(), 1.0, np.random.default_rng(1))
    assert changed.shape == picture().shape and changed.dtype == np.uint8
    assert (changed != picture()).any()
    assert changed[[0, 0, -1, -1], [0, -1, 0, -1]].min() >= 245


def test_a_seed_gives_the_same_and_no_chance_nothing():
    first, second, other = (
        change_image(picture(), 1.0, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert np.array_equal(change_image(picture(), 0.0, np.random.default_rng(3)), picture())
    blank = np.full((8, 8, 3), 255, np.uint8)
    assert np.array_equal(change_image(blank, 1.0, np.random.default_rng(3)), blank)


def test_a_further_change_leaves_the_others_as_they_were(monkeypatch):
    before = change_image(picture(), 1.0, np.random.default_rng(3))
    seen = []

    def mine(pixels: np.ndarray, mask: np.ndarray, _: np.random.Generator) -> np.ndarray:
        seen.append(mask[26, 30])
        return pixels

    monkeypatch.setitem(CHANGES, "mine", (1.0, mine))
    assert np.array_equal(change_image(picture(), 1.0, np.random.default_rng(3)), before)
    assert seen == [True]
