"""Samples, and the views or captions of the shapes -> token shards, which the GPT trains on:

    python -m tar3d.data.make_tokens DATA --tokenizer pretrained/tiny --config configs/gpt_i23d_tiny.yaml
    python -m tar3d.data.make_tokens DATA --tokenizer MODEL --gpt-type t23d --config configs/gpt_t23d.yaml
    python -m tar3d.data.make_tokens DATA --tokenizer MODEL --config configs/gpt_i23d.yaml --embeddings ULIP/dino_feats/Shapenet

A frozen encoder is run here once, and its float16 embeddings are stored; for an encoder that is
trained along, its input is: the prepared pixels, or the ids of the words. With --embeddings or
--caption-embeddings, those of a folder (tar3d/data/formats/ulip.py) are stored instead, and taken for what
the frozen encoder that the config names would give; its weights are not needed then. Every folder
of shards carries a stamp (tokenizer, encoders); what was made with another tokenizer or encoder is
refused, never mixed, and what a further kind of condition needs is added. Interrupted runs continue
with the first file that is missing. A shape without usable views or captions is listed in
tokens/refused.csv with the reason, the rest goes on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.condition.conditioner import Encoder, build_encoder
from tar3d.condition.encoders import TRAINED, GivenEmbeddings
from tar3d.condition.text import learn_words
from tar3d.config import GPT_TYPES, GPTRunConfig
from tar3d.data.datasets.tokens import read_json, read_stamp, sha256
from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.token_file import token_dtype
from tar3d.data.tokens.conditions import (
    UNUSABLE,
    Told,
    ToldByCaptions,
    ToldByEmbeddings,
    ToldByViews,
    captions_of,
)
from tar3d.io import atomic_write, write_csv, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tar3d.tokenizer.vqvae import VQVAE

SHARD_SHAPES = 512


class TokenMaker:
    """Turns the shapes of one data set folder into shards with one tokenizer, and with what the GPT
    is `told` of them."""

    def __init__(self, data: Path, vqvae: VQVAE, told: list[Told], device: torch.device) -> None:
        self.data, self.vqvae, self.told, self.device = data, vqvae.eval().to(device), told, device
        self.samples, self.folder = open_samples(data), data / "tokens"
        self.stamp = {
            "tokenizer": checkpoint.token_fingerprint(vqvae),
            "grid_size": vqvae.config.grid_size,
            "codebook_size": vqvae.config.codebook_size,
        }
        for one in told:
            self.stamp |= {one.kind: one.identity, f"{one.kind} items": one.items}
        self.refused: list[dict] = []

    def run(self) -> int:
        """Makes what is missing and removes shards of other ids; returns the number of shapes that
        a GPT can be told of."""
        found = read_stamp(self.folder) if self.folder.is_dir() else {}
        if "encoder" in found:
            raise ValueError(
                f"{self.folder} was made by an earlier version; delete that folder to make it again"
            )
        if (
            found.get("text items") == self.stamp.get("text items") == "int32 token ids"
            and found["text"] != self.stamp["text"]
        ):
            for index in self.folder.glob(
                "*/text.json"
            ):  # captions have changed, and with them the words: quickly made again
                index.unlink()
            del found["text"]
        if different := [k for k, v in self.stamp.items() if found.get(k, v) != v]:
            said = ", ".join(f"{k} {found[k]!r} instead of {self.stamp[k]!r}" for k in different)
            raise ValueError(
                f"{self.folder} was made with {said}; delete that folder to make it again"
            )
        write_json(self.folder / "stamp.json", found | self.stamp)
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
        for surplus in {p.parent for p in self.folder.glob("*/index.json")} - {
            shard for shard, _ in jobs
        }:
            shutil.rmtree(surplus)  # of a split that has shrunk: its shapes may be held out by now
        usable, self.refused = 0, []
        with tqdm(total=sum(len(ids) for _, ids in jobs), unit="shape", desc="tokens") as bar:
            for shard, ids in jobs:
                if (
                    not (shard / "index.json").is_file()
                    or read_json(shard / "index.json")["ids"] != ids
                ):
                    self._make(shard, ids)
                counts = [self._tell(shard, ids, one) for one in self.told]
                usable += (
                    sum(all(of_one) for of_one in zip(*counts, strict=True)) if counts else len(ids)
                )
                bar.update(len(ids))
        write_csv(self.folder / "refused.csv", ["id", "kind", "reason"], self.refused)
        return usable

    @torch.inference_mode()
    def _make(self, shard: Path, ids: list[str]) -> None:
        """A shard with the tokens of `ids`, in place of one that was there."""
        tokens = [
            self.vqvae.tokenize(torch.from_numpy(self.samples.surface(i))[None].to(self.device))
            .ids[0]
            .cpu()
            .numpy()
            for i in ids
        ]
        partial = shard.with_name(f".{shard.name}.{os.getpid()}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        np.save(
            partial / "tokens.npy",
            np.stack(tokens).astype(token_dtype(self.vqvae.config.codebook_size)),
        )
        write_json(partial / "index.json", {"ids": ids, "sha256": sha256(partial / "tokens.npy")})
        shutil.rmtree(shard, ignore_errors=True)
        os.replace(partial, shard)

    @torch.inference_mode()
    def _tell(self, shard: Path, ids: list[str], told: Told) -> list[int]:
        """Adds what is told of `ids`, unless it is there and nothing that was refused can be used
        by now; returns how many items each has."""
        index = shard / f"{told.kind}.json"
        known = read_json(index)["counts"] if index.is_file() else [0] * len(ids)
        items = {i: self._read(told, i) for i, count in zip(ids, known, strict=True) if count == 0}
        if index.is_file() and not any(items.values()):
            return known
        items |= {i: self._read(told, i) for i, count in zip(ids, known, strict=True) if count}
        counts, every = [len(items[i]) for i in ids], [item for i in ids for item in items[i]]
        if every:
            rows = np.stack(every) if told.kind == "image" else np.concatenate(every)
            with atomic_write(shard / f"{told.kind}.npy") as f:
                np.save(f, rows)
        lengths = {} if told.kind == "image" else {"lengths": [len(item) for item in every]}
        write_json(
            index,
            {
                "counts": counts,
                **lengths,
                "sha256": sha256(shard / f"{told.kind}.npy") if every else "",
            },
        )
        return counts

    def _read(self, told: Told, shape_id: str) -> list[np.ndarray]:
        """What is told of a shape; nothing of one that is refused."""
        try:
            return told.read(shape_id)
        except UNUSABLE as e:
            self.refused.append({"id": shape_id, "kind": told.kind, "reason": str(e)})
            return []


def encoders_of(
    config: GPTRunConfig, data: Path, words: PreTrainedTokenizerBase | None = None
) -> dict[str, Encoder]:
    """The encoder of each condition that the config names. What stands in for it where the shards
    of `data` were made of given embeddings. A text encoder that is trained gets `words`, or learns
    those of the training captions."""
    stamp = read_stamp(data / "tokens") if (data / "tokens" / "stamp.json").is_file() else {}
    encoders: dict[str, Encoder] = {}
    for kind in config.conditions:
        if stamp.get(kind, "").startswith(GivenEmbeddings.prefix):
            encoders[kind] = given_encoder(config, kind)
            continue
        if kind == "text" and config.text_encoder.model == TRAINED and words is None:
            words = words_of(data, config.text_encoder.vocabulary)
        encoders[kind] = build_encoder(config, kind, words)
    return encoders


def given_encoder(config: GPTRunConfig, kind: str) -> GivenEmbeddings:
    return GivenEmbeddings(
        getattr(config, f"{kind}_encoder"), config.gpt.condition_tokens, config.gpt.condition_width
    )


def words_of(data: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """The words of the captions of a data set's training shapes."""
    captions, ids = captions_of(data), open_samples(data).ids("train")
    return learn_words((caption for i in ids for caption in captions.get(i, ())), vocabulary)


