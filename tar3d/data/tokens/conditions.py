"""What a GPT is told of the shapes of a data set: their views, their captions, or embeddings that
others made of either.

    told = ToldByViews(DATA, encoder, config.image_encoder, device)
    told.read("chair_0_000017")            # a list of arrays, one a view

Each kind has the same face (`Told`). A frozen encoder is run here, and its embeddings are float16;
for an encoder that is trained along, its input is kept: pixels, or token ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from tar3d.condition.image import ImageError, preprocess
from tar3d.data.formats.ulip import (
    EmbeddingError,
    read_caption_embeddings,
    read_pairs,
    read_view_embeddings,
)
from tar3d.data.formats.views import Views
from tar3d.data.prepare.mesh_list import read_captions

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.condition.encoders import GivenEmbeddings, ImageEncoder
    from tar3d.condition.text import TextEncoder
    from tar3d.config import ImageEncoderConfig


class CaptionError(ValueError):
    """A shape whose captions cannot be used; the message is one sentence."""


UNUSABLE = (
    ImageError,
    CaptionError,
    EmbeddingError,
)  # what `read` raises for one shape; anything else ends the work


class Told(Protocol):
    """`kind` is one of CONDITIONS; `identity` stamps what `read` gives; `items` says what an item
    is."""

    kind: str
    identity: str
    items: str

    def read(self, shape_id: str) -> list[np.ndarray]:
        """The views of a shape, each (S, S, 3) uint8 or (P, E) float16; or its captions, each (l,)
        int32 or (l, E) float16, l being its own number of tokens. Never empty: one of `UNUSABLE` is
        raised with the reason."""


class ToldByViews:
    kind = "image"

    def __init__(
        self, data: Path, encoder: ImageEncoder, config: ImageEncoderConfig, device: torch.device
    ) -> None:
        self.views, self.encoder, self.config, self.device = (
            Views(data),
            encoder.to(device),
            config,
            device,
        )
        self.identity, self.items = (
            encoder.identity,
            "float16 embeddings" if encoder.frozen else "uint8 pixels",
        )

    def read(self, shape_id: str) -> list[np.ndarray]:
        names = self.views.names(shape_id)
        if not names:
            raise ImageError(
                f"{self.views.folder / shape_id} holds no .png view: "
                "render some with python -m tar3d.data.make_samples views.count=4"
            )
        pixels = [preprocess(self.views.load(name), self.config).pixels for name in names]
        if not self.encoder.frozen:
            return pixels
        return list(
            self.encoder(torch.from_numpy(np.stack(pixels)).to(self.device))
            .embeddings.half()
            .cpu()
            .numpy()
        )


def captions_of(data: Path) -> dict[str, list[str]]:
    """The captions of a data set by id: its captions.csv, or ULIP's uid2conds.json."""
    if not (data / "captions.csv").is_file() and (data / "uid2conds.json").is_file():
        return {
            uid: [caption for _, caption in pairs]
            for uid, pairs in read_pairs(data / "uid2conds.json").items()
            if pairs
        }
    return read_captions(data / "captions.csv")


class ToldByCaptions:
    kind = "text"

    def __init__(self, data: Path, encoder: TextEncoder, device: torch.device) -> None:
        self.captions, self.encoder, self.device = captions_of(data), encoder.to(device), device
        self.identity, self.items = (
            encoder.identity,
            "float16 embeddings" if encoder.frozen else "int32 token ids",
        )

    def read(self, shape_id: str) -> list[np.ndarray]:
        if shape_id not in self.captions:
            raise CaptionError(
                f"there is no caption of {shape_id!r}: add a row for it to captions.csv"
            )
        found = []
        for caption in self.captions[shape_id]:
            ids = self.encoder.words.prepare(caption).ids
            ids = ids[ids >= 0]
            found.append(self._embed(ids, shape_id) if self.encoder.frozen else ids)
        return found

    def _embed(self, ids: np.ndarray, shape_id: str) -> np.ndarray:
        embeddings = (
            self.encoder(torch.from_numpy(ids)[None].to(self.device))
            .embeddings[0]
            .half()
            .cpu()
            .numpy()
        )
        if not np.isfinite(embeddings).all():
            raise CaptionError(f"a caption of {shape_id!r} has embeddings that float16 cannot hold")
        return embeddings


class ToldByEmbeddings:
    """Embeddings of a folder, `<id>.npz` for each shape, taken for what `encoder` stands in for."""

    items = "float16 embeddings"

    def __init__(self, kind: str, folder: Path, encoder: GivenEmbeddings) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of embeddings <id>.npz")
        self.kind, self.folder, self.encoder, self.identity = (
            kind,
            folder,
            encoder,
            encoder.identity,
        )

    def read(self, shape_id: str) -> list[np.ndarray]:
        read = read_view_embeddings if self.kind == "image" else read_caption_embeddings
        return read(self.folder, shape_id, self.encoder.num_tokens, self.encoder.width)
