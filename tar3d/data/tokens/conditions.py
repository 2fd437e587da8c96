"""Readers of what a GPT is conditioned on: views, captions, or embeddings that the user provides.

    reader = ViewConditions(DATA, encoder, config.image_encoder, device)
    reader.read("chair_0_000017")            # a list of arrays, one a view

Every reader is a `ConditionReader`. A frozen encoder runs here, and its embeddings are stored as
float16. For an encoder that is trained along with the GPT, its input is stored: pixels or token
ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from tar3d.condition.image import ImageError, preprocess
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.npz import file_checksums
from tar3d.data.formats.token_shards import hash_texts
from tar3d.data.formats.token_sources import SOURCES
from tar3d.data.formats.ulip import (
    EmbeddingError,
    read_caption_embeddings,
    read_view_embeddings,
)
from tar3d.data.formats.views import Views

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.condition.base import ImageEncoder, TextEncoder
    from tar3d.condition.given import GivenEmbeddings
    from tar3d.config import ImageEncoderConfig
    from tar3d.data.formats.token_sources import TokenSources

EMBEDDINGS = "float16 embeddings"  # entry of stamp.json


class CaptionError(ValueError):
    """The captions of one shape cannot be used; the message is one sentence."""


# Raised by `ConditionReader.read` for a single shape; any other error ends the work.
UNUSABLE = (ImageError, CaptionError, EmbeddingError)


class ConditionReader(Protocol):
    """Reads the conditions of one modality, as they are stored in token shards."""

    modality: str  # one of config.CONDITIONS
    identity: str  # encoder that made them, an entry of stamp.json
    items: str  # their type, an entry of stamp.json
    source_key: str  # key of `source_hash` in <modality>.json

    def source_hash(self, ids: list[str], sources: TokenSources) -> str:
        """A hash of what the conditions of these shapes are made of."""

    def read(self, shape_id: str) -> list[np.ndarray]:
        """The conditions of a shape, at least one.

        Views are (S, S, 3) uint8 or (P, E) float16; captions are (l,) int32 or (l, E) float16 with
        a length l of their own. Raises one of `UNUSABLE` with the reason.
        """


class ViewConditions:
    """The views of a data set, as pixels or as embeddings of a frozen encoder."""

    modality, source_key = "image", SOURCES

    def __init__(
        self, data: Path, encoder: ImageEncoder, config: ImageEncoderConfig, device: torch.device
    ) -> None:
        self.views, self.encoder = Views(data), encoder.to(device)
        self.config, self.device = config, device
        self.identity = encoder.identity
        self.items = EMBEDDINGS if encoder.frozen else "uint8 pixels"

    def source_hash(self, ids: list[str], sources: TokenSources) -> str:
        """A hash of the views of these shapes."""
        return sources.hash_of(self.modality, ids)

    def read(self, shape_id: str) -> list[np.ndarray]:
        """The views of a shape, each (S, S, 3) uint8, or (P, E) float16 of a frozen encoder."""
        names = self.views.names(shape_id)
        if not names:
            raise ImageError(
                f"{self.views.folder / shape_id} holds no .png view: "
                "render some with python -m tar3d.data.make_samples views.count=4"
            )
        pixels = [preprocess(self.views.load(name), self.config).pixels for name in names]
        if not self.encoder.frozen:
            return pixels
        embeddings = self.encoder(torch.from_numpy(np.stack(pixels)).to(self.device)).embeddings
        return list(embeddings.half().cpu().numpy())


class CaptionConditions:
    """The captions of a data set, as token ids or as embeddings of a frozen encoder."""

    modality, source_key = "text", SOURCES

    def __init__(self, data: Path, encoder: TextEncoder, device: torch.device) -> None:
        self.captions, self.encoder, self.device = captions_of(data), encoder.to(device), device
        self.identity = encoder.identity
        self.items = EMBEDDINGS if encoder.frozen else "int32 token ids"

    def source_hash(self, ids: list[str], sources: TokenSources) -> str:
        """A hash of the captions of these shapes."""
        return sources.hash_of(self.modality, ids)

    def read(self, shape_id: str) -> list[np.ndarray]:
        """The captions of a shape, each (l,) int32, or (l, E) float16 of a frozen encoder."""
        if shape_id not in self.captions:
            raise CaptionError(
                f"there is no caption of {shape_id!r}: add a row for it to captions.csv"
            )
        conditions = []
        for caption in self.captions[shape_id]:
            ids = self.encoder.text_tokenizer.prepare(caption).ids
            ids = ids[ids >= 0]
            conditions.append(self._embed(ids, shape_id) if self.encoder.frozen else ids)
        return conditions

    def _embed(self, ids: np.ndarray, shape_id: str) -> np.ndarray:
        batch = self.encoder(torch.from_numpy(ids)[None].to(self.device))
        embeddings = batch.embeddings[0].half().cpu().numpy()
        if not np.isfinite(embeddings).all():
            raise CaptionError(f"a caption of {shape_id!r} has embeddings that float16 cannot hold")
        return embeddings


class EmbeddingConditions:
    """Embeddings that the user provides, one `<id>.npz` a shape in a folder.

    They stand for what the frozen encoder that the config names would return; `encoder` has its
    name, and the number and width of its embeddings.
    """

    items, source_key = EMBEDDINGS, "embeddings"

    def __init__(self, modality: str, folder: Path, encoder: GivenEmbeddings) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of embeddings <id>.npz")
        self.modality, self.folder = modality, folder
        self.encoder, self.identity = encoder, encoder.identity

    def source_hash(self, ids: list[str], sources: TokenSources) -> str:  # noqa: ARG002 (protocol)
        """A hash of the files of these shapes."""
        paths = [self.folder / f"{shape_id}.npz" for shape_id in ids]
        return hash_texts(f"{p.name} {_checksums(p)}" for p in paths)

    def read(self, shape_id: str) -> list[np.ndarray]:
        """The embeddings of a shape's views or captions, each (P, E) or (l, E) float16."""
        read = read_view_embeddings if self.modality == "image" else read_caption_embeddings
        return read(self.folder, shape_id, self.encoder.num_tokens, self.encoder.width)


def _checksums(path: Path) -> str:
    """The checksums in an .npz file; "" where there is none that can be read."""
    try:
        return file_checksums(path)
    except ValueError:
        return ""
