"""Condition embeddings and captions of the ULIP data sets, as others have computed them:

    dino_feats/<set>/<uid>.npz             an array for each view, (1, P, E) or (P, E); of DINO ViT-B/16 P is 197 and E 768
    captions/t5_ulip_feats/<uid>.npz       an array for each caption, (1, L, 2048) or (L, 2048), L being the caption's own
    uid2conds.json                         {uid: [[picture, caption], ...]}

Arrays go by their keys, shorter ones first: arr_9 before arr_10. A uid is the id of a shape: of ShapeNet <cat>_<id>.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tar3d.condition.encoders import GivenEmbeddings

T5_WIDTH = 2048


class EmbeddingError(ValueError):
    """Embeddings of one shape that are not there or damaged; the message is one sentence that names the file."""


@dataclass(frozen=True)
class ViewEmbeddings:
    """`folder` with an <id>.npz for each shape, taken for what `encoder` stands in for."""

    folder: Path
    encoder: GivenEmbeddings

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder of embeddings <id>.npz")

    def read(self, shape_id: str) -> np.ndarray:
        """The views of a shape, (views, P, E) float16. A P or E that is not the encoder's is a plain ValueError: all files of a
        folder were made by one encoder, so it is not this shape's fault."""
        path, (tokens, width) = self.folder / f"{shape_id}.npz", (self.encoder.num_tokens, self.encoder.width)
        arrays = _read(path)
        for key, (rows, columns) in ((key, array.shape) for key, array in arrays.items()):
            if (rows, columns) != (tokens, width):
                raise ValueError(f"{path}: {key} is {rows} x {columns}, but gpt.condition_tokens x gpt.condition_width is "
                                 f"{tokens} x {width}: write gpt.condition_tokens={rows} gpt.condition_width={columns}")
        return np.stack(list(arrays.values()))


def read_caption_embeddings(folder: Path, uid: str) -> list[np.ndarray]:
    """The captions of a shape, each (L, 2048) float16."""
    arrays = _read(folder / f"{uid}.npz")
    for key, array in arrays.items():
        if array.shape[1] != T5_WIDTH:
            raise ValueError(f"{folder / uid}.npz: {key} is {array.shape[1]} wide, T5's embeddings are {T5_WIDTH}")
    return list(arrays.values())


def read_captions(path: Path) -> dict[str, list[tuple[str, str]]]:
    """(picture, caption) pairs by uid, as uid2conds.json has them."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is not readable JSON ({e})") from e
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold an object by uid, got a {type(values).__name__}")
    for uid, pairs in values.items():
        if not (isinstance(pairs, list) and all(isinstance(p, list) and list(map(type, p)) == [str, str] for p in pairs)):
            raise ValueError(f"{path}: {uid!r} must have a list of [picture, caption], got {str(pairs)[:80]}")
    return {uid: [tuple(pair) for pair in pairs] for uid, pairs in values.items()}


def _read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file by key, (rows, width) float16 and finite, at least one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in sorted(archive, key=lambda key: (len(key), key))}
    except FileNotFoundError as e:
        raise EmbeddingError(f"{path} is not there, so no embeddings are given for this shape") from e
    except (OSError, ValueError, EOFError, RuntimeError, AttributeError, zipfile.BadZipFile, zlib.error) as e:
        raise EmbeddingError(f"{path} is not a readable .npz file ({e})") from e
    if not arrays:
        raise EmbeddingError(f"{path} holds no array")
    for key, array in arrays.items():
        if array.ndim == 3 and len(array) == 1:
            array = array[0]
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
            raise EmbeddingError(f"{path}: {key} must be (1, rows, width) or (rows, width) of floats, "
                                 f"got {array.shape} {array.dtype}")
        with np.errstate(over="ignore"):
            arrays[key] = array.astype(np.float16)
        if not np.isfinite(arrays[key]).all():
            raise EmbeddingError(f"{path}: {key} holds values that are not finite in float16")
    return arrays
