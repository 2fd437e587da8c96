"""Token shards on disk, which make_tokens writes and the GPT trains on.

    tokens/stamp.json                what made them: the tokenizer, and the encoder of each modality
    tokens/<split>-<k>/tokens.npy    (n, T) uint16, or uint32 for a large codebook, in GPT order
    tokens/<split>-<k>/index.json    the ids of the n shapes, and the SHA-256 of tokens.npy

and for each modality of conditions (image, text)

    <modality>.npy     its items (views, captions) of all shapes, one after the other
    <modality>.json    the number of items of each shape, the lengths of captions, the SHA-256

Points are not in them: the GPT never reads any.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tar3d.io import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


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
    """stamp.json of a folder of token shards; a ValueError if there is none."""
    path = folder / "stamp.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no stamp.json, so what made its tokens is unknown: "
            "delete that folder, and train_gpt.py makes it again (or python -m "
            f"tar3d.data.make_tokens {folder.parent} --tokenizer MODEL)"
        )
    return read_json(path)
