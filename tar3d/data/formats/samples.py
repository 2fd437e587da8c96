"""Training samples on disk, one .npz a shape, as `ShapeSamples` or as the arrays that are stored.

File format: surface (N, 6) float16; points (M, 3) float16; inside, is_near packed bits of (M,);
transform (4, 4) float64. Labels were computed for the stored float16 coordinates. Files load with
allow_pickle=False.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tar3d.contracts import ShapeSamples
from tar3d.data.formats.dataset_folder import read_categories, read_splits
from tar3d.data.formats.npz import float32, read_npz
from tar3d.data.formats.sample_bytes import sample_bytes
from tar3d.data.formats.shapenet import ShapeNetV2, holds_shapenet
from tar3d.data.formats.shards import ShardedFiles
from tar3d.io import atomic_write

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self.files = ShardedFiles(self.folder, ".npz")

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
