"""Token shards on disk, and the data set that draws the GPT's training rows from them,
memory-mapped.

tokens/stamp.json says what made them; tokens/<split>-<k>/ holds tokens.npy (n, T) uint16 in GPT
order and index.json with the ids, and for each kind of condition <kind>.npy, its items (views,
captions) one after the other, and <kind>.json with the number of items of each shape, and the
lengths of captions. The GPT never reads points.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tar3d.condition.text import PADDING, UNKNOWN_ID
from tar3d.data.datasets.sampler import spread


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_stamp(folder: Path) -> dict:
    path = folder / "stamp.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no stamp.json, so what made its tokens is unknown: "
            f"make it with python -m tar3d.data.make_tokens {folder.parent}"
        )
    return read_json(path)


class TokenDataset(Dataset):
    """Rows of a split: `tokens` (T,) int64, `inputs` (T - 1,) what the GPT is shown of them, and
    `source`, for each of `conditions` one view or caption of the shape: pixels, ids padded with
    `PADDING`, or embeddings padded with zeros.

    Indexed by (position, index) as `TrainingOrder` yields them; what is shown and its noise are
    drawn from (seed, position). `stamp` entries that are wanted but differ from the shards' are a
    ValueError, and so are shards whose bytes are not those that were written. `token_noise`: see
    `corrupt`; `word_dropout`: share of the words that are shown as unknown ones. `caption_tokens`
    is the length that captions are padded to. `limit`: so many shapes, evenly spread. Shapes that
    lack one of the conditions are left out.
    """

    def __init__(
        self,
        data: str | Path,
        split: str,
        *,
        seed: int,
        wanted: dict[str, object],
        conditions: list[str],
        caption_tokens: int = 0,
        token_noise: float = 0.0,
        word_dropout: float = 0.0,
        limit: int | None = None,
    ) -> None:
        folder = Path(data) / "tokens"
        self.seed, self.stamp, self.token_noise, self.word_dropout = (
            seed,
            read_stamp(folder),
            token_noise,
            word_dropout,
        )
        self.kinds, self.caption_tokens = tuple(conditions), caption_tokens
        again = f"delete {folder} and run python -m tar3d.data.make_tokens {data} again"
        for key, value in wanted.items():
            if self.stamp.get(key) != value:
                raise ValueError(
                    f"{folder} was made with {key} {self.stamp.get(key)!r}, but this training uses {value!r}: "
                    f"{again}"
                )
        self.ids: list[str] = []
        self._shards: list[Path] = []
        self._items: dict[str, list[np.ndarray]] = {
            kind: [] for kind in self.kinds
        }  # (items, 2) of each shard: first row, rows
        places: list[tuple[int, ...]] = []
        for shard in sorted(folder.glob(f"{split}-*")):
            index = self._checked(shard, "tokens", "index", again)
            counts = [self._read_items(shard, kind, again) for kind in self.kinds]
            before = [np.cumsum(of_kind) - of_kind for of_kind in counts]
            for row, shape_id in enumerate(index["ids"]):
                if all(of_kind[row] for of_kind in counts):
                    self.ids.append(shape_id)
                    items = [
                        int(of_kind[row])
                        for pair in zip(before, counts, strict=True)
                        for of_kind in pair
                    ]
                    places.append((len(self._shards), row, *items))
            self._shards.append(shard)
        if not self.ids:
            raise ValueError(
                f"{folder} holds no tokens of split {split!r}: "
                f"make them with python -m tar3d.data.make_tokens {data}"
            )
        chosen = spread(len(self.ids), limit if limit is not None else len(self.ids))
        self.ids = [self.ids[i] for i in chosen]
        self._places = np.array(places, dtype=np.int64)[
            chosen
        ]  # (n, 2 + 2 kinds): shard, row, (first item, items) of each kind
        self._arrays = self._map()

    @staticmethod
    def _checked(shard: Path, array: str, index: str, again: str) -> dict:
        values = read_json(shard / f"{index}.json")
        if values["sha256"] and sha256(shard / f"{array}.npy") != values["sha256"]:
            raise ValueError(
                f"{shard / array}.npy is damaged: it is not what was written (SHA-256 differs): {again}, "
                f"or delete {shard} alone"
            )
        return values

    def _read_items(self, shard: Path, kind: str, again: str) -> list[int]:
        """How many items each shape of a shard has; notes where in the file they lie."""
        if not (shard / f"{kind}.json").is_file():
            raise ValueError(
                f"{shard} says nothing of the condition {kind!r}: run python -m tar3d.data.make_tokens "
                f"{shard.parent.parent} with a --gpt-type that is told of it"
            )
        values = self._checked(shard, kind, kind, again)
        lengths = np.array(values.get("lengths", [1] * sum(values["counts"])), dtype=np.int64)
        self._items[kind].append(np.stack([np.cumsum(lengths) - lengths, lengths], axis=1))
        return values["counts"]

    def _map(self) -> list[dict[str, np.ndarray]]:
        """The arrays of each shard, read from disk as rows are asked for."""
        return [
            {
                name: np.asarray(np.load(shard / f"{name}.npy", mmap_mode="r"))
                for name in ("tokens", *self.kinds)
                if (shard / f"{name}.npy").is_file()
            }
            for shard in self._shards
        ]

    def __getstate__(self) -> dict[str, object]:
        """For a worker that is not forked: without the arrays, of which pickle would send all that
        is on disk."""
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._arrays = self._map()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        rng = np.random.default_rng([self.seed, position])
        row = self.row(index, *(int(rng.integers(count)) for count in self._places[index, 3::2]))
        inputs = corrupt(
            row["tokens"][:-1].numpy(), self.token_noise, self.stamp["codebook_size"], rng
        )
        text = row["source"].get("text")
        if self.word_dropout and text is not None and not text.is_floating_point():
            row["source"]["text"] = drop_words(text, self.word_dropout, rng)
        return row | {"inputs": torch.from_numpy(inputs)}

    def row(self, index: int, *items: int) -> dict:
        """`tokens` and `source` of a shape, with those of its views and captions that `items` says,
        one a condition; the first of each without."""
        shard, row, *places = self._places[index]
        arrays, source = self._arrays[shard], {}
        for kind, first, item in zip(
            self.kinds, places[::2], items or [0] * len(self.kinds), strict=True
        ):
            start, rows = self._items[kind][shard][first + item]
            source[kind] = torch.from_numpy(
                np.array(
                    arrays[kind][start]
                    if kind == "image"
                    else self._padded(arrays[kind][start : start + rows])
                )
            )
        return {
            "tokens": torch.from_numpy(arrays["tokens"][row].astype(np.int64)),
            "source": source,
        }

    def _padded(self, caption: np.ndarray) -> np.ndarray:
        ids = caption.ndim == 1
        padding = [(0, self.caption_tokens - len(caption)), *([] if ids else [(0, 0)])]
        return np.pad(caption, padding, constant_values=PADDING if ids else 0)


def corrupt(
    tokens: np.ndarray, largest_share: float, codebook_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Replaces tokens (t,) by random ones; what share of them is uniform below `largest_share`.

    True context tells nearly everything about the next token, so a GPT that only ever sees true
    context learns to overlook its condition, and follows its own first guesses when it generates.
    """
    if not largest_share:
        return tokens
    replaced = rng.random(len(tokens)) < rng.random() * largest_share
    return np.where(replaced, rng.integers(codebook_size, size=len(tokens)), tokens)


def drop_words(ids: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """Token ids (L,) of a caption, each word of which is an unknown one with probability `share`;
    its end stays. A text encoder learns from it what a word it does not know may mean: anything."""
    length = int((ids != PADDING).sum()) - 1
    ids = ids.clone()
    ids[:length][torch.from_numpy(rng.random(length) < share)] = UNKNOWN_ID
    return ids
