"""The batch tool: what a shape becomes depends on the shape and the settings, and nothing is lost silently."""

import csv
import json
import sys

import numpy as np
import pytest
from made_data import everything, facts

from tar3d.config import SampleConfig, ViewConfig
from tar3d.data.folder import mesh_path, read_splits
from tar3d.data.make_samples import main, make_samples, mesh_ids
from tar3d.data.shapes import load_samples
from tar3d.data.store import read_index
from tar3d.data.views import list_views

SMALL = SampleConfig(surface_points=200, volume_points=300, near_points=100)  # as in the `samples` fixture
IDS = ["ball", "ball.obj", "box", "more__deep__ring", "more__pill", "more__tube"]
FLAGS = ["surface_points=200", "volume_points=300", "near_points=100"]


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "samples").glob("*.npz"))}


def report(folder) -> dict[str, dict]:
    with open(folder / "report.csv", newline="") as f:
        return {row["id"]: row for row in csv.DictReader(f)}


def test_ids_are_paths_without_suffix(meshes):
    named = mesh_ids(meshes)
    assert sorted(named) == IDS
    assert named["ball"].name == "ball.glb" and named["ball.obj"].name == "ball.obj"  # a.obj beside a.glb
    assert mesh_ids(meshes.parent) == named  # a data set folder with meshes/ in it


