"""eval_2d.py as its users run it: meshes, pictures, a model, networks that are there or not, and
what it refuses."""

import csv
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tiny_networks import lpips_weights, save_tiny_clip

import eval_2d
from tar3d.contracts import Mesh
from tar3d.evaluation import generations
from tar3d.evaluation.arguments import BACKGROUNDS
from tar3d.evaluation.generations import GenerationSettings
from tar3d.evaluation.image_pairs import RenderedImages, image_pairs, read_cameras
from tar3d.evaluation.image_scores import Networks, score_sets
from tar3d.evaluation.mesh_pairs import Pair
from tar3d.evaluation.mesh_report import compare_sets
from tar3d.mesh.cameras import orbit
from tar3d.mesh.load import normalize
from tar3d.mesh.render import Renderer
from tar3d.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """lpips.pth and clip/, tiny."""
    folder = tmp_path_factory.mktemp("networks")
    torch.save(lpips_weights("vgg"), folder / "lpips.pth")
    save_tiny_clip(folder / "clip")
    return folder


@pytest.fixture
def folders(tmp_path) -> Path:
    """gt/ and pred/ with a ball, a box (wider in pred) and a ring; three cameras."""
    shapes = {
        "ball": trimesh.creation.icosphere(2),
        "box": trimesh.creation.box((1, 0.6, 0.4)),
        "ring": trimesh.creation.torus(0.7, 0.25),
    }
    for kind, suffix in (("gt", "glb"), ("pred", "obj")):
        (tmp_path / kind).mkdir()
        for name, shape in shapes.items():
            shape.export(tmp_path / kind / f"{name}.{suffix}")
    trimesh.creation.box((1, 0.8, 0.4)).export(tmp_path / "pred" / "box.obj")
    cameras = [orbit(30.0, 20.0, 5.5, 35.0).to_json(), orbit(200.0, -40.0, 5.5, 35.0).to_json()]
    (tmp_path / "cameras.json").write_text(json.dumps(cameras))
    return tmp_path


def run(folders: Path, *flags: str, out: str = "out", workers: int = 1) -> int:
    return eval_2d.main(
        [
            "--pred",
            str(folders / "pred"),
            "--gt",
            str(folders / "gt"),
            "--out",
            str(folders / out),
            "--size",
            "48",
            "--cameras",
            str(folders / "cameras.json"),
            "--workers",
            str(workers),
            *flags,
        ]
    )


def run_images(folders: Path, *flags: str, out: str = "out") -> int:
    return eval_2d.main(
        [
            "--pred-images",
            str(folders / "pred"),
            "--gt-images",
            str(folders / "gt"),
            "--out",
            str(folders / out),
            "--workers",
            "1",
            *flags,
        ]
    )


def rows_of(folder: Path) -> dict[str, dict]:
    with (folder / "rows.csv").open(newline="") as f:
        return {row["id"]: row for row in csv.DictReader(f)}


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


# ---- cameras and renders


def test_the_shipped_cameras_are_the_vertices_of_a_dodecahedron():
    cameras = read_cameras(eval_2d.CAMERAS)
    golden = (1 + 5**0.5) / 2
    corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    for a in (-1 / golden, 1 / golden):
        for b in (-golden, golden):
            corners += [(0, a, b), (a, b, 0), (b, 0, a)]
    expected = {tuple(np.round(5.5 * np.array(c) / 3**0.5, 5) + 0.0) for c in corners}
    assert (
        len(cameras) == 20 and {tuple(np.round(c.position, 5) + 0.0) for c in cameras} == expected
    )
    for camera in cameras:
        x, y, z = camera.position
        same = orbit(np.degrees(np.arctan2(x, z)), np.degrees(np.arcsin(y / 5.5)), 5.5, 35.0)
        np.testing.assert_allclose(camera.up, same.up, atol=1e-6)
        assert (camera.field_of_view, camera.target) == (35.0, (0.0, 0.0, 0.0))


def test_every_camera_sees_the_whole_cube():
    corners = trimesh.creation.box((1.9, 1.9, 1.9)).vertices
    for camera in read_cameras(eval_2d.CAMERAS):
        right, up, forward = ((corners - camera.position) @ camera.axes().T).T
        assert (np.abs([right, up]) < forward * np.tan(np.radians(camera.field_of_view / 2))).all()


