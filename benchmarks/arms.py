"""The suite of arms: a training step of each arm of a study (`benchmarks/studies.py`), in turn,
against the study's first.

A case a study, on the recipe that `benchmarks/ablate.py` trains with, compiled: forward, loss,
backward, clipping and optimizers of the GPT over the recipe's rows, from random embeddings (the
image encoder, alike in nearly all, is left out). Arms that differ in nothing but the number of
steps, and those with tokenizers of their own, are not here. `benchmarks.ablate --write` puts the
speeds into docs/ablations.md.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.measure import Case, Work
from benchmarks.studies import ARMS, CONFIG, MODEL, STUDIES, TOKENIZER_CONFIG
from benchmarks.train import step_of
from tar3d import config as configuration
from tar3d.config import TokenizerConfig, VQVAEConfig
from tar3d.gpt.code_predictor import PREDICTOR_PARAMETERS

if TYPE_CHECKING:
    import torch

SMALL = (
    "gpt.num_layers=4",
    "gpt.width=32",
    "gpt.num_heads=2",
    "gpt.condition_tokens=4",
    "gpt.condition_width=8",
    "image_encoder.image_size=16",
    "image_encoder.width=8",
    "image_encoder.num_heads=1",
)


def arms(study: str, device: torch.device, *, small: bool = False) -> dict[str, Work]:
    tokenizer = (
        TokenizerConfig(grid_size=4, codebook_size=64)
        if small
        else configuration.load(VQVAEConfig, TOKENIZER_CONFIG).tokenizer
    )
    works = {}
    for arm in (ARMS[name] for name in STUDIES[study].arms if ARMS[name].share == 1):
        config = configuration.load_gpt_run(
            CONFIG, "GPT-tiny", tokenizer, [*(SMALL if small else MODEL), *arm.changes]
        )
        works[arm.name] = step_of(
            config.gpt,
            config.optim,
            config.train.global_batch_size,
            device,
            name=arm.name,
            compile=config.train.compile and not small,
            frozen=PREDICTOR_PARAMETERS if config.train.stage == "transformer" else (),
        )
    return works


TIMED = [name for name, study in STUDIES.items() if not study.has_tokenizers]
CASES = (
    *(Case(name, "full", "tokens", partial(arms, name), repeats=10, warmup=2) for name in TIMED),
    *(
        Case(name, "tiny", "tokens", partial(arms, name, small=True), repeats=1)
        for name in TIMED[:1]
    ),
)
