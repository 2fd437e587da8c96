"""Samples on disk, and the items drawn from them."""

import numpy as np
import pytest
import torch

from tar3d.contracts import ShapeSamples
from tar3d.data.shapes import ShapeDataset, load_samples, save_samples


def example(points: int = 21) -> ShapeSamples:
    """Float16 coordinates, so that the round trip is exact; 21 points do not fill their last byte of labels."""
    rng = np.random.default_rng(0)
    coordinates = rng.uniform(-1, 1, (points, 3)).astype(np.float16).astype(np.float32)
    surface = rng.uniform(-1, 1, (10, 6)).astype(np.float16).astype(np.float32)
    return ShapeSamples(surface, coordinates, rng.random(points) < 0.4, np.arange(points) >= 12, np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.mark.parametrize("points", [16, 21])
def test_round_trip(tmp_path, points):
    samples = example(points)
    save_samples(samples, tmp_path / "a.npz")
    loaded = load_samples(tmp_path / "a.npz")
    for name in ("surface", "points", "inside", "is_near", "to_source"):
        assert np.array_equal(getattr(loaded, name), getattr(samples, name)), name
    assert loaded.inside.dtype == bool and loaded.points.dtype == np.float32


def rewritten(path, **changes):
    save_samples(example(), path)
    with np.load(path) as archive:
        arrays = {k: archive[k] for k in archive} | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


@pytest.mark.parametrize("changes, message", [
    ({"inside": None}, "no key 'inside'"),
    ({"transform": None}, "no key 'transform'"),
    ({"points": np.zeros((21, 3), np.float32)}, "points must be float16 with 2 axes, got float32"),
    ({"surface": np.zeros((10, 3), np.float16)}, r"surface must be \(N, 6\)"),
    ({"points": np.full((21, 3), 1.5, np.float16)}, r"points leaves the cube"),
    ({"points": np.full((21, 3), np.nan, np.float16)}, "points holds NaN"),
    ({"inside": np.zeros(2, np.uint8)}, "inside must be 3 bytes, one bit a point, got 2"),
    ({"is_near": np.zeros(4, np.uint8)}, "is_near must be 3 bytes, one bit a point, got 4"),
    ({"is_near": np.zeros(21, bool)}, "is_near must be uint8"),
    ({"transform": np.eye(3)}, r"to_source must be \(4, 4\)"),
    ({"points": np.array([[{}]])}, "not a readable sample file"),
])
def test_damaged_samples_are_named_with_what_is_wrong(tmp_path, changes, message):
    path = rewritten(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=rf"bad\.npz.*{message}"):
        load_samples(path)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "cut.npz"
    save_samples(example(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.npz is not a readable sample file"):
        load_samples(path)


def dataset(folder, split="train", **changes) -> ShapeDataset:
    return ShapeDataset(folder, split, **{"surface_points": 50, "volume_points": 40, "near_points": 30, "seed": 0} | changes)


def test_items_are_subsets_of_what_is_stored(samples):
    data = dataset(samples)
    item = data[(12, 1)]
    assert item["surface"].shape == (50, 6) and item["points"].shape == (70, 3) and item["points"].dtype == torch.float32
    assert item["inside"].dtype == item["is_near"].dtype == torch.bool
    assert item["is_near"].tolist() == [False] * 40 + [True] * 30
    stored = load_samples(data.path(data.ids[1]))
    labels = {tuple(p): (bool(i), bool(n)) for p, i, n in zip(stored.points.tolist(), stored.inside, stored.is_near, strict=True)}
    for point, label, is_near in zip(item["points"].tolist(), item["inside"], item["is_near"], strict=True):
        assert labels[tuple(point)] == (bool(label), bool(is_near))
    assert len({tuple(p) for p in item["points"].tolist()}) > 65  # drawn without replacement
    rows = {tuple(r) for r in stored.surface.tolist()}
    assert all(tuple(r) in rows for r in item["surface"].tolist())


def test_position_and_seed_decide_the_draw(samples):
    data = dataset(samples)
    assert torch.equal(data[(5, 0)]["points"], data[(5, 0)]["points"])
    assert not torch.equal(data[(5, 0)]["points"], data[(6, 0)]["points"])
    assert not torch.equal(data[(5, 0)]["points"], dataset(samples, seed=1)[(5, 0)]["points"])


def test_more_points_than_stored_are_refused(samples):
    for kind, message in (("surface", "201 surface points"), ("volume", "301 volume points"), ("near", "101 near points")):
        count = int(message.split()[0])
        with pytest.raises(ValueError, match=f"{message} are wanted, but .* holds {count - 1}: lower train.{kind}_points"):
            dataset(samples, **{f"{kind}_points": count})[(0, 0)]


def test_a_split_without_samples_is_refused(tmp_path):
    (tmp_path / "splits.json").write_text('{"train": ["a"], "val": [], "test": []}')
    with pytest.raises(ValueError, match="no samples for split 'train'.*make_samples"):
        dataset(tmp_path)
