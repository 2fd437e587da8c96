"""The benchmarks: a case runs in its own process and gives a whole record; the pure parts of the quality report are right."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import i23d_quality, i23d_report
from benchmarks.run import SUITES, main, table
from tar3d.contracts import Mesh
from tar3d.mesh.extract import EmptyFieldError

TRIANGLE = Mesh(np.eye(3), np.array([[0, 1, 2]]))


def test_a_case_gives_json_and_a_table(tmp_path, capsys):
    out = tmp_path / "results" / "one.json"
    status = main(["--only", "tiny/decode", "--repeats", "2", "--out", str(out)])
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert status == 0 and json.loads(out.read_text()) == report
    assert {"suite", "date", "threads", "arguments", "machine", "torch", "python", "commit", "weights"} <= set(report)
    (record,) = report["cases"]
    assert (record["case"], record["dtype"], record["unit"]) == ("tiny/decode", "float32", "shapes") and record["threads"] >= 1
    assert len(record["seconds"]) == record["repeats"] == 2 and record["warmup"] >= 1
    assert record["min_seconds"] <= record["median_seconds"] <= max(record["seconds"])
    assert record["per_second"] == pytest.approx(record["items"] / record["median_seconds"])
    assert 50 < record["peak_resident_mib"] < 20_000 and record["peak_gpu_mib"] is None
    assert "1/1 stages tiny/decode" in printed.err and table(report) in printed.err


def test_a_failing_case_is_listed_and_the_rest_goes_on(capsys):
    status = main(["--only", "tiny/encode", "--limit", "0.01"])
    (record,) = json.loads(capsys.readouterr().out)["cases"]
    assert status == 1 and record == {"case": "tiny/encode", "error": "stopped after 0 s"}


def test_wrong_arguments_say_what_there_is(capsys):
    assert main(["--only", "tiny/knit"]) == 2
    assert "tiny/encode" in capsys.readouterr().err


@pytest.mark.parametrize("suite", SUITES)
def test_case_names_are_unique(suite):
    names = [case.id for case in SUITES[suite]]
    assert len(names) == len(set(names))


def test_nearest_finds_the_pixels_that_are_there():
    rng = np.random.default_rng(0)
    candidates = rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    index, distance = i23d_quality.nearest(candidates[[7, 31, 0]], candidates, chunk=8)
    assert index.tolist() == [7, 31, 0] and distance.tolist() == [0, 0, 0]
    query = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    index, distance = i23d_quality.nearest(query, candidates, chunk=8)
    lengths = np.linalg.norm(candidates.reshape(50, -1).astype(float), axis=1)
    assert index[0] == lengths.argmin() and distance[0] == pytest.approx(lengths.min())


def test_bootstrap_interval_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = i23d_report.bootstrap_interval(values, np.random.default_rng(1))
    expected = 1.96 * values.std() / 20
    assert (values.mean() - low, high - values.mean()) == pytest.approx((expected, expected), rel=0.1)
    assert i23d_report.bootstrap_interval(np.ones(5), np.random.default_rng(1)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="n > 0"):
        i23d_report.bootstrap_interval(np.empty(0), np.random.default_rng(1))


def test_an_empty_field_costs_its_own_shape_only():
    def generate(source, seeds, *, resolution):
        if 1 in seeds:
            raise EmptyFieldError("empty")
        return [SimpleNamespace(mesh=TRIANGLE) for _ in seeds]

    pixels, seeds = np.zeros((5, 2, 2, 3), np.uint8), [0, 1, 2, 3, 4]
    meshes = i23d_quality.generate_all(SimpleNamespace(generate=generate), pixels, seeds, 32, 3)
    assert [mesh is None for mesh in meshes] == [False, True, False, False, False]
    assert i23d_quality.score(None, TRIANGLE, 0) == {"chamfer": pytest.approx(3**0.5), "fscore": 0.0, "iou": 0.0}


def test_summary_counts_wins_and_failures():
    def row(gain: float, **changes) -> dict:
        scores = {f"{name}_{s}": 0.5 for name in i23d_report.ROWS for s in i23d_report.SCORES}
        scores |= {"generation_chamfer": 0.5 - gain, "generation_fscore": 0.5 + gain}
        losses = {f"nll_{kind}": 1.0 for kind in i23d_report.LOSSES}
        return {"category": "a", "failed": "", "pixel_distance": 1.0, **scores, **losses, **changes}

    rows = [row(0.2), row(0.2, category="b"), row(-0.4, failed="generation"), row(0.0, pixel_distance=0.0)]
    summary = i23d_report.summarise(rows, seed=0)
    beats = summary["beats"]["pixels"]
    assert beats["fscore"]["share"] == beats["chamfer"]["share"] == 0.5 and beats["iou"]["share"] == 0  # a tie is no win
    assert beats["fscore"]["gain"]["mean"] == pytest.approx(0) and beats["chamfer"]["gain"]["mean"] == pytest.approx(0)
    assert (summary["failed_generations"], summary["failed_reconstructions"], summary["views_in_training"]) == (1, 0, 1)
    assert {name: group["shapes"] for name, group in summary["by_category"].items()} == {"a": 3, "b": 1}
