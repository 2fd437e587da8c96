"""Samples on disk, and the items drawn from them."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tar3d.config import AugmentConfig
from tar3d.contracts import ShapeSamples
from tar3d.data.datasets.shapes import MixedShapes, ShapeDataset
from tar3d.data.formats.samples import load_samples, save_samples
from tar3d.data.formats.shards import write_shard


def example(points: int = 21) -> ShapeSamples:
    """Float16 coordinates, so that the round trip is exact; 21 points do not fill their last byte
    of labels."""
    rng = np.random.default_rng(0)
    coordinates = rng.uniform(-1, 1, (points, 3)).astype(np.float16).astype(np.float32)
    surface = rng.uniform(-1, 1, (10, 6)).astype(np.float16).astype(np.float32)
    return ShapeSamples(
        surface,
        coordinates,
        rng.random(points) < 0.4,
        np.arange(points) >= 12,
        np.diag([2.0, 2.0, 2.0, 1.0]),
    )


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


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inside": None}, "no key 'inside'"),
        ({"transform": None}, "no key 'transform'"),
        (
            {"points": np.zeros((21, 3), np.float32)},
            "points must be float16 with 2 axes, got float32",
        ),
        ({"surface": np.zeros((10, 3), np.float16)}, r"surface must be \(N, 6\)"),
        ({"points": np.full((21, 3), 1.5, np.float16)}, r"points leaves the cube"),
        ({"points": np.full((21, 3), np.nan, np.float16)}, "points holds NaN"),
        ({"inside": np.zeros(2, np.uint8)}, "inside must be 3 bytes, one bit a point, got 2"),
        ({"is_near": np.zeros(4, np.uint8)}, "is_near must be 3 bytes, one bit a point, got 4"),
        ({"is_near": np.zeros(21, bool)}, "is_near must be uint8"),
        ({"transform": np.eye(3)}, r"to_source must be \(4, 4\)"),
        ({"points": np.array([[{}]])}, "not a readable sample file"),
    ],
)
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


@pytest.mark.parametrize("key", ["surface", "points", "inside", "is_near", "transform"])
def test_a_flipped_bit_is_noticed(tmp_path, key):
    path = tmp_path / "flipped.npz"
    save_samples(example(), path)
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo(f"{key}.npy").header_offset
    content = bytearray(path.read_bytes())
    content[content.index(b"\x93NUMPY", begin) + 130] ^= 4
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"flipped\.npz is not a readable sample file \(Bad CRC-32"
    ):
        load_samples(path)


def test_reading_equals_numpy(tmp_path):
    """Also of a compressed file, and of one in Fortran's order."""
    samples = example()
    for name, save, points in (
        ("a", np.savez, samples.points),
        ("b", np.savez_compressed, np.asfortranarray(samples.points)),
    ):
        path = tmp_path / f"{name}.npz"
        save(
            path,
            surface=samples.surface.astype(np.float16),
            points=points.astype(np.float16, order="K"),
            inside=np.packbits(samples.inside),
            is_near=np.packbits(samples.is_near),
            transform=samples.to_source,
        )
        loaded = load_samples(path)
        with np.load(path) as archive:
            for mine, theirs in (
                (loaded.surface, archive["surface"]),
                (loaded.points, archive["points"]),
                (loaded.to_source, archive["transform"]),
            ):
                assert np.array_equal(mine, theirs)
        assert np.array_equal(loaded.inside, samples.inside) and np.array_equal(
            loaded.is_near, samples.is_near
        )


def dataset(folder, split="train", **changes) -> ShapeDataset:
    return ShapeDataset(
        folder,
        split,
        **{"surface_points": 50, "volume_points": 40, "near_points": 30, "seed": 0} | changes,
    )


