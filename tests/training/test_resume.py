"""A resumed run is the run that it resumes: what makes it another one is refused, and changes no
file; what may change holds from the next step on, and is told."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import rows
from script_runs import GPT, VQVAE, base, newest

import train_gpt
import train_vqvae
from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.config import GPTRunConfig, VQVAEConfig
from tar3d.data.formats.dataset_folder import read_splits
from tar3d.training.resume import IDENTIFIES, MAY_CHANGE, ON_RESUME, leaves
from tar3d.training.state import load_state, save_state

TEXT = [
    "text_encoder.model=trained",
    "text_encoder.max_tokens=8",
    "text_encoder.vocabulary=16",
    "text_encoder.width=16",
    "text_encoder.num_layers=1",
    "text_encoder.num_heads=2",
]
FEW = ["train.preview_shapes=0"]


def test_every_key_either_may_change_or_identifies_the_run():
    keys = {
        key
        for config in (VQVAEConfig(), GPTRunConfig())
        for key, _ in leaves(configuration.to_mapping(config))
    }
    assert keys == set(ON_RESUME), "decide for a new key what a resumed run may do with it"
    assert set(ON_RESUME.values()) == {MAY_CHANGE, IDENTIFIES}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


class Trial:
    """A finished run of either script in a folder of its own, with its own copy of the data."""

    def __init__(self, script, folder: Path, samples: Path, tokenizer: Path) -> None:
        self.script, self.data, self.out = script, folder / "set", folder / "run"
        shutil.copytree(samples, self.data, ignore=shutil.ignore_patterns("tokens"))
        ids = [i for split in read_splits(self.data).values() for i in split]
        lines = [
            f"{i},a {word} shape {k % 3}" for k, i in enumerate(ids) for word in ("big", "red")
        ]
        (self.data / "captions.csv").write_text("\n".join(["id,caption", *lines, ""]))
        self.tokenizer = tokenizer
        self.config = base(folder)
        assert self.run() == 0

    def run(self, *flags: str) -> int:
        common = ["--data", str(self.data), "--out", str(self.out)]
        if self.script is train_vqvae:
            common += ["--base", self.config, *VQVAE]
        else:
            common += ["--config", self.config, "--vq-ckpt", str(self.tokenizer), "--gpt-type"]
            common += ["any", *GPT, *TEXT]
        return self.script.main([*common, *FEW, *flags])

    def resume(self, *flags: str) -> int:
        return self.run("--resume", "auto", *flags)

    def change_samples(self) -> None:
        path = self.data / "samples" / f"{read_splits(self.data)['train'][0]}.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays["surface"][0, 0] += np.float16(0.01)
        np.savez(path, **arrays)

    def exchange_captions(self) -> None:
        path = self.data / "captions.csv"
        a, b = read_splits(self.data)["train"][:2]
        swap = {a: b, b: a}
        found = [line.split(",") for line in path.read_text().splitlines()]
        path.write_text("".join(f"{swap.get(i, i)},{text}\n" for i, text in found))

    def add_captions(self) -> None:
        with (self.data / "captions.csv").open("a") as f:
            f.write("".join(f"{i},green green\n" for i in read_splits(self.data)["train"]))

    def change_splits(self) -> None:
        splits = read_splits(self.data)
        splits["train"].append(splits["val"].pop())
        (self.data / "splits.json").write_text(json.dumps(splits))


@pytest.fixture(scope="module")
def trials(script_data, vqvae_run, tmp_path_factory) -> dict[str, Trial]:
    folder = tmp_path_factory.mktemp("resume")
    scripts = {"vqvae": train_vqvae, "gpt": train_gpt}
    return {
        name: Trial(script, folder / name, script_data, vqvae_run / "model")
        for name, script in scripts.items()
        if not (folder / name).mkdir()
    }


@pytest.fixture
def trial(trials, tmp_path, request) -> Trial:
    """A copy of a finished run and of its data."""
    trial = trials[request.param]
    copy = object.__new__(Trial)
    vars(copy).update(vars(trial) | {"data": tmp_path / "set", "out": tmp_path / "run"})
    shutil.copytree(trial.data, copy.data)
    shutil.copytree(trial.out, copy.out)
    return copy


REFUSED = [
    ("vqvae", None, ["tokenizer.width=32"], "tokenizer.width is 16 there and 32 now"),
    ("vqvae", None, ["optim.optimizer=adamw"], "optim.optimizer is muon there and adamw now"),
    ("vqvae", None, ["train.seed=1"], "train.seed is 0 there and 1 now"),
    ("vqvae", None, ["train.codebook_steps=1"], "is of step 6, but the training has 4 steps now"),
    ("vqvae", None, ["train.autoencoder_steps=4"], "write train.autoencoder_steps=3"),
    ("vqvae", None, ["train.codebook_steps=9", "train.surface_points=999"], "points are wanted"),
    ("vqvae", None, ["train.codebook_steps=9", "train.micro_batch_size=3"], "does not divide"),
    ("vqvae", None, ["--overfit", "1"], "--overfit is not given there and 1 now"),
    ("vqvae", Trial.change_samples, [], "the training data is 3 shapes .* there and 3 shapes"),
    ("vqvae", Trial.change_splits, [], "the validation data is 2 shapes .* there and 1 shapes"),
    ("gpt", None, ["gpt.width=32"], "gpt.width is 16 there and 32 now"),
    ("gpt", None, ["--overfit", "1"], "--overfit is not given there and 1 now"),
    ("gpt", None, ["--gpt-type", "i23d"], "conditions is .*image.*text.* there and .*image.* now"),
    ("gpt", None, ["--vq-ckpt", "OTHER"], "tokenizer_fingerprint is"),
    ("gpt", Trial.change_samples, [], "index.json: the samples of its shapes have changed"),
    ("gpt", Trial.exchange_captions, [], "text.json: the captions of its shapes have changed"),
    ("gpt", Trial.add_captions, [], "the text encoder is trained text encoder, .* words"),
    ("gpt", Trial.change_splits, [], "the text encoder is trained text encoder, .* words"),
]


@pytest.fixture(scope="module")
def other_tokenizer(vqvae_run, tmp_path_factory) -> Path:
    """A tokenizer of the same shape with another codebook."""
    model = checkpoint.load_tokenizer(vqvae_run / "model")
    model.quantizer.codebook.neg_()
    folder = tmp_path_factory.mktemp("other")
    return checkpoint.save_model(folder, model, VQVAEConfig(tokenizer=model.config), {}, "")


@pytest.mark.parametrize(("trial", "change", "flags", "message"), REFUSED, indirect=["trial"])
def test_another_training_is_refused_and_no_file_changes(
    trial, change, flags, message, capsys, other_tokenizer
):
    if change is not None:
        change(trial)
    flags = [str(other_tokenizer) if flag == "OTHER" else flag for flag in flags]
    before = hashes(trial.out)
    assert trial.resume(*flags) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, sentence), sentence
    assert hashes(trial.out) == before


@pytest.mark.parametrize("trial", ["vqvae", "gpt"], indirect=True)
def test_rates_that_change_hold_from_the_next_step_on_and_are_told(trial, capsys):
    longer = ["train.codebook_steps=5"] if trial.script is train_vqvae else ["train.steps=8"]
    rates = ["optim.muon_lr=1e-4", "optim.adamw_lr=2e-4", "optim.weight_decay=0.5"]
    momenta = ["optim.beta1=0.5", "optim.beta2=0.6", "optim.muon_momentum=0.7"]
    constant = ["optim.final_lr_fraction=1"]
    assert trial.resume(*longer, *rates, *momenta, *constant, "train.precision=bf16-mixed") == 0
    told = capsys.readouterr().out
    assert "resumes at step 6 with" in told
    assert "optim.muon_lr 0.0001 instead of 0.01" in told
    assert [row["lr"] for row in rows(trial.out / "train.csv")[6:]] == ["0.0001"] * 2
    groups = [g for o in load_state(newest(trial.out))["optimizers"] for g in o["param_groups"]]
    assert {g["initial_lr"] for g in groups} == {1e-4, 2e-4}
    assert {g["weight_decay"] for g in groups} == {0.5, 0.0}
    assert {g.get("betas") for g in groups} == {(0.5, 0.6), None}
    assert {g.get("momentum") for g in groups} == {0.7, None}
    record = json.loads((trial.out / "run.json").read_text())
    assert record["config"]["optim"]["muon_lr"] == 1e-4
    assert [r["step"] for r in record["resumed"]] == [6]
    assert record["resumed"][0]["changed"]["optim.muon_lr"] == [0.01, 1e-4]


@pytest.mark.parametrize("trial", ["vqvae"], indirect=True)
def test_a_state_without_an_identity_resumes_and_says_so(trial, capsys):
    state = newest(trial.out)
    saved = load_state(state)
    del saved["identity"]
    save_state(state.parent, saved["step"], saved)
    assert trial.resume("train.codebook_steps=5", "train.seed=3") == 0
    assert "is of an earlier version, which noted neither" in capsys.readouterr().out
    assert load_state(newest(trial.out))["step"] == 8


@pytest.mark.parametrize("trial", ["vqvae"], indirect=True)
def test_a_copy_of_the_data_elsewhere_is_the_same_data(trial, tmp_path, capsys):
    trial.data = shutil.copytree(trial.data, tmp_path / "moved", copy_function=shutil.copyfile)
    assert trial.resume("train.codebook_steps=4") == 0
    assert "resumes at step 6 with train.codebook_steps 4 instead of 3" in capsys.readouterr().out


@pytest.mark.parametrize("trial", ["vqvae"], indirect=True)
def test_what_is_said_after_a_loss_that_is_not_finite_works(trial, monkeypatch, capsys):
    """Lower rates go on from the state before; at 1e30 the next step is not finite."""
    high = ["optim.muon_lr=1e30", "optim.adamw_lr=1e30", "optim.weight_decay=0"]
    longer = "train.codebook_steps=7"
    assert trial.resume(*high, longer) == 2
    message = capsys.readouterr().err
    assert "Lower optim.muon_lr and optim.adamw_lr" in message
    assert trial.resume(longer) == 0
    assert all(torch.isfinite(v).all() for v in load_state(newest(trial.out))["model"].values())


@pytest.mark.parametrize("name", ["vqvae", "gpt"])
def test_a_finished_trial_of_few_shapes_can_be_asked_again(trials, name, tmp_path, capsys):
    trial = object.__new__(Trial)
    vars(trial).update(vars(trials[name]) | {"out": tmp_path / "few"})
    results = [trial.run("--overfit", "1"), trial.resume("--overfit", "1")]
    said = re.findall(r"(?:PASS|FAIL): .* (\d\.\d+),", capsys.readouterr().out)
    assert results == [1, 1] and len(said) == 2 and said[0] == said[1]
    assert trial.resume() == 2
    assert "--overfit is 1 there and not given now" in capsys.readouterr().err
