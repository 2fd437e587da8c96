"""Token shards on disk, which make_tokens writes and the GPT trains on.

    tokens/stamp.json                what made them: the tokenizer, and the encoder of each modality
    tokens/<split>-<k>/tokens.npy    (n, T) uint16, or uint32 for a large codebook, in GPT order
    tokens/<split>-<k>/latents.npy   (n, T, K) float16, the latents that the tokens are the nearest
                                     codes of, also in GPT order
    tokens/<split>-<k>/index.json    the ids of the n shapes, the samplings of the surface that the
                                     latents of each are the mean of, the SHA-256 of either file

and for each modality of conditions (image, text)

    <modality>.npy     its items (views, captions) of all shapes, one after the other
    <modality>.json    the number of items of each shape, the lengths of captions, the SHA-256

Points are not in them: the GPT never reads any. Shards of earlier versions are of one sampling and
have no latents.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tar3d.io import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LATENTS = "latents"  # name of that file, and the key of its SHA-256
SAMPLINGS = "samplings"  # key of index.json, and of the number asked for in stamp.json


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def hash_texts(texts: Iterable[str]) -> str:
    """The first 16 hex digits of the SHA-256 over texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]


def read_stamp(folder: Path) -> dict:
    """stamp.json of a folder of token shards, completed by what earlier versions left out.

    Raises ValueError if there is none.
    """
    path = folder / "stamp.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no stamp.json, so what made its tokens is unknown: "
            "delete that folder, and train_gpt.py makes it again (or python -m "
            f"tar3d.data.make_tokens {folder.parent} --tokenizer MODEL)"
        )
    stamp = read_json(path)
    return {SAMPLINGS: 1, **stamp} if isinstance(stamp, dict) else stamp
