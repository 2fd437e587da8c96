"""The batch tool: what a shape becomes depends on the shape and the settings, and nothing is lost
silently."""

import csv
import json
import os
import shutil
import sys
from itertools import chain

import numpy as np
import pytest
from made_data import everything, facts
from PIL import Image

from tar3d.config import PointSamplingConfig, ViewConfig
from tar3d.data.formats.dataset_folder import mesh_path, read_splits
from tar3d.data.formats.samples import load_samples
from tar3d.data.formats.shards import read_index
from tar3d.data.formats.views import Views
from tar3d.data.make_samples import main
from tar3d.data.prepare.make_samples import make_samples
from tar3d.data.prepare.mesh_list import mesh_ids
from tar3d.data.validate.inspect import inspect


def list_views(folder, shape_id) -> list:
    return sorted((folder / "views" / shape_id).glob("*.png"))


SMALL = PointSamplingConfig(
    surface_points=200, volume_points=300, near_points=100
)  # as in the `samples` fixture
IDS = ["ball", "ball.obj", "box", "more__deep__ring", "more__pill", "more__tube"]
FLAGS = ["surface_points=200", "volume_points=300", "near_points=100", "views.count=0"]


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "samples").glob("*.npz"))}


def report(folder) -> dict[str, dict]:
    with (folder / "report.csv").open(newline="") as f:
        return {row["id"]: row for row in csv.DictReader(f)}


@pytest.mark.parametrize(
    "make, message",
    [(False, "is not a folder of meshes"), (True, "holds no meshes; looked for .glb")],
)
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
    assert all(
        a != b
        for a, b in zip(
            contents(tmp_path / "other").values(), contents(samples).values(), strict=True
        )
    )


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
    printed = capsys.readouterr()
    assert len(contents(tmp_path / "out")) == 6 and "6 of 8 meshes" in printed.out
    assert "refused: points: " in printed.err
    splits = read_splits(tmp_path / "out")
    assert sorted(chain(*splits.values())) == IDS  # refused ids are in no split


def test_names_that_no_output_can_have_are_refused_and_the_rest_goes_on(meshes, tmp_path):
    latin, deep = os.fsdecode(b"St\xfchle.obj"), meshes / "/".join(["ü" * 60] * 3)
    try:
        shutil.copy(meshes / "box.obj", meshes / latin)
    except OSError:
        pytest.skip("a file system whose names are in UTF-8")
    deep.mkdir(parents=True)
    shutil.copy(meshes / "box.obj", deep / "x.obj")
    (meshes / "gone.glb").symlink_to(tmp_path / "nowhere.glb")
    (meshes / ".Trash").mkdir()
    shutil.copy(meshes / "box.obj", meshes / ".Trash" / "x.obj")
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.warns(UserWarning, match="hidden folders"):
            make_samples(meshes, out, SMALL)
    rows = report(out)
    refused = {i: r["reason"] for i, r in rows.items() if r["status"] == "refused"}
    long_id = "__".join(["ü" * 60] * 3 + ["x"])
    assert refused.keys() == {"St\\xfchle.obj", "gone.glb", long_id} and len(rows) == 9
    assert "not in UTF-8" in refused["St\\xfchle.obj"] and "bytes" in refused[long_id]
    assert len(contents(out)) == 6 and "xfc" not in (out / "captions.csv").read_text()


def test_results_in_place_are_never_read_as_meshes(meshes):
    make_samples(meshes, meshes, SMALL)
    inspect(meshes, meshes / "inspect", images=1, workers=1)
    shutil.copy(meshes / "box.obj", meshes / "inspect" / "box.obj")
    assert sorted(mesh_ids(meshes)) == IDS


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
    assert {
        p.name for p in (out / "samples").glob("*.npz") if times.get(p.name) != p.stat().st_mtime_ns
    } == {"box.npz"}


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
    assert sorted(chain(*read_splits(tmp_path / "out").values())) == IDS


def test_samples_of_an_earlier_version_are_completed(meshes, tmp_path):
    """Which knew no crossing_share: its default means what was always done."""
    make_samples(meshes, tmp_path / "out", SMALL)
    path = tmp_path / "out" / "samples" / "settings.json"
    settings = json.loads(path.read_text())
    del settings["samples"]["crossing_share"]
    path.write_text(json.dumps(settings))
    make_samples(meshes, tmp_path / "out", SMALL)
    assert json.loads(path.read_text())["samples"]["crossing_share"] == 0


def test_other_settings_are_refused(meshes, tmp_path, capsys):
    make_samples(meshes, tmp_path / "out", SMALL)
    before = contents(tmp_path / "out")
    for flags in ([*FLAGS, "near_points=101"], [*FLAGS, "--seed", "1"]):
        with pytest.raises(SystemExit) as stop:
            main([str(meshes), "--out", str(tmp_path / "out"), "--workers", "1", *flags])
        assert (
            stop.value.code == 2
            and "use another --out, or delete that folder" in capsys.readouterr().err
        )
    assert contents(tmp_path / "out") == before