def test_items_are_subsets_of_what_is_stored(samples):
    data = dataset(samples)
    item = data[(12, 1)]
    assert item["surface"].shape == (50, 6) and item["surface"].dtype == torch.float16
    assert item["points"].shape == (70, 3) and item["points"].dtype == torch.float32
    assert item["inside"].dtype == item["is_near"].dtype == torch.bool
    assert item["is_near"].tolist() == [False] * 40 + [True] * 30
    stored = load_samples(Path(data.reader.where(data.ids[1])))
    labels = {
        tuple(p): (bool(i), bool(n))
        for p, i, n in zip(stored.points.tolist(), stored.inside, stored.is_near, strict=True)
    }
    for point, label, is_near in zip(
        item["points"].tolist(), item["inside"], item["is_near"], strict=True
    ):
        assert labels[tuple(point)] == (bool(label), bool(is_near))
    rows = {tuple(r) for r in stored.surface.tolist()}
    assert all(tuple(r) in rows for r in item["surface"].tolist())


def numbered(folder, surface: int = 1000, volume: int = 900, near: int = 700):
    """A set of one shape, whose every row has coordinates of its own, and in which the near points
    are not the last."""
    rng = np.random.default_rng(0)
    count = volume + near
    rows = np.unique(np.linspace(-1, 1, 2001, dtype=np.float16))
    assert len(rows) >= max(surface, count)
    is_near = rng.permutation(np.arange(count) < near)
    samples = ShapeSamples(
        np.repeat(rows[:surface, None], 6, 1).astype(np.float32),
        np.repeat(rows[:count, None], 3, 1).astype(np.float32),
        rng.random(count) < 0.5,
        is_near,
    )
    save_samples(samples, folder / "samples" / "a.npz")
    (folder / "splits.json").write_text('{"train": ["a"], "val": [], "test": []}')
    return samples


@pytest.mark.parametrize(
    "surface, volume, near", [(10, 4, 3), (900, 500, 600), (1000, 900, 700), (1, 0, 5)]
)
def test_the_draw_is_a_subset_without_repeats(tmp_path, surface, volume, near):
    stored = numbered(tmp_path)
    item = dataset(tmp_path, surface_points=surface, volume_points=volume, near_points=near)[(3, 0)]
    row_of = {x: row for row, x in enumerate(stored.points[:, 0].tolist())}
    rows = [row_of[x] for x in item["points"][:, 0].tolist()]
    assert len(rows) == volume + near == len(set(rows))
    assert (
        stored.is_near[rows].tolist()
        == item["is_near"].tolist()
        == [False] * volume + [True] * near
    )
    assert stored.inside[rows].tolist() == item["inside"].tolist()
    assert np.array_equal(item["points"], stored.points[rows])
    drawn = item["surface"][:, 0].tolist()
    assert len(drawn) == surface == len(set(drawn)) and set(drawn) <= set(
        stored.surface[:, 0].tolist()
    )


def test_every_row_is_drawn_as_often(tmp_path):
    stored = numbered(tmp_path, surface=30, volume=20, near=20)
    data, counts = (
        dataset(tmp_path, surface_points=10, volume_points=5, near_points=5),
        np.zeros(30),
    )
    for position in range(600):
        counts[
            np.searchsorted(stored.surface[:, 0], data[(position, 0)]["surface"][:, 0].numpy())
        ] += 1
    assert counts.sum() == 6000 and abs(counts - 200).max() < 5 * (600 * 1 / 3 * 2 / 3) ** 0.5


@pytest.mark.parametrize("value, message", [(np.inf, "NaN or infinite"), (1.5, "leaves the cube")])
@pytest.mark.parametrize("key", ["surface", "points"])
def test_what_is_used_is_checked(tmp_path, key, value, message):
    numbered(tmp_path)
    path = tmp_path / "samples" / "a.npz"
    with np.load(path) as archive:
        arrays = {k: archive[k].copy() for k in archive}
    arrays[key][5] = value
    np.savez(path, **arrays)
    everything = dataset(tmp_path, surface_points=1000, volume_points=900, near_points=700)
    with pytest.raises(ValueError, match=rf"a\.npz: {key} .*{message}"):
        everything[(0, 0)]


