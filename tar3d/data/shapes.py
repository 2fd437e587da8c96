"""`ShapeSamples` on disk (one .npz a shape), and the data set that draws training items from them
or from ShapeNet's files.

File format: surface (N, 6) float16; points (M, 3) float16; inside, is_near packed bits of (M,);
transform (4, 4) float64. Labels were computed for the stored float16 coordinates. Files load with
allow_pickle=False.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tar3d.config import AugmentConfig
from tar3d.contracts import ShapeSamples
from tar3d.data.augment import augment, random_matrix
from tar3d.data.folder import atomic_write, read_categories, read_splits
from tar3d.data.npz import float32, read_npz
from tar3d.data.order import spread
from tar3d.data.sample_file import sample_bytes
from tar3d.data.shapenet import ShapeNetV2, holds_shapenet
from tar3d.data.store import Files

_SHAPES = {
    "surface": (np.float16, 2),
    "points": (np.float16, 2),
    "inside": (np.uint8, 1),
    "is_near": (np.uint8, 1),
    "transform": (np.float64, 2),
}


def save_samples(samples: ShapeSamples, path: Path) -> None:
    with atomic_write(path) as f:
        f.write(sample_bytes(samples))


def load_samples(path: str | Path, content: bytes | None = None) -> ShapeSamples:
    """A ValueError names the file and the key that is missing or has the wrong type, shape or
    range. `content` are its bytes, where it is no file of its own and `path` only says where it
    lies."""
    try:
        content = Path(path).read_bytes() if content is None else content
    except OSError as e:
        raise ValueError(
            f"{path} is not a readable sample file ({e}); make it again with tar3d.data.make_samples"
        ) from e
    return to_samples(_parse(content, str(path)), str(path))


def to_samples(arrays: dict[str, np.ndarray], where: str) -> ShapeSamples:
    """Coordinates widened, and all checked."""
    try:
        return ShapeSamples(
            float32(arrays["surface"]),
            float32(arrays["points"]),
            arrays["inside"],
            arrays["is_near"],
            arrays["transform"].copy(),
        )
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e


def _parse(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays as they are stored, labels unpacked to bool."""
    try:
        arrays = read_npz(content, _SHAPES)
    except ValueError as e:
        raise ValueError(
            f"{where} is not a readable sample file ({e}); make it again with tar3d.data.make_samples"
        ) from e
    for key, (dtype, ndim) in _SHAPES.items():
        if key not in arrays:
            raise ValueError(f"{where} has no key {key!r}; a sample file has {', '.join(_SHAPES)}")
        if arrays[key].dtype != dtype or arrays[key].ndim != ndim:
            raise ValueError(
                f"{where}: {key} must be {np.dtype(dtype)} with {ndim} axes, "
                f"got {arrays[key].dtype} {arrays[key].shape}"
            )
    count = len(arrays["points"])
    for key in ("inside", "is_near"):
        if len(arrays[key]) != -(-count // 8):
            raise ValueError(
                f"{where}: {key} must be {-(-count // 8)} bytes, one bit a point, got {len(arrays[key])}"
            )
        arrays[key] = np.unpackbits(arrays[key], count=count).view(bool)
    return arrays


class SampleFolder:
    """The samples that `make_samples` wrote, one by one or in tar shards. `ShapeNetV2` has the same
    methods."""

    def __init__(self, folder: str | Path) -> None:
        self.root, self.folder = Path(folder), Path(folder) / "samples"
        # for who finds none
        self.advice = f"make them with python -m tar3d.data.make_samples {folder}"
        self.files = Files(self.folder, ".npz")

    def listed(self, split: str) -> list[str]:
        """The ids of a split, whether or not there are samples of them."""
        return read_splits(self.root)[split]

    def ids(self, split: str) -> list[str]:
        return [i for i in self.listed(split) if f"{i}.npz" in self.files]

    def categories(self) -> dict[str, str]:
        """By id, as far as they are known."""
        return read_categories(self.root)

    def where(self, shape_id: str) -> str:
        """For messages."""
        return self.files.where(f"{shape_id}.npz")

    def arrays(
        self, shape_id: str, choose: Callable[[str, int], slice | np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Chosen rows of a shape's surface (N, 6), points (M, 3), inside and is_near (M,), volume
        points first, and its transform (4, 4), as they are stored: nothing is checked but that the
        file is whole. `choose` is told a kind (surface, volume, near) and how many rows are stored
        of it, in this order."""
        arrays = _parse(self.files.read(f"{shape_id}.npz"), self.where(shape_id))
        near = arrays["is_near"]
        surface = arrays["surface"][choose("surface", len(arrays["surface"]))]
        chosen = np.concatenate(
            [
                rows[choose(kind, len(rows))]
                for kind, rows in (
                    ("volume", np.flatnonzero(~near)),
                    ("near", np.flatnonzero(near)),
                )
            ]
        )
        return (
            arrays
            | {"surface": surface}
            | {name: arrays[name][chosen] for name in ("points", "inside", "is_near")}
        )

    def surface(self, shape_id: str) -> np.ndarray:
        """All surface points and normals, (N, 6) float32, checked."""
        return to_samples(
            _parse(self.files.read(f"{shape_id}.npz"), self.where(shape_id)), self.where(shape_id)
        ).surface


def open_samples(folder: str | Path) -> SampleFolder | ShapeNetV2:
    """Where training samples come from: ShapeNet's files if `folder` holds ShapeNetV2_point/ (or is
    it), else samples/."""
    return ShapeNetV2(folder) if holds_shapenet(folder) else SampleFolder(folder)


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
