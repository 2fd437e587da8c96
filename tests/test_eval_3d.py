"""eval_3d.py as its users run it: folders, CSVs, sets, a model, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trimesh

import eval_3d
from tar3d.metrics.metric import Metric
from tar3d.metrics.points import DISTANCE_METRICS

FAST = ["points=500", "iou_points=500", "near_points=500"]


@pytest.fixture
def folders(tmp_path) -> Path:
    """gt/ with three shapes; pred/ with the same, one of them changed, in other formats and a
    sub-folder."""
    shapes = {
        "ball": trimesh.creation.icosphere(2),
        "box": trimesh.creation.box((1, 0.6, 0.4)),
        "ring": trimesh.creation.torus(0.7, 0.25),
    }
    for name, shape in shapes.items():
        for kind, suffix in (("gt", "glb"), ("pred", "obj")):
            (tmp_path / kind / "more").mkdir(parents=True, exist_ok=True)
            shape.export(tmp_path / kind / "more" / f"{name}.{suffix}")
    shapes["box"].apply_scale(1.2).export(tmp_path / "pred" / "more" / "box.obj")
    return tmp_path


def run(folders: Path, *flags: str, out: str = "out") -> int:
    return eval_3d.main(
        [
            "--pred",
            str(folders / "pred"),
            "--gt",
            str(folders / "gt"),
            "--out",
            str(folders / out),
            "--workers",
            "1",
            *flags,
            *FAST,
        ]
    )


def rows_of(folder: Path) -> dict[str, dict]:
    with (folder / "rows.csv").open(newline="") as f:
        return {row["id"]: row for row in csv.DictReader(f)}


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_folder_against_a_folder(folders, capsys):
    assert run(folders) == 0
    rows, summary = rows_of(folders / "out"), summary_of(folders / "out")
    assert set(rows) == {"more__ball", "more__box", "more__ring"} and {
        r["status"] for r in rows.values()
    } == {"ok"}
    assert (
        float(rows["more__ball"]["surface_chamfer"])
        < 1e-6
        < 0.05
        < float(rows["more__box"]["surface_chamfer"])
    )
    assert rows["more__box"]["pred_faces"] == "12" and rows["more__box"]["pred_closed"] == "1"
    scores = summary["sets"]["prediction"]["scores"]
    assert scores["chamfer"]["count"] == 3 and {
        "mean",
        "low",
        "high",
        "median",
        "p5",
        "p95",
    } <= set(scores["chamfer"])
    assert scores["chamfer"]["mean"] == pytest.approx(
        np.mean([float(r["chamfer"]) for r in rows.values()]), rel=1e-6
    )
    assert summary["protocol"]["frame"] == "truth" and summary["align"] == "none"
    assert {"formulas", "versions", "commit", "command", "machine", "date"} <= set(summary)
    report = (folders / "out" / "report.md").read_text()
    assert (
        "longest side is 2" in report
        and "floor: the truth, sampled again" in report
        and report in capsys.readouterr().out
    )
    for picture in ("ranked.png", "histogram.png"):
        assert (folders / "out" / picture).stat().st_size > 3000


def test_protocols_are_found_from_any_folder(folders, monkeypatch):
    monkeypatch.chdir(folders)
    assert run(folders, "--protocol", "cube") == 0
    assert summary_of(folders / "out")["protocol"]["headline"][0] == "iou"


def test_workers_and_the_order_of_files_change_nothing(folders):
    """The same files under names that sort the other way round, in one process and in two."""
    run(folders)
    for kind in ("pred", "gt"):
        for path in (folders / kind / "more").iterdir():
            shutil.copy(path, path.with_name(("a_" if path.stem == "ring" else "z_") + path.name))
    assert (
        eval_3d.main(
            [
                "--pred",
                str(folders / "pred"),
                "--gt",
                str(folders / "gt"),
                "--out",
                str(folders / "two"),
                "--workers",
                "2",
                *FAST,
            ]
        )
        == 0
    )
    first, second = rows_of(folders / "out"), rows_of(folders / "two")
    for name in ("ball", "box", "ring"):
        renamed = second[f"more__{'a_' if name == 'ring' else 'z_'}{name}"]
        assert {k: v for k, v in renamed.items() if k not in ("id", "pred", "truth")} == {
            k: v for k, v in first[f"more__{name}"].items() if k not in ("id", "pred", "truth")
        }


def test_raw_and_aligned_scores_stand_side_by_side(folders):
    mesh = trimesh.load(folders / "pred" / "more" / "ball.obj")
    mesh.apply_translation((0.5, 0, 0)).export(folders / "pred" / "more" / "ball.obj")
    assert run(folders, "--align", "bbox") == 0
    ball = rows_of(folders / "out")["more__ball"]
    assert float(ball["surface_chamfer"]) > 0.1 and float(ball["aligned_surface_chamfer"]) < 1e-6
    assert float(ball["iou"]) < float(ball["aligned_iou"])


def test_a_pair_that_fails_is_listed_and_the_rest_is_scored(folders, capsys):
    (folders / "pred" / "more" / "ring.obj").unlink()
    (folders / "pred" / "more" / "box.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    )  # one triangle
    trimesh.creation.box().export(folders / "pred" / "stranger.ply")
    assert run(folders) == 1
    summary = summary_of(folders / "out")["sets"]["prediction"]
    assert (summary["pairs"], summary["scored"], summary["scores"]["chamfer"]["count"]) == (4, 1, 1)
    reasons = {f["id"]: f["reason"] for f in summary["failed"]}
    assert (
        "holds no prediction for it" in reasons["more__ring"]
        and "holds no true mesh for it" in reasons["stranger"]
    )
    assert "at least 4 usable triangles, it has 1" in reasons["more__box"]
    report = (folders / "out" / "report.md").read_text()
    assert "1 of 4 pairs scored" in report and all(
        f"failed: {i}: {r}" in report for i, r in reasons.items()
    )
    assert "failed: more__ring" in capsys.readouterr().err


def test_nothing_scored_is_said_and_not_averaged(folders):
    for path in (folders / "pred" / "more").iterdir():
        path.write_text(
            "v nan 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n"
        )
    assert run(folders) == 1
    summary = summary_of(folders / "out")["sets"]["prediction"]
    assert summary["scored"] == 0 and len(summary["failed"]) == 3 and summary["scores"] == {}
    assert "NaN or infinite" in summary["failed"][0]["reason"]
    assert "0 of 3 pairs scored" in (folders / "out" / "report.md").read_text()


def test_a_csv_pairs_any_files(folders):
    lines = [
        "id,pred,truth",
        "one,pred/more/box.obj,gt/more/ball.glb",
        "two,pred/none.obj,gt/more/box.glb",
    ]
    (folders / "pairs.csv").write_text("\n".join(lines) + "\n")
    assert (
        eval_3d.main(
            [
                "--pairs",
                str(folders / "pairs.csv"),
                "--out",
                str(folders / "out"),
                "--workers",
                "1",
                *FAST,
            ]
        )
        == 1
    )
    rows = rows_of(folders / "out")
    assert rows["one"]["status"] == "ok" and "there is no such file" in rows["two"]["reason"]


def test_sets_without_pairs(folders):
    assert run(folders, "--unpaired") == 0
    scores = summary_of(folders / "out")["scores"]
    assert (scores["generated_shapes"], scores["reference_shapes"]) == (3, 3) and 0 <= scores[
        "coverage"
    ] <= 1
    assert "one_nn_accuracy" in (folders / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    "protocol, headline", [("tar3d", "chamfer"), ("vecset", "chamfer_sum"), ("cube", "iou")]
)
def test_protocols_by_name(folders, protocol, headline):
    run(folders, "--protocol", protocol)
    summary = summary_of(folders / "out")
    assert summary["protocol"]["headline"][0] == headline and summary["protocol"]["points"] == 500
    assert f"headline {headline}" in (folders / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--pred", "PRED"], "--gt is missing"),
        (["--gt", "GT"], "--pred is missing"),
        (["--pred", "EMPTY", "--gt", "GT"], "holds no meshes"),
        (["--pred", "NONE", "--gt", "GT"], "is not a folder of meshes"),
        (["--pred", "OTHER", "--gt", "GT"], "no id of"),
        (["--pairs", "EMPTY.csv"], "has no column truth; its columns are id, pred"),
        (["--pairs", "NONE.csv"], "does not exist"),
        (["--pairs", "HEADER.csv"], "lists no pairs"),
        (["--pairs", "HEADER.csv", "--pred", "PRED", "--gt", "GT"], "not both"),
        (["--unpaired"], "give both folders"),
        (["--unpaired", "--align", "icp", "--pred", "PRED", "--gt", "GT"], "sets have no pairs"),
        (["--protocol", "mine"], "there are cube, tar3d, vecset"),
        (["--pred", "PRED", "--gt", "GT", "pionts=5"], "pionts"),
    ],
)
def test_refusals(folders, capsys, flags, message):
    (folders / "empty").mkdir()
    (folders / "empty.csv").write_text("id,pred\n")
    (folders / "header.csv").write_text("id,pred,truth\n")
    (folders / "other").mkdir()
    trimesh.creation.box().export(folders / "other" / "x.ply")
    names = {
        n: str(folders / n.lower())
        for n in ("PRED", "GT", "EMPTY", "NONE", "OTHER", "EMPTY.csv", "NONE.csv", "HEADER.csv")
    }
    assert eval_3d.main([*(names.get(f, f) for f in flags), "--out", str(folders / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_bad_row_of_pairs_fails_alone(folders):
    text = "\ufeffid;pred;truth\r\nball;pred/more/ball.obj;gt/more/ball.glb\r\nbox;x.obj\r\n"
    text += "ball;pred/more/ball.obj;gt/more/ball.glb\r\n"
    (folders / "pairs.csv").write_text(text, encoding="utf-8", newline="")
    flags = ["--pairs", str(folders / "pairs.csv"), "--out", str(folders / "out")]
    assert eval_3d.main([*flags, "--workers", "1", *FAST]) == 1
    found = rows_of(folders / "out")
    assert {i: r["status"] for i, r in found.items()} == {
        "ball": "ok",
        "box": "failed",
        "ball (line 4)": "failed",
    }
    assert "pairs.csv, line 3: the truth is empty" in found["box"]["reason"]


def test_broken_meshes_each_get_a_sentence(tmp_path):
    broken = Path(__file__).resolve().parents[2] / "shared" / "datasets" / "broken" / "files"
    if not broken.is_dir():
        pytest.skip("the folder of broken meshes is not there")
    files = [p for p in sorted(broken.rglob("*")) if p.is_file() and p.stat().st_size < 2e5]
    (tmp_path / "pairs.csv").write_text(
        "id,pred,truth\n" + "".join(f"{p.name},{p},{p}\n" for p in files)
    )
    status = eval_3d.main(
        [
            "--pairs",
            str(tmp_path / "pairs.csv"),
            "--out",
            str(tmp_path / "out"),
            "--workers",
            "1",
            *FAST,
        ]
    )
    rows = rows_of(tmp_path / "out")
    assert len(rows) == len(files) and status == (
        1 if any(r["status"] != "ok" for r in rows.values()) else 0
    )
    assert all(r["status"] == "ok" or len(r["reason"]) > 10 for r in rows.values())


def test_the_selftest_passes_and_notices_a_wrong_formula(capsys, monkeypatch):
    assert eval_3d.main(["--selftest", "--workers", "1", "points=4000"]) == 0
    assert "PASS: 31 of 31 checks" in capsys.readouterr().out
    wrong = Metric("not squared", "lower", lambda d: 2 * d.to_truth.mean())
    monkeypatch.setitem(DISTANCE_METRICS, "chamfer_squared", wrong)
    assert eval_3d.main(["--selftest", "--workers", "1", "points=4000"]) == 1
    assert "WRONG larger surface_chamfer_squared" in capsys.readouterr().out
