"""The evaluator's network: a PointNet and a bag-of-words encoder with one embedding space.

Points go through PointNet (arXiv 1612.00593): the same small network for each point, then the
maximum and the mean over all, so that their order does not matter, and their number little. A
caption is a bag of its words and of pairs of neighbouring words, so that "square legs" is not
"square seat"; words that training never saw are ignored. Both are trained with the contrastive loss
of CLIP (arXiv 2103.00020), and a linear head tells the category of the points.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tar3d.config.checks import check_seed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FREQUENCIES = 3  # sines and cosines of pi, 2 pi, 4 pi times a coordinate
AT_ONCE = 8  # shapes: more would leave the processor's cache
HIGHEST_SCALE = 100.0  # largest factor of the cosines, as in CLIP


@dataclass(kw_only=True)
class EvaluatorConfig:
    """The settings of an evaluator and its training, saved beside the weights.

    `categories` and `terms` (words, and pairs of words with a space between) come from the data.
    """

    categories: list[str] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    rarest_term: int = 10  # least number of times that a term occurs in the training captions
    width: int = 128  # hidden width for points and captions
    pooled: int = 384  # features of a point over which the maximum and the mean are taken
    embedding: int = 64
    points: int = 1024  # drawn from a surface anew at each step
    # Largest standard deviation of positions; that of normals is ten times as large. Each shape of
    # a batch draws its own below it.
    noise: float = 0.01
    batch_size: int = 64
    steps: int = 2000
    learning_rate: float = 2e-3  # AdamW's, falls to 0 along a cosine after `warmup` steps
    warmup: int = 100
    weight_decay: float = 0.02
    bfloat16: bool = True  # while training: arithmetic of the points' features
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                "learning_rate of the evaluator must be positive and weight_decay at least 0, both "
                f"finite, got {self.learning_rate} and {self.weight_decay}"
            )
        if self.warmup < 0:
            raise ValueError(f"warmup of the evaluator must be at least 0, got {self.warmup}")
        low = [
            name
            for name in ("width", "pooled", "embedding", "points", "batch_size", "steps")
            if getattr(self, name) < 1
        ]
        if low:
            raise ValueError(
                f"{low[0]} of the evaluator must be at least 1, got {getattr(self, low[0])}"
            )


class Evaluator(nn.Module):
    """Embeds surface points and captions, and tells the category of points.

    Points are (B, N, 6), xyz in the cube [-1, 1]^3 of the project's frame and unit normals; N is
    any number (2,048 is usual).
    """

    def __init__(self, config: EvaluatorConfig) -> None:
        super().__init__()
        self.config = config
        self.index = {term: k for k, term in enumerate(config.terms)}
        wide = config.width
        self.point_mlp = nn.Sequential(
            nn.Linear(6 + 6 * FREQUENCIES, wide // 2),
            nn.ReLU(),
            nn.Linear(wide // 2, wide),
            nn.ReLU(),
            nn.Linear(wide, config.pooled),
            nn.ReLU(),
        )
        self.pool_mlp = nn.Sequential(
            nn.LayerNorm(2 * config.pooled), nn.Linear(2 * config.pooled, 2 * wide), nn.ReLU()
        )
        self.to_category = nn.Linear(2 * wide, len(config.categories))
        self.shape_proj = nn.Linear(2 * wide, config.embedding)
        # The last term stands for the beginning of a caption.
        self.term_embedding = nn.EmbeddingBag(len(config.terms) + 1, wide, mode="sum")
        self.text_proj = nn.Sequential(
            nn.LayerNorm(wide),
            nn.Linear(wide, 2 * wide),
            nn.ReLU(),
            nn.Linear(2 * wide, config.embedding),
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def features(self, points: Tensor) -> Tensor:
        """(B, N, 6) -> (B, 2 width), the input of both heads.

        Raises ValueError for another shape.
        """
        if points.ndim != 3 or points.shape[-1] != 6 or points.shape[1] == 0:
            raise ValueError(
                f"the evaluator takes points and normals (B, N, 6), got {tuple(points.shape)}: "
                "draw them with tar3d.evaluation.evaluator.surface"
            )
        return self.pool_mlp(torch.cat([self._pooled(part) for part in points.split(AT_ONCE)]))

    def _pooled(self, points: Tensor) -> Tensor:
        angles = torch.cat([points[..., :3] * math.pi * 2**k for k in range(FREQUENCIES)], dim=-1)
        with torch.autocast(
            points.device.type, torch.bfloat16, enabled=self.training and self.config.bfloat16
        ):
            each = self.point_mlp(torch.cat([points, angles.sin(), angles.cos()], dim=-1))
        return torch.cat([each.amax(1), each.mean(1)], dim=-1).float()

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2 width) -> unit vectors (B, E) and logits over the categories (B, C)."""
        return F.normalize(self.shape_proj(features), dim=-1), self.to_category(features)

    @torch.inference_mode()
    def embed_shapes(self, points: Tensor) -> Tensor:
        """(B, N, 6) -> unit vectors (B, E)."""
        return self.heads(self.features(points))[0]

    @torch.inference_mode()
    def categories_of(self, points: Tensor) -> list[str]:
        """(B, N, 6) -> the likeliest category of each."""
        return [
            self.config.categories[k]
            for k in self.heads(self.features(points))[1].argmax(-1).tolist()
        ]

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """B captions -> unit vectors (B, E), also for unknown words and empty captions."""
        return self.text_features(captions)

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """B captions -> unit vectors (B, E), with gradients."""
        known = [
            [len(self.index), *(self.index[t] for t in terms_of(c) if t in self.index)]
            for c in captions
        ]
        starts = torch.tensor([0, *(len(k) for k in known[:-1])]).cumsum(0)
        device = self.log_scale.device
        terms = torch.tensor(list(itertools.chain.from_iterable(known)), device=device)
        bags = self.term_embedding(terms, starts.to(device))
        return F.normalize(self.text_proj(bags), dim=-1)

    def loss(self, points: Tensor, captions: Sequence[str], category: Tensor) -> Tensor:
        """CLIP's symmetric InfoNCE plus the cross-entropy of the categories (B,), in nats.

        Shapes with literally equal captions share a target: identical captions are not used as
        negatives.
        """
        shapes, logits = self.heads(self.features(points))
        scale = self.log_scale.exp().clamp(max=HIGHEST_SCALE)
        scores = scale * shapes @ self.text_features(captions).T
        number = {caption: k for k, caption in enumerate(captions)}
        same = torch.tensor([number[c] for c in captions], device=points.device)
        targets = F.normalize((same[:, None] == same).float(), p=1, dim=-1)
        contrast = (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2
        return contrast + F.cross_entropy(logits, category)


def terms_of(caption: str) -> list[str]:
    """The words of a caption in lower case, and the pairs of neighbouring words."""
    words = re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", caption.lower())
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def vocabulary(captions: Iterable[str], at_least: int) -> list[str]:
    """All terms that occur at least so often, the most frequent first."""
    counts = Counter(term for caption in captions for term in terms_of(caption))
    return sorted((t for t, n in counts.items() if n >= at_least), key=lambda t: (-counts[t], t))
