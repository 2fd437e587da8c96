"""What both training scripts promise: one sentence for an error, dry runs, few shapes learnt."""

from __future__ import annotations

import json
import math
import shutil
import signal

import pytest
import torch
from run_files import rows
from script_runs import GPT, VQVAE, base, train_gpt_in

import train_gpt
import train_vqvae
from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.config import GPTRunConfig, VQVAEConfig
from tar3d.data.formats.dataset_folder import read_splits
from tar3d.optim.groups import Muon
from tar3d.runtime import start_fabric
from tar3d.training import gpt_objective
from tar3d.training.errors import NotFinite
from tar3d.training.run import Run


@pytest.mark.parametrize("script", [train_vqvae, train_gpt], ids=["vqvae", "gpt"])
def test_a_loss_that_is_not_finite_stops_before_the_optimizers_move(
    script_data, fabric, vqvae_run, tmp_path, monkeypatch, script
):
    moves, calls = [], []
    for optimizer in (torch.optim.AdamW, Muon):
        monkeypatch.setattr(
            optimizer,
            "step",
            lambda self, *a, step=optimizer.step, **k: (moves.append(self), step(self, *a, **k))[1],
        )
    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def poisoned(function, first_bad_call):
        def call(*args, **kwargs):
            calls.append(1)
            return function(*args, **kwargs) * (float("nan") if len(calls) >= first_bad_call else 1)

        return call

    # two micro batches a step
    nll = poisoned(gpt_objective.cross_entropy, 3)
    monkeypatch.setattr(gpt_objective, "cross_entropy", nll)
    monkeypatch.setattr(torch.nn.functional, "binary_cross_entropy_with_logits", poisoned(bce, 2))
    config = configuration.load(VQVAEConfig, None, VQVAE)
    train = {
        train_vqvae: lambda: train_vqvae.train(config, tmp_path, fabric, {script_data: 1}),
        train_gpt: lambda: train_gpt_in(tmp_path, script_data, fabric, vqvae_run / "model"),
    }[script]
    message = "the (loss|nll) became nan at step 1; .* Its items: .*Lower optim.muon_lr"
    with pytest.raises(NotFinite, match=message):
        train()
    assert len(moves) == 2  # Muon and AdamW, once each


