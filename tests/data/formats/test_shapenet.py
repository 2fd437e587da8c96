"""ShapeNetV2 in the public layout, read as it is: frames, labels, lists, and what is wrong with a
file."""

import shutil

import numpy as np
import pytest
import torch
from shapenet_files import LOC, SCALE, write_shapenet

from tar3d.data.datasets.shapes import ShapeDataset
from tar3d.data.formats.samples import SampleFolder, open_samples, to_samples
from tar3d.data.formats.shapenet import ShapeNetV2

LISTS = {
    "0001": {"train": ["a1", "b2"], "val": ["c_3"], "test": []},
    "0002": {"train": ["a1"], "val": ["d4"], "test": ["e5"]},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_shapenet(tmp_path_factory.mktemp("shapenet"), LISTS)


@pytest.fixture
def own(written, tmp_path):
    return shutil.copytree(written, tmp_path / "own")


def everything(kind: str, stored: int) -> slice:
    return slice(None)


def dataset(folder, split="train", **changes) -> ShapeDataset:
    return ShapeDataset(
        folder,
        split,
        **{"surface_points": 150, "volume_points": 40, "near_points": 30, "seed": 0} | changes,
    )


def point_file(folder, name="a1", category="0001"):
    return folder / "ShapeNetV2_point" / category / f"{name}.npz"


def surface_file(folder, name="a1", category="0001"):
    return folder / "surface" / category / "4_pointcloud" / f"{name}.npz"


def rewrite(path, **changes):
    with np.load(path) as archive:
        arrays = {k: archive[k] for k in archive} | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_ids_are_category_and_name(written):
    source = open_samples(written)
    assert isinstance(source, ShapeNetV2)
    assert source.ids("train") == source.listed("train") == ["0001_a1", "0001_b2", "0002_a1"]
    assert source.ids("val") == ["0001_c_3", "0002_d4"] and source.ids("test") == ["0002_e5"]
    assert source.categories()["0001_c_3"] == "0001" and len(source.categories()) == 6
    assert open_samples(written / "ShapeNetV2_point").ids("test") == ["0002_e5"]
    assert isinstance(open_samples(written / "surface"), SampleFolder)


@pytest.mark.parametrize("shape_id", ["0001_a1", "0001_b2"], ids=["unpacked", "packed"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"compressed": True}, {"dtype": np.float16}, {"dtype": np.float64}],
    ids=["stored", "compressed", "float16", "float64"],
)
def test_all_rows_are_those_of_the_files(tmp_path, shape_id, settings):
    folder = write_shapenet(tmp_path, {"0001": LISTS["0001"]}, **settings)
    arrays = open_samples(folder).arrays(shape_id, everything)
    name = shape_id.partition("_")[2]
    with (
        np.load(point_file(folder, name)) as points,
        np.load(surface_file(folder, name)) as surface,
    ):
        factor = float(np.load(point_file(folder, name).with_suffix(".npy")))
        assert np.array_equal(
            arrays["points"],
            np.concatenate([points["vol_points"], points["near_points"]]).astype(np.float32),
        )
        labels = [points["vol_label"], points["near_label"]]
        labels = (
            labels
            if shape_id == "0001_a1"
            else [np.unpackbits(packed, count=301) for packed in labels]
        )
        assert np.array_equal(arrays["inside"], np.concatenate(labels).astype(bool))
        assert arrays["is_near"].tolist() == [False] * 301 + [True] * 301
        assert np.allclose(arrays["surface"][:, :3], surface["points"] * factor, atol=1e-3)
        assert np.allclose(arrays["surface"][:, 3:], surface["normals"], atol=1e-3), (
            "normals are not scaled"
        )
        source = (
            arrays["surface"][:, :3].astype(float) @ arrays["transform"][:3, :3].T
            + arrays["transform"][:3, 3]
        )
        assert np.allclose(source, surface["points"].astype(float) * SCALE + LOC, atol=2e-3)
    samples = to_samples(arrays, "here")
    assert np.allclose(samples.surface, open_samples(folder).surface(shape_id), atol=1e-3)
    assert 0.01 < samples.inside[:301].mean() < 0.5 and 0.1 < samples.inside[301:].mean() < 0.9


