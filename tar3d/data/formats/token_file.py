"""Token files, `<name>.tokens.npz`: one shape as the codes of a tokenizer.

`infer_vqvae.py` and `run.py` write them with --save-tokens, and `infer_vqvae.py` decodes them
again, for instance at a finer resolution. `docs/data.md` is the specification.

    tokens      (T,) uint16, or uint32 where V > 65,536: code ids, ordered as in tar3d.layouts
    transform   (4, 4) float64: `to_source` of the mesh, from the project's frame to its file's own
    tokenizer   fingerprint (`checkpoint.token_fingerprint`) of the tokenizer that the codes are of
    sampled     bool: a GPT sampled them, so loose pieces of their surface are floaters
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tar3d.contracts import Tokens
from tar3d.data.formats.npz import read_npz
from tar3d.folders import TOKEN_SUFFIX, TOKENS
from tar3d.io import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tar3d.tokenizer.vqvae import VQVAE

SUFFIX = TOKEN_SUFFIX
FOLDER = TOKENS  # the folder in an output folder that holds token files
MAX_BYTES = 1 << 26  # far above any T, and far below what would fill a memory
KEYS = ("tokens", "transform", "tokenizer", "sampled")


@dataclass(frozen=True)
class StoredTokens:
    """A token file: `tokens` (1, T), `to_source` (4, 4) as in `Mesh`, `sampled` as in the file."""

    tokens: Tokens
    to_source: np.ndarray
    sampled: bool


def is_token_file(path: Path) -> bool:
    """True if a file has the name of a token file."""
    return path.name.lower().endswith(SUFFIX)


def token_dtype(codebook_size: int) -> type[np.unsignedinteger]:
    """The dtype of token ids on disk."""
    return np.uint16 if codebook_size <= 2**16 else np.uint32


class TokenFiles:
    """Reads and writes the token files of one tokenizer, and refuses those of others."""

    def __init__(self, vqvae: VQVAE) -> None:
        self.vqvae, self.config = vqvae, vqvae.config

    @cached_property
    def tokenizer(self) -> str:
        """The tokenizer's fingerprint; computed when needed, because it reads all weights."""
        from tar3d.checkpoint import token_fingerprint

        return token_fingerprint(self.vqvae)

    def save(
        self,
        output: Path,
        name: str,
        ids: torch.Tensor,
        *,
        to_source: np.ndarray | None = None,
        sampled: bool,
    ) -> Path:
        """Writes the ids (T,) of one shape into a folder of outputs; returns the file.

        Without `to_source`, the mesh's file is in the project's frame.
        """
        path = output / FOLDER / f"{name}{SUFFIX}"
        with atomic_write(path) as f:
            np.savez(
                f,
                tokens=ids.cpu().numpy().astype(token_dtype(self.config.codebook_size)),
                tokenizer=self.tokenizer,
                transform=np.eye(4) if to_source is None else to_source.astype(np.float64),
                sampled=sampled,
            )
        return path

    def load(self, path: Path) -> StoredTokens:
        """Reads a token file; a ValueError says why this tokenizer cannot decode it."""
        import torch

        arrays = _read_arrays(path)
        tokenizer = str(arrays["tokenizer"])
        if tokenizer != self.tokenizer:
            raise ValueError(
                f"{path} has tokens of tokenizer {tokenizer}, but the one given is "
                f"{self.tokenizer}: give the model that made them (--model)"
            )
        ids, to_source, sampled = arrays["tokens"], arrays["transform"], arrays["sampled"]
        T, V = self.config.num_tokens, self.config.codebook_size
        if ids.shape != (T,) or ids.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: tokens must be ({T},) whole numbers, got {ids.shape} {ids.dtype}"
            )
        if ids.min() < 0 or ids.max() >= V:
            raise ValueError(
                f"{path}: tokens must lie in 0 to {V - 1}, got {ids.min()} to {ids.max()}"
            )
        if (
            to_source.shape != (4, 4)
            or to_source.dtype.kind != "f"
            or not np.isfinite(to_source).all()
        ):
            raise ValueError(
                f"{path}: transform must be a finite (4, 4) matrix, "
                f"got {to_source.shape} {to_source.dtype}"
            )
        if sampled.shape != () or sampled.dtype != bool:
            raise ValueError(
                f"{path}: sampled must be one bool, got {sampled.shape} {sampled.dtype}"
            )
        return StoredTokens(
            Tokens(torch.from_numpy(ids.astype(np.int64))[None]),
            to_source.astype(np.float64),
            bool(sampled),
        )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The four arrays of a token file, unchecked."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, allowed are {MAX_BYTES:,}")
        arrays = read_npz(path.read_bytes(), KEYS)
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is not a readable file of tokens ({e})") from e
    if absent := [key for key in KEYS if key not in arrays]:
        raise ValueError(
            f"{path} has no {' and no '.join(absent)}, as a file that --save-tokens wrote does"
        )
    return arrays
