"""Samples and views -> token shards, which the GPT trains on:

    python -m tar3d.data.make_tokens DATA --tokenizer pretrained/tiny --config configs/gpt_i23d_tiny.yaml
    python -m tar3d.data.make_tokens DATA --tokenizer MODEL --config configs/gpt_i23d.yaml --embeddings ULIP/dino_feats/Shapenet

A frozen image encoder is run here once, and its float16 embeddings are stored; for an encoder that is trained along, the
prepared pixels are. With --embeddings, those of a folder (tar3d/data/ulip.py) are stored instead, and taken for what the frozen
encoder that the config names would give; its weights are not needed then. Every shard carries a stamp (tokenizer, encoder,
dtype). Interrupted runs continue with the first shard that is missing; shards made with another tokenizer or encoder are
refused, never mixed. A shape without usable views is listed in tokens/refused.csv with the reason, the rest goes on, and the
exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.condition.encoders import GivenEmbeddings, ImageEncoder, build_image_encoder
from tar3d.condition.image import ImageError, preprocess
from tar3d.config import GPTRunConfig, ImageEncoderConfig
from tar3d.data.folder import SPLITS, write_csv, write_json
from tar3d.data.shapes import open_samples
from tar3d.data.tokens import read_stamp, sha256
from tar3d.data.ulip import EmbeddingError, ViewEmbeddings
from tar3d.data.views import Views
from tar3d.tokenizer.vqvae import VQVAE

SHARD_SHAPES = 512


class TokenMaker:
    """Turns shapes of one data set folder into shards with one tokenizer and one image encoder, or with embeddings that
    are `given` instead of the encoder."""

    def __init__(self, data: Path, vqvae: VQVAE, image_encoder: ImageEncoderConfig, device: torch.device,
                 given: ViewEmbeddings | None = None) -> None:
        self.data, self.vqvae, self.config, self.device = data, vqvae.eval().to(device), image_encoder, device
        self.given = given
        self.encoder: ImageEncoder = given.encoder if given else build_image_encoder(image_encoder).to(device)
        self.samples, self.views = open_samples(data), None if given else Views(data)
        self.stamp = {"tokenizer": checkpoint.fingerprint(vqvae), "grid_size": vqvae.config.grid_size,
                      "codebook_size": vqvae.config.codebook_size, "encoder": self.encoder.identity,
                      "source": "float16 embeddings" if self.encoder.frozen else "uint8 pixels"}
        self.refused: list[dict] = []

    def run(self) -> int:
        """Makes what is missing and removes shards of other ids; returns the number of shapes in shards."""
        folder = self.data / "tokens"
        if folder.is_dir() and (found := read_stamp(folder)) != self.stamp:
            different = ", ".join(f"{k} {found.get(k)!r} instead of {v!r}" for k, v in self.stamp.items() if found.get(k) != v)
            raise ValueError(f"{folder} was made with {different}; delete that folder to make it again")
        write_json(folder / "stamp.json", self.stamp)
        jobs = []
        for split in SPLITS:
            ids = self.samples.ids(split)
            jobs += [(folder / f"{split}-{k:05d}", ids[first:first + SHARD_SHAPES])
                     for k, first in enumerate(range(0, len(ids), SHARD_SHAPES))]
        if not jobs:
            raise ValueError(f"{self.samples.folder} holds no samples of a known split: {self.samples.advice}")
        for surplus in {p.parent for p in folder.glob("*/index.json")} - {shard for shard, _ in jobs}:
            shutil.rmtree(surplus)  # of a split that has shrunk: its shapes may be held out by now
        done = 0
        self.refused = []
        with tqdm(total=sum(len(ids) for _, ids in jobs), unit="shape", desc="tokens") as bar:
            for shard, ids in jobs:
                if not self._is_finished(shard, ids):
                    self._make(shard, ids)
                done += len(json.loads((shard / "index.json").read_text(encoding="utf-8"))["ids"])
                bar.update(len(ids))
        write_csv(folder / "refused.csv", ["id", "reason"], self.refused)
        return done

    def _is_finished(self, shard: Path, ids: list[str]) -> bool:
        """Whether a shard was made from these ids, and what it had to leave out still cannot be used."""
        index = shard / "index.json"
        if not index.is_file():
            return False
        values = json.loads(index.read_text(encoding="utf-8"))
        if values["made_from"] != ids:
            return False
        refused = []
        for shape_id in sorted(set(ids) - set(values["ids"])):
            try:
                self._source(shape_id)
            except (ImageError, EmbeddingError) as e:
                refused.append({"id": shape_id, "reason": str(e)})
            else:
                return False
        self.refused += refused
        return True

    @torch.inference_mode()
    def _make(self, shard: Path, ids: list[str]) -> None:
        kept, tokens, sources, views = [], [], [], []
        for shape_id in ids:
            try:
                source = self._source(shape_id)
            except (ImageError, EmbeddingError) as e:
                self.refused.append({"id": shape_id, "reason": str(e)})
            else:
                surface = torch.from_numpy(self.samples.surface(shape_id))
                tokens.append(self.vqvae.tokenize(surface[None].to(self.device)).ids[0].cpu().numpy())
                kept.append(shape_id)
                sources.append(source)
                views.append(len(source))
        partial = shard.with_name(f".{shard.name}.{os.getpid()}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        dtype = np.uint16 if self.vqvae.config.codebook_size <= 2**16 else np.uint32
        if kept:
            np.save(partial / "tokens.npy", np.stack(tokens).astype(dtype))
            np.save(partial / "source.npy", np.concatenate(sources))
        sums = {path.name: sha256(path) for path in sorted(partial.glob("*.npy"))}
        write_json(partial / "index.json", {"ids": kept, "views": views, "made_from": ids, "sha256": sums})
        shutil.rmtree(shard, ignore_errors=True)
        os.replace(partial, shard)

    def _source(self, shape_id: str) -> np.ndarray:
        """(views, ...) of one shape: pixels, or embeddings of a frozen encoder."""
        if self.given:
            return self.given.read(shape_id)
        names = self.views.names(shape_id)
        if not names:
            raise ImageError(f"{self.views.folder / shape_id} holds no .png view: "
                             "render some with python -m tar3d.data.make_samples views.count=4")
        pixels = np.stack([preprocess(self.views.load(name), self.config).pixels for name in names])
        if not self.encoder.frozen:
            return pixels
        return self.encoder(torch.from_numpy(pixels).to(self.device)).embeddings.half().cpu().numpy()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help=f"data set folder with samples/, views/ and splits.json ({', '.join(SPLITS)}), "
                                                "or ShapeNetV2's")
    parser.add_argument("--tokenizer", required=True, metavar="MODEL", help="model directory or Hub id of the tokenizer")
    parser.add_argument("--config", default="configs/gpt_i23d_tiny.yaml",
                        help="the GPT's config: names the image encoder (default: %(default)s)")
    parser.add_argument("--embeddings", type=Path, metavar="FOLDER",
                        help="take <id>.npz of this folder for the frozen encoder's embeddings, instead of running it over views")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as in image_encoder.image_size=64")
    args = parser.parse_intermixed_args(argv)
    try:
        config = configuration.load(GPTRunConfig, args.config, args.overrides)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        given = None
        if args.embeddings:
            shape = config.gpt.condition_tokens, config.gpt.condition_width
            given = ViewEmbeddings(args.embeddings, GivenEmbeddings(config.image_encoder, *shape))
        maker = TokenMaker(args.data, checkpoint.load_tokenizer(args.tokenizer), config.image_encoder, device, given)
        done = maker.run()
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    print(f"tokens of {done} shapes in {args.data / 'tokens'}; "
          f"{len(maker.refused)} refused ({args.data / 'tokens' / 'refused.csv'})")
    return 1 if maker.refused else 0


if __name__ == "__main__":
    sys.exit(main())
