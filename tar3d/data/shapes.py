"""`ShapeSamples` on disk (one .npz a shape) and the data set that draws training items from them.

File format: surface (N, 6) float16; points (M, 3) float16; inside, is_near packed bits of (M,); transform (4, 4) float64.
Labels were computed for the stored float16 coordinates. Files load with allow_pickle=False.
"""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tar3d.contracts import ShapeSamples
from tar3d.data.folder import atomic_write, read_splits
from tar3d.data.sample_file import sample_bytes

_SHAPES = {"surface": (np.float16, 2), "points": (np.float16, 2), "inside": (np.uint8, 1), "is_near": (np.uint8, 1),
           "transform": (np.float64, 2)}
_HEADER_BYTES = 128  # of an .npy of so few axes: numpy pads the header to a multiple of 64


def save_samples(samples: ShapeSamples, path: Path) -> None:
    with atomic_write(path) as f:
        f.write(sample_bytes(samples))


def load_samples(path: Path) -> ShapeSamples:
    """A ValueError names the file and the key that is missing or has the wrong type, shape or range."""
    return _samples(path, _read(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays as they are stored, labels unpacked to bool. As numpy.load has them, but each member is read and checked (its
    CRC-32) in one go instead of piece by piece."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            for key in _SHAPES:
                if f"{key}.npy" in members:
                    content = archive.read(f"{key}.npy")
                    shape, fortran, dtype, start = _parse_header(content[:_HEADER_BYTES])
                    arrays[key] = np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
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
        arrays[key] = np.unpackbits(arrays[key], count=count).view(bool)
    return arrays


@functools.lru_cache(64)
def _parse_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether it is in Fortran's order, dtype and length of the header of an .npy; files of one set have few different
    ones, and numpy takes longer to parse one than to read the array."""
    stream = io.BytesIO(start)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array is not in version 1.0 of the .npy format")
    return *np.lib.format.read_array_header_1_0(stream), stream.tell()


def _samples(path: Path, arrays: dict[str, np.ndarray]) -> ShapeSamples:
    """Coordinates widened, and all checked."""
    try:
        return ShapeSamples(_float32(arrays["surface"]), _float32(arrays["points"]), arrays["inside"], arrays["is_near"],
                            arrays["transform"].copy())
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def _float32(stored: np.ndarray) -> np.ndarray:
    return torch.from_numpy(stored.copy()).float().numpy()  # six times as fast as numpy's astype


class ShapeDataset(Dataset):
    """Items for the tokenizer: random subsets of a shape's samples, drawn from (seed, position).

    Indexed by (position, index) as `TrainingOrder` yields them. An item is surface (N, 6), points (M, 3), inside (M,),
    is_near (M,), with the volume points first. The surface stays float16, as it is stored, until it is where it is used: it is
    most of what a worker copies and a GPU is sent. Of rows that are not drawn only the file's checksum is looked at.
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
        arrays = _read(path)
        near = arrays["is_near"]
        surface = _draw(rng, len(arrays["surface"]), self.counts["surface"], "surface", path)
        chosen = np.concatenate([rows[_draw(rng, len(rows), self.counts[kind], kind, path)]
                                 for kind, rows in (("volume", np.flatnonzero(~near)), ("near", np.flatnonzero(near)))])
        arrays["surface"] = arrays["surface"][surface].copy()
        samples = _samples(path, arrays | {name: arrays[name][chosen] for name in ("points", "inside", "is_near")})
        return {"surface": torch.from_numpy(arrays["surface"]), "points": torch.from_numpy(samples.points),
                "inside": torch.from_numpy(samples.inside), "is_near": torch.from_numpy(samples.is_near)}


def _draw(rng: np.random.Generator, stored: int, count: int, kind: str, path: Path) -> slice | np.ndarray:
    """`count` different rows of those stored, in no particular order; all of them as they are where all are wanted."""
    if count > stored:
        raise ValueError(f"{count} {kind} points are wanted, but {path} holds {stored}: "
                         f"lower train.{kind}_points or make more samples")
    return slice(None) if count == stored else rng.choice(stored, count, replace=False, shuffle=False)
