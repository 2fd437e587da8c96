"""`train.deterministic`: the same bits in every run. A CPU gives them anyway; on a GPU PyTorch has
to be told."""

from __future__ import annotations

import pytest
import torch
from trainings import VQVAE, finish, is_the_same_run

import train_vqvae
from tar3d.training import vqvae_reports

FEW = {"vqvae": ["train.autoencoder_steps=6", "train.codebook_steps=6"], "gpt": ["train.steps=12"]}
ON = "train.deterministic=true"


@pytest.mark.parametrize("name", ["vqvae", "gpt"])
def test_on_a_cpu_it_changes_nothing(commands, tmp_path, name):
    finish([*commands[name], "--out", str(tmp_path), ON])
    assert is_the_same_run(tmp_path, commands["whole"] / name)


def test_steps_are_deterministic_and_validation_may_do_as_it_likes(
    data, empty, tmp_path, monkeypatch
):
    seen = {"forward": set(), "validate": set()}

    def noting(name, function):
        return lambda *given, **settings: (
            seen[name].add(torch.are_deterministic_algorithms_enabled()),
            function(*given, **settings),
        )[1]

    for module, name in ((train_vqvae, "forward"), (vqvae_reports, "validate")):
        monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    flags = ["--base", str(empty), "--data", str(data), *VQVAE, *FEW["vqvae"], ON]
    assert train_vqvae.main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert (
        seen == {"forward": {True}, "validate": {False}}
        and not torch.are_deterministic_algorithms_enabled()
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["vqvae", "gpt"])
def test_two_trainings_on_a_gpu_are_the_same_to_the_bit(commands, tmp_path, name, precision):
    runs = [tmp_path / "one", tmp_path / "two"]
    for out in runs:
        finish([*commands[name], *FEW[name], f"train.precision={precision}", ON, "--out", str(out)])
    assert is_the_same_run(*runs)
