"""train_gpt.py on primitive shapes: it resumes bit for bit, and continues other models."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from run_files import equal, rows
from safetensors.torch import load_file
from script_runs import (
    CODE_PREDICTOR,
    code_predictor_objective,
    interrupted,
    newest,
    random_rows,
    train_gpt_in,
)

from tar3d import checkpoint
from tar3d.condition.conditioner import rows_of
from tar3d.config import SamplingConfig
from tar3d.layouts.triplane import to_planes
from tar3d.pipeline import Pipeline
from tar3d.training.gpt_init import PREFIX_PARTS
from tar3d.training.state import load_state


@pytest.mark.parametrize("code_predictor", [[], CODE_PREDICTOR], ids=["plain", "code_predictor"])
def test_an_interrupted_gpt_training_resumes_bit_for_bit(
    script_data, fabric, vqvae_run, tmp_path, monkeypatch, code_predictor
):
    train_gpt_in(tmp_path / "whole", script_data, fabric, vqvae_run / "model", code_predictor)
    with interrupted(4):
        train_gpt_in(tmp_path / "parts", script_data, fabric, vqvae_run / "model", code_predictor)
    train_gpt_in(
        tmp_path / "parts",
        script_data,
        fabric,
        vqvae_run / "model",
        code_predictor,
        state=newest(tmp_path / "parts"),
    )
    assert equal(*(load_state(newest(tmp_path / run)) for run in ("parts", "whole")))
    for name in ("train.csv", "validation.csv"):
        assert rows(tmp_path / "parts" / name) == rows(tmp_path / "whole" / name)


@pytest.mark.parametrize("code_predictor", [[], CODE_PREDICTOR], ids=["plain", "code_predictor"])
def test_accumulation_does_not_change_a_step(
    script_data, fabric, vqvae_run, tmp_path, code_predictor
):
    losses = []
    for micro in (4, 2, 1):
        train_gpt_in(
            tmp_path / str(micro),
            script_data,
            fabric,
            vqvae_run / "model",
            [f"train.micro_batch_size={micro}", "train.steps=2", *code_predictor],
        )
        losses.append([float(r["nll"]) for r in rows(tmp_path / str(micro) / "train.csv")])
        losses[-1] += [float(r["gradient_norm"]) for r in rows(tmp_path / str(micro) / "train.csv")]
    assert np.allclose(losses, losses[0], rtol=1e-3)
    with pytest.raises(ValueError, match="micro_batch_size 3 does not divide the 4 rows"):
        train_gpt_in(
            tmp_path / "odd", script_data, fabric, vqvae_run / "model", ["train.micro_batch_size=3"]
        )


def test_a_gpt_is_trained_further_with_another_image_encoder(
    script_data, fabric, vqvae_run, gpt_run, tmp_path, capsys
):
    """What depends on the encoder begins anew, the rest is taken over."""
    init, own = str(gpt_run / "model" / "gpt_i23d"), tmp_path / "set"
    shutil.copytree(script_data, own, ignore=shutil.ignore_patterns("tokens"))
    few = ["train.steps=1", "optim.muon_lr=1e-9", "optim.adamw_lr=1e-9", "train.preview_shapes=0"]
    other = ["image_encoder.width=32", "gpt.condition_width=32"]
    train_gpt_in(tmp_path / "same", own, fabric, vqvae_run / "model", few, init=init)
    assert "start from scratch" not in capsys.readouterr().out
    shutil.rmtree(own / "tokens")
    train_gpt_in(tmp_path / "other", own, fabric, vqvae_run / "model", [*few, *other], init=init)
    assert "start from scratch" in capsys.readouterr().out
    given = load_file(f"{init}/model.safetensors")
    for name, anew in (
        ("same", ()),
        ("other", ("conditioner.trained.image.", *PREFIX_PARTS)),
    ):
        found = load_file(tmp_path / name / "model" / "gpt_i23d" / "model.safetensors")
        kept = {key for key in given if not key.startswith(anew)}
        assert (
            all(torch.allclose(found[key], given[key], atol=1e-6) for key in kept)
            and len(kept) > 10
        )


def test_damaged_token_shards_are_refused(script_data, fabric, vqvae_run, gpt_run, tmp_path):
    own = tmp_path / "set"
    shutil.copytree(script_data, own)
    path = next((own / "tokens").glob("train-*")) / "tokens.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="tokens.npy is damaged: .*make_tokens"):
        train_gpt_in(tmp_path / "run", own, fabric, vqvae_run / "model")


def test_another_order_of_the_tokens_is_the_same_tokens_to_all_but_the_gpt(vqvae_run):
    vqvae = checkpoint.load_tokenizer(vqvae_run / "model")
    config, objective = code_predictor_objective(
        vqvae, "gpt.token_order=planes", "gpt.code_predictor_dim=0"
    )
    rows, dropped = random_rows(config, 3), torch.tensor([False, True, False])
    tokens, model = rows["tokens"], objective.model.eval()
    losses = objective(tokens, tokens[:, :-1], rows["condition"], dropped)
    by_token = model.token_nll(tokens, rows["condition"], dropped)
    assert set(losses) == {"nll"}
    torch.testing.assert_close(by_token.mean(), losses["nll"])
    plain = to_planes(tokens, config.gpt.grid_size).flatten(1)  # plane after plane
    logits = model.gpt(plain[:, :-1], model.condition(rows["condition"], 3), dropped)
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), plain, reduction="none")
    torch.testing.assert_close(to_planes(by_token, config.gpt.grid_size).flatten(1), expected)
    greedy = (
        Pipeline(vqvae, model, torch.device("cpu"))
        .tokens(rows_of(rows["condition"], slice(0, 1)), [0], SamplingConfig(temperature=0.0))
        .ids
    )
    again = model.gpt(
        to_planes(greedy, config.gpt.grid_size).flatten(1)[:, :-1],
        model.condition(rows_of(rows["condition"], slice(0, 1)), 1),
    )
    assert torch.equal(again.argmax(-1), to_planes(greedy, config.gpt.grid_size).flatten(1))