def test_views_can_be_added_later_and_are_completed(meshes, samples, tmp_path):
    out, views = tmp_path / "out", ViewConfig(count=2, size=16)
    make_samples(meshes, out, SMALL)
    make_samples(meshes, out, SMALL, views=views)
    assert contents(out) == contents(samples)
    assert all(Views(out).names(i) == [f"{i}/0.png", f"{i}/1.png"] for i in IDS)
    cameras = out / "views" / "box" / "cameras.json"
    assert len(json.loads(cameras.read_text())) == 2
    rendered = {p.name: p.read_bytes() for p in cameras.parent.iterdir()}
    shutil.rmtree(cameras.parent)
    make_samples(meshes, out, SMALL, views=views)
    assert {p.name: p.read_bytes() for p in cameras.parent.iterdir()} == rendered
    assert not list(out.rglob("*.part"))
    make_samples(meshes, out, SMALL)  # views left out again: nothing to complain about
    with pytest.raises(ValueError, match="was made with views"):
        make_samples(meshes, out, SMALL, views=ViewConfig(count=3, size=16))


def test_splits_and_captions_of_the_source_are_taken_over(meshes, tmp_path):
    own = {"train": IDS[:4], "val": IDS[4:5], "test": IDS[5:]}
    (meshes / "splits.json").write_text(json.dumps(own))
    (meshes / "captions.csv").write_text("id,caption\nbox,a box\n")
    make_samples(meshes, tmp_path / "out", SMALL)
    assert read_splits(tmp_path / "out") == own
    assert (
        (tmp_path / "out" / "captions.csv")
        .read_text()
        .startswith("id,caption\nball,ball\nball.obj,ball\nbox,a box\n")
    )


def test_leaking_splits_of_the_source_are_refused(meshes, tmp_path):
    (meshes / "splits.json").write_text(json.dumps({"train": IDS, "val": IDS[:1], "test": []}))
    with pytest.raises(ValueError, match="stand in both train and val"):
        make_samples(meshes, tmp_path / "out", SMALL)


def test_views_are_rendered_unless_told_otherwise(meshes, tmp_path, capsys):
    command = [str(meshes), "--out", str(tmp_path / "out"), "--workers", "1", *FLAGS[:3]]
    assert main([*command, "views.count=2", "views.size=16", "views.background=white"]) == 0
    for shape_id in IDS:
        image = Image.open(tmp_path / "out" / "views" / shape_id / "1.png")
        assert (
            image.mode == "RGB"
            and image.size == (16, 16)
            and image.getpixel((0, 0)) == (255, 255, 255)
        )
        assert image.getextrema()[0][0] < 250, "nothing is drawn"
    with pytest.raises(SystemExit):
        main([*command, "views.count=3"])
    assert "was made with views" in capsys.readouterr().err
    assert main([*command, "views.count=0"]) == 0
    assert (
        main(
            [
                str(meshes),
                "--out",
                str(tmp_path / "four"),
                "--workers",
                "1",
                *FLAGS[:3],
                "views.size=16",
            ]
        )
        == 0
    )
    assert (
        len(list_views(tmp_path / "four", "box")) == 4
        and Image.open(list_views(tmp_path / "four", "box")[0]).mode == "RGBA"
    )


def test_settings_from_before_a_key_was_known_still_fit(meshes, tmp_path):
    views = ViewConfig(count=1, size=16)
    make_samples(meshes, tmp_path / "out", SMALL, views=views)
    path = tmp_path / "out" / "samples" / "settings.json"
    values = json.loads(path.read_text())
    del values["views"]["background"]
    path.write_text(json.dumps(values))
    make_samples(meshes, tmp_path / "out", SMALL, views=views)
    with pytest.raises(ValueError, match="was made with views"):
        make_samples(
            meshes, tmp_path / "out", SMALL, views=ViewConfig(count=1, size=16, background="white")
        )


def picture(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), color).save(path)
    return path.read_bytes()


