"""The suite of step times: a training step of each variant of an ablation study, in turn.

The variants (`benchmarks/ablation/variants.py`) are compared with the study's first. There is a
case for each study, on the recipe that `benchmarks/ablate.py` trains with, compiled: forward, loss,
backward, clipping and optimizers of the GPT over the recipe's rows, from random embeddings (the
image encoder is the same in nearly all, and is left out). Variants that differ in the number of
steps alone, and those with tokenizers of their own, are not here. `benchmarks.ablate --write` puts
the speeds into docs/ablations.md.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.ablation.variants import CONFIG, MODEL, STUDIES, TOKENIZER_CONFIG, VARIANTS
from benchmarks.measure import Case, Work
from benchmarks.suites.gpt_step import StepOptions, step_of
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


def step_times(study: str, device: torch.device, *, small: bool = False) -> dict[str, Work]:
    """A step of each variant of a study that trains for all steps."""
    tokenizer = (
        TokenizerConfig(grid_size=4, codebook_size=64)
        if small
        else configuration.load(VQVAEConfig, TOKENIZER_CONFIG).tokenizer
    )
    works = {}
    for variant in map(VARIANTS.__getitem__, STUDIES[study].variants):
        if variant.share != 1:
            continue
        config = configuration.load_gpt_run(
            CONFIG, "GPT-tiny", tokenizer, [*(SMALL if small else MODEL), *variant.changes]
        )
        works[variant.name] = step_of(
            config.gpt,
            config.optim,
            config.train.global_batch_size,
            device,
            name=variant.name,
            options=StepOptions(
                compile=config.train.compile is True and not small,
                frozen=PREDICTOR_PARAMETERS if config.train.stage == "transformer" else (),
            ),
        )
    return works


TIMED = [name for name, study in STUDIES.items() if not study.has_tokenizers]
CASES = (
    *(
        Case(name, "full", "tokens", partial(step_times, name), repeats=10, warmup=2)
        for name in TIMED
    ),
    *(
        Case(name, "tiny", "tokens", partial(step_times, name, small=True), repeats=1)
        for name in TIMED[:1]
    ),
)
