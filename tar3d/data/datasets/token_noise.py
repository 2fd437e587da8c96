"""Noise in the tokens that a GPT reads in training; its targets stay the true ones.

True context says nearly everything about the next token. A GPT that is trained on true context
alone learns to ignore its condition, and follows its own first tokens when it generates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenNoise:
    """Replaces a share of a row's tokens; the share is uniform in [0, `largest_share`).

    Without `neighbours` by any of the `codebook_size` codes. With a table (V, C) of the codes next
    to each, itself first, by one of the other C - 1. With `own` the tokens stay, and `draws` says
    which the GPT shall replace by samples of its own (`tar3d.gpt.soft_targets.sample_tokens`).
    """

    largest_share: float
    codebook_size: int
    neighbours: np.ndarray | None = None
    own: bool = False

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`inputs` (t,) of the true tokens (t,) int64.

        With `own` also `draws` (t,) float32, uniform in [0, 1) where a token is to be replaced and
        -1 elsewhere.
        """
        replaced = np.zeros(len(tokens), bool)
        if self.largest_share:
            replaced = rng.random(len(tokens)) < rng.random() * self.largest_share
        if self.own:
            draws = np.where(replaced, rng.random(len(tokens), np.float32), np.float32(-1))
            return {"inputs": tokens, "draws": draws}
        if not self.largest_share:
            return {"inputs": tokens}
        if self.neighbours is None:
            others = rng.integers(self.codebook_size, size=len(tokens))
        else:
            column = rng.integers(1, self.neighbours.shape[1], size=len(tokens))
            others = self.neighbours[tokens, column].astype(np.int64)
        return {"inputs": np.where(replaced, others, tokens)}
