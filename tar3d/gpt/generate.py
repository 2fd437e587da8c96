"""Condition -> Tokens: all tokens of the GPT's layout for each row, never more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tar3d.contracts import Condition, Tokens
from tar3d.gpt.engine import Engine
from tar3d.gpt.sampling import uniform_draws

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tar3d.config import SamplingConfig
    from tar3d.gpt.model import GPT


def generate(
    gpt: GPT,
    condition: Condition,
    sampling: SamplingConfig,
    seeds: list[int],
    progress: Callable[[int, int], None] | None = None,
    codes: Tensor | None = None,
    engine: Engine | None = None,
) -> Tokens:
    """Samples the tokens of each condition row; `seeds[b]` and its own condition decide row b.

    Guidance (cfg_scale other than 1) adds a null row to each. `progress` is called with (tokens
    done, T). `codes` (V, K), the tokenizer's codebook, is needed for a code_predictor_scale above
    0. `engine` is one that was made from `gpt` as it is now; making one copies the weights, so
    whoever calls often keeps it. Raises LogitsNotFinite where logits are NaN or infinite.
    """
    if sampling.code_predictor_scale and (gpt.code_predictor is None or codes is None):
        raise ValueError(
            f"code_predictor_scale is {sampling.code_predictor_scale:g}, but "
            + (
                "this GPT has no code predictor (gpt.code_predictor_dim): use 0"
                if gpt.code_predictor is None
                else "the codes are missing"
            )
        )
    if len(seeds) != len(condition.embeddings):
        raise ValueError(
            f"{len(seeds)} seeds for {len(condition.embeddings)} condition rows: "
            "give each row its own"
        )
    ids = (engine or Engine(gpt)).run(
        condition, sampling, uniform_draws(seeds, gpt.config.num_tokens), codes, progress
    )
    # A clone made out here is an ordinary tensor that training may use.
    return Tokens(gpt.to_raster_order(ids).clone(), gpt.layout.name)
