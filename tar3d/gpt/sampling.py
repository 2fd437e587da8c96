"""From logits to a token: pure functions that know no model.

The order is fixed: guidance, temperature, top-k, top-p over what top-k left, min-p. A filter keeps
at least the best token. Randomness comes in as uniform numbers, one a token, drawn beforehand from
one CPU generator per item: an item's tokens do not depend on its batch mates, a seed means the same
on every machine, and nothing waits for the host.

Letters: B batch, V codebook size, T tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tar3d.contracts import LogitsNotFinite

if TYPE_CHECKING:
    from tar3d.config import SamplingConfig

MASS_TOLERANCE = 1e-6  # float32 sums: 0.5 + 0.3 has reached a top_p of 0.8


def guide(conditional: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, null + scale (conditional - null).

    It is exact at scale 1 (conditional) and 0 (null).
    """
    if scale == 1:
        return conditional
    if scale == 0:
        return null
    return null + scale * (conditional - null)


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """`logits` (B, V) after temperature (which must be > 0) and the filters; others become -inf.

    top_k keeps the k best; top_p the smallest set of best tokens with a mass of at least p; min_p
    the tokens with at least that fraction of the best token's probability.
    """
    if config.temperature == 0:
        raise ValueError(
            "temperature 0 is greedy and has no distribution: use sample, or a temperature above 0"
        )
    logits = logits.float() / config.temperature
    if config.top_k > 0 or config.top_p < 1:
        kept = min(config.top_k or logits.shape[-1], logits.shape[-1])
        best, index = logits.topk(kept, dim=-1)  # (B, k), descending
        if config.top_p < 1:
            mass = best.softmax(-1)
            mass_before = mass.cumsum(-1) - mass
            enough = mass_before >= config.top_p - MASS_TOLERANCE
            enough[..., 0] = False
            best = best.masked_fill(enough, -torch.inf)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, index, best)
    if config.min_p > 0:
        limit = logits.amax(-1, keepdim=True) + math.log(config.min_p)
        logits = logits.masked_fill(logits < limit, -torch.inf)
    return logits


def probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """The probabilities (B, V) float32 that `sample` draws from.

    At temperature 0 all mass is on the best token.
    """
    if config.temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float32).scatter(
            -1, logits.argmax(-1, keepdim=True), 1.0
        )
    return filter_logits(logits, config).softmax(-1)


def uniform_draws(seeds: list[int], count: int) -> Tensor:
    """(B, count) float32 in [0, 1): row b is decided by seeds[b] alone."""
    return torch.stack(
        [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def sample(logits: Tensor, config: SamplingConfig, draws: Tensor) -> Tensor:
    """Draws one token per row of `logits` (B, V), decided by `draws` (B,) in [0, 1): (B,) int64.

    The token is where the cumulated probabilities pass the draw. Temperature 0 takes the best
    token, whatever the draw. Nothing is read back to the host, except on MPS, so logits that are
    NaN or infinite give some token; `check_logit_sums` finds them later.
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    if draws.shape != logits.shape[:1]:
        raise ValueError(
            f"draws are {tuple(draws.shape)} for {len(logits)} rows: each row needs one"
        )
    mass = probabilities(logits, config)
    if mass.device.type == "mps":  # which has no float64
        mass, draws = mass.cpu(), draws.cpu()
    cumulative = mass.double().cumsum(-1)  # (B, V)
    # float32 draws are at most 1 - 2^-24: in float64 they stay below the last sum, so no token of
    # mass 0 is ever hit.
    token = torch.searchsorted(
        cumulative, draws.double()[:, None] * cumulative[:, -1:], right=True
    ).squeeze(-1)
    return token.clamp_max(logits.shape[-1] - 1).to(logits.device)


def draw_misses(logits: Tensor, config: SamplingConfig, draws: Tensor, tokens: Tensor) -> Tensor:
    """How far draws (B,) are from the part of [0, 1) that their tokens (B,) have: (B,) float64.

    It is 0 for a token that `sample` gives, and infinite for one without probability.
    """
    mass = probabilities(logits, config).double()
    end = mass.cumsum(-1)
    mass, end, total = (
        x.squeeze(-1)
        for x in (mass.gather(-1, tokens[:, None]), end.gather(-1, tokens[:, None]), end[:, -1:])
    )
    miss = torch.maximum((end - mass) / total - draws, draws - end / total).clamp_min(0)
    return miss.masked_fill(mass == 0, torch.inf)


def check_logit_sums(sums: Tensor, dtype: torch.dtype) -> None:
    """Raises LogitsNotFinite where `sums` (B,), of all logits of a row, are not finite.

    The logits were computed in `dtype`. Waits for the device.
    """
    finite = sums.isfinite().tolist()
    if all(finite):
        return
    wrong = [str(row) for row, is_finite in enumerate(finite) if not is_finite]
    where = f" for row {', '.join(wrong)}" if len(wrong) < len(finite) else ""
    advice = (
        "float16 is too small for this model: use bf16-mixed or 32-true"
        if dtype == torch.float16
        else "because its weights or its conditions are: copy the model again or take another"
    )
    raise LogitsNotFinite(f"the logits of the GPT are NaN or infinite{where}, {advice}")