def test_a_dry_run_says_what_a_training_needs_and_keeps_nothing(
    script_data, vqvae_run, tmp_path, capsys
):
    flags = [
        "--base",
        base(tmp_path),
        "--data",
        str(script_data),
        "--out",
        str(tmp_path / "run"),
        *VQVAE,
        "train.codebook_steps=7000",
    ]
    assert train_vqvae.main([*flags, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert (
        "dry run: nothing was kept. 3 autoencoder steps of" in output
        and "7,000 codebook steps of" in output
    )
    assert (
        "MiB a state, 2 are kept" in output and "GiB" in output and not (tmp_path / "run").exists()
    )
    flags = [
        "--config",
        base(tmp_path),
        "--data",
        str(script_data),
        "--vq-ckpt",
        str(vqvae_run / "model"),
        *GPT,
        "train.steps=9000",
    ]
    assert train_gpt.main([*flags, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "9,000 steps of" in output and "model in" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("extra", [["--dry-run"], []], ids=["dry run", "run"])
def test_a_folder_that_is_no_data_set_stays_as_it_was(vqvae_run, tmp_path, capsys, extra):
    """No tokens, no stamp; and what a dry run makes of one is gone."""
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "splits.json").write_text('{"train": [], "val": [], "test": []}')
    flags = ["--data", str(wrong), "--out", str(tmp_path / "run"), *extra]
    gpt = ["--config", base(tmp_path), "--vq-ckpt", str(vqvae_run / "model"), *GPT]
    assert train_gpt.main([*flags, *gpt]) == 2
    assert "holds no samples" in capsys.readouterr().err
    assert train_vqvae.main([*flags, "--base", base(tmp_path), *VQVAE]) == 2
    assert "no samples for split 'train'" in capsys.readouterr().err
    assert [p.name for p in wrong.iterdir()] == ["splits.json"]
    assert not list((tmp_path / "run").rglob("*"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_one_sentence(script_data, vqvae_run, tmp_path, capsys, split):
    own = tmp_path / "set"
    shutil.copytree(script_data, own, ignore=shutil.ignore_patterns("tokens"))
    ids = [i for of_split in read_splits(own).values() for i in of_split]
    other = {"train": "val", "val": "train"}[split]
    (own / "splits.json").write_text(json.dumps({split: [], other: ids[:-1], "test": ids[-1:]}))
    flags = ["--data", str(own), "--out", str(tmp_path / "run")]
    assert train_vqvae.main([*flags, "--base", base(tmp_path), *VQVAE]) == 2
    error = capsys.readouterr().err
    assert f"no samples for split '{split}'" in error and "names no shape for it" in error
    gpt = ["--config", base(tmp_path), "--vq-ckpt", str(vqvae_run / "model"), *GPT]
    assert train_gpt.main([*flags, *gpt]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"holds no tokens of split '{split}'" in error and "move ids to that split" in error


@pytest.mark.parametrize("script", [train_vqvae, train_gpt], ids=["vqvae", "gpt"])
def test_a_dry_run_that_ends_early_promises_no_state(
    script_data, vqvae_run, tmp_path, monkeypatch, capsys, script
):
    flags = ["--dry-run", "--out", str(tmp_path / "run"), "--data", str(script_data)]
    if script is train_vqvae:
        flags += ["--base", base(tmp_path), *VQVAE]
    else:
        flags += ["--config", base(tmp_path), "--vq-ckpt", str(vqvae_run / "model"), *GPT]
    monkeypatch.setattr(Run, "received_signal", lambda self: signal.SIGTERM)
    assert script.main(flags) == 128 + signal.SIGTERM
    error = capsys.readouterr().err
    assert "stopped by SIGTERM after step 1; no state was saved: this was a dry run" in error
    assert "--resume" not in error
    nan = {"loss": math.nan}
    monkeypatch.setattr(Run, "step_values", lambda self, norm: nan)
    assert script.main(flags) == 2
    error = capsys.readouterr().err
    assert "the loss became nan at step 0" in error
    assert "no state was saved" in error
    assert "--resume" not in error


def test_defaults_are_found_from_any_folder(script_data, tmp_path, monkeypatch, capsys):
    """The config file and the tokenizer that ship; what is written is below that folder."""
    own = tmp_path / "set"
    shutil.copytree(script_data, own, ignore=shutil.ignore_patterns("tokens"))
    monkeypatch.chdir(tmp_path)
    few = ["train.preview_shapes=0", "train.num_workers=0", "train.precision=32-true"]
    flags = ["--dry-run", "--data", "set", *few]
    size = ["train.surface_points=64", "train.volume_points=32", "train.near_points=32"]
    assert train_vqvae.main([*flags, *size, "train.batch_size=1"]) == 0
    size = ["gpt.num_layers=1", "train.global_batch_size=1", "train.code_predictor_rows=0"]
    assert train_gpt.main([*flags, *size, "train.micro_batch_size=0"]) == 0
    assert capsys.readouterr().out.count("dry run: nothing was kept") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_overfitting_a_shape_passes_or_fails(script_data, vqvae_run, tmp_path, capsys):
    flags = ["--base", base(tmp_path), "--data", str(script_data), *VQVAE, "--overfit", "1"]
    more_codes_than_tokens = "tokenizer.codebook_size=64"
    assert train_vqvae.main([*flags, "--out", str(tmp_path / "short"), more_codes_than_tokens]) == 1
    assert "FAIL: volume IoU of the shapes it was trained on" in capsys.readouterr().out
    flags = [
        "--config",
        base(tmp_path),
        "--data",
        str(script_data),
        "--vq-ckpt",
        str(vqvae_run / "model"),
        "--overfit",
        "1",
        *GPT,
        "train.token_noise=0.5",
        "train.validate_every=1000",
        "train.save_every=1000",
    ]
    assert train_gpt.main([*flags, "--out", str(tmp_path / "few")]) == 1
    assert "FAIL: share of the tokens" in capsys.readouterr().out
    assert train_gpt.main([*flags, "--out", str(tmp_path / "enough"), "train.steps=200"]) == 0
    assert (
        "PASS: share of the tokens it was trained on that it generates again"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_trains(script_data, fabric, vqvae_run, tmp_path, precision):
    """Both trainings, and close to what float32 gives in the first steps."""
    half = start_fabric(None, 1, precision)
    config = configuration.load(VQVAEConfig, None, [*VQVAE, f"train.precision={precision}"])
    train_vqvae.train(config, tmp_path / "vqvae", half, {script_data: 1})
    for mine, theirs in zip(
        rows(tmp_path / "vqvae" / "train.csv")[:3], rows(vqvae_run / "train.csv"), strict=False
    ):
        assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), rel=0.05)
    train_gpt_in(
        tmp_path / "gpt", script_data, half, vqvae_run / "model", [f"train.precision={precision}"]
    )
    log = rows(tmp_path / "gpt" / "train.csv")
    assert len(log) == 6 and all(math.isfinite(float(r["nll"])) for r in log)


def test_command_lines_train(script_data, tmp_path):
    """Both trainings through `main`, with the flags a user would write."""
    vqvae, gpt = tmp_path / "vqvae", tmp_path / "gpt"
    fast = ["train.preview_shapes=0", "train.validate_every=100", "train.save_every=100"]
    flags = [
        "--base",
        base(tmp_path),
        "--data",
        str(script_data),
        "--out",
        str(vqvae),
        *VQVAE,
        *fast,
    ]
    assert train_vqvae.main(flags) == 0
    own = tmp_path / "set"
    shutil.copytree(script_data, own, ignore=shutil.ignore_patterns("tokens"))
    sizes = [
        o
        for o in GPT
        if o.split("=")[0] not in ("train.global_batch_size", "train.micro_batch_size")
    ]
    flags = [
        "--gpt-type",
        "i23d",
        "--config",
        base(tmp_path),
        "--data",
        str(own),
        "--vq-ckpt",
        str(vqvae / "model"),
        "--out",
        str(gpt),
        "--global-batch-size",
        "2",
        *sizes,
        *fast,
    ]
    assert train_gpt.main(flags) == 0
    saved = configuration.load(GPTRunConfig, gpt / "model" / "gpt_i23d" / "config.yaml")
    assert saved.train.global_batch_size == 2 and saved.gpt.num_layers == 2
    assert saved.tokenizer_fingerprint == checkpoint.token_fingerprint(
        checkpoint.load_tokenizer(gpt / "model")
    )


@pytest.mark.parametrize("script", [train_vqvae, train_gpt], ids=["vqvae", "gpt"])
def test_refusals_of_the_training_scripts(
    script_data, vqvae_run, gpt_run, tmp_path, capsys, script
):
    common = ["--data", str(script_data), "--out", str(tmp_path / "new")]
    if script is train_gpt:
        common += ["--vq-ckpt", str(vqvae_run / "model"), "--config", base(tmp_path), *GPT]
    else:
        common += ["--base", base(tmp_path), *VQVAE]
    finished = gpt_run if script is train_gpt else vqvae_run
    cases = [
        (["--out", str(finished)], "already holds a run: continue it with --resume auto"),
        (["--resume", "none.pt"], "--resume none.pt: there is no such state"),
        (["train.sede=1"], "sede"),
        (["optim.muon_lr=nan"], "optim.muon_lr must be positive and finite, got nan"),
        (["train.seed=18446744073709551616"], "train.seed must be from 0 to 2^63 - 1"),
        (["--init", str(tmp_path)], "not a model directory"),
    ]
    if not torch.cuda.is_available():
        cases.append((["--gpus", "0,1"], "asks for GPU 0,1, which this machine does not have"))
    if script is train_gpt:
        cases.append(
            (
                ["gpt.codebook_size=32"],
                "gpt.codebook_size is 32, but the tokenizer's is 16: write gpt.codebook_size=16",
            )
        )
    for flags, message in cases:
        assert script.main([*common, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
