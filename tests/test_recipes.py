"""The recipes: the speedrun with tiny numbers, and every command of the others as far as its
arguments go."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tar3d.config import (
    EvalProtocol,
    PrepareConfig,
    TokenizerConfig,
    ToyConfig,
    VQVAEConfig,
    load,
    load_gpt_run,
)
from tar3d.evaluation.evaluator_network import EvaluatorConfig
from tar3d.runtime import model_arguments

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = {  # of the speedrun, so that it takes seconds
    "WORKERS": "1",
    "SHAPES": "8",
    "TESTED": "1",
    "POINTS": "256",
    "VIEWS": "1",
    "RESOLUTION": "16",
    "AUTOENCODER_STEPS": "40",
    "CODEBOOK_STEPS": "10",
    "PREDICTOR_STEPS": "4",
    "GPT_STEPS": "4",
    "TOKENIZER_OPTIONS": "tokenizer.grid_size=4 tokenizer.width=32 tokenizer.decoder_layers=1 "
    "tokenizer.codebook_size=32 train.surface_points=256 train.volume_points=64 "
    "train.near_points=256 train.near_weight=5 train.batch_size=4 train.num_workers=0 "
    "optim.warmup_steps=1",
    "GPT_OPTIONS": "gpt.num_layers=2 gpt.width=32 gpt.num_heads=2 image_encoder.num_layers=1 "
    "gpt.code_predictor_hidden=32 train.global_batch_size=4 train.num_workers=0 "
    "optim.warmup_steps=1",
}
# What reads the key=value words of a command.
KEYS: dict[str, Callable[[argparse.Namespace], object]] = {
    "train_vqvae": lambda args: load(VQVAEConfig, args.base, args.overrides),
    "train_gpt": lambda args: load_gpt_run(
        args.config
        or f"configs/gpt_{args.gpt_type}{'_tiny' * (args.gpt_model == 'GPT-tiny')}.yaml",
        args.gpt_model,
        TokenizerConfig(),
        args.overrides,
        args.gpt_type,
    ),
    "eval_3d": lambda args: load(EvalProtocol, None, args.overrides),
    "tar3d.data.toy": lambda args: load(ToyConfig, None, args.overrides),
    "tar3d.data.make_samples": lambda args: load(PrepareConfig, None, args.overrides),
    "tar3d.evaluation.evaluator": lambda args: load(EvaluatorConfig, None, args.overrides),
}
MAIN = {"tar3d.data.toy": "tar3d.data.toy.__main__"}  # packages, whose main is in a file of theirs


class Parsed(BaseException):
    """Ends a command where its arguments have been parsed; not an error that a script catches."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.arguments = args


def commands(recipe: str, folder: Path, **variables: str) -> list[list[str]]:
    """The Python commands of a recipe, in order, as a python of its own writes them down."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"""#!/bin/bash\nprintf '%q ' "$@" >> {folder}/log; echo >> {folder}/log\n""")
    python.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "OUT": str(folder / "out"),
        "DATA": str(folder / "out" / "data"),
        **variables,
    }
    subprocess.run(["bash", str(ROOT / "recipes" / recipe)], env=environment, check=True)
    return [shlex.split(line) for line in (folder / "log").read_text().splitlines()]


def split(command: list[str]) -> tuple[str, list[str]]:
    """Module and arguments of a Python command."""
    if command[0] == "-m":
        return command[1], command[2:]
    return command[0].removesuffix(".py"), command[1:]


def main(module: str) -> Callable[[list[str]], int]:
    return importlib.import_module(MAIN.get(module, module)).main


def test_the_speedrun_goes_from_nothing_to_meshes_and_a_score(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for module, arguments in map(split, commands("speedrun_cpu.sh", tmp_path, **NUMBERS)):
        assert not main(module)(arguments), module  # None or 0
    out = tmp_path / "out"
    for made in ("generated/sample_image.glb", "eval/report.md", "eval/ranked.png"):
        assert (out / made).is_file(), made
    assert len(list((out / "done").iterdir())) == 7


def test_a_recipe_that_has_ended_does_nothing_more(tmp_path):
    first = commands("speedrun_cpu.sh", tmp_path)
    (tmp_path / "bin" / "python").unlink()
    (tmp_path / "bin").rmdir()
    assert len(first) == len(commands("speedrun_cpu.sh", tmp_path)) == 7  # the log of before


@pytest.mark.parametrize(
    ("recipe", "number", "variables"),
    [
        ("shipped_weights.sh", 24, {"REAL_MESHES": "manifest.csv"}),
        ("one_gpu.sh", 11, {"MESHES": "meshes"}),
        ("speedrun_cpu.sh", 7, {}),
    ],
)
def test_every_command_has_the_flags_and_keys_that_there_are(
    recipe, number, variables, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)

    def stop_after(parse):
        def parse_and_stop(*arguments, **options):
            raise Parsed(parse(*arguments, **options))

        return parse_and_stop

    for name in ("parse_args", "parse_intermixed_args"):
        parse = stop_after(getattr(argparse.ArgumentParser, name))
        monkeypatch.setattr(argparse.ArgumentParser, name, parse)
    # A model that an earlier step would have made.
    monkeypatch.setattr(model_arguments, "local_model", lambda source: None)
    if recipe == "shipped_weights.sh":  # what a step of its own copies
        for folder in ("gpt_joined/model", "evaluator"):
            (tmp_path / "out" / folder).mkdir(parents=True)
    done = commands(recipe, tmp_path, **variables)
    assert len(done) == number
    for module, arguments in map(split, done):
        with pytest.raises(Parsed) as parsed:
            main(module)(arguments)
        if getattr(parsed.value.arguments, "overrides", None):
            KEYS[module](parsed.value.arguments)
