"""Makes the token shards of a data set, and makes those again that are stale."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import torch

from tar3d import checkpoint
from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.token_file import token_dtype
from tar3d.data.formats.token_shards import LATENTS, SAMPLINGS, read_stamp, sha256
from tar3d.data.formats.token_sources import NAMES as SOURCE_NAMES
from tar3d.data.formats.token_sources import SOURCES, TokenSources
from tar3d.data.tokens.conditions import UNUSABLE, ConditionReader, ViewConditions
from tar3d.io import atomic_write, read_json, write_csv, write_json
from tar3d.layouts.triplane import to_sequence
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.tokenizer.vqvae import VQVAE

SHARD_SHAPES = 512
DIVISION_SEED = 0  # of the division of stored points into samplings
REPORT = "refused.csv"  # in the folder of the shards, written at the end of a run


class TokenMaker:
    """Turns the shapes of one data set folder into token shards.

    `vqvae` makes the tokens, the codes nearest to the mean latents of up to `samplings` samplings
    of the surface: of a single one, a quarter would be other codes if the surface were sampled
    again. `readers` make what the GPT is conditioned on. After `run`, `refused` has a row for each
    shape and modality that could not be used, and `notes` sentences for the user.

    The shards go to `folder`, by default tokens/ of the data set; with `limit` they hold that many
    shapes of each split.
    """

    def __init__(
        self,
        data: Path,
        vqvae: VQVAE,
        readers: list[ConditionReader],
        device: torch.device,
        *,
        samplings: int = 1,
        folder: Path | None = None,
        limit: int | None = None,
    ) -> None:
        self.data, self.vqvae, self.device = data, vqvae.eval().to(device), device
        self.readers, self.limit, self.samplings = readers, limit, samplings
        self.samples, self.folder = open_samples(data), folder or data / "tokens"
        views = next((r.views for r in readers if isinstance(r, ViewConditions)), None)
        self.sources = TokenSources(data, self.samples, views)
        self.stamp: dict[str, object] = {
            "tokenizer": checkpoint.token_fingerprint(vqvae),
            "grid_size": vqvae.config.grid_size,
            "codebook_size": vqvae.config.codebook_size,
            SAMPLINGS: samplings,
        }
        for reader in readers:
            self.stamp |= {
                reader.modality: reader.identity,
                f"{reader.modality} items": reader.items,
            }
        self.refused: list[dict] = []
        self._stale: set[str] = set()  # names of parts that were made again
        self._unknown: set[str] = set()  # names of shards without hashes
        self._fewer = 0  # shapes with fewer samplings than asked for

    @property
    def notes(self) -> list[str]:
        """Sentences on shards that were made again or cannot be checked, and on samplings."""
        notes = []
        if self._fewer:
            wanted = self.samplings * max(1, self.vqvae.config.density_points)
            notes.append(
                f"{self._fewer} shapes got fewer than train.token_samplings={self.samplings} "
                f"samplings, which take {wanted:,} stored points a shape: "
                f"make_samples surface_points={wanted} stores as many"
            )
        if self._stale:
            notes.append(
                "made again, as what they are made of has changed: "
                f"{', '.join(sorted(self._stale))} in {self.folder}"
            )
        if self._unknown:
            notes.append(
                f"{len(self._unknown)} shards in {self.folder} are of an earlier version, which "
                "noted no hashes: that they fit today's samples, views and captions could not be "
                "checked; delete that folder to make them again"
            )
        return notes

    def run(self) -> int:
        """Makes missing and stale shards and removes those of other ids.

        Returns the number of shapes with tokens and all conditions. Raises ValueError for shards of
        another tokenizer or encoder, and for a data set without samples.
        """
        jobs = self._jobs()
        self._update_stamp()
        surplus = {p.parent for p in self.folder.glob("*/index.json")} - {
            shard for shard, _ in jobs
        }
        for shard in surplus:
            shutil.rmtree(shard)  # its split has shrunk: the shapes may be in another split now
        usable, self.refused = 0, []
        total = sum(len(ids) for _, ids in jobs)
        with progress_bar(total=total, unit="shape", desc="tokens") as bar:
            for shard, ids in jobs:
                self._add_tokens(shard, ids)
                counts = [self._add_conditions(shard, ids, reader) for reader in self.readers]
                if counts:
                    usable += sum(all(numbers) for numbers in zip(*counts, strict=True))
                else:
                    usable += len(ids)
                bar.update(len(ids))
        if self.readers or not (self.folder / REPORT).is_file():
            write_csv(self.folder / REPORT, ["id", "kind", "reason"], self.refused)
        if self.folder == self.data / "tokens":
            self.sources.save()
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
                self._stale.add(f"{index.parent.name} (captions)")
                index.unlink()
            del found["text"]
        if different := [k for k, v in self.stamp.items() if found.get(k, v) != v]:
            differences = ", ".join(
                f"{k} {found[k]!r} instead of {self.stamp[k]!r}" for k in different
            )
            remedy = "delete that folder to make it again"
            if SAMPLINGS in different:
                remedy += f", or write train.token_samplings={found[SAMPLINGS]} to take it as it is"
            raise ValueError(f"{self.folder} was made with {differences}; {remedy}")
        write_json(self.folder / "stamp.json", found | self.stamp)

    def _jobs(self) -> list[tuple[Path, list[str]]]:
        """The folder and the ids of every shard."""
        jobs = []
        for split in SPLITS:
            ids = self.samples.ids(split)
            if self.limit:
                ids = ids[: self.limit]
            jobs += [
                (self.folder / f"{split}-{k:05d}", ids[first : first + SHARD_SHAPES])
                for k, first in enumerate(range(0, len(ids), SHARD_SHAPES))
            ]
        if not jobs:
            raise ValueError(
                f"{self.samples.folder} holds no samples of a known split: {self.samples.advice}"
            )
        return jobs

    def _is_fresh(self, path: Path, key: str, sources: str, part: str) -> bool:
        """Whether the part of a shard that `path` describes is made of these sources.

        One without a hash counts as such, and gets this one.
        """
        found = read_json(path)
        if recorded := found.get(key):
            if recorded != sources:
                self._stale.add(f"{path.parent.name} ({part})")
            return recorded == sources
        self._unknown.add(path.parent.name)
        write_json(path, found | {key: sources})
        return True

    def _add_tokens(self, shard: Path, ids: list[str]) -> None:
        """Makes the tokens of a shard, unless it has those of these shapes and samples."""
        index, sources = shard / "index.json", self.sources.hash_of("tokens", ids)
        same_ids = index.is_file() and read_json(index)["ids"] == ids
        if not same_ids or not self._is_fresh(index, SOURCES, sources, "samples"):
            self._make_tokens(shard, ids, sources, keep_conditions=same_ids)

    @torch.inference_mode()
    def _make_tokens(
        self, shard: Path, ids: list[str], sources: str, *, keep_conditions: bool
    ) -> None:
        """Writes a shard with tokens and latents of `ids` in place of the one that was there."""
        tokens, latents, samplings = [], [], []
        for shape_id in ids:
            parts = self._samplings_of(shape_id)
            encoded = self.vqvae.encode(parts.to(self.device)).mean(0, keepdim=True)
            tokens.append(self.vqvae.tokens_of(encoded).ids[0].cpu().numpy())
            latents.append(to_sequence(encoded)[0].half().cpu().numpy())
            samplings.append(len(parts))
        self._fewer += sum(count < self.samplings for count in samplings)
        partial = shard.with_name(f".{shard.name}.{os.getpid()}.part")
        shutil.rmtree(partial, ignore_errors=True)
        if keep_conditions:
            shutil.copytree(shard, partial)
        partial.mkdir(parents=True, exist_ok=True)
        dtype = token_dtype(self.vqvae.config.codebook_size)
        arrays = {"tokens": np.stack(tokens).astype(dtype), LATENTS: np.stack(latents)}
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        digests = [sha256(partial / f"{name}.npy") for name in arrays]
        write_json(
            partial / "index.json",
            {
                "ids": ids,
                SAMPLINGS: samplings,
                "sha256": digests[0],
                LATENTS: digests[1],
                SOURCES: sources,
            },
        )
        shutil.rmtree(shard, ignore_errors=True)
        partial.replace(shard)

    def _samplings_of(self, shape_id: str) -> torch.Tensor:
        """The stored surface points of a shape as samplings (k, N // k, 6) of its surface.

        They are divided at random, the same way each time. There are fewer than `self.samplings`
        where each would have fewer points than the tokenizer was trained for; one is all points in
        their order.
        """
        surface = torch.from_numpy(self.samples.surface(shape_id))
        whole = len(surface) // max(1, self.vqvae.config.density_points)
        count = min(self.samplings, max(1, whole))
        if count == 1:
            return surface[None]
        order = torch.randperm(len(surface), generator=torch.Generator().manual_seed(DIVISION_SEED))
        kept = order[: len(surface) // count * count]
        return surface[kept].unflatten(0, (count, -1))

    @torch.inference_mode()
    def _add_conditions(self, shard: Path, ids: list[str], reader: ConditionReader) -> list[int]:
        """Adds the conditions of `ids` to a shard; returns how many each shape has.

        A shard that has them is written again if what they are made of has changed, or if a shape
        that was refused is usable now.
        """
        name, key = reader.modality, reader.source_key
        index, sources = shard / f"{name}.json", reader.source_hash(ids, self.sources)
        there = index.is_file() and self._is_fresh(index, key, sources, SOURCE_NAMES[name])
        known = read_json(index)["counts"] if there else [0] * len(ids)
        items = {i: self._read(reader, i) for i, n in zip(ids, known, strict=True) if n == 0}
        if there and not any(items.values()):
            return known
        items |= {i: self._read(reader, i) for i, n in zip(ids, known, strict=True) if n}
        counts, every = [len(items[i]) for i in ids], [item for i in ids for item in items[i]]
        if every:
            rows = np.stack(every) if name == "image" else np.concatenate(every)
            with atomic_write(shard / f"{name}.npy") as f:
                np.save(f, rows)
        lengths = {} if name == "image" else {"lengths": [len(item) for item in every]}
        digest = sha256(shard / f"{name}.npy") if every else ""
        write_json(index, {"counts": counts, **lengths, "sha256": digest, key: sources})
        return counts

    def _read(self, reader: ConditionReader, shape_id: str) -> list[np.ndarray]:
        """The conditions of a shape; empty, and a row of `refused`, if they cannot be used."""
        try:
            return reader.read(shape_id)
        except UNUSABLE as e:
            self.refused.append({"id": shape_id, "kind": reader.modality, "reason": str(e)})
            return []
