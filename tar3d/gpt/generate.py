"""Condition -> Tokens: exactly T = 3 R^2 tokens per row, one prefill and T - 1 decode steps, never more."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tar3d.config import SamplingConfig
from tar3d.contracts import Condition, Tokens
from tar3d.gpt.model import GPT
from tar3d.gpt.sampling import guide, sample


def generate(gpt: GPT, condition: Condition, sampling: SamplingConfig, seeds: list[int],
             progress: Callable[[int, int], None] | None = None, codes: Tensor | None = None) -> Tokens:
    """Samples the tokens of each condition row; row b is decided by `seeds[b]` and its own condition alone.

    Guidance (cfg_scale other than 1) runs conditional and null rows as one batch of 2B with a cache each. `progress` is
    called with (tokens done, T) after every token. `codes` (V, K), the tokenizer's codebook, is needed for a sketch_scale
    above 0. The GPT is in eval mode meanwhile, and then as it was before.
    """
    if sampling.sketch_scale and (gpt.sketch is None or codes is None):
        raise ValueError(f"sketch_scale is {sampling.sketch_scale:g}, but "
                         + ("this GPT has no sketch (gpt.sketch_dim): use 0" if gpt.sketch is None else "the codes are missing"))
    batch, total = len(condition.embeddings), gpt.config.num_tokens
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for {batch} condition rows: give each row its own")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    guided = sampling.cfg_scale != 1
    was_training = gpt.training
    gpt.eval()
    try:
        with torch.inference_mode():
            guess = _unit_guess(gpt, condition) if sampling.sketch_scale else None
            ids = _sample_ids(gpt, condition, sampling, generators, guided, total, progress, guess, codes)
    finally:
        gpt.train(was_training)
    return Tokens(ids.clone())  # a clone made out here is an ordinary tensor that training may use


def _unit_guess(gpt: GPT, condition: Condition) -> Tensor:
    """The sketch's codes (B, T, K) as unit vectors: their product with the tokenizer's is the cosine."""
    return F.normalize(gpt.sketch(condition.embeddings, condition.mask).float(), dim=-1)


def _sample_ids(gpt: GPT, condition: Condition, sampling: SamplingConfig, generators: list[torch.Generator],
                guided: bool, total: int, progress: Callable[[int, int], None] | None, guess: Tensor | None,
                codes: Tensor | None) -> Tensor:
    device, batch = condition.embeddings.device, len(generators)
    null = None
    if guided:
        condition = Condition(condition.embeddings.repeat(2, 1, 1), condition.mask.repeat(2, 1))
        null = torch.arange(2 * batch, device=device) >= batch
    ids = torch.empty(batch, total, dtype=torch.int64, device=device)
    logits, cache = gpt.prefill(condition, null=null)
    for i in range(total):
        if i > 0:
            token = ids[:, i - 1]
            logits = gpt.decode(token.repeat(2) if guided else token, cache)
        scores = guide(*logits.chunk(2), sampling.cfg_scale) if guided else logits
        if guess is not None:
            scores = scores + sampling.sketch_scale * guess[:, i] @ codes.to(guess).T
        ids[:, i] = sample(scores, sampling, generators)
        if progress is not None:
            progress(i + 1, total)
    return ids