def test_the_shipped_cameras_are_found_from_any_folder(folders, monkeypatch):
    monkeypatch.chdir(folders)
    flags = ["--pred", "pred", "--gt", "gt", "--size", "16", "--workers", "1", "--out", "far"]
    assert eval_2d.main(flags) == 0 and summary_of(folders / "far")["settings"]["views"] == 20


def test_twenty_views_of_fifty_thousand_faces_take_as_long_as_a_few_sorts():
    """CPU time against that of sorting, so that it does not matter how fast the machine is: two
    seconds on a core that sorts four million numbers in 0.35 s."""
    ring = trimesh.creation.torus(0.7, 0.25, major_sections=200, minor_sections=125)
    mesh = normalize(ring.vertices, ring.faces)
    assert len(mesh.faces) == 50_000
    provider = RenderedImages(read_cameras(eval_2d.CAMERAS), 224, BACKGROUNDS["white"], "truth")
    numbers = np.random.default_rng(0).random(4_000_000)
    start = time.process_time()
    np.sort(numbers, kind="stable")
    sort = time.process_time() - start
    start = time.process_time()
    images = provider.render(mesh)
    assert len(images) == 20 and time.process_time() - start < 6 * sort


def test_maps_are_the_renders_and_their_scores_scikit_images(folders):
    assert run(folders) == 0
    truth = trimesh.load(folders / "gt" / "box.glb", force="mesh")
    pred = trimesh.load(folders / "pred" / "box.obj", force="mesh")
    a, b = (
        Mesh(m.vertices * 0.95 / 0.5, m.faces) for m in (pred, truth)
    )  # the truth's longest side is 1
    expected = {"shaded_psnr": [], "shaded_ssim": [], "normal_psnr": [], "shaded_psnr_fg": []}
    for camera in read_cameras(folders / "cameras.json"):
        p, t = (Renderer(m).render(camera, 48, background=(255, 255, 255)) for m in (a, b))
        normal = [
            np.rint(
                (r.normal + 1) / 2 * 255 * r.mask[..., None] + 255 * (1 - r.mask[..., None])
            ).astype(np.uint8)
            for r in (p, t)
        ]
        union = (p.mask > 0) | (t.mask > 0)
        expected["shaded_psnr"].append(peak_signal_noise_ratio(t.color, p.color))
        expected["shaded_psnr_fg"].append(peak_signal_noise_ratio(t.color[union], p.color[union]))
        expected["normal_psnr"].append(peak_signal_noise_ratio(normal[1], normal[0]))
        expected["shaded_ssim"].append(
            structural_similarity(
                t.color,
                p.color,
                channel_axis=2,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )
    row = rows_of(folders / "out")["box"]
    for name, values in expected.items():
        assert float(row[name]) == pytest.approx(np.mean(values), rel=2e-3)
    for name in ("psnr", "psnr_fg"):
        assert (
            float(rows_of(folders / "out")["ball"][f"normal_{name}"]) > 60
        )  # the same mesh in another file format
    assert float(row["shaded_psnr_fg"]) < float(row["shaded_psnr"])


def test_background_changes_the_whole_picture_and_is_named(folders):
    scores = {}
    for name in BACKGROUNDS:
        assert run(folders, "--background", name, out=name) == 0
        assert summary_of(folders / name)["settings"]["background"].startswith(name)
        scores[name] = float(rows_of(folders / name)["box"]["shaded_psnr"])
    assert len(set(scores.values())) == 3


def test_images_that_are_left_out_or_unusable_are_named(tmp_path):
    for side in ("pred", "gt"):
        for name in ("a.png", "b.HEIC", "c/0.png", "c/1.tga", "d/x.heic"):
            (tmp_path / side / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / side / name).touch()
    (tmp_path / "gt" / "gone.png").symlink_to("nowhere.png")
    with pytest.warns(UserWarning, match=r"2 \.heic \(b\.HEIC, \.\.\.\), 1 \.tga \(c/1\.tga\)"):
        pairs = image_pairs(tmp_path / "pred", tmp_path / "gt")
    assert [pair.id for pair in pairs[:2]] == ["a", "c"] and not any(p.reason for p in pairs[:2])
    assert len(pairs) == 3 and "a link to nowhere.png" in pairs[2].reason


def test_the_frame_of_the_protocol_decides(folders):
    trimesh.creation.icosphere(2, radius=1.5).export(folders / "pred" / "ball.obj")
    run(folders, out="truth")
    run(
        folders, "--protocol", "cube", out="each"
    )  # each mesh by its own box: the larger ball is the same again
    truth, each = (
        float(rows_of(folders / name)["ball"]["shaded_psnr"]) for name in ("truth", "each")
    )
    assert each > 60 > 30 > truth
    assert summary_of(folders / "each")["settings"]["frame"] == "each"


# ---- what the report holds


def test_without_networks_their_scores_are_null_and_it_says_why(folders, capsys):
    assert run(folders) == 0
    summary, err = summary_of(folders / "out"), capsys.readouterr().err
    assert [item["scores"][0] for item in summary["left_out"]] == ["shaded_lpips", "clip_image"]
    assert (
        "lpips_alex.pth" in summary["left_out"][0]["reason"]
        and "--clip-path" in summary["left_out"][1]["reason"]
    )
    assert err.count("left out: ") == 2
    scores = summary["sets"]["prediction"]["scores"]
    for name in ("shaded_lpips", "normal_lpips_fg", "clip_image", "clip_image_fg"):
        assert scores[name]["mean"] is None and scores[name]["missing"] == 3
        assert {row[name] for row in rows_of(folders / "out").values()} == {""}
    sets = summary["sets"]["prediction"]["set_scores"]
    assert sets["fid_clip"] is None and sets["reasons"]["kid_clip"] == "there is no CLIP model"
    assert (summary["settings"]["lpips"], summary["settings"]["clip"]) == (None, None)


def test_the_report_says_what_was_measured(folders, networks, capsys):
    flags = ["--lpips-path", str(networks / "lpips.pth"), "--clip-path", str(networks / "clip")]
    assert run(folders, *flags) == 0
    summary, report = summary_of(folders / "out"), (folders / "out" / "report.md").read_text()
    assert report in capsys.readouterr().out and summary["left_out"] == []
    assert {"command", "commit", "date", "machine", "versions", "formulas", "seconds"} <= set(
        summary
    )
    settings = summary["settings"]
    assert settings["views"] == 2 and settings["size"] == 48 and settings["frame"] == "truth"
    assert (
        settings["lpips"].startswith("LPIPS vgg, weights ") and "32 px, bicubic" in settings["clip"]
    )
    assert {"scikit-image", "torch", "embreex", "transformers"} <= set(summary["versions"])
    rows = rows_of(folders / "out")
    ball, box = rows["ball"], rows["box"]
    assert (
        float(ball["shaded_lpips"])
        < 1e-3
        < float(box["shaded_lpips"])
        < float(box["shaded_lpips_fg"])
    )
    assert float(ball["clip_image"]) == pytest.approx(1, abs=1e-3) and float(box["clip_image"]) < 1
    assert {r["pictures"] for r in rows.values()} == {"2"} and {
        r["foreground"] for r in rows.values()
    } == {"coverage"}
    sets = summary["sets"]["prediction"]["set_scores"]
    assert sets["pictures"] == sets["reference_pictures"] == 6
    assert sets["kid_clip"] is not None and sets["fid_clip"] is None
    assert sets["reasons"] == {
        "fid_clip": "FID over 6 features needs at least 7 images in each set, got 6 and 6"
    }
    assert Image.open(folders / "out" / "views.png").width == 4 * 164 + 4
    assert "clip_text" not in summary["sets"]["prediction"]["scores"]


def test_fid_over_enough_pictures(folders, networks):
    cameras = [orbit(a, 10.0, 5.5, 35.0).to_json() for a in (0.0, 100.0, 200.0)]
    (folders / "cameras.json").write_text(json.dumps(cameras))
    assert run(folders, "--clip-path", str(networks / "clip")) == 0
    sets = summary_of(folders / "out")["sets"]["prediction"]["set_scores"]
    assert sets["fid_clip"] > 0 and sets["pictures"] == 9 and sets["reasons"] == {}


def test_workers_chunks_and_order_change_nothing(folders, networks, monkeypatch):
    shutil.copy(folders / "gt" / "ball.glb", folders / "gt" / "again.glb")
    shutil.copy(folders / "pred" / "ball.obj", folders / "pred" / "again.obj")
    flags = ["--lpips-path", str(networks / "lpips.pth"), "--clip-path", str(networks / "clip")]
    run(folders, *flags, out="a")
    run(folders, *flags, out="b", workers=2)
    monkeypatch.setattr("tar3d.evaluation.image_scores._MESHES_AT_ONCE", 2)
    run(folders, *flags, out="c")
    a, b, c = (summary_of(folders / name)["sets"] for name in "abc")
    assert a == b == c
    assert len({(folders / name / "rows.csv").read_bytes() for name in "abc"}) == 1
    pairs = [
        Pair(i, folders / "pred" / f"{i}.obj", folders / "gt" / f"{i}.glb")
        for i in ("ball", "box", "ring")
    ]
    provider = RenderedImages(
        read_cameras(folders / "cameras.json"), 48, BACKGROUNDS["white"], "truth"
    )
    forward, back = (
        score_sets({"x": p}, provider, Networks(), 1)[0]["x"] for p in (pairs, pairs[::-1])
    )
    assert forward == back[::-1]


def test_captions_are_scored_against_the_predictions_pictures(folders, networks, capsys):
    captions = folders / "captions.csv"
    captions.write_text('id,caption\nball,a red chair\nbox,"a table, a chair"\nelsewhere,a table\n')
    assert run(folders, "--clip-path", str(networks / "clip"), "--captions", str(captions)) == 0
    rows, summary = rows_of(folders / "out"), summary_of(folders / "out")
    assert (
        -1 <= float(rows["ball"]["clip_text"]) <= 1
        and rows["ball"]["clip_text_fg"] != ""
        and rows["ring"]["clip_text"] == ""
    )
    assert summary["sets"]["prediction"]["scores"]["clip_text"]["count"] == 2
    assert [item["scores"] for item in summary["left_out"][1:]] == [["clip_text", "clip_text_fg"]]
    assert "no caption for 1 of 3 ids, e.g. 'ring'" in capsys.readouterr().err
    assert summary["settings"]["captions_cut"] == 0
    assert run(folders, "--captions", str(captions), out="without") == 0  # no CLIP: null, and said
    left_out = summary_of(folders / "without")["left_out"]
    assert {"clip_text", "clip_text_fg"} <= set(left_out[1]["scores"])
    assert {row["clip_text"] for row in rows_of(folders / "without").values()} == {""}


def test_captions_without_a_tokenizer_leave_out_the_text_only(folders, networks):
    clip = shutil.copytree(networks / "clip", folders / "clip")
    (clip / "tokenizer.json").unlink()
    (folders / "captions.csv").write_text("id,caption\nball,a red chair\n")
    assert run(folders, "--clip-path", str(clip), "--captions", str(folders / "captions.csv")) == 0
    summary = summary_of(folders / "out")
    assert (
        summary["left_out"][1]["scores"] == ["clip_text", "clip_text_fg"]
        and "tokenizer" in summary["left_out"][1]["reason"]
    )
    scores = summary["sets"]["prediction"]["scores"]
    assert scores["clip_text"]["mean"] is None and scores["clip_image"]["count"] == 3


# ---- failures


def test_pairs_that_fail_are_listed_and_the_rest_goes_on(folders, capsys):
    (folders / "gt" / "alone.obj").write_text((folders / "pred" / "ball.obj").read_text())
    (folders / "pred" / "extra.obj").write_text((folders / "pred" / "ball.obj").read_text())
    tetrahedron = "v nan 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n"
    for name, text in (("broken", "not a mesh"), ("nan", tetrahedron)):
        (folders / "pred" / f"{name}.obj").write_text(text)
        shutil.copy(folders / "gt" / "box.glb", folders / "gt" / f"{name}.glb")
    assert run(folders) == 1
    summary = summary_of(folders / "out")["sets"]["prediction"]
    assert (summary["pairs"], summary["scored"]) == (7, 3)
    reasons = {f["id"]: f["reason"] for f in summary["failed"]}
    assert "no prediction for it" in reasons["alone"] and "no true mesh for it" in reasons["extra"]
    assert "no triangles" in reasons["broken"] and "NaN" in reasons["nan"]
    assert summary["scores"]["shaded_psnr"]["count"] == 3
    err = capsys.readouterr().err
    assert (
        "failed: prediction: nan: " in err
        and "3 of 7 pairs scored" in (folders / "out" / "report.md").read_text()
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--pred", "x"], "--gt is missing"),
        (["--gt-images", "x"], "--pred-images is missing"),
        (
            ["--pred", "x", "--gt", "y", "--pred-images", "x", "--gt-images", "y"],
            "give one of the two",
        ),
        (
            ["--pred", "x", "--gt", "y", "--shapes", "3"],
            "--shapes generates from a model, so it would change nothing",
        ),
        (
            ["--pred-images", "x", "--gt-images", "y", "--cameras", "c"],
            "--cameras belongs to renders",
        ),
        (
            ["--pred-images", "x", "--gt-images", "y", "--protocol", "cube"],
            "--protocol belongs to renders",
        ),
        (
            ["--pred-images", "x", "--gt-images", "y", "--size", "32"],
            "--size and --filter belong together",
        ),
        (
            ["--pred-images", "x", "--gt-images", "y", "--filter", "box"],
            "--size and --filter belong together",
        ),
        (["--pred", "x", "--gt", "y", "--filter", "box"], "nothing is resized"),
        (["--pred", "x", "--gt", "y", "--size", "10"], "SSIM needs at least 11"),
        (["--pred", "x", "--gt", "y", "--protocol", "none"], "there are cube, tar3d, vecset"),
        (["--pred", "x", "--gt", "y", "--cameras", "none.json"], "none.json does not exist"),
        (["--pred", "x", "--gt", "y", "--captions", "none.csv"], "none.csv does not exist"),
        (["--pred", "no-such-x", "--gt", "no-such-y"], "not a folder of meshes"),
        (["--pred-images", "no-such-x", "--gt-images", "no-such-y"], "not a folder of images"),
        (["--pred", "x", "--gt", "y", "--device", "tpu"], "--device"),
    ],
)
def test_contradictions_and_missing_things_are_one_sentence(
    flags, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert eval_2d.main(flags) == 2
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1] and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "lists no camera"),
        ("{", "not a list of cameras"),
        ("[{}]", "not a list of cameras"),
        (
            '[{"position": [0, 0, 5], "target": [0, 0, 0], "up": [0, 0, 1], "field_of_view": 35}]',
            "cannot have up",
        ),
    ],
)
def test_broken_cameras_are_refused(folders, text, message, capsys):
    (folders / "cameras.json").write_text(text)
    assert run(folders) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,text\nball,x\n", "has no column caption"),
        ("", "is empty: its first line names the columns; it needs the columns id, caption"),
        ("id,caption\n", "a header with id and caption"),
        ("id,caption\nball,\n", "there is no caption for the id 'ball'"),
        ("id,caption\nother,x\n", "no caption for any of the 3 ids"),
    ],
)
def test_broken_captions_are_refused(folders, text, message, capsys):
    (folders / "captions.csv").write_text(text)
    assert run(folders, "--captions", str(folders / "captions.csv")) == 2
    assert message in capsys.readouterr().err


