"""The data set that draws the tokenizer's training items from stored samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from tar3d.data.datasets.augment import augment, random_matrix
from tar3d.data.datasets.spread import spread
from tar3d.data.formats.samples import open_samples, to_samples
from tar3d.data.formats.token_shards import hash_texts

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.config import AugmentConfig


class ShapeDataset(Dataset):
    """Random subsets of the shapes' samples, drawn from (seed, position).

    Indexed by (position, index) as `TrainingOrder` yields them. An item has surface (N, 6), points
    (M, 3) with the volume points first, inside (M,) and is_near (M,). The surface has its stored
    type, float16, and is widened on the device: it is most of what a worker copies and sends.

    `augment_as` scales, turns and mirrors the shapes. `limit` keeps that many shapes, spread evenly
    over the ids. With several `samplings` the surface holds as many draws of `surface_points` one
    after the other, which share no point. Rows that are not drawn are neither copied nor checked,
    except that augmentation needs all rows.
    """

    def __init__(  # noqa: PLR0913  what an item is made of, by keyword
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
        samplings: int = 1,
    ) -> None:
        self.samplings = samplings
        self.augment_as = augment_as if augment_as and augment_as.active else None
        self.reader = open_samples(folder)
        self.counts = {
            "surface": surface_points * samplings,
            "volume": volume_points,
            "near": near_points,
        }
        self.seed = seed
        self.ids = self.reader.ids(split)
        if not self.ids:
            raise ValueError(
                f"no samples for split {split!r} under {self.reader.folder}: "
                f"{self.reader.advice_for(split)}"
            )
        listed = len(self.reader.listed(split))
        self.left_out = (
            f"{listed - len(self.ids)} of {listed} shapes of split {split!r} have no samples in "
            f"{self.reader.folder} and are left out"
            if len(self.ids) < listed
            else ""
        )
        if limit is not None:
            self.ids = [self.ids[i] for i in spread(len(self.ids), limit)]

    def content_hash(self) -> str:
        """A hash of the ids and samples of all shapes, the same for a copy elsewhere."""
        return hash_texts(f"{i} {self.reader.checksum(i)}" for i in self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        position, index = key
        rng, shape_id = np.random.default_rng([self.seed, position]), self.ids[index]
        if self.augment_as is None:
            arrays = self.reader.arrays(
                shape_id, lambda pool, stored: self._draw(pool, stored, shape_id, rng)
            )
        else:
            arrays = self._augmented(shape_id, self.augment_as, rng)
        samples = to_samples(arrays, self.reader.where(shape_id))
        # a copy, if it is still a view of the file's bytes
        surface = np.require(arrays["surface"], requirements="W")
        return {
            "surface": torch.from_numpy(surface),
            "points": torch.from_numpy(samples.points),
            "inside": torch.from_numpy(samples.inside),
            "is_near": torch.from_numpy(samples.is_near),
        }

    def _draw(
        self, pool: str, stored: int, shape_id: str, rng: np.random.Generator
    ) -> slice | np.ndarray:
        """Different rows of a pool's `stored` ones in random order; a slice where all are drawn."""
        count = self.counts[pool]
        if count > stored:
            raise ValueError(
                f"{count} {pool} points are wanted, but {self.reader.where(shape_id)} holds "
                f"{stored}: lower train.{pool}_points or make more samples"
            )
        if pool == "surface" and self.samplings > 1:
            return rng.permutation(stored)[:count]
        if count == stored:
            return slice(None)
        return rng.choice(stored, count, replace=False, shuffle=False)

    def _augmented(
        self, shape_id: str, config: AugmentConfig, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """All samples of a shape, transformed, and then a subset of them."""
        arrays = augment(
            self.reader.arrays(shape_id, lambda _, stored: slice(0, stored)),
            random_matrix(config, rng),
            self.counts["volume"],
            rng,
        )
        near = np.flatnonzero(arrays["is_near"])
        drawn = near[self._draw("near", len(near), shape_id, rng)]
        chosen = np.concatenate([np.flatnonzero(~arrays["is_near"]), drawn])
        arrays |= {name: arrays[name][chosen] for name in ("points", "inside", "is_near")}
        surface = arrays["surface"]
        arrays["surface"] = surface[self._draw("surface", len(surface), shape_id, rng)]
        return arrays


class MixedShapes(Dataset):
    """Several `ShapeDataset`s as one: shapes of part k come `repeats[k]` times in an epoch."""

    def __init__(self, parts: list[ShapeDataset], repeats: list[int]) -> None:
        self.parts = parts
        self.ends = np.cumsum(
            [len(part) * times for part, times in zip(parts, repeats, strict=True)]
        )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def content_hash(self) -> str:
        """A hash of the shapes of all parts, and of how often they come."""
        lengths = np.diff(self.ends, prepend=0)
        return hash_texts(
            f"{part.content_hash()} {length}"
            for part, length in zip(self.parts, lengths, strict=True)
        )

    def name(self, index: int) -> str:
        """The path of an item's samples, for messages."""
        part, inner = self._find(index)
        return part.reader.where(part.ids[inner])

    def _find(self, index: int) -> tuple[ShapeDataset, int]:
        k = int(np.searchsorted(self.ends, index, side="right"))
        first = self.ends[k - 1] if k else 0
        return self.parts[k], int(index - first) % len(self.parts[k])

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        position, index = key
        part, inner = self._find(index)
        return part[position, inner]
