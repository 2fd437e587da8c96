"""Token shards on disk, and the data set that draws the GPT's training rows from them, memory-mapped.

tokens/stamp.json says what made them; tokens/<split>-<k>/ holds tokens.npy (n, T) uint16 in GPT order, source.npy (all
views of all n shapes, ...) and index.json with the ids and the number of views of each. The GPT never reads points.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tar3d.data.order import spread


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_stamp(folder: Path) -> dict:
    path = folder / "stamp.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no stamp.json, so what made its tokens is unknown: "
                         f"make it with python -m tar3d.data.make_tokens {folder.parent}")
    return json.loads(path.read_text(encoding="utf-8"))


class TokenDataset(Dataset):
    """Rows of a split: `tokens` (T,) int64, `inputs` (T - 1,) what the GPT is shown of them, `source` of one view.

    Indexed by (position, index) as `TrainingOrder` yields them; view and noise are drawn from (seed, position). `stamp` entries
    that are wanted but differ from the shards' are a ValueError, and so are shards whose bytes are not those that were written.
    `token_noise`: see `corrupt`. `limit`: so many shapes, evenly spread.
    """

    def __init__(self, data: str | Path, split: str, *, seed: int, wanted: dict[str, object], token_noise: float = 0.0,
                 limit: int | None = None) -> None:
        folder = Path(data) / "tokens"
        self.seed, self.stamp, self.token_noise = seed, read_stamp(folder), token_noise
        for key, value in wanted.items():
            if self.stamp.get(key) != value:
                raise ValueError(f"{folder} was made with {key} {self.stamp.get(key)!r}, but this training uses {value!r}: "
                                 f"delete {folder} and run python -m tar3d.data.make_tokens {data} again")
        self.ids: list[str] = []
        self._shards: list[Path] = []
        places: list[tuple[int, int, int, int]] = []
        for shard in sorted(folder.glob(f"{split}-*")):
            index = json.loads((shard / "index.json").read_text(encoding="utf-8"))
            if not index["ids"]:
                continue
            for name, expected in index.get("sha256", {}).items():  # shards of earlier versions have none
                if sha256(shard / name) != expected:
                    raise ValueError(f"{shard / name} is damaged: it is not what was written (SHA-256 differs). Delete {shard} "
                                     f"and run python -m tar3d.data.make_tokens {data} again: it makes what is missing")
            first = np.concatenate([[0], np.cumsum(index["views"])])
            places += [(len(self._shards), row, first[row], views) for row, views in enumerate(index["views"])]
            self._shards.append(shard)
            self.ids += index["ids"]
        if not self.ids:
            raise ValueError(f"{folder} holds no tokens of split {split!r}: "
                             f"make them with python -m tar3d.data.make_tokens {data}")
        chosen = spread(len(self.ids), limit if limit is not None else len(self.ids))
        self.ids = [self.ids[i] for i in chosen]
        self._places = np.array(places, dtype=np.int64)[chosen]  # (n, 4): shard, row, first view, number of views
        self._arrays = self._map()

    def _map(self) -> list[tuple[np.ndarray, ...]]:
        """(tokens, source) of each shard, read from disk as rows are asked for."""
        return [tuple(np.asarray(np.load(shard / f"{name}.npy", mmap_mode="r")) for name in ("tokens", "source"))
                for shard in self._shards]

    def __getstate__(self) -> dict[str, object]:
        """For a worker that is not forked: without the arrays, of which pickle would send all that is on disk."""
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._arrays = self._map()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        position, index = key
        views, rng = self._places[index, 3], np.random.default_rng([self.seed, position])
        row = self.row(index, int(rng.integers(views)))
        inputs = corrupt(row["tokens"][:-1].numpy(), self.token_noise, self.stamp["codebook_size"], rng)
        return row | {"inputs": torch.from_numpy(inputs)}

    def row(self, index: int, view: int) -> dict[str, torch.Tensor]:
        shard, row, first, _ = self._places[index]
        tokens, source = self._arrays[shard]
        return {"tokens": torch.from_numpy(tokens[row].astype(np.int64)),
                "source": torch.from_numpy(np.array(source[first + view]))}


def corrupt(tokens: np.ndarray, largest_share: float, codebook_size: int, rng: np.random.Generator) -> np.ndarray:
    """Replaces tokens (t,) by random ones; what share of them is uniform below `largest_share`.

    True context tells nearly everything about the next token, so a GPT that only ever sees true context learns to overlook
    its condition, and follows its own first guesses when it generates.
    """
    if not largest_share:
        return tokens
    replaced = rng.random(len(tokens)) < rng.random() * largest_share
    return np.where(replaced, rng.integers(codebook_size, size=len(tokens)), tokens)