def test_given_pictures_become_views_and_the_others_are_rendered(meshes, tmp_path, capsys):
    source, out = meshes.parent, tmp_path / "out"
    given = [
        picture(source / "images" / "box" / "2.png"),
        picture(source / "images" / "box" / "10.png", "blue"),
    ]
    picture(source / "images" / "ball.jpg")
    (source / "images" / "more__pill.png").write_bytes(b"no picture")
    picture(out / "views" / "more__tube" / "mine.png")
    command = [
        str(source),
        "--out",
        str(out),
        "--workers",
        "1",
        *FLAGS[:3],
        "views.count=2",
        "views.size=16",
    ]
    assert main(command) == 1
    assert {p.name: p.read_bytes() for p in list_views(out, "box")} == {
        "0.png": given[0],
        "1.png": given[1],
    }
    assert (
        Image.open(out / "views" / "ball" / "0.png").format == "PNG"
        and len(list_views(out, "ball")) == 1
    )
    assert [p.name for p in list_views(out, "more__tube")] == ["mine.png"], (
        "pictures that somebody put there were replaced"
    )
    for shape_id in ("ball.obj", "more__pill", "more__deep__ring"):
        assert sorted(p.name for p in (out / "views" / shape_id).iterdir()) == [
            "0.png",
            "1.png",
            "cameras.json",
        ]
    row = report(out)["more__pill"]
    assert row["status"] == "ok" and "more__pill.png is not an image" in row["reason"]
    assert "images of 1 shapes were left out, the first: " in capsys.readouterr().out
    picture(source / "images" / "more__pill.png")
    shutil.rmtree(out / "views" / "more__pill")
    assert main(command) == 0 and len(list_views(out, "more__pill")) == 1


def test_pictures_are_taken_over_without_rendering_any(meshes, samples, tmp_path):
    given = picture(meshes / "images" / "box.png")
    make_samples(meshes, tmp_path / "out", SMALL)
    assert list_views(tmp_path / "out", "box")[0].read_bytes() == given
    assert [p.name for p in (tmp_path / "out" / "views").iterdir()] == ["box"]
    assert contents(tmp_path / "out") == contents(samples)


def test_rendered_views_of_a_set_keep_their_cameras(samples, tmp_path):
    make_samples(samples, tmp_path / "out", SMALL)  # its manifest.csv names the meshes
    for path in (samples / "views").glob("*/*.*"):
        assert (tmp_path / "out" / path.relative_to(samples)).read_bytes() == path.read_bytes()
    assert contents(tmp_path / "out") == contents(samples)


def test_a_table_is_sampled_beside_itself(meshes, tmp_path):
    (tmp_path / "list.csv").write_text(
        "id,file,caption,split\none,meshes/box.obj,a box,train\ntwo,meshes/none.obj,,val\n"
    )
    assert main([str(tmp_path / "list.csv"), "--workers", "1", *FLAGS]) == 1
    rows = report(tmp_path)
    assert rows["one"]["status"] == "ok" and "there is no such file" in rows["two"]["reason"]
    assert read_splits(tmp_path) == {"train": ["one"], "val": ["two"], "test": []}
    assert (tmp_path / "captions.csv").read_text() == "id,caption\none,a box\ntwo,none\n"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--views", "3"], "views"),
        (["views.colour=red"], "colour"),
        (["views.background=red"], "transparent, white"),
        (["points=3"], "points"),
        (["surface_points=0"], "surface_points"),
        (["--workers", "0"], "workers"),
        (["--seconds", "0"], "seconds"),
        (["--gigabytes", "-1"], "gigabytes"),
        (["--shard-size", "-1"], "shard size"),
    ],
)
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
        assert sorted(p.name for p in (tmp_path / "four" / kind).glob("*.tar")) == [
            "00000.tar",
            "00001.tar",
        ]
    packed = [
        {
            name.split("/")[0].removesuffix(".npz")
            for name in read_index(tmp_path / "four" / kind / "00000.tar")
        }
        for kind in ("samples", "views")
    ]
    assert packed[0] == packed[1] and len(packed[0]) == 4  # the same shapes in both


def test_shards_are_continued_with_what_is_missing(meshes, samples, tmp_path):
    out, views = tmp_path / "out", ViewConfig(count=2, size=32)
    tube = (meshes / "more" / "tube.ply").read_bytes()
    (meshes / "more" / "tube.ply").unlink()
    make_samples(meshes, out, SMALL, shard_size=3)
    before = {p.name: p.read_bytes() for p in (out / "samples").glob("*.tar")}
    (meshes / "more" / "tube.ply").write_bytes(tube)
    make_samples(meshes, out, SMALL, shard_size=3, views=views)
    assert {
        p.name: p.read_bytes() for p in (out / "samples").glob("*.tar")
    }.items() > before.items()
    made = [name for p in (out / "samples").glob("*.tar") for name in read_index(p)]
    assert sorted(made) == [
        f"{i}.npz" for i in IDS
    ]  # those that only lacked views were not sampled again
    make_samples(meshes, tmp_path / "loose", SMALL, views=views)
    assert everything(out) == everything(tmp_path / "loose") and facts(out) == facts(
        tmp_path / "loose"
    )


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
    for cut in (whole[:-1], whole[:-40], whole[: len(whole) // 2], whole[:10], b""):
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