# ---- folders of pictures


def disc(
    side: int = 40, radius: float = 12.0, colour: tuple[int, ...] = (200, 40, 30, 255)
) -> Image.Image:
    """A disc on transparent ground, whose hidden colour is black."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    pixels = np.zeros((side, side, 4), dtype=np.uint8)
    pixels[np.hypot(x, y) < radius] = colour
    return Image.fromarray(pixels)


def on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


@pytest.fixture
def images(tmp_path) -> Path:
    """pred/ and gt/: one/ (a picture), sub/ (a sub-folder of two), each with alpha."""
    for kind, radius in (("pred", 12.0), ("gt", 13.0)):
        (tmp_path / kind / "sub").mkdir(parents=True)
        disc(radius=radius).save(tmp_path / kind / "one.png")
        for k in (0, 1):
            disc(radius=radius - 2 * k).save(tmp_path / kind / "sub" / f"{k}.png")
    return tmp_path


def test_pictures_are_paired_by_name(images, networks):
    assert (
        run_images(
            images,
            "--lpips-path",
            str(networks / "lpips.pth"),
            "--clip-path",
            str(networks / "clip"),
        )
        == 0
    )
    rows, settings = rows_of(images / "out"), summary_of(images / "out")["settings"]
    assert {i: (r["pictures"], r["foreground"]) for i, r in rows.items()} == {
        "one": ("1", "alpha"),
        "sub": ("2", "alpha"),
    }
    pred, truth = (np.asarray(on_white(disc(radius=r))) for r in (12.0, 13.0))
    mask = np.asarray(disc(radius=13.0))[..., 3] > 0
    assert float(rows["one"]["image_psnr"]) == pytest.approx(
        peak_signal_noise_ratio(truth, pred), rel=1e-6
    )
    assert float(rows["one"]["image_psnr_fg"]) == pytest.approx(
        peak_signal_noise_ratio(truth[mask], pred[mask]), rel=1e-6
    )
    assert float(rows["one"]["image_lpips"]) > 0 and float(rows["one"]["clip_image_fg"]) <= 1
    assert (
        settings["size"] == "as the files are"
        and "nothing is resized" in settings["filter"]
        and "cameras" not in settings
    )


def test_without_alpha_the_foreground_is_what_differs_from_the_background(images):
    on_white(disc(radius=12.0)).save(images / "pred" / "one.png")  # the truth still has its alpha
    assert run_images(images) == 0
    rows, summary = rows_of(images / "out"), summary_of(images / "out")
    assert (rows["one"]["foreground"], rows["sub"]["foreground"]) == ("difference", "alpha")
    assert summary["sets"]["prediction"]["foreground"] == {"difference": 1, "alpha": 1}
    pred, truth = (np.asarray(on_white(disc(radius=r))) for r in (12.0, 13.0))
    mask = np.asarray(disc(radius=13.0))[..., 3] > 0
    assert float(rows["one"]["image_psnr_fg"]) == pytest.approx(
        peak_signal_noise_ratio(truth[mask], pred[mask]), rel=1e-6
    )
    assert (
        "differs by more than 10 of 255 from the background"
        in (images / "out" / "report.md").read_text()
    )


def test_pictures_of_other_size_fail_unless_a_filter_is_named(images):
    disc(side=80, radius=24.0).save(images / "pred" / "one.png")
    assert run_images(images) == 1
    failed = summary_of(images / "out")["sets"]["prediction"]["failed"]
    assert [f["id"] for f in failed] == ["one"]
    assert "80 x 80 pixels and the truth 40 x 40; --size N --filter NAME" in failed[0]["reason"]
    values = set()
    for name in ("bicubic", "box", "bilinear", "lanczos"):
        assert run_images(images, "--size", "24", "--filter", name, out=name) == 0
        settings = summary_of(images / name)["settings"]
        assert (settings["size"], settings["filter"]) == (24, name)
        values.add(rows_of(images / name)["one"]["image_psnr"])
    assert len(values) == 4  # the filter alone changes the score


def test_pictures_that_cannot_be_scored_are_listed(images):
    for kind in ("pred", "gt"):
        for name, picture in (
            ("blank", Image.new("RGB", (40, 40), "white")),
            ("tiny", Image.new("RGB", (8, 8), "red")),
            ("wide", Image.new("RGB", (40, 30), "red")),
        ):
            picture.save(images / kind / f"{name}.png")
        shutil.copy(images / kind / "one.png", images / kind / "text.png")
        shutil.copytree(images / kind / "sub", images / kind / "views")
        shutil.copytree(images / kind / "sub", images / kind / "mixed")
    (images / "pred" / "text.png").write_text("no picture")
    (images / "pred" / "views" / "1.png").unlink()
    shutil.rmtree(images / "pred" / "mixed")
    disc().save(images / "pred" / "mixed.png")
    disc().save(images / "pred" / "extra.png")
    disc().save(images / "gt" / "alone.png")
    assert run_images(images) == 1
    summary = summary_of(images / "out")["sets"]["prediction"]
    reasons = {f["id"]: f["reason"] for f in summary["failed"]}
    assert (
        set(reasons) == {"blank", "tiny", "text", "views", "mixed", "extra", "alone"}
        and summary["scored"] == 3
    )
    assert "no foreground" in reasons["blank"] and "at least 11 x 11" in reasons["tiny"]
    assert "not an image that can be read" in reasons["text"]
    assert "only the truth has the image '1' (of 1 predicted and 2 true ones)" in reasons["views"]
    assert "a single image and the other a folder" in reasons["mixed"]
    assert "no prediction for it" in reasons["alone"] and "no true image for it" in reasons["extra"]
    assert all("\n" not in reason for reason in reasons.values())
    assert run_images(images, "--size", "24", "--filter", "box", out="resized") == 1
    resized = {
        f["id"]: f["reason"] for f in summary_of(images / "resized")["sets"]["prediction"]["failed"]
    }
    assert (
        "40 x 30 pixels, and --size 24 would distort it" in resized["wide"]
        and "tiny" not in resized
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: shutil.rmtree(f / "pred") or (f / "pred").mkdir(), "pred holds no images"),
        (
            lambda f: on_white(disc()).save(f / "gt" / "one.jpg"),
            "two images named one: one.jpg and one.png",
        ),
        (
            lambda f: shutil.copytree(f / "gt" / "sub", f / "gt" / "one"),
            "both an image and a sub-folder named one",
        ),
        (
            lambda f: [shutil.move(p, p.with_stem("x" + p.stem)) for p in f.glob("pred/*")],
            "no id of .* is one of",
        ),
    ],
)
def test_folders_that_cannot_be_paired_are_refused(images, change, message, capsys):
    change(images)
    assert run_images(images) == 2
    assert re.search(message, capsys.readouterr().err)


def test_scores_do_not_depend_on_the_hidden_colour_of_transparent_pixels(images):
    run_images(images, out="a")
    pixels = np.array(disc(radius=12.0))
    pixels[pixels[..., 3] == 0, :3] = 77
    Image.fromarray(pixels).save(images / "pred" / "one.png")
    run_images(images, out="b")
    assert rows_of(images / "a")["one"]["image_psnr"] == rows_of(images / "b")["one"]["image_psnr"]


# ---- a model


def test_a_model_is_compared_with_baselines_and_bound(folders, monkeypatch):
    (folders / "data").mkdir()
    truths = {i: folders / "gt" / f"{i}.glb" for i in ("ball", "box", "ring")}
    sets = {
        "generation": [
            Pair(i, folders / "pred" / f"{i}.obj", t, "round") for i, t in truths.items()
        ],
        "category": [Pair(i, truths["box"], t, "round") for i, t in truths.items()],
        "reconstruction": [
            Pair(i, None, t, "round", "the field is empty")
            if i == "ring"
            else Pair(i, t, t, "round")
            for i, t in truths.items()
        ],
    }
    calls = []

    def evaluate_model(pipeline, *arguments):
        calls.append(arguments)
        return SimpleNamespace(pairs=sets, inputs=SimpleNamespace(views_in_training=0), nll={})

    def load(source, gpt_type, encoders, device):
        return SimpleNamespace(
            precision="32-true", sampling=lambda modalities: SimpleNamespace(top_k=3)
        )

    monkeypatch.setattr(generations, "evaluate_model", evaluate_model)
    monkeypatch.setattr(Pipeline, "load", load)
    monkeypatch.setattr(eval_2d, "default_library", lambda: folders / "train")
    flags = [
        "--test",
        str(folders / "data"),
        "--shapes",
        "3",
        "--resolution",
        "32",
        "--size",
        "48",
        "--workers",
        "1",
        "--cameras",
        str(folders / "cameras.json"),
        "--out",
        str(folders / "out"),
    ]
    assert eval_2d.main(flags) == 1  # the empty field
    assert calls[0] == (
        "image",
        (folders / "data", folders / "train"),
        folders / "out",
        GenerationSettings(shapes=3, resolution=32, batch=10, seed=0),
    )
    summary, report = summary_of(folders / "out"), (folders / "out" / "report.md").read_text()
    assert {name: s["scored"] for name, s in summary["sets"].items()} == {
        "generation": 3,
        "category": 3,
        "reconstruction": 2,
    }
    assert summary["precision"] == "32-true"
    assert summary["sets"]["reconstruction"]["scores"]["shaded_psnr"]["mean"] == 100
    assert summary["comparisons"]["category"]["shaded_psnr_fg"]["share"] == pytest.approx(2 / 3)
    assert summary["comparisons"]["reconstruction"]["shaded_psnr_fg"]["gain"]["count"] == 2
    assert (
        "generated from one view" in report
        and "(upper bound)" in report
        and summary["model"] == "pretrained/tiny"
    )


def test_lower_lpips_counts_as_better():
    ours, theirs = ([{"id": "a", "image_lpips": v}] for v in (0.2, 0.5))
    compared = compare_sets(ours, theirs, "image_lpips", 0)
    assert compared["share"] == 1 and compared["gain"]["mean"] == pytest.approx(0.3)
    assert compare_sets(theirs, ours, "image_lpips", 0)["share"] == 0
