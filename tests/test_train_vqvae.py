"""train_vqvae.py on a handful of primitive shapes: it resumes bit for bit, and trains in stages."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from run_files import equal, rows
from safetensors.torch import load_file
from script_runs import VQVAE, base, interrupted, newest

import train_vqvae
from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.config import VQVAEConfig
from tar3d.tokenizer import loss
from tar3d.training.errors import NotFinite
from tar3d.training.state import load_state


def test_a_tokenizer_trains_on_several_augmented_sets_and_resumes(
    script_data, tmp_path, monkeypatch
):
    """--data A --data B:2; each set has its own IoU, the mean of both chooses the model, and a
    resumed run is the same run."""
    other = tmp_path / "other"
    shutil.copytree(script_data, other)
    flags = [
        "--base",
        base(tmp_path),
        "--data",
        str(script_data),
        "--data",
        f"{other}:2",
        *VQVAE,
        "train.augment.scale=[0.75,1.25]",
        "train.augment.rotate=0.5",
        "train.augment.mirror=0.5",
    ]
    assert train_vqvae.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    row = rows(tmp_path / "whole" / "validation.csv")[-1]
    means = [float(row[f"iou_volume_{name}"]) for name in (script_data.name, "other")]
    assert float(row["iou_volume"]) == pytest.approx(sum(means) / 2, rel=1e-4)
    with interrupted(2):
        train_vqvae.main([*flags, "--out", str(tmp_path / "parts")])
    assert train_vqvae.main([*flags, "--out", str(tmp_path / "parts"), "--resume", "auto"]) == 0
    assert rows(tmp_path / "parts" / "train.csv") == rows(tmp_path / "whole" / "train.csv")


@pytest.mark.parametrize(
    "given, message", [(["A", "A:2"], "give each folder once"), (["A:0"], "at least 1")]
)
def test_wrong_sets_are_named(tmp_path, capsys, given, message):
    flags = [word for folder in given for word in ("--data", str(tmp_path / folder))]
    assert train_vqvae.main(["--base", base(tmp_path), "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("stop", [2, 4])  # before and after the codebook starts
def test_an_interrupted_tokenizer_training_resumes_bit_for_bit(
    script_data, fabric, vqvae_run, tmp_path, monkeypatch, stop
):
    config = configuration.load(VQVAEConfig, None, VQVAE)
    with interrupted(stop):
        train_vqvae.train(config, tmp_path, fabric, {script_data: 1})
    assert load_state(newest(tmp_path))["step"] == stop
    train_vqvae.train(config, tmp_path, fabric, {script_data: 1}, state=newest(tmp_path))
    assert equal(load_state(newest(tmp_path)), load_state(newest(vqvae_run)))
    for name in ("train.csv", "validation.csv"):
        assert rows(tmp_path / name) == rows(vqvae_run / name)
    assert equal(
        load_file(tmp_path / "model" / "model.safetensors"),
        load_file(vqvae_run / "model" / "model.safetensors"),
    )


def test_training_logs_every_step_and_moves_the_codebook_only_in_its_stage(vqvae_run):
    log = rows(vqvae_run / "train.csv")
    assert [int(r["step"]) for r in log] == [1, 2, 3, 4, 5, 6]
    assert [float(r["commitment"]) > 0 for r in log] == [False] * 3 + [True] * 3
    validation = rows(vqvae_run / "validation.csv")
    assert [float(r["codebook_usage"]) > 0 for r in validation] == [False, True, True]
    assert sorted(p.name for p in vqvae_run.glob("preview_*.png")) == [
        f"preview_{k:07d}.png" for k in (2, 4, 6)
    ]
    metrics = json.loads((vqvae_run / "model" / "metrics.json").read_text())
    assert metrics["iou_volume"] == pytest.approx(
        max(float(r["iou_volume"]) for r in validation[1:]), rel=1e-4
    )


def test_resuming_with_another_model_is_one_sentence(script_data, vqvae_run, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(vqvae_run, out)
    flags = [
        "--base",
        base(tmp_path),
        "--data",
        str(script_data),
        "--out",
        str(out),
        "--resume",
        "auto",
        *VQVAE,
        "tokenizer.width=32",
    ]
    assert train_vqvae.main(flags) == 2
    assert "tokenizer.width is 16 there and 32 now" in capsys.readouterr().err


def test_stages_can_be_trained_apart(script_data, tmp_path, capsys):
    """An autoencoder, a codebook for it, and that tokenizer trained further with the codebook it
    has."""
    flags = ["--base", base(tmp_path), "--data", str(script_data), *VQVAE]
    ae, vq, more = (tmp_path / name for name in ("ae", "vq", "more"))
    assert train_vqvae.main([*flags, "--out", str(ae), "train.stage=ae"]) == 0
    assert "train.stage=vq" in capsys.readouterr().out
    assert {float(r["codebook_usage"]) for r in rows(ae / "validation.csv")} == {0.0}
    with pytest.raises(ValueError, match="is an autoencoder, whose codebook is not trained"):
        checkpoint.load_tokenizer(ae / "model")
    assert train_vqvae.main([*flags, "--out", str(vq), "train.stage=vq"]) == 2
    assert "give it with --init" in capsys.readouterr().err
    assert (
        train_vqvae.main(
            [*flags, "--out", str(vq), "train.stage=decoder", "--init", str(ae / "model")]
        )
        == 2
    )
    assert "is an autoencoder alone" in capsys.readouterr().err
    assert (
        train_vqvae.main([*flags, "--out", str(vq), "train.stage=vq", "--init", str(ae / "model")])
        == 0
    )
    assert [r["step"] for r in rows(vq / "train.csv")] == ["1", "2", "3"]
    assert float(rows(vq / "train.csv")[0]["commitment"]) > 0
    before = checkpoint.load_tokenizer(vq / "model").quantizer.codebook
    again = [
        *flags,
        "--out",
        str(more),
        "train.stage=vq",
        "train.codebook_steps=1",
        "--init",
        str(vq / "model"),
    ]
    assert train_vqvae.main(again) == 0
    after = checkpoint.load_tokenizer(more / "model").quantizer.codebook
    assert (after * before).sum(-1).median() > 0.99, "the codebook was kept, not started again"
    decoder = tmp_path / "decoder"
    assert (
        train_vqvae.main(
            [*flags, "--out", str(decoder), "train.stage=decoder", "--init", str(vq / "model")]
        )
        == 0
    )
    old, new = (checkpoint.load_tokenizer(run / "model") for run in (vq, decoder))
    moved = {
        name
        for name, value in new.state_dict().items()
        if not torch.equal(value, old.state_dict()[name])
    }
    assert moved and all(name.startswith(("decoder.", "occupancy.")) for name in moved)
    assert checkpoint.token_fingerprint(new) == checkpoint.token_fingerprint(old)
    assert checkpoint.fingerprint(new) != checkpoint.fingerprint(old)


def test_points_are_counted_as_where_a_training_starts_from(
    script_data, vqvae_run, tmp_path, capsys
):
    """An encoder keeps its `density_points` when other numbers of points are drawn: resumed, or of
    --init. No decoder can be trained for another number."""
    assert checkpoint.load_tokenizer(vqvae_run / "model").config.density_points == 128
    out, init = tmp_path / "run", ["--init", str(vqvae_run / "model")]
    flags = ["--base", base(tmp_path), "--data", str(script_data), "--out", str(out), *VQVAE]
    flags += ["train.stage=decoder", "train.save_every=1", "train.validate_every=1"]
    assert train_vqvae.main([*flags, *init, "tokenizer.density_points=64"]) == 2
    assert "density_points is 64, but 128 in" in capsys.readouterr().err
    for steps, points, begin in ((1, 127, init), (2, 126, ["--resume", "auto"])):
        given = [f"train.codebook_steps={steps}", f"train.surface_points={points}", *begin]
        assert train_vqvae.main([*flags, *init, *given]) == 0
        config = load_state(newest(out))["identity"]["config"]
        assert config["tokenizer"]["density_points"] == 128
        assert config["train"]["surface_points"] == points
    assert checkpoint.read_config(out / "model", VQVAEConfig).tokenizer.density_points == 128


def test_a_tokenizer_that_does_not_flip_trains_and_resumes(script_data, fabric, tmp_path):
    """Coarse pooling, two samplings a step, rounded coordinates, and a decoder that is given
    neighbours of the codes; what is random in these goes on in a resumed run."""
    more = ["tokenizer.quantizer=fsq", "tokenizer.fsq_levels=[4,3]", "tokenizer.code_dim=2"]
    more += ["tokenizer.codebook_size=12", "tokenizer.pool_factor=2", "train.surface_points=64"]
    more += ["train.consistency_weight=0.5", "train.replaced_rows=0.5", "train.replaced_by=3"]
    config = configuration.load(VQVAEConfig, None, [*VQVAE, *more])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_vqvae.train(config, whole, fabric, {script_data: 1})
    with interrupted(4):
        train_vqvae.train(config, parts, fabric, {script_data: 1})
    train_vqvae.train(config, parts, fabric, {script_data: 1}, state=newest(parts))
    log = rows(whole / "train.csv")
    assert rows(parts / "train.csv") == log and float(log[0]["consistency"]) > 0
    tokenizer = checkpoint.load_tokenizer(whole / "model")
    assert tokenizer.config == config.tokenizer and tokenizer.config.density_points == 64


def test_averaged_weights_are_what_is_kept(script_data, fabric, tmp_path):
    """With a decay of nearly one the average moves, but less than the weights do; the state holds
    both."""
    config = configuration.load(
        VQVAEConfig, None, [*VQVAE, "train.ema=0.999", "train.validate_every=6"]
    )
    train_vqvae.train(config, tmp_path, fabric, {script_data: 1})
    state = load_state(newest(tmp_path))
    kept = load_file(tmp_path / "model" / "model.safetensors")
    averaged = {
        k.removeprefix("module."): v for k, v in state["averaged"].items() if k != "n_averaged"
    }
    assert equal(kept, averaged) and not equal(kept, dict(state["model"]))
    assert torch.equal(averaged["quantizer.codebook"], state["model"]["quantizer.codebook"]), (
        "the codebook is that of the end"
    )


def test_steps_that_are_not_finite_can_be_passed_over(
    script_data, fabric, tmp_path, monkeypatch, capsys
):
    """The dump repeats the step; the weights are those of a run that never saw it."""
    real, calls = loss.tokenizer_loss, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        found = real(*args, **kwargs)
        return (
            dataclasses.replace(found, total=found.total * float("nan"))
            if len(calls) == 2
            else found
        )

    monkeypatch.setattr(loss, "tokenizer_loss", poisoned)
    config = configuration.load(VQVAEConfig, None, [*VQVAE, "train.skip_nonfinite=1"])
    train_vqvae.train(config, tmp_path, fabric, {script_data: 1})
    log = rows(tmp_path / "train.csv")
    assert [r["skipped"] for r in log] == ["0", "1", "1", "1", "1", "1"] and log[1]["loss"] == "nan"
    dump = tmp_path / "nonfinite" / "00000001.pt"
    about = json.loads(dump.with_suffix(".json").read_text())
    assert (
        load_state(dump)["step"] == 1
        and len(about["items"]) == 2
        and about["parameters_without_finite_gradient"]
    )
    assert "passed over, 1 of 1: the loss became nan at step 1" in capsys.readouterr().out


def test_a_preview_that_cannot_be_made_is_told_before_training(script_data, tmp_path, capsys):
    own = tmp_path / "set"
    shutil.copytree(script_data, own)
    report = (own / "report.csv").read_text().replace("/given/", "/moved/")
    (own / "report.csv").write_text(report)
    flags = ["--base", base(tmp_path), "--data", str(own), *VQVAE, "--out"]
    assert train_vqvae.main([*flags, str(tmp_path / "a")]) == 2
    assert "is not there" in capsys.readouterr().err and not (tmp_path / "a" / "train.csv").exists()
    assert train_vqvae.main([*flags, str(tmp_path / "b"), "train.preview_shapes=0"]) == 0


def test_a_run_that_diverged_exits_with_two(script_data, tmp_path, monkeypatch, capsys):
    def diverges(*args, **settings):
        raise NotFinite("loss", math.nan, 0, ["a", "b"], tmp_path / "state.pt")

    monkeypatch.setattr(train_vqvae, "forward", diverges)
    assert (
        train_vqvae.main(
            [
                "--base",
                base(tmp_path),
                "--data",
                str(script_data),
                "--out",
                str(tmp_path / "run"),
                *VQVAE,
            ]
        )
        == 2
    )
    assert "the loss became nan" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--toy-shapes", "0"]])
def test_counts_are_at_least_one(capsys, flags):
    with pytest.raises(SystemExit) as stop:
        train_vqvae.main(flags)
    assert stop.value.code == 2 and "must be at least 1" in capsys.readouterr().err
