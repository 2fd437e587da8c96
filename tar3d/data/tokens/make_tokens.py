"""The work of `python -m tar3d.data.make_tokens`: token shards of samples and their conditions."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from tar3d import checkpoint
from tar3d.condition.conditioner import Encoder, build_encoder
from tar3d.condition.given import GivenEmbeddings
from tar3d.condition.text_encoders import trains_tokenizer
from tar3d.condition.text_tokenizer import train_text_tokenizer
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.token_file import token_dtype
from tar3d.data.formats.token_shards import read_json, read_stamp, sha256
from tar3d.data.tokens.conditions import (
    UNUSABLE,
    CaptionConditions,
    ConditionReader,
    EmbeddingConditions,
    ViewConditions,
)
from tar3d.io import atomic_write, write_csv, write_json
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tar3d.condition.base import ImageEncoder, TextEncoder
    from tar3d.config import GPTRunConfig
    from tar3d.tokenizer.vqvae import VQVAE

SHARD_SHAPES = 512
REPORT = "refused.csv"  # in the folder of the shards, written at the end of a run


class TokenMaker:
    """Turns the shapes of one data set folder into token shards.

    `vqvae` makes the tokens, `readers` what the GPT is conditioned on. After `run`, `refused` has a
    row for each shape and modality that could not be used.
    """

    def __init__(
        self, data: Path, vqvae: VQVAE, readers: list[ConditionReader], device: torch.device
    ) -> None:
        self.data, self.vqvae, self.device = data, vqvae.eval().to(device), device
        self.readers = readers
        self.samples, self.folder = open_samples(data), data / "tokens"
        self.stamp: dict[str, object] = {
            "tokenizer": checkpoint.token_fingerprint(vqvae),
            "grid_size": vqvae.config.grid_size,
            "codebook_size": vqvae.config.codebook_size,
        }
        for reader in readers:
            self.stamp |= {
                reader.modality: reader.identity,
                f"{reader.modality} items": reader.items,
            }
        self.refused: list[dict] = []

    def run(self) -> int:
        """Makes missing shards and removes those of other ids.

        Returns the number of shapes with tokens and all conditions. Raises ValueError for shards of
        another tokenizer or encoder, and for a data set without samples.
        """
        self._update_stamp()
        jobs = self._jobs()
        surplus = {p.parent for p in self.folder.glob("*/index.json")} - {
            shard for shard, _ in jobs
        }
        for shard in surplus:
            shutil.rmtree(shard)  # its split has shrunk: the shapes may be in another split now
        usable, self.refused = 0, []
        with progress_bar(
            total=sum(len(ids) for _, ids in jobs), unit="shape", desc="tokens"
        ) as bar:
            for shard, ids in jobs:
                index = shard / "index.json"
                if not index.is_file() or read_json(index)["ids"] != ids:
                    self._make_tokens(shard, ids)
                counts = [self._add_conditions(shard, ids, reader) for reader in self.readers]
                if counts:
                    usable += sum(all(numbers) for numbers in zip(*counts, strict=True))
                else:
                    usable += len(ids)
                bar.update(len(ids))
        write_csv(self.folder / REPORT, ["id", "kind", "reason"], self.refused)
        return usable

    def _update_stamp(self) -> None:
        """Compares the stamp with that of the shards on disk, and writes the union of the two."""
        found = read_stamp(self.folder) if self.folder.is_dir() else {}
        if "encoder" in found:
            raise ValueError(
                f"{self.folder} was made by an earlier version; delete that folder to make it again"
            )
        if (
            found.get("text items") == self.stamp.get("text items") == "int32 token ids"
            and found["text"] != self.stamp["text"]
        ):
            # captions have changed, and with them the text tokenizer: ids are quickly made again
            for index in self.folder.glob("*/text.json"):
                index.unlink()
            del found["text"]
        if different := [k for k, v in self.stamp.items() if found.get(k, v) != v]:
            differences = ", ".join(
                f"{k} {found[k]!r} instead of {self.stamp[k]!r}" for k in different
            )
            raise ValueError(
                f"{self.folder} was made with {differences}; delete that folder to make it again"
            )
        write_json(self.folder / "stamp.json", found | self.stamp)

    def _jobs(self) -> list[tuple[Path, list[str]]]:
        """The folder and the ids of every shard."""
        jobs = []
        for split in SPLITS:
            ids = self.samples.ids(split)
            jobs += [
                (self.folder / f"{split}-{k:05d}", ids[first : first + SHARD_SHAPES])
                for k, first in enumerate(range(0, len(ids), SHARD_SHAPES))
            ]
        if not jobs:
            raise ValueError(
                f"{self.samples.folder} holds no samples of a known split: {self.samples.advice}"
            )
        return jobs

    @torch.inference_mode()
    def _make_tokens(self, shard: Path, ids: list[str]) -> None:
        """Writes a shard with the tokens of `ids` in place of the one that was there."""
        tokens = []
        for shape_id in ids:
            surface = torch.from_numpy(self.samples.surface(shape_id))[None].to(self.device)
            tokens.append(self.vqvae.tokenize(surface).ids[0].cpu().numpy())
        partial = shard.with_name(f".{shard.name}.{os.getpid()}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        dtype = token_dtype(self.vqvae.config.codebook_size)
        np.save(partial / "tokens.npy", np.stack(tokens).astype(dtype))
        write_json(partial / "index.json", {"ids": ids, "sha256": sha256(partial / "tokens.npy")})
        shutil.rmtree(shard, ignore_errors=True)
        partial.replace(shard)

    @torch.inference_mode()
    def _add_conditions(self, shard: Path, ids: list[str], reader: ConditionReader) -> list[int]:
        """Adds the conditions of `ids` to a shard; returns how many each shape has.

        A shard that has them is written again only if a shape that was refused is usable now.
        """
        name = reader.modality
        index = shard / f"{name}.json"
        known = read_json(index)["counts"] if index.is_file() else [0] * len(ids)
        items = {i: self._read(reader, i) for i, n in zip(ids, known, strict=True) if n == 0}
        if index.is_file() and not any(items.values()):
            return known
        items |= {i: self._read(reader, i) for i, n in zip(ids, known, strict=True) if n}
        counts, every = [len(items[i]) for i in ids], [item for i in ids for item in items[i]]
        if every:
            rows = np.stack(every) if name == "image" else np.concatenate(every)
            with atomic_write(shard / f"{name}.npy") as f:
                np.save(f, rows)
        lengths = {} if name == "image" else {"lengths": [len(item) for item in every]}
        digest = sha256(shard / f"{name}.npy") if every else ""
        write_json(index, {"counts": counts, **lengths, "sha256": digest})
        return counts

    def _read(self, reader: ConditionReader, shape_id: str) -> list[np.ndarray]:
        """The conditions of a shape; empty, and a row of `refused`, if they cannot be used."""
        try:
            return reader.read(shape_id)
        except UNUSABLE as e:
            self.refused.append({"id": shape_id, "kind": reader.modality, "reason": str(e)})
            return []


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
