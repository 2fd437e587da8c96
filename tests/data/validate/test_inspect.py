"""A right data set passes; each wrong file is named with its key; pictures show what is inside, and
where the surface is."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tar3d.condition.image import load_image
from tar3d.contracts import Mesh, ShapeSamples
from tar3d.data.formats.samples import load_samples, save_samples
from tar3d.data.formats.shards import write_shard
from tar3d.data.inspect import main
from tar3d.data.validate.check_shapes import FRAME_SCORE
from tar3d.data.validate.inspect import inspect
from tar3d.data.validate.overlay import (
    INSIDE,
    OUTSIDE,
    View,
    draw_overlay,
    project,
    query_cloud,
    seen_at,
)
from tar3d.mesh.cameras import Camera, orbit
from tar3d.mesh.render import render, rgba

IDS = ["ball", "ball.obj", "box", "more__deep__ring", "more__pill", "more__tube"]


@pytest.fixture
def data(samples, tmp_path) -> Path:
    shutil.copytree(samples, tmp_path / "set")
    return tmp_path / "set"


def found(data: Path, **options) -> list[tuple[str, str]]:
    """File (below the set) and key of each violation, in order."""
    problems = inspect(data, data / "inspect", **{"images": 0} | options)
    return [(p.file.removeprefix(f"{data}/"), p.key) for p in problems if not p.warning]


def warnings(data: Path) -> str:
    return " ".join(str(p) for p in inspect(data, data / "inspect", images=0) if p.warning)


def test_a_right_set_passes(data, capsys):
    assert main([str(data), "--pictures", "3", "--workers", "1"]) == 0
    assert "0 violations, 0 warnings" in capsys.readouterr().out
    out = data / "inspect"
    assert sorted(p.name for p in out.glob("*.ply")) == [
        f"{i}.ply" for i in ("ball", "box", "more__tube")
    ]
    assert sorted(p.name for p in out.glob("*.png")) == sorted(
        [f"{i}.png" for i in ("ball", "box", "more__tube")] + ["contact_sheet.png"]
    )
    assert (out / "inspect.csv").read_text() == "kind,file,key,found,allowed,shape\n"
    text = (out / "index.md").read_text(encoding="utf-8")
    assert "6 of 6 shapes checked: 0 violations" in text
    row = next(line for line in text.splitlines() if line.startswith("| frame"))
    assert row.split("|")[2].strip() == "6" and float(row.split("|")[3]) > 0.99


def test_shards_and_workers_change_nothing(data):
    (data / "samples" / "box.npz").write_bytes(b"no zip")
    first = inspect(data, data / "inspect", images=2)
    listed = (data / "inspect" / "index.md").read_text(encoding="utf-8")
    for folder, pattern in (("samples", "*.npz"), ("views", "*/*")):
        files = {
            p.relative_to(data / folder).as_posix(): p.read_bytes()
            for p in (data / folder).glob(pattern)
        }
        for name in files:
            (data / folder / name).unlink()
        write_shard(data / folder / "00000.tar", files)
    second = inspect(data, data / "inspect", images=2, workers=2)
    assert [(p.key, p.allowed) for p in first] == [(p.key, p.allowed) for p in second] and len(
        first
    ) == 1
    assert (
        first[0].file == str(data / "samples" / "box.npz")
        and second[0].file == f"{data / 'samples' / '00000.tar'}:box.npz"
    )
    now = (data / "inspect" / "index.md").read_text(encoding="utf-8")
    assert now == listed.replace("samples/box.npz", "samples/00000.tar:box.npz")


def test_limit_spreads_over_the_ids(data):
    for name in ("ball", "more__tube", "box"):
        (data / "samples" / f"{name}.npz").write_bytes(b"no zip")
    assert found(data, limit=2) == [("samples/ball.npz", ""), ("samples/more__tube.npz", "")]
    assert found(data, limit=0) == []


def rewrite(path: Path, **changes) -> None:
    with np.load(path) as archive:
        arrays = {k: archive[k].copy() for k in archive}
    for key, change in changes.items():
        arrays[key] = change(arrays[key]) if callable(change) else change
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def scaled_normals(surface):
    surface[7, 3:] *= np.float16(1.01)
    return surface


def one_is_nan(points):
    points[5, 1] = np.nan
    return points


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("surface", scaled_normals, "1 of 200 normals are"),
        ("surface", lambda a: a[:, :3], "(N, 6)"),
        ("surface", lambda a: a[:150], "150 surface points"),
        ("points", one_is_nan, "NaN"),
        ("points", lambda a: a.astype(np.float32), "float16"),
        ("inside", None, "no key 'inside'"),
        ("inside", lambda a: a * 0, "none of 400 points are inside"),
        ("inside", lambda a: a * 0 + 255, "all of 400 points are inside"),
        ("is_near", lambda a: a[:-1], "49"),
        ("is_near", lambda a: np.packbits(np.arange(400) < 100), "after a near one"),
        ("is_near", lambda a: np.packbits(np.arange(400) >= 250), "250 volume points"),
        ("transform", np.eye(3), "(4, 4)"),
        ("transform", np.diag([1, 1, 0, 1.0]), "determinant 0"),
        ("transform", np.full((4, 4), np.inf), "infinite"),
        ("transform", np.eye(4) + np.eye(4)[[3]].T, "last row"),
    ],
)
def test_a_wrong_sample_file_is_named_with_its_key(data, capsys, key, change, message):
    rewrite(data / "samples" / "box.npz", **{key: change})
    assert main([str(data), "--pictures", "0", "--workers", "1"]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert (
        first.startswith(f"first violation: {data / 'samples' / 'box.npz'}: {key}: ")
        and message in first
    )
    assert "; allowed: " in first
    with (data / "inspect" / "inspect.csv").open(newline="") as f:
        assert (
            (row := next(csv.DictReader(f)))["shape"] == "box"
            and row["key"] == key
            and row["kind"] == "violation"
        )


def test_float16_normals_pass_whatever_their_direction(data):
    normals = np.random.default_rng(0).standard_normal((200, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    rewrite(
        data / "samples" / "box.npz",
        surface=lambda a: np.hstack([a[:, :3], normals.astype(np.float16)]),
    )
    assert found(data) == []


def test_what_is_odd_is_a_warning(data):
    rewrite(
        data / "samples" / "box.npz",
        surface=lambda a: np.hstack([a[:, :3] / 2, a[:, 3:]]),
    )
    shutil.rmtree(data / "views" / "more__pill")
    text = warnings(data)
    assert "box.npz: surface: largest |coordinate| 0.4" in text and "inside that lie beyond" in text
    assert "views/more__pill: no .png view" in text


def camera_change(key: str, value: object):
    def change(path: Path) -> None:
        cameras = json.loads(path.read_text())
        if value is None:
            del cameras[1][key]
        else:
            cameras[1][key] = value
        path.write_text(json.dumps(cameras))

    return change


@pytest.mark.parametrize(
    "name, damage, key",
    [
        ("1.png", lambda p: p.write_bytes(p.read_bytes()[:60]), ""),
        ("1.png", lambda p: Image.new("RGBA", (32, 32), (9, 9, 9, 0)).save(p), ""),
        ("1.png", lambda p: Image.open(p).resize((32, 20)).save(p), ""),
        ("cameras.json", lambda p: p.write_text("[{"), ""),
        ("cameras.json", lambda p: p.write_text("{}"), ""),
        ("cameras.json", lambda p: p.write_bytes(b"\xff\xfe\xfd"), ""),
        ("cameras.json", lambda p: p.write_text(json.dumps(json.loads(p.read_text())[:1])), ""),
        ("cameras.json", camera_change("up", None), "up"),
        ("cameras.json", camera_change("target", [0, 0]), "target"),
        ("cameras.json", camera_change("field_of_view", "wide"), "field_of_view"),
        ("cameras.json", camera_change("position", [1.0, float("nan"), 2.0]), "position"),
        ("cameras.json", camera_change("up", [0.0, float("inf"), 0.0]), "up"),
        ("cameras.json", camera_change("field_of_view", 180), "field_of_view"),
    ],
)
def test_wrong_views_are_named(data, name, damage, key):
    damage(data / "views" / "box" / name)
    assert found(data, images=6) == [
        (f"views/box/{name}", key)
    ]  # and the pictures are drawn all the same


def test_a_view_too_few(data):
    (data / "views" / "box" / "1.png").unlink()
    assert found(data) == [("views/box", ""), ("views/box/cameras.json", "")]


def turned(data: Path) -> None:
    """What a set looks like whose views were rendered of meshes with Z up."""
    turn = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    for path in (data / "samples").glob("*.npz"):
        s = load_samples(path)
        save_samples(
            ShapeSamples(
                np.hstack([s.surface[:, :3] @ turn.T, s.surface[:, 3:] @ turn.T]),
                s.points @ turn.T,
                s.inside,
                s.is_near,
                s.to_source,
            ),
            path,
        )


def test_a_wrong_frame_is_seen(data):
    turned(data)
    names = found(data, images=6)
    assert {key for _, key in names} == {"frame"}
    assert {Path(file).parent.name for file, _ in names} >= {
        "more__deep__ring",
        "more__pill",
    }  # not the balls
    text = (data / "inspect" / "index.md").read_text(encoding="utf-8")
    assert "is the frame of image, camera and samples the same?" in text
    with Image.open(
        data / "inspect" / "more__pill.png"
    ) as sheet:  # points beside the object are vermilion
        pixels = np.asarray(sheet)[40:280].astype(int)
    assert (np.abs(pixels - [213, 94, 0]).max(-1) < 30).mean() > 0.002


def test_cameras_of_another_shape_are_seen_in_their_view(data):
    path = data / "views" / "box" / "cameras.json"
    cameras = json.loads(path.read_text())
    cameras[1] = orbit(170.0, -60.0, 2.5, 35.0).to_json()
    path.write_text(json.dumps(cameras))
    assert found(data) == [("views/box/1.png", "frame")]


def test_pictures_of_ones_own_have_no_overlay(data):
    for path in (data / "views").glob("*/cameras.json"):
        path.unlink()
    shutil.rmtree(data / "views" / "ball")
    settings = json.loads((data / "samples" / "settings.json").read_text())
    (data / "samples" / "settings.json").write_text(json.dumps(settings | {"views": None}))
    Image.new("RGB", (50, 20), (200, 30, 30)).resize((50, 20)).save(
        data / "views" / "box" / "2.png"
    )  # of one colour
    assert found(data, images=6) == [("views/box/2.png", "")]
    text = (data / "inspect" / "index.md").read_text(encoding="utf-8")
    assert text.count("no cameras.json") == 5 and "| `ball` | no views |" in text
    assert [p.name for p in (data / "inspect").glob("*.png")] == ["contact_sheet.png"]


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


@pytest.mark.parametrize(
    "name, damage, key",
    [
        ("splits.json", lambda p: p.unlink(), ""),
        ("splits.json", lambda p: p.write_text("3"), ""),
        ("splits.json", lambda p: edit_json(p, lambda v: v["test"].extend(v["train"][:1])), ""),
        (
            "splits.json",
            lambda p: edit_json(p, lambda v: v["train"].append(v["train"][0])),
            "train",
        ),
        ("splits.json", lambda p: edit_json(p, lambda v: {**v, "val": "box"}), "val"),
        ("samples/settings.json", lambda p: p.write_text("{"), ""),
        (
            "samples/settings.json",
            lambda p: edit_json(p, lambda v: {**v, "samples": {"points": 3}}),
            "samples",
        ),
        (
            "report.csv",
            lambda p: p.write_text(p.read_text() + p.read_text().splitlines()[1] + "\n"),
            "id",
        ),
        (
            "report.csv",
            lambda p: p.write_text(p.read_text().replace(",ok,", ",fine,", 1)),
            "status",
        ),
        ("report.csv", lambda p: p.write_text(p.read_text() + "lost,lost.obj,ok,\n"), "status"),
        ("report.csv", lambda p: p.write_text("id,file\n"), "status"),
        ("captions.csv", lambda p: p.write_text("id,text\nbox,a box\n"), "caption"),
        ("captions.csv", lambda p: p.write_bytes(b"id,caption\nbox,\xff\n"), ""),
        ("manifest.csv", lambda p: p.write_text("name\nbox\n"), "id"),
    ],
)
def test_wrong_tables_are_named(data, name, damage, key):
    damage(data / name)
    assert found(data) == [(name, key)]


def test_tables_and_samples_that_differ_are_warnings(data):
    (data / "samples" / "box.npz").rename(data / "samples" / "new.npz")
    (data / "captions.csv").write_text("id,caption\nnew,\nlost,a box\n")
    text = warnings(data)
    assert "1 samples are in no split, so nothing uses them, the first is new" in text
    assert "1 ids have no samples and are passed over, the first is box" in text
    assert "captions.csv: id: 1 rows are of ids without samples, the first is lost" in text
    assert "captions.csv: caption: 1 rows are empty there, the first is new" in text


def test_a_shard_that_was_cut_off_stops_the_inspection(data, capsys):
    write_shard(data / "samples" / "0.tar", {"a.npz": b"x" * 9999})
    content = (data / "samples" / "0.tar").read_bytes()
    (data / "samples" / "0.tar").write_bytes(content[:3000])
    assert main([str(data), "--workers", "1"]) == 1
    assert "0.tar is not a readable tar" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [([], "has no samples/ to inspect"), (["--limit", "0"], "must be at least 1")],
)
def test_nothing_to_inspect_is_a_usage_error(tmp_path, samples, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main([str(samples if flags else tmp_path), "--out", str(tmp_path / "out"), *flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.fixture
def tokens(data) -> Path:
    """Shards for all splits, as `make_tokens` writes them: R = 2, V = 16, pixels of 8 x 8."""
    splits = json.loads((data / "splits.json").read_text())
    for split, ids in splits.items():
        if ids:
            shard = data / "tokens" / f"{split}-00000"
            shard.mkdir(parents=True)
            np.save(shard / "tokens.npy", np.full((len(ids), 12), 15, np.uint16))
            np.save(shard / "latents.npy", np.zeros((len(ids), 12, 4), np.float16))
            np.save(shard / "image.npy", np.zeros((2 * len(ids), 8, 8, 3), np.uint8))
            np.save(shard / "text.npy", np.zeros(5 * len(ids), np.int32))
            (shard / "index.json").write_text(json.dumps({"ids": ids, "sha256": "", "latents": ""}))
            (shard / "image.json").write_text(json.dumps({"counts": [2] * len(ids), "sha256": ""}))
            (shard / "text.json").write_text(
                json.dumps({"counts": [1] * len(ids), "lengths": [5] * len(ids), "sha256": ""})
            )
    (data / "tokens" / "stamp.json").write_text(
        json.dumps(
            {
                "tokenizer": "a",
                "grid_size": 2,
                "codebook_size": 16,
                "image": "b",
                "image items": "uint8 pixels",
                "text": "c",
                "text items": "int32 token ids",
            }
        )
    )
    assert found(data) == [] and "views" not in warnings(data)
    return data


def edit_array(path: Path, change) -> None:
    np.save(path, change(np.load(path)))


def large(tokens):
    tokens[1, 3] = 16
    return tokens


@pytest.mark.parametrize(
    "name, damage, key",
    [
        ("stamp.json", lambda p: p.unlink(), ""),
        ("stamp.json", lambda p: p.write_text("[]"), ""),
        ("stamp.json", lambda p: edit_json(p, lambda v: v.pop("tokenizer") and None), "tokenizer"),
        ("stamp.json", lambda p: edit_json(p, lambda v: {**v, "grid_size": 0}), "grid_size"),
        (
            "stamp.json",
            lambda p: edit_json(p, lambda v: {**v, "image items": "pixels"}),
            "image items",
        ),
        (
            "stamp.json",
            lambda p: edit_json(p, lambda v: {**v, "text items": "uint8 pixels"}),
            "text items",
        ),
        ("train-00000/index.json", lambda p: p.unlink(), ""),
        ("train-00000/index.json", lambda p: edit_json(p, lambda v: {**v, "ids": []}), ""),
        (
            "train-00000/image.json",
            lambda p: edit_json(p, lambda v: v["counts"].pop() and None),
            "",
        ),
        ("train-00000/image.json", lambda p: p.unlink(), ""),
        (
            "train-00000/text.json",
            lambda p: edit_json(p, lambda v: v["lengths"].pop() and None),
            "",
        ),
        ("train-00000/text.json", lambda p: edit_json(p, lambda v: v.pop("lengths") and None), ""),
        ("train-00000/text.npy", lambda p: edit_array(p, lambda a: a[1:]), ""),
        ("train-00000/text.npy", lambda p: edit_array(p, lambda a: a.astype(np.int64)), ""),
        ("train-00000/tokens.npy", lambda p: edit_array(p, large), "row 1"),
        ("train-00000/latents.npy", lambda p: edit_array(p, lambda a: a[:, 1:]), ""),
        (
            "train-00000/latents.npy",
            lambda p: edit_array(p, lambda a: a + np.float16("inf")),
            "row 0",
        ),
        ("train-00000/tokens.npy", lambda p: edit_array(p, lambda a: a.astype(np.int64)), ""),
        ("train-00000/tokens.npy", lambda p: edit_array(p, lambda a: a[:, :-1]), ""),
        ("train-00000/tokens.npy", lambda p: p.write_bytes(p.read_bytes()[:-9]), ""),
        ("train-00000/image.npy", lambda p: edit_array(p, lambda a: a[1:]), ""),
        ("train-00000/image.npy", lambda p: edit_array(p, lambda a: a.astype(np.float16)), ""),
        ("train-00000/image.npy", lambda p: p.unlink(), ""),
        ("train-1", lambda p: p.mkdir(), ""),
    ],
)
def test_wrong_tokens_are_named(tokens, name, damage, key):
    damage(tokens / "tokens" / name)
    assert found(tokens) == [(f"tokens/{name}", key)]


@pytest.mark.parametrize(
    ("name", "source"), [("index", "samples"), ("image", "views"), ("text", "captions")]
)
def test_stale_tokens_are_warned_of(tokens, name, source):
    path = tokens / "tokens" / "train-00000" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sources": "those of before"}))
    assert f"{name}.json: sources: the {source} of its shapes have changed" in warnings(tokens)
    assert found(tokens) == []


def test_tokens_of_another_split_are_named(tokens):
    edit_json(tokens / "splits.json", lambda v: v["test"].append(v["train"].pop()))
    assert found(tokens) == [("tokens/train-00000/index.json", "ids")]


def test_embeddings_must_be_finite(tokens):
    edit_json(
        tokens / "tokens" / "stamp.json", lambda v: {**v, "image items": "float16 embeddings"}
    )
    for path in (tokens / "tokens").glob("*/image.npy"):
        np.save(path, np.zeros((len(np.load(path)), 5, 4), np.float16))
    assert found(tokens) == []
    broken = np.load(tokens / "tokens" / "train-00000" / "image.npy")
    broken[3, 1, 2] = np.inf
    np.save(tokens / "tokens" / "train-00000" / "image.npy", broken)
    assert found(tokens) == [("tokens/train-00000/image.npy", "row 3")]


def test_points_are_where_the_renderer_draws_them():
    ball = trimesh.creation.icosphere(3, 0.1)
    camera = Camera((2.0, 1.5, 4.0), (0.1, 0.0, -0.2), (0.1, 1.0, 0.0), 40.0)
    for centre in ([0.5, 0.3, -0.4], [-0.6, -0.2, 0.5], [0.0, 0.7, 0.0]):
        mask = render(Mesh(ball.vertices + centre, ball.faces), camera, 200).mask
        rows, columns = np.nonzero(mask > 0.5)
        place = project(np.array([centre], np.float32), camera)[0] * 200
        assert place == pytest.approx([columns.mean() + 0.5, rows.mean() + 0.5], abs=0.6)
    behind = project(np.array([[4.0, 3.0, 8.0]]), camera)
    assert np.isnan(behind).all() and not seen_at(behind, np.ones((4, 4), bool))[0]


def test_a_place_counts_within_one_pixel_of_the_object():
    mask = np.zeros((10, 20), bool)
    mask[4, 8] = True
    places = np.array(
        [[8.5, 4.5], [7.1, 3.1], [9.9, 5.9], [6.9, 4.5], [8.5, 6.1], [-8.5, 4.5], [8.5, 14.5]]
    ) / [20, 10]
    assert seen_at(places, mask).tolist() == [True, True, True, False, False, False, False]


@pytest.mark.parametrize("background", [None, (255, 255, 255), (30, 90, 30)])
def test_the_object_is_found_with_and_without_alpha(tmp_path, background):
    box = trimesh.creation.box((1.2, 0.8, 0.5))
    mesh, camera = Mesh(box.vertices, box.faces), orbit(30.0, 20.0, 5.5, 35.0)
    image = render(mesh, camera, 64, background=background)
    Image.fromarray(image.color if background else rgba(image)).save(tmp_path / "0.png")
    view = View.of(load_image(tmp_path / "0.png"))
    places = project(np.asarray(box.sample(500)), camera)
    assert (
        seen_at(places, view.mask).mean() > FRAME_SCORE > seen_at(places[:, ::-1], view.mask).mean()
    )
    assert max(draw_overlay(view, places).size) == 320


def test_the_cloud_has_a_colour_for_inside_and_one_for_outside(data):
    samples = load_samples(data / "samples" / "box.npz")
    content = query_cloud(samples)
    cloud = trimesh.load(io.BytesIO(content), file_type="ply")
    assert np.allclose(cloud.vertices, samples.points)
    assert [tuple(c) for c in cloud.colors] == [INSIDE if i else OUTSIDE for i in samples.inside]
    assert b"property uchar inside" in content and b"property uchar near" in content
    rows = np.frombuffer(content[content.index(b"end_header\n") + 11 :], np.uint8).reshape(400, -1)
    assert np.array_equal(rows[:, -2] == 1, samples.inside) and np.array_equal(
        rows[:, -1] == 1, samples.is_near
    )


def test_the_standard_librarys_inspect_is_not_shadowed():
    done = subprocess.run(
        [sys.executable, "-m", "tar3d.data.inspect", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0 and "inspect.csv" in done.stdout


def half_turned(a):
    a[::2, 3:] *= -1
    return a


def colours(a):
    a[:, 3:] = np.abs(a[:, 3:])
    return a


@pytest.mark.parametrize(
    "changes, key, said, kind",
    [
        ({"surface": lambda a: a * np.float16([1, 1, 1, -1, -1, -1])}, "surface", "inward", 1),
        ({"surface": half_turned}, "surface", "some of the normals", 0),
        ({"surface": colours}, "surface", "are these colours", 1),
        ({"inside": lambda a: ~a}, "inside", "labels inverted", 1),
        ({"surface": lambda a: np.hstack([a[:, :3] / 2, a[:, 3:]])}, "surface", "two frames", 1),
        ({"surface": lambda a: np.vstack([a[:-2] * np.float16([.2] * 3 + [1] * 3), a[-2:]])},
         "surface", "does a stray part", 0),
    ],
    ids=["inward", "half inward", "colours", "inverted labels", "another scale", "stray speck"],
)  # fmt: skip
def test_what_is_turned_or_tiny_is_said(data, changes, key, said, kind):
    rewrite(data / "samples" / "box.npz", **changes)
    problems = inspect(data, data / "inspect", images=0)
    assert [p.warning for p in problems if said in str(p) and p.key == key] == [kind == 0]


def test_twins_across_splits_are_a_warning(data):
    """Another sampling of the same ball, in another split."""
    ball = trimesh.creation.icosphere(4, 0.95)
    splits = json.loads((data / "splits.json").read_text())
    for k, name in enumerate(("raw_model", "normalized_model")):
        rng = np.random.default_rng(k)
        points, face = trimesh.sample.sample_surface(ball, 4096, seed=rng)
        surface = np.hstack([points, ball.face_normals[face]]).astype(np.float16)
        shutil.copy(data / "samples" / "ball.npz", data / "samples" / f"{name}.npz")
        rewrite(data / "samples" / f"{name}.npz", surface=surface)
        splits[("train", "test")[k]].append(name)
    splits["train"] = [i for i in splits["train"] if not i.startswith("ball")]
    (data / "splits.json").write_text(json.dumps(splits))
    text = warnings(data)
    assert "normalized_model is the same or nearly the same shape as raw_model of train" in text
    assert text.count("nearly the same shape") == 1
