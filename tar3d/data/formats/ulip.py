"""Condition embeddings and captions of the ULIP data sets, in the files of their authors:

    dino_feats/<set>/<uid>.npz          one array a view, (1, P, E) or (P, E); P is 197 and E 768
                                        for DINO ViT-B/16
    captions/t5_ulip_feats/<uid>.npz    one array a caption, (1, L, 2048) or (L, 2048); L varies
    uid2conds.json                      {uid: [[image, caption], ...]}

Arrays are read in the order of their keys, shorter keys first: arr_9 before arr_10. A uid is the id
of a shape, for ShapeNet <cat>_<id>.
"""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np

from tar3d.io import read_json

if TYPE_CHECKING:
    from pathlib import Path


class EmbeddingError(ValueError):
    """The embeddings of one shape are missing or damaged; the message names the file."""


def read_view_embeddings(folder: Path, uid: str, num_tokens: int, width: int) -> list[np.ndarray]:
    """The embeddings of a shape's views, each (P, E) float16, P = `num_tokens` and E = `width`.

    Raises EmbeddingError for a file that is missing or damaged, and a plain ValueError for another
    P or E: the config must change then, because one encoder made all files of a folder.
    """
    arrays = _read(folder / f"{uid}.npz")
    for key, (rows, columns) in ((key, array.shape) for key, array in arrays.items()):
        if (rows, columns) != (num_tokens, width):
            raise ValueError(
                f"{folder / uid}.npz: {key} is {rows} x {columns}, but gpt.condition_tokens x "
                f"gpt.condition_width is {num_tokens} x {width}: "
                f"write gpt.condition_tokens={rows} gpt.condition_width={columns}"
            )
    return list(arrays.values())


def read_caption_embeddings(
    folder: Path, uid: str, num_tokens: int, width: int
) -> list[np.ndarray]:
    """The embeddings of a shape's captions, each (l, E) float16, cut to l <= `num_tokens`.

    Raises EmbeddingError for a file that is missing or damaged, ValueError for another width E.
    """
    arrays = _read(folder / f"{uid}.npz")
    for key, array in arrays.items():
        if array.shape[1] != width:
            raise ValueError(
                f"{folder / uid}.npz: {key} is {array.shape[1]} wide, "
                f"but gpt.condition_width is {width}: "
                f"write gpt.condition_width={array.shape[1]}"
            )
    return [array[:num_tokens] for array in arrays.values()]


def read_pairs(path: Path) -> dict[str, list[tuple[str, str]]]:
    """The (image, caption) pairs of uid2conds.json, by uid."""
    try:
        values = read_json(path)
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is not readable JSON ({e})") from e
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold an object by uid, got a {type(values).__name__}")
    for uid, pairs in values.items():
        if not (
            isinstance(pairs, list)
            and all(isinstance(p, list) and list(map(type, p)) == [str, str] for p in pairs)
        ):
            raise ValueError(
                f"{path}: {uid!r} must have a list of [image, caption], got {str(pairs)[:80]}"
            )
    return {uid: [(image, text) for image, text in pairs] for uid, pairs in values.items()}


def read_ulip_captions(path: Path) -> dict[str, list[str]]:
    """The captions of uid2conds.json, by uid."""
    return {
        uid: [caption for _, caption in pairs] for uid, pairs in read_pairs(path).items() if pairs
    }


def _read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file by key, each (rows, width) float16 and finite; at least one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in sorted(archive, key=lambda key: (len(key), key))}
    except FileNotFoundError as e:
        raise EmbeddingError(f"{path} is not there, so this shape has no embeddings") from e
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        raise EmbeddingError(f"{path} is not a readable .npz file ({e})") from e
    if not arrays:
        raise EmbeddingError(f"{path} holds no array")
    for key, array in arrays.items():
        if array.ndim == 3 and len(array) == 1:
            array = array[0]
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
            raise EmbeddingError(
                f"{path}: {key} must be (1, rows, width) or (rows, width) of floats, "
                f"got {array.shape} {array.dtype}"
            )
        with np.errstate(over="ignore"):
            arrays[key] = array.astype(np.float16)
        if not np.isfinite(arrays[key]).all():
            raise EmbeddingError(f"{path}: {key} holds values that are not finite in float16")
    return arrays
