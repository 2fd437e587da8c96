"""Targets that allow for neighbouring codes, and samples of the GPT itself in its context.

When the same shape is sampled again, a token changes to a code next to it at a fifth of the
positions, and the decoder makes nearly the same surface of both. A one-hot target asks a GPT to
tell these apart, which nothing in its input does. A soft target gives each code near the token a
share that falls with its distance to the shape's own latent (SNCE, arXiv 2603.15150; DIST2Loss,
arXiv 2503.02379).

Letters: V codes, K their coordinates, C candidates a position, N positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tar3d.gpt.loss import SoftTargets, logits_in_parts

CODES_AT_ONCE = 1024  # rows of the V x V distances


@torch.no_grad()
def nearest_codes(codes: Tensor, count: int) -> Tensor:
    """Ids (V, count) int64 of the codes nearest to each of `codes` (V, K), itself first.

    Raises ValueError where there are fewer codes than `count`.
    """
    if count > len(codes):
        raise ValueError(
            f"a target of {count} codes is asked for (train.target_codes), but the tokenizer has "
            f"{len(codes)}: write fewer"
        )
    codes = codes.float()
    found = []
    for first in range(0, len(codes), CODES_AT_ONCE):
        part = codes[first : first + CODES_AT_ONCE]
        distances = torch.cdist(part, codes, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(part), device=codes.device)
        distances[own, first + own] = -1.0  # first, also where another code equals it
        found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)


def soft_targets(
    tokens: Tensor, latents: Tensor, codes: Tensor, neighbours: Tensor, temperature: float
) -> SoftTargets:
    """Shares of the codes near each token, by their distance to the latent that it stands for.

    The candidates of a token (...) int64 are its row of `neighbours` (V, C), as `nearest_codes`
    returns them. Their shares are softmax(-|z - c|^2 / (2 temperature)) of `latents` z (..., K) and
    `codes` c (V, K); for unit vectors that is softmax(cosine / temperature).
    """
    ids = neighbours[tokens]
    distances = (codes[ids] - latents.to(codes.dtype)[..., None, :]).square().sum(-1)
    return SoftTargets(ids, torch.softmax(-distances / (2 * temperature), dim=-1))


@torch.no_grad()
def sample_tokens(hidden: Tensor, weight: Tensor, draws: Tensor) -> Tensor:
    """A token for each position, drawn from what the GPT predicts there, (...) int64.

    `hidden` (..., D) and `weight` (V, D) as in `tar3d.gpt.loss`; `draws` (...), uniform in [0, 1),
    decide. The distribution is that of temperature 1.
    """
    samples = []
    for logits, part in logits_in_parts(hidden.flatten(0, -2), weight):
        reached = logits.softmax(dim=1).cumsum(dim=1)
        goal = draws.flatten()[part, None].to(reached.dtype) * reached[:, -1:]
        samples.append(torch.searchsorted(reached, goal, right=True)[:, 0])
    return torch.cat(samples).clamp_max(len(weight) - 1).view(draws.shape)
