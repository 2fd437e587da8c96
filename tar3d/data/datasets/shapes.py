"""The data set that draws the tokenizer's training items from stored samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from tar3d.data.datasets.augment import augment, random_matrix
from tar3d.data.datasets.sampler import spread
from tar3d.data.formats.samples import open_samples, to_samples

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.config import AugmentConfig


class ShapeDataset(Dataset):
    """Items for the tokenizer: random subsets of a shape's samples, drawn from (seed, position).

    Indexed by (position, index) as `TrainingOrder` yields them. An item is surface (N, 6), points
    (M, 3), inside (M,), is_near (M,), with the volume points first. The surface stays float16, as
    it is stored, until it is where it is used: it is most of what a worker copies and a GPU is
    sent. Of rows that are not drawn at most the file's checksum is looked at, unless shapes are
    changed (`augment_as`), which takes all of them.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        surface_points: int,
        volume_points: int,
        near_points: int,
        seed: int,
        augment_as: AugmentConfig | None = None,
        limit: int | None = None,
    ) -> None:
        self.augment_as = augment_as if augment_as and augment_as.active else None
        self.source = open_samples(folder)
        self.counts = {"surface": surface_points, "volume": volume_points, "near": near_points}
        self.seed = seed
        self.ids = self.source.ids(split)
        if limit is not None:  # evenly spread
            self.ids = [self.ids[i] for i in spread(len(self.ids), limit)] if self.ids else []
        if not self.ids:
            raise ValueError(
                f"no samples for split {split!r} under {self.source.folder}: {self.source.advice}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        position, index = key
        rng, shape_id = np.random.default_rng([self.seed, position]), self.ids[index]

        def draw(kind: str, stored: int) -> slice | np.ndarray:
            """Different rows in no particular order; all of them as they are where all are
            wanted."""
            count = self.counts[kind]
            if count > stored:
                raise ValueError(
                    f"{count} {kind} points are wanted, but {self.source.where(shape_id)} holds {stored}: "
                    f"lower train.{kind}_points or make more samples"
                )
            return (
                slice(None)
                if count == stored
                else rng.choice(stored, count, replace=False, shuffle=False)
            )

        if self.augment_as is None:
            arrays = self.source.arrays(shape_id, draw)
        else:
            arrays = augment(
                self.source.arrays(shape_id, lambda kind, stored: slice(None)),
                random_matrix(self.augment_as, rng),
                self.counts["volume"],
                rng,
            )
            volume, near = (
                np.flatnonzero(kind) for kind in (~arrays["is_near"], arrays["is_near"])
            )
            chosen = np.concatenate([volume, near[draw("near", len(near))]])
            arrays |= {name: arrays[name][chosen] for name in ("points", "inside", "is_near")}
            arrays["surface"] = arrays["surface"][draw("surface", len(arrays["surface"]))]
        samples = to_samples(arrays, self.source.where(shape_id))
        surface = np.require(
            arrays["surface"], requirements="W"
        )  # a copy, if it still lies in the file's bytes
        return {
            "surface": torch.from_numpy(surface),
            "points": torch.from_numpy(samples.points),
            "inside": torch.from_numpy(samples.inside),
            "is_near": torch.from_numpy(samples.is_near),
        }


class MixedShapes(Dataset):
    """Several `ShapeDataset`s as one; each shape of the k-th counts `repeats[k]` times in an
    epoch."""

    def __init__(self, parts: list[ShapeDataset], repeats: list[int]) -> None:
        self.parts = parts
        self.ends = np.cumsum(
            [len(part) * times for part, times in zip(parts, repeats, strict=True)]
        )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def name(self, index: int) -> str:
        """What messages call an item."""
        part, inner = self._find(index)
        return part.source.where(part.ids[inner])

    def _find(self, index: int) -> tuple[ShapeDataset, int]:
        k = int(np.searchsorted(self.ends, index, side="right"))
        first = self.ends[k - 1] if k else 0
        return self.parts[k], int(index - first) % len(self.parts[k])

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        position, index = key
        part, inner = self._find(index)
        return part[position, inner]
