"""`ShapeSamples` on disk (one .npz a shape) and the data set that draws training items from them.

File format: surface (N, 6) float16; points (M, 3) float16; inside, is_near packed bits of (M,); transform (4, 4) float64.
Labels were computed for the stored float16 coordinates. Files load with allow_pickle=False.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tar3d.contracts import ShapeSamples
from tar3d.data.folder import atomic_write, read_splits

_SHAPES = {"surface": (np.float16, 2), "points": (np.float16, 2), "inside": (np.uint8, 1), "is_near": (np.uint8, 1),
           "transform": (np.float64, 2)}


def save_samples(samples: ShapeSamples, path: Path) -> None:
    with atomic_write(path) as f:
        np.savez(f, surface=samples.surface.astype(np.float16), points=samples.points.astype(np.float16),
                 inside=np.packbits(samples.inside), is_near=np.packbits(samples.is_near), transform=samples.to_source)


def load_samples(path: Path) -> ShapeSamples:
    """A ValueError names the file and the key that is missing or has the wrong type, shape or range."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _SHAPES if key in archive}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path} is not a readable sample file ({e}); make it again with tar3d.data.make_samples") from e
    for key, (dtype, ndim) in _SHAPES.items():
        if key not in arrays:
            raise ValueError(f"{path} has no key {key!r}; a sample file has {', '.join(_SHAPES)}")
        if arrays[key].dtype != dtype or arrays[key].ndim != ndim:
            raise ValueError(f"{path}: {key} must be {np.dtype(dtype)} with {ndim} axes, "
                             f"got {arrays[key].dtype} {arrays[key].shape}")
    count = len(arrays["points"])
    for key in ("inside", "is_near"):
        if len(arrays[key]) != -(-count // 8):
            raise ValueError(f"{path}: {key} must be {-(-count // 8)} bytes, one bit a point, got {len(arrays[key])}")
    try:
        return ShapeSamples(arrays["surface"].astype(np.float32), arrays["points"].astype(np.float32),
                            np.unpackbits(arrays["inside"], count=count).astype(bool),
                            np.unpackbits(arrays["is_near"], count=count).astype(bool), arrays["transform"])
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


class ShapeDataset(Dataset):
    """Items for the tokenizer: random subsets of a shape's samples, drawn from (seed, position).

    Indexed by (position, index) as `TrainingOrder` yields them. An item is surface (N, 6), points (M, 3), inside (M,),
    is_near (M,), with the volume points first.
    """

    def __init__(self, folder: str | Path, split: str, *, surface_points: int, volume_points: int, near_points: int,
                 seed: int) -> None:
        self.folder = Path(folder)
        self.counts = {"surface": surface_points, "volume": volume_points, "near": near_points}
        self.seed = seed
        self.ids = [i for i in read_splits(self.folder)[split] if self.path(i).is_file()]
        if not self.ids:
            raise ValueError(f"no samples for split {split!r} under {self.folder / 'samples'}: "
                             f"make them with python -m tar3d.data.make_samples {self.folder}")

    def path(self, shape_id: str) -> Path:
        return self.folder / "samples" / f"{shape_id}.npz"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        position, index = key
        rng = np.random.default_rng([self.seed, position])
        path = self.path(self.ids[index])
        samples = load_samples(path)
        surface = samples.surface[_subset(rng, np.arange(len(samples.surface)), self.counts["surface"], "surface", path)]
        volume = _subset(rng, np.flatnonzero(~samples.is_near), self.counts["volume"], "volume", path)
        near = _subset(rng, np.flatnonzero(samples.is_near), self.counts["near"], "near", path)
        chosen = np.concatenate([volume, near])
        arrays = {"surface": surface, "points": samples.points[chosen], "inside": samples.inside[chosen],
                  "is_near": samples.is_near[chosen]}
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def _subset(rng: np.random.Generator, indices: np.ndarray, count: int, kind: str, path: Path) -> np.ndarray:
    if count > len(indices):
        raise ValueError(f"{count} {kind} points are wanted, but {path} holds {len(indices)}: "
                         f"lower train.{kind}_points or make more samples")
    return rng.permutation(indices)[:count]