def told_of(
    data: Path, encoders: dict[str, Encoder], config: GPTRunConfig, device: torch.device
) -> list[Told]:
    """What each encoder is shown of a data set, but for those whose embeddings were given."""
    made = {
        kind: encoder
        for kind, encoder in encoders.items()
        if not isinstance(encoder, GivenEmbeddings)
    }
    return [
        ToldByViews(data, encoder, config.image_encoder, device)
        if kind == "image"
        else ToldByCaptions(data, encoder, device)
        for kind, encoder in made.items()
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data",
        type=Path,
        help=f"data set folder with samples/, views/ and splits.json ({', '.join(SPLITS)}), "
        "or ShapeNetV2's",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="MODEL",
        help="model directory or Hub id of the tokenizer",
    )
    parser.add_argument(
        "--gpt-type",
        choices=list(GPT_TYPES),
        default="i23d",
        help="what the GPT is told of a shape (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        default="configs/gpt_i23d_tiny.yaml",
        help="the GPT's config: names the encoders (default: %(default)s)",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FOLDER",
        help="take <id>.npz of this folder for the frozen image encoder's embeddings, instead of running it",
    )
    parser.add_argument(
        "--caption-embeddings",
        type=Path,
        metavar="FOLDER",
        help="the same for the frozen text encoder",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="config values, as in image_encoder.image_size=64",
    )
    args = parser.parse_intermixed_args(argv)
    try:
        config = configuration.load(
            GPTRunConfig, args.config, args.overrides, base={"conditions": GPT_TYPES[args.gpt_type]}
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        given = {"image": args.embeddings, "text": args.caption_embeddings}
        if unasked := [
            kind for kind, folder in given.items() if folder and kind not in config.conditions
        ]:
            raise ValueError(
                f"embeddings of {unasked[0]} are given, but --gpt-type {args.gpt_type} is told of "
                f"{' and '.join(config.conditions) or 'nothing'}"
            )
        told = [
            ToldByEmbeddings(kind, folder, given_encoder(config, kind))
            for kind, folder in given.items()
            if folder
        ]
        rest = dataclasses.replace(
            config, conditions=[kind for kind in config.conditions if not given[kind]]
        )
        told += told_of(args.data, encoders_of(rest, args.data), config, device)
        maker = TokenMaker(args.data, checkpoint.load_tokenizer(args.tokenizer), told, device)
        done = maker.run()
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    print(
        f"tokens of {done} shapes in {args.data / 'tokens'}; "
        f"{len(maker.refused)} refused ({args.data / 'tokens' / 'refused.csv'})"
    )
    return 1 if maker.refused else 0
