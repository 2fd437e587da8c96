"""The work of `python -m tar3d.data.make_tokens`: token shards of samples and their conditions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

from tar3d.condition.conditioner import Encoder, build_encoder
from tar3d.condition.given import GivenEmbeddings
from tar3d.condition.text_encoders import trains_tokenizer
from tar3d.condition.text_tokenizer import train_text_tokenizer
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.token_shards import read_stamp
from tar3d.data.tokens.conditions import (
    CaptionConditions,
    ConditionReader,
    EmbeddingConditions,
    ViewConditions,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedTokenizerBase

    from tar3d.condition.base import ImageEncoder, TextEncoder
    from tar3d.config import GPTRunConfig


def encoders_of(
    config: GPTRunConfig, data: Path, words: PreTrainedTokenizerBase | None = None
) -> dict[str, Encoder]:
    """The encoder of each modality in `config.conditions`.

    Where the shards of `data` hold embeddings that the user provided, a stand-in without weights.
    A text encoder that is trained gets the text tokenizer `words`, or one trained on the captions
    of the training shapes.
    """
    stamp = read_stamp(data / "tokens") if (data / "tokens" / "stamp.json").is_file() else {}
    encoders: dict[str, Encoder] = {}
    for modality in config.conditions:
        if stamp.get(modality, "").startswith(GivenEmbeddings.prefix):
            encoders[modality] = provided_embeddings(config, modality)
            continue
        if modality == "text" and trains_tokenizer(config.text_encoder) and words is None:
            words = caption_tokenizer(data, config.text_encoder.vocabulary)
        encoders[modality] = build_encoder(config, modality, words)
    return encoders


def provided_embeddings(config: GPTRunConfig, modality: str) -> GivenEmbeddings:
    """The stand-in for a frozen encoder whose embeddings the user provides."""
    return GivenEmbeddings(
        getattr(config, f"{modality}_encoder"),
        config.gpt.condition_tokens,
        config.gpt.condition_width,
    )


def caption_tokenizer(data: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """A text tokenizer of `vocabulary` words, trained on the captions of the training shapes."""
    captions, ids = captions_of(data), open_samples(data).ids("train")
    return train_text_tokenizer(
        (caption for i in ids for caption in captions.get(i, ())), vocabulary
    )


def condition_readers(
    data: Path, encoders: dict[str, Encoder], config: GPTRunConfig, device: torch.device
) -> list[ConditionReader]:
    """A reader for each encoder, except for those whose embeddings the user provided."""
    readers: list[ConditionReader] = []
    for modality, encoder in encoders.items():
        if isinstance(encoder, GivenEmbeddings):
            continue
        if modality == "image":
            image_encoder = cast("ImageEncoder", encoder)
            readers.append(ViewConditions(data, image_encoder, config.image_encoder, device))
        else:
            readers.append(CaptionConditions(data, cast("TextEncoder", encoder), device))
    return readers


def all_readers(
    data: Path, folders: dict[str, Path | None], config: GPTRunConfig, device: torch.device
) -> list[ConditionReader]:
    """Readers of the conditions of `data`, those whose embeddings the user provides first.

    `folders` has the embeddings of a modality, or None. Raises ValueError for a modality that the
    GPT is not conditioned on.
    """
    if unasked := [
        modality
        for modality, folder in folders.items()
        if folder and modality not in config.conditions
    ]:
        raise ValueError(
            f"embeddings of {unasked[0]} are given, but the GPT (--gpt-type) is conditioned on "
            f"{' and '.join(config.conditions) or 'nothing'}"
        )
    readers: list[ConditionReader] = [
        EmbeddingConditions(modality, folder, provided_embeddings(config, modality))
        for modality, folder in folders.items()
        if folder
    ]
    rest = dataclasses.replace(
        config, conditions=[name for name in config.conditions if not folders[name]]
    )
    return readers + condition_readers(data, encoders_of(rest, data), config, device)
