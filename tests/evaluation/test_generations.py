"""What a model is compared with: nearest views, empty fields, whole evaluations of a small
model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tar3d.contracts import Mesh
from tar3d.evaluation.baselines import nearest, nearest_captions, same_category
from tar3d.evaluation.generations import generate_all

TRIANGLE = Mesh(np.eye(3), np.array([[0, 1, 2]]))


def test_nearest_finds_the_pixels_that_are_there():
    rng = np.random.default_rng(0)
    candidates = rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    index, distance = nearest(candidates[[7, 31, 0]], candidates, chunk=8)
    assert index.tolist() == [7, 31, 0] and distance.tolist() == [0, 0, 0]
    query = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    index, distance = nearest(query, candidates, chunk=8)
    lengths = np.linalg.norm(candidates.reshape(50, -1).astype(float), axis=1)
    assert index[0] == lengths.argmin() and distance[0] == pytest.approx(lengths.min())
    with pytest.raises(ValueError, match="nearest needs candidates of the queries' shape"):
        nearest(query, candidates[:, :2])


def test_an_empty_field_costs_its_own_shape_only():
    def generate(inputs, seeds, *, resolution):
        return [SimpleNamespace(mesh=None if seed == 1 else TRIANGLE) for seed in seeds]

    inputs, seeds = {"image": torch.zeros(5, 2, 2, 3, dtype=torch.uint8)}, [0, 1, 2, 3, 4]
    meshes = generate_all(SimpleNamespace(generate=generate), inputs, seeds, 32, 3)
    assert [mesh is None for mesh in meshes] == [False, True, False, False, False]


def test_a_random_shape_is_of_the_category_and_a_category_must_be_there():
    categories = {"a": "mug", "b": "car", "c": "mug"}
    drawn = {
        same_category("mug", list("abc"), categories, np.random.default_rng(k)) for k in range(20)
    }
    assert drawn == {"a", "c"}
    with pytest.raises(ValueError, match="no training shape has the category 'boat'"):
        same_category("boat", list("abc"), categories, np.random.default_rng(0))


def test_the_nearest_caption_has_most_words_in_common():
    known = ["a low table", "a low round table with three legs", "a chair", "a Chair, low"]
    asked = ["a low chair", "a low table!", "legs of a table: three, round", "none of it", ""]
    assert nearest_captions(asked, known) == [3, 0, 1, 0, 0]