@pytest.mark.parametrize("shape_id", ["0001_a1", "0001_b2"], ids=["unpacked", "packed"])
def test_the_surface_and_the_query_points_share_a_frame(written, shape_id):
    """Half the points that are one standard deviation of noise off the surface are inside."""
    arrays = open_samples(written).arrays(shape_id, everything)
    surface, near = arrays["surface"][:, :3].astype(np.float32), arrays["points"][arrays["is_near"]]
    nearest = np.linalg.norm(near[:, None] - surface, axis=-1).min(axis=1)
    assert np.median(nearest) < 0.1
    moved = surface[:, None] + arrays["surface"][:, None, 3:] * np.array(
        [[-0.2], [0.2]]
    )  # towards the inside, the outside
    volume, inside = arrays["points"][~arrays["is_near"]], arrays["inside"][~arrays["is_near"]]
    for side, expected in ((0, 0.6), (1, 0.2)):
        labels = inside[np.linalg.norm(moved[:, side, None] - volume, axis=-1).argmin(axis=1)]
        assert (labels.mean() > expected) == (side == 0)


@pytest.mark.parametrize("compressed", [False, True])
def test_items_are_chosen_rows_with_their_labels(tmp_path, compressed):
    folder = write_shapenet(tmp_path, {"0001": LISTS["0001"]}, compressed=compressed)
    data = dataset(folder)
    for index, shape_id in enumerate(data.ids):
        whole, item = data.reader.arrays(shape_id, everything), data[(7, index)]
        assert item["surface"].shape == (150, 6) and item["surface"].dtype == torch.float16
        assert item["points"].shape == (70, 3) and item["points"].dtype == torch.float32
        assert item["is_near"].tolist() == [False] * 40 + [True] * 30
        rows = zip(*(whole[name].tolist() for name in ("points", "inside", "is_near")), strict=True)
        known = {tuple(point): labels for point, *labels in rows}
        drawn = [tuple(p) for p in item["points"].tolist()]
        assert len(set(drawn)) == 70
        assert [known[p] for p in drawn] == torch.stack(
            [item["inside"], item["is_near"]], dim=1
        ).tolist()
    again, other = data[(7, 0)]["points"], data[(8, 0)]["points"]
    assert torch.equal(data[(7, 0)]["points"], again) and not torch.equal(again, other)


def test_workers_that_are_spawned_draw_the_same(written):
    data = dataset(written)
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=[[(0, 0), (1, 2)]], num_workers=1, multiprocessing_context="spawn"
    )
    (batch,) = loader
    for row, key in enumerate([(0, 0), (1, 2)]):
        assert all(torch.equal(batch[name][row], value) for name, value in data[key].items())


@pytest.mark.parametrize("name", ["ShapeNetV2_watertight", "ShapeNetV2_surface"])
def test_other_names_of_the_surface_folder(own, name):
    (own / "surface").rename(own / name)
    assert len(dataset(own)[(0, 0)]["surface"]) == 150
    (own / name).rename(own / "elsewhere")
    with pytest.raises(
        ValueError,
        match="no surface points: they lie beside it in surface, ShapeNetV2_watertight, ",
    ):
        open_samples(own)


def test_shapes_that_lack_a_file_are_left_out_and_counted(own):
    surface_file(own, "b2").unlink()
    with pytest.warns(
        UserWarning, match="1 of 3 shapes of split 'train' .* left out; the first is 0001_b2"
    ):
        assert dataset(own).ids == ["0001_a1", "0002_a1"]
    point_file(own, "a1").with_suffix(".npy").unlink()
    shutil.rmtree(own / "surface" / "0002")
    with pytest.raises(
        ValueError,
        match="no samples for split 'train' .* name no shape whose .npz, .npy and surface points",
    ):
        dataset(own)


