"""Logs: no step twice, no half line, and the same figures wherever they go."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from tar3d.training.arguments import add_run_arguments, chosen_trackers
from tar3d.training.log import RunLog
from tar3d.training.trackers import TRACKERS


def rows(path) -> list[dict]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_a_resumed_log_has_no_step_twice(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": 1.0 / step, "revived": step})
    log.write("validation", 2, {"iou": 0.5})
    log.close()
    log = RunLog(tmp_path, 2)
    log.write("train", 3, {"loss": 0.25, "revived": 0})
    log.close()
    assert [(r["step"], r["loss"]) for r in rows(tmp_path / "train.csv")] == [
        ("1", "1"),
        ("2", "0.5"),
        ("3", "0.25"),
    ]
    assert rows(tmp_path / "validation.csv") == [{"step": "2", "iou": "0.5"}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_may_tell_of_other_things(tmp_path):
    for step, values in enumerate(
        ({"nll": 2.0, "code_distance": 0.5}, {"nll": 1.0}, {"gradient_norm": 3.0, "nll": 0.5})
    ):
        log = RunLog(tmp_path, step)
        log.write("train", step + 1, values)
        log.close()
    assert (
        tmp_path / "train.csv"
    ).read_text() == "step,nll,code_distance,gradient_norm\n1,2,0.5,\n2,1,,\n3,0.5,,3\n"


def test_columns_of_an_earlier_version_go_on_under_the_names_of_today(tmp_path):
    """Where a resumed run had added today's column beside the old one, the two are one again."""
    (tmp_path / "train.csv").write_text("step,nll,sketch,code_distance\n1,2,0.5,\n2,1,,0.25\n")
    (tmp_path / "validation.csv").write_text("step,sketch,sketch_shuffled\n2,0.5,0.6\n")
    log = RunLog(tmp_path, 2)
    log.write("train", 3, {"nll": 0.5, "code_distance": 0.125})
    log.close()
    assert (
        tmp_path / "train.csv"
    ).read_text() == "step,nll,code_distance\n1,2,0.5\n2,1,0.25\n3,0.5,0.125\n"
    assert (
        tmp_path / "validation.csv"
    ).read_text() == "step,code_distance,code_distance_shuffled\n2,0.5,0.6\n"


def test_tensorboard_keeps_the_step_that_a_run_resumes_from(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (1, 2, 3)), (2, (3,))):
        log = RunLog(tmp_path, start)
        for step in steps:
            log.write("train", step, {"loss": step + start})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(e.step, e.value) for e in events] == [(1, 1), (2, 2), (3, 5)]


def test_nothing_changes_before_the_first_row(tmp_path):
    (tmp_path / "train.csv").write_text("step,loss\n1,1\n2,0.5\n")
    RunLog(tmp_path, 1).close()
    assert [p.name for p in tmp_path.iterdir()] == ["train.csv"]
    assert (tmp_path / "train.csv").read_text() == "step,loss\n1,1\n2,0.5\n"


@pytest.mark.parametrize("cut", ["3,0.3", "3", "", "3,0.33333,3\n4,"])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, cut):
    (tmp_path / "train.csv").write_text("step,loss,revived\n1,1,0\n2,0.5,0\n" + cut)
    RunLog(tmp_path, 2).begin()
    assert (tmp_path / "train.csv").read_text() == "step,loss,revived\n1,1,0\n2,0.5,0\n"


def test_a_run_that_never_saved_starts_its_log_anew(tmp_path):
    for _ in range(2):
        log = RunLog(tmp_path, 0)
        log.write("train", 1, {"loss": 1.0})
        log.close()
    assert len(rows(tmp_path / "train.csv")) == 1


def test_weights_and_biases_gets_the_same_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    """A stand-in for the package: what is asked of it is what its documentation says."""
    started, logged, finished = [], [], []

    def init(**settings) -> SimpleNamespace:
        started.append(settings)
        return SimpleNamespace(
            id=settings["id"] or "abc",
            log=lambda values, step=None: logged.append((step, values)),
            finish=lambda: finished.append(1),
        )

    monkeypatch.setitem(
        sys.modules,
        "wandb",
        SimpleNamespace(init=init, Image=lambda path: f"picture {path}", Error=OSError),
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "preview.png")
    for start in (0, 3):
        log = RunLog(tmp_path, start, {"wandb": "a project"}, {"seed": 1})
        log.write("train", start + 1, {"loss": 0.5})
        log.image("preview", start + 1, tmp_path / "preview.png")
        log.close()
    assert [(s["project"], s["id"], s["config"]) for s in started] == [
        ("a project", None, {"seed": 1}),
        ("a project", "abc", {"seed": 1}),
    ]
    assert logged == [
        (1, {"train/loss": 0.5}),
        (1, {"preview": f"picture {tmp_path / 'preview.png'}"}),
        (4, {"train/loss": 0.5}),
        (4, {"preview": f"picture {tmp_path / 'preview.png'}"}),
    ]
    assert len(finished) == 2


def test_weights_and_biases_that_cannot_start_is_a_sentence(tmp_path, monkeypatch):
    class Refused(Exception):
        """As its package has it: none of Python's own kinds."""

    def init(**settings) -> None:
        raise Refused("No API key configured.\nmore")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=Refused))
    with pytest.raises(
        ValueError,
        match=r"did not start \(No API key configured.\). Log in with: wandb login, or .*=offline",
    ):
        RunLog(tmp_path, 0, {"wandb": "a project"})


def test_the_package_itself_goes_on_in_the_same_run_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    Image.new("RGB", (4, 4)).save(tmp_path / "preview.png")
    for start in (0, 3):
        log = RunLog(tmp_path, start, {"wandb": "a-project"}, {"seed": 1})
        log.write("train", start + 1, {"loss": 0.5})
        log.image("preview", start + 1, tmp_path / "preview.png")
        log.close()
    known = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert [path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")] == [
        f"run-{known}.wandb"
    ] * 2
    assert len(list((tmp_path / "wandb").rglob("preview_*.png"))) == 2


def test_weights_and_biases_that_is_not_installed_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match="--wandb needs the package wandb: python -m pip install wandb"
    ):
        RunLog(tmp_path, 0, {"wandb": "a project"})


def test_a_tracker_is_one_class_and_one_line(tmp_path, monkeypatch):
    """It has a flag of its own, and gets what TensorBoard gets."""
    calls = []

    class Recorder:
        def __init__(self, name, folder, config):
            calls.append((name, folder, config))

        def log(self, step, values):
            calls.append((step, values))

        def image(self, step, name, path):
            calls.append((step, name, path))

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(TRACKERS, "own-recorder", (Recorder, "NAME", "a tracker of one's own"))
    parser = argparse.ArgumentParser()
    add_run_arguments(parser, "out")
    assert chosen_trackers(parser.parse_args([])) == {}
    chosen = chosen_trackers(parser.parse_args(["--own-recorder", "me"]))
    log = RunLog(tmp_path, 0, chosen, {"seed": 1})
    log.write("train", 1, {"loss": 0.5})
    image = tmp_path / "preview.png"
    log.image("preview", 1, image)  # which was not written
    Image.new("RGB", (4, 4)).save(image)
    log.image("preview", 2, image)
    log.close()
    assert calls == [
        ("me", tmp_path, {"seed": 1}),
        (1, {"train/loss": 0.5}),
        (2, "preview", image),
        "closed",
    ]