def test_position_and_seed_decide_the_draw(samples):
    data = dataset(samples)
    assert torch.equal(data[(5, 0)]["points"], data[(5, 0)]["points"])
    assert not torch.equal(data[(5, 0)]["points"], data[(6, 0)]["points"])
    assert not torch.equal(data[(5, 0)]["points"], dataset(samples, seed=1)[(5, 0)]["points"])


def test_samplings_share_no_point_and_differ_each_time(samples):
    """Also where both together are all that is stored."""
    data = dataset(samples, surface_points=100, samplings=2)
    draws = [data[(position, 0)]["surface"].chunk(2) for position in (0, 1)]
    first, second = ({tuple(row) for row in half.tolist()} for half in draws[0])
    assert not first & second
    assert first != {tuple(row) for row in draws[1][0].tolist()}


def test_more_points_than_stored_are_refused(samples):
    for kind, message in (
        ("surface", "201 surface points"),
        ("volume", "301 volume points"),
        ("near", "101 near points"),
    ):
        count = int(message.split()[0])
        with pytest.raises(
            ValueError,
            match=f"{message} are wanted, but .* holds {count - 1}: lower train.{kind}_points",
        ):
            dataset(samples, **{f"{kind}_points": count})[(0, 0)]


def test_a_split_without_samples_is_refused(tmp_path):
    (tmp_path / "splits.json").write_text('{"train": ["a"], "val": [], "test": []}')
    with pytest.raises(ValueError, match="no samples for split 'train'.*make_samples"):
        dataset(tmp_path)


def test_packed_samples_are_drawn_like_loose_ones(samples, tmp_path):
    files = sorted((samples / "samples").glob("*.npz"))
    for k, part in enumerate((files[:2], files[2:])):
        write_shard(tmp_path / "samples" / f"{k:05d}.tar", {p.name: p.read_bytes() for p in part})
    (tmp_path / "splits.json").write_text((samples / "splits.json").read_text())
    loose, packed = dataset(samples), dataset(tmp_path)
    assert packed.ids == loose.ids
    for index, shape_id in enumerate(loose.ids):
        mine, theirs = packed[(3, index)], loose[(3, index)]
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert np.array_equal(packed.reader.surface(shape_id), loose.reader.surface(shape_id))
    assert "00000.tar:" in packed.reader.where(files[0].stem)
    loader = torch.utils.data.DataLoader(
        packed, batch_sampler=[[(3, 0)]], num_workers=1, multiprocessing_context="spawn"
    )
    assert torch.equal(next(iter(loader))["points"][0], loose[(3, 0)]["points"])


def test_a_set_is_as_large_for_a_worker_as_its_names(samples):
    assert len(pickle.dumps(dataset(samples))) < 4000


def test_augmented_items_are_as_many_points_as_asked_for_and_repeat(samples):
    kwargs = {"surface_points": 150, "volume_points": 200, "near_points": 40, "seed": 3}
    change = AugmentConfig(scale=[0.75, 1.25], rotate=0.5, mirror=0.5)
    plain, one, two = (
        ShapeDataset(samples, "train", **kwargs, augment_as=a)
        for a in (AugmentConfig(), change, change)
    )
    assert plain.augment_as is None
    item = one[5, 0]
    assert item["surface"].shape == (150, 6) and item["surface"].dtype == torch.float16
    assert (
        item["points"].shape == (240, 3)
        and item["is_near"].sum() == 40
        and not item["is_near"][:200].any()
    )
    assert (
        all((item[k] == two[5, 0][k]).all() for k in item)
        and not (item["points"] == one[6, 0]["points"]).all()
    )


def test_several_sets_as_one(samples):
    kwargs = {"surface_points": 150, "volume_points": 200, "near_points": 40, "seed": 3}
    train, val = (ShapeDataset(samples, split, **kwargs) for split in ("train", "val"))
    mixed = MixedShapes([train, val], [1, 3])
    assert len(mixed) == len(train) + 3 * len(val)
    for index in range(len(mixed)):
        part, k = (train, index) if index < len(train) else (val, (index - len(train)) % len(val))
        assert (mixed[7, index]["points"] == part[7, k]["points"]).all()