def test_lists_are_checked(own):
    path = point_file(own).with_name("val.lst")
    path.write_text("\na1\n")
    with pytest.raises(ValueError, match=r"val\.lst: a1 stands in another split of 0001 too"):
        open_samples(own)
    path.unlink()
    with pytest.raises(ValueError, match=r"val\.lst is missing"):
        open_samples(own)


def everywhere(value, rows: int = 301) -> np.ndarray:
    return np.full((rows, 3), value, np.float32)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"vol_points": everywhere(1.01)},
            r"a1\.npz: vol_points must lie in the cube .* magnitude 1\.01",
        ),
        ({"near_points": everywhere(np.nan)}, r"a1\.npz: near_points must lie in the cube .* nan"),
        (
            {"near_points": np.zeros((301, 2))},
            r"near_points must be \(rows, 3\) of float16, 32 or 64, got \(301, 2\)",
        ),
        (
            {"vol_points": np.zeros((301, 3), int)},
            r"vol_points must be \(rows, 3\) of float16, 32 or 64, got .* int64",
        ),
        (
            {"vol_label": np.zeros(300, bool)},
            r"vol_label must be \(301,\), one for each point, or 38 bytes .* \(300,\) bool",
        ),
        ({"vol_label": np.zeros(38, bool)}, r"vol_label must be \(301,\)"),
        ({"near_label": np.full(301, 0.5)}, r"near_label must hold 0 and 1, got 0\.5"),
        ({"near_label": None}, "has no key 'near_label'"),
    ],
)
def test_wrong_query_points_are_named(own, changes, message):
    rewrite(point_file(own), **changes)
    with pytest.raises(ValueError, match=message):
        open_samples(own).arrays("0001_a1", everything)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"normals": None},
            r"4_pointcloud/a1\.npz has points without normals, which the tokenizer's encoder needs",
        ),
        ({"normals": np.zeros((5, 3))}, r"normals must be \(200, 3\) like the points"),
        (
            {"normals": everywhere(0.1, 200)},
            r"normals must be unit vectors, got a mean length of 0\.1732",
        ),
        ({"points": everywhere(0.9, 200)}, r"points times .* must lie in the cube"),
        ({"loc": np.zeros(2)}, "loc must be three numbers"),
        ({"scale": np.array(-1.0)}, r"scale a positive one, got .* and -1\.0"),
        ({"scale": None}, "has no key 'scale'"),
    ],
)
def test_wrong_surfaces_are_named(own, changes, message):
    rewrite(surface_file(own), **changes)
    for read in (lambda: open_samples(own).surface("0001_a1"), lambda: dataset(own)[(0, 0)]):
        with pytest.raises(ValueError, match=message):
            read()


@pytest.mark.parametrize(
    "number, message",
    [
        (np.zeros(2), "must hold one positive number"),
        (np.array(0.0), "must hold one"),
        (np.array("x"), "must hold one positive"),
        (None, "not a readable .npy"),
    ],
)
def test_a_wrong_scale_is_named(own, number, message):
    path = point_file(own).with_suffix(".npy")
    path.write_bytes(b"") if number is None else np.save(path, number)
    with pytest.raises(ValueError, match=rf"a1\.npy.*{message}"):
        open_samples(own).surface("0001_a1")


def test_coordinates_just_outside_are_clipped(own):
    rewrite(point_file(own), vol_points=everywhere(-1.0008))
    arrays = open_samples(own).arrays("0001_a1", everything)
    assert arrays["points"][:301].min() == -1


def test_more_points_than_stored_are_refused(written):
    with pytest.raises(
        ValueError,
        match=r"302 volume points are wanted, but .*a1\.npz holds 301: lower train.volume_points",
    ):
        dataset(written, volume_points=302)[(0, 0)]
