"""Training shapes that somebody without a model could have copied: random, or nearest.

To add a baseline, add a function here that chooses a training shape for each unseen one, its title
to TITLES of `tar3d.evaluation.generations`, and its result to `nearest` of the inputs there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import torch

from tar3d.data.formats.samples import open_samples
from tar3d.evaluation.unseen_shapes import EvalData, training_ids
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from tar3d.condition.base import ImageEncoder

FEATURE_BATCH = 64


def random_of_category(data: EvalData, modality: str, ids: list[str], seed: int) -> list[str]:
    """For each unseen shape a random training shape of its category."""
    categories = open_samples(data.test).categories()
    train_categories = open_samples(data.train).categories()
    rng, library = np.random.default_rng([seed, 1]), training_ids(data.train, modality)
    return [same_category(categories.get(i, ""), library, train_categories, rng) for i in ids]


def nearest_captions(queries: list[str], candidates: list[str]) -> list[int]:
    """For each query the index of the candidate with the largest share of words in common.

    The share is intersection over union; the first of equals is taken.
    """
    known = [set(re.findall(r"\w+", caption.lower())) for caption in candidates]
    asked = [set(re.findall(r"\w+", caption.lower())) for caption in queries]
    return [
        max(range(len(known)), key=lambda k: len(words & known[k]) / max(1, len(words | known[k])))
        for words in asked
    ]


@torch.inference_mode()
def features(encoder: ImageEncoder, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    """Unit vectors (K, E): the encoder's embeddings, averaged over the image.

    Their order by L2 distance is that by cosine.
    """
    parts = []
    for start in progress_bar(
        range(0, len(pixels), FEATURE_BATCH), unit="batch", desc="features", leave=False
    ):
        embeddings = encoder(
            torch.from_numpy(pixels[start : start + FEATURE_BATCH]).to(device)
        ).embeddings.float()
        parts.append(torch.nn.functional.normalize(embeddings.mean(1), dim=-1).cpu().numpy())
    return np.concatenate(parts)


def nearest(
    queries: np.ndarray, candidates: np.ndarray, *, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the index of the candidate at the least L2 distance, and that distance.

    (Q, ...), (N, ...) -> (Q,), (Q,). It is computed in float64, so that distances between uint8
    images are exact: 0 means identical. The first of equals is taken.
    """
    if len(candidates) == 0 or queries.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            f"nearest needs candidates of the queries' shape, got {queries.shape} and "
            f"{candidates.shape}"
        )
    q = queries.reshape(len(queries), -1).astype(np.float64)
    best, index = np.full(len(q), np.inf), np.zeros(len(q), dtype=np.int64)
    for start in range(0, len(candidates), chunk):
        c = candidates[start : start + chunk].reshape(-1, q.shape[1]).astype(np.float64)
        squared = (q**2).sum(1)[:, None] + (c**2).sum(1) - 2 * q @ c.T  # (Q, chunk)
        found = squared.argmin(1)
        value = squared[np.arange(len(q)), found]
        index = np.where(value < best, start + found, index)
        best = np.minimum(best, value)
    return index, np.sqrt(best.clip(0))


def same_category(
    category: str, ids: list[str], categories: dict[str, str], rng: np.random.Generator
) -> str:
    """A random one of `ids` that is of the category; ValueError where there is none."""
    same = [i for i in ids if categories.get(i, "") == category]
    if not same:
        raise ValueError(
            f"no training shape has the category {category!r}; both manifest.csv must use the same "
            "names"
        )
    return same[int(rng.integers(len(same)))]