@pytest.mark.parametrize("make, message", [(False, "is not a folder of meshes"), (True, "holds no meshes; looked for .glb")])
def test_nothing_to_sample_is_an_error(tmp_path, capsys, make, message):
    if make:
        (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none"), "--workers", "1"])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_bytes_do_not_depend_on_order_or_workers(meshes, samples, tmp_path):
    make_samples(meshes, tmp_path / "two", SMALL, workers=2)
    assert contents(tmp_path / "two") == contents(samples)
    for name in ("more/tube.ply", "ball.glb"):
        (meshes / name).unlink()
    (meshes / "ball.obj").unlink()
    make_samples(meshes, tmp_path / "fewer", SMALL)
    fewer = contents(tmp_path / "fewer")
    assert len(fewer) == 3 and fewer.items() <= contents(samples).items()


def test_seed_changes_every_shape(meshes, samples, tmp_path):
    make_samples(meshes, tmp_path / "other", SMALL, seed=1)
    assert all(a != b for a, b in zip(contents(tmp_path / "other").values(), contents(samples).values(), strict=True))


def test_labels_hold_for_the_stored_points(samples):
    """The box is 1 x 0.6 x 0.4, scaled so that its longest half side is 0.95."""
    stored = load_samples(samples / "samples" / "box.npz")
    half = 0.95 * np.array([1, 0.6, 0.4])
    margin = np.abs(np.abs(stored.points) - half).min(-1) > 1e-5
    assert np.array_equal(stored.inside[margin], (np.abs(stored.points) < half).all(-1)[margin])
    assert (~stored.is_near).sum() == 300 and stored.is_near.sum() == 100


def test_refused_meshes_are_listed_and_the_rest_goes_on(meshes, tmp_path, capsys):
    (meshes / "broken.glb").write_bytes(b"glTF but no more")
    (meshes / "points.obj").write_text("v 0 0 0\nv 1 1 1\n")
    assert main([str(meshes), "--out", str(tmp_path / "out"), "--workers", "1", *FLAGS]) == 1
    rows = report(tmp_path / "out")
    assert {i for i, r in rows.items() if r["status"] == "refused"} == {"broken", "points"}
    assert rows["points"]["reason"] and "broken.glb" in rows["broken"]["reason"]
    assert len(contents(tmp_path / "out")) == 6 and "6 of 8 meshes" in capsys.readouterr().out
    splits = read_splits(tmp_path / "out")
    assert sorted(sum(splits.values(), [])) == IDS  # refused ids are in no split


def test_all_good_exits_with_zero(meshes, tmp_path):
    assert main([str(meshes), "--out", str(tmp_path / "out"), "--workers", "1", *FLAGS]) == 0
    assert mesh_path(tmp_path / "out", "more__tube").name == "tube.ply"


def test_a_second_run_redoes_only_what_is_missing(meshes, samples, tmp_path):
    out = tmp_path / "out"
    make_samples(meshes, out, SMALL)
    gone = out / "samples" / "box.npz"
    gone.unlink()
    times = {p.name: p.stat().st_mtime_ns for p in (out / "samples").glob("*.npz")}
    make_samples(meshes, out, SMALL)
    assert contents(out) == contents(samples)
    assert {p.name for p in (out / "samples").glob("*.npz") if times.get(p.name) != p.stat().st_mtime_ns} == {"box.npz"}


def test_another_file_under_a_known_id_is_sampled_again(meshes, tmp_path):
    """ball.glb joins ball.obj and takes over the id "ball"."""
    ball = (meshes / "ball.glb").read_bytes()
    (meshes / "ball.glb").unlink()
    make_samples(meshes, tmp_path / "out", SMALL)
    before = contents(tmp_path / "out")["ball.npz"]
    (meshes / "ball.glb").write_bytes(ball)
    make_samples(meshes, tmp_path / "out", SMALL)
    assert contents(tmp_path / "out")["ball.npz"] != before
    assert report(tmp_path / "out")["ball"]["file"].endswith("ball.glb")


def test_new_shapes_join_the_splits(meshes, tmp_path):
    tube = (meshes / "more" / "tube.ply").read_bytes()
    (meshes / "more" / "tube.ply").unlink()
    make_samples(meshes, tmp_path / "out", SMALL)
    (meshes / "more" / "tube.ply").write_bytes(tube)
    make_samples(meshes, tmp_path / "out", SMALL)
    assert sorted(sum(read_splits(tmp_path / "out").values(), [])) == IDS


def test_other_settings_are_refused(meshes, tmp_path, capsys):
    make_samples(meshes, tmp_path / "out", SMALL)
    before = contents(tmp_path / "out")
    for flags in ([*FLAGS[:2], "near_points=101"], [*FLAGS, "--seed", "1"]):
        with pytest.raises(SystemExit) as stop:
            main([str(meshes), "--out", str(tmp_path / "out"), "--workers", "1", *flags])
        assert stop.value.code == 2 and "use another --out, or delete that folder" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_views_can_be_added_later_and_are_completed(meshes, samples, tmp_path):
    out, views = tmp_path / "out", ViewConfig(count=2, size=16)
    make_samples(meshes, out, SMALL)
    make_samples(meshes, out, SMALL, views=views)
    assert contents(out) == contents(samples)
    assert all([p.name for p in list_views(out, i)] == ["0.png", "1.png"] for i in IDS)
    cameras = out / "views" / "box" / "cameras.json"
    assert len(json.loads(cameras.read_text())) == 2
    cameras.unlink()
    make_samples(meshes, out, SMALL, views=views)
    assert cameras.is_file()
    make_samples(meshes, out, SMALL)  # views left out again: nothing to complain about
    with pytest.raises(ValueError, match="was made with views"):
        make_samples(meshes, out, SMALL, views=ViewConfig(count=3, size=16))


def test_splits_and_captions_of_the_source_are_taken_over(meshes, tmp_path):
    own = {"train": IDS[:4], "val": IDS[4:5], "test": IDS[5:]}
    (meshes / "splits.json").write_text(json.dumps(own))
    (meshes / "captions.csv").write_text("id,caption\nbox,a box\n")
    make_samples(meshes, tmp_path / "out", SMALL)
    assert read_splits(tmp_path / "out") == own
    assert (tmp_path / "out" / "captions.csv").read_text() == "id,caption\nbox,a box\n"


def test_leaking_splits_of_the_source_are_refused(meshes, tmp_path):
    (meshes / "splits.json").write_text(json.dumps({"train": IDS, "val": IDS[:1], "test": []}))
    with pytest.raises(ValueError, match="stand in both train and val"):
        make_samples(meshes, tmp_path / "out", SMALL)


@pytest.mark.parametrize("flags, message",
                         [(["points=3"], "points"), (["surface_points=0"], "surface_points"), (["--workers", "0"], "workers"),
                          (["--seconds", "0"], "seconds"), (["--gigabytes", "-1"], "gigabytes"),
                          (["--shard-size", "-1"], "shard size")])
def test_wrong_settings_are_named(meshes, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main([str(meshes), "--out", str(tmp_path / "out"), *flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_shards_hold_what_loose_files_hold(meshes, samples, tmp_path):
    """Whatever the number of workers and the size of the shards, of which the last is smaller."""
    views = ViewConfig(count=2, size=32)
    make_samples(meshes, tmp_path / "one", SMALL, views=views)
    make_samples(meshes, tmp_path / "four", SMALL, views=views, shard_size=4, workers=2)
    assert everything(tmp_path / "four") == everything(tmp_path / "one")
    assert facts(tmp_path / "four") == facts(tmp_path / "one") and len(facts(tmp_path / "one")) == 6
    for kind in ("samples", "views"):
        assert sorted(p.name for p in (tmp_path / "four" / kind).glob("*.tar")) == ["00000.tar", "00001.tar"]
    packed = [{name.split("/")[0].removesuffix(".npz") for name in read_index(tmp_path / "four" / kind / "00000.tar")}
              for kind in ("samples", "views")]
    assert packed[0] == packed[1] and len(packed[0]) == 4  # the same shapes in both


def test_shards_are_continued_with_what_is_missing(meshes, samples, tmp_path):
    out, views = tmp_path / "out", ViewConfig(count=2, size=32)
    tube = (meshes / "more" / "tube.ply").read_bytes()
    (meshes / "more" / "tube.ply").unlink()
    make_samples(meshes, out, SMALL, shard_size=3)
    before = {p.name: p.read_bytes() for p in (out / "samples").glob("*.tar")}
    (meshes / "more" / "tube.ply").write_bytes(tube)
    make_samples(meshes, out, SMALL, shard_size=3, views=views)
    assert {p.name: p.read_bytes() for p in (out / "samples").glob("*.tar")}.items() > before.items()
    made = [name for p in (out / "samples").glob("*.tar") for name in read_index(p)]
    assert sorted(made) == [f"{i}.npz" for i in IDS]  # those that only lacked views were not sampled again
    make_samples(meshes, tmp_path / "loose", SMALL, views=views)
    assert everything(out) == everything(tmp_path / "loose") and facts(out) == facts(tmp_path / "loose")


def test_a_new_shard_goes_before_older_loose_files(meshes, tmp_path):
    """ball.glb joins ball.obj and takes over the id "ball"."""
    ball = (meshes / "ball.glb").read_bytes()
    (meshes / "ball.glb").unlink()
    make_samples(meshes, tmp_path / "out", SMALL)
    (meshes / "ball.glb").write_bytes(ball)
    make_samples(meshes, tmp_path / "out", SMALL, shard_size=10)
    make_samples(meshes, tmp_path / "new", SMALL)
    assert everything(tmp_path / "out") == everything(tmp_path / "new")


def test_a_report_that_was_cut_off_or_lost_is_completed(meshes, samples, tmp_path):
    out = tmp_path / "out"
    make_samples(meshes, out, SMALL)
    whole, rows = (out / "report.csv").read_bytes(), facts(out)
    for cut in (whole[:-1], whole[:-40], whole[:len(whole) // 2], whole[:10], b""):
        (out / "report.csv").write_bytes(cut)
        make_samples(meshes, out, SMALL)
        assert facts(out) == rows and contents(out) == contents(samples)


def test_limits_are_no_part_of_the_settings(meshes, tmp_path):
    make_samples(meshes, tmp_path / "out", SMALL)
    limits = ["--seconds", "7", "--gigabytes", "9", "--shard-size", "3"]
    assert main([str(meshes), "--out", str(tmp_path / "out"), *limits, *FLAGS]) == 0


def test_ray_is_optional(meshes, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stop:
        main([str(meshes), "--out", str(tmp_path / "out"), "--ray", "local", *FLAGS])
    assert stop.value.code == 2 and "pip install 'ray==" in capsys.readouterr().err
