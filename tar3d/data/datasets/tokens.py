"""The data set that draws the GPT's training rows from memory-mapped token shards.

The format of the shards is in `tar3d.data.formats.token_shards`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tar3d.condition.image_changes import change_image
from tar3d.condition.text_tokenizer import PADDING, UNKNOWN_ID
from tar3d.data.datasets.spread import spread
from tar3d.data.datasets.token_noise import TokenNoise
from tar3d.data.formats.token_shards import LATENTS, hash_texts, read_stamp, sha256
from tar3d.io import read_json

SOURCES = {"image": "views/", "text": "captions"}  # of each modality, in a data set folder


class TokenDataset(Dataset):
    """Tokens of the shapes of a split, each with one of its views or captions.

    Indexed by (position, index) as `TrainingOrder` yields them. An item has `tokens` (T,) int64,
    what `noise` makes of them (`TokenNoise`), and `condition`: for each modality in `conditions`
    one view (pixels), or one caption (ids padded with `PADDING`), or the embeddings of either
    (padded with zeros). With `latents` it has also `latents` (T, K) float16. The view, the caption
    and the noise are drawn from (seed, position).

    `expected_stamp` has the entries of stamp.json that training relies on. `caption_tokens` is the
    length that captions are padded to, `word_dropout` the share of words replaced by the unknown
    word, `image_changes` the chance of changes of pixels (`tar3d.condition.image_changes`), `limit`
    a number of shapes, spread evenly over the ids. Shapes that lack one of the conditions are left
    out.

    Raises ValueError if the stamp differs, if the bytes of a shard are not those that were written,
    if latents or pixels are asked for that it lacks, and if no shape is left.
    """

    def __init__(  # noqa: PLR0913  keyword arguments of one object, each a setting of its own
        self,
        data: str | Path,
        split: str,
        *,
        seed: int,
        expected_stamp: dict[str, object],
        conditions: list[str],
        caption_tokens: int = 0,
        noise: TokenNoise | None = None,
        latents: bool = False,
        word_dropout: float = 0.0,
        image_changes: float = 0.0,
        limit: int | None = None,
    ) -> None:
        folder = Path(data) / "tokens"
        self.seed, self.stamp = seed, read_stamp(folder)
        self.noise = noise or TokenNoise(0.0, self.stamp["codebook_size"])
        self.word_dropout, self.image_changes, self._with_latents = (
            word_dropout,
            image_changes,
            latents,
        )
        self.modalities, self.caption_tokens = tuple(conditions), caption_tokens
        self._advice = (
            f"delete {folder}, and train_gpt.py makes it again (or python -m "
            f"tar3d.data.make_tokens {data} --tokenizer MODEL)"
        )
        self._check_stamp(folder, expected_stamp)
        self.ids: list[str] = []
        self._hashed: list[str] = []
        self._lacking = dict.fromkeys(self.modalities, 0)  # shapes without usable conditions
        self._shards: list[Path] = []
        # a table (items, 2) a shard: an item's first row in <modality>.npy, its number of rows
        self._items: dict[str, list[np.ndarray]] = {name: [] for name in self.modalities}
        locations: list[tuple[int, ...]] = []
        for shard in sorted(folder.glob(f"{split}-*")):
            locations += self._read_shard(shard)
        if not self._shards:
            raise ValueError(
                f"{folder} holds no tokens of split {split!r}, and a training needs at least one "
                "shape in each of train and val: move ids to that split (splits.json, or the .lst "
                "files of ShapeNet's layout); their tokens are made as train_gpt.py starts"
            )
        self.content_hash = hash_texts(self._hashed)  # of what is stored of this split
        self.left_out = self._describe_left_out(folder, split)
        if not self.ids:
            raise ValueError(
                f"no shape of split {split!r} has both tokens and {' and '.join(self.modalities)}: "
                f"add {' and '.join(SOURCES[name] for name in self.modalities)} to {data} "
                f"({folder / 'refused.csv'} has the reasons), then run "
                f"python -m tar3d.data.make_tokens {data} again"
            )
        chosen = spread(len(self.ids), limit if limit is not None else len(self.ids))
        self.ids = [self.ids[i] for i in chosen]
        # (n, 2 + 2 modalities): shard, row, and for each modality the first item and their number
        self._locations = np.array(locations, dtype=np.int64)[chosen]
        self._arrays = self._map()

    def _check_stamp(self, folder: Path, expected_stamp: dict[str, object]) -> None:
        """Refuses tokens that were made otherwise, and changes of images without pixels."""
        for key, value in expected_stamp.items():
            if self.stamp.get(key) != value:
                raise ValueError(
                    f"{folder} was made with {key} {self.stamp.get(key)!r}, "
                    f"but this training uses {value!r}: {self._advice}"
                )
        items = self.stamp.get("image items") if "image" in self.modalities else "no images"
        if self.image_changes and items != "uint8 pixels":
            raise ValueError(
                f"train.image_changes={self.image_changes:g} changes pixels, but this training "
                f"reads {items}: write train.image_changes=0, or train the image encoder "
                "(image_encoder.model=trained)"
            )

    def _read_shard(self, shard: Path) -> list[tuple[int, ...]]:
        """Checks a shard and adds its shapes that have all conditions; returns their locations."""
        index = self._checked(shard, "tokens", "index")
        if self._with_latents:
            self._check_latents(shard, index.get(LATENTS))
        counts = [self._read_items(shard, modality) for modality in self.modalities]
        firsts = [np.cumsum(numbers) - numbers for numbers in counts]
        for modality, numbers in zip(self.modalities, counts, strict=True):
            self._lacking[modality] += numbers.count(0)
        locations: list[tuple[int, ...]] = []
        for row, shape_id in enumerate(index["ids"]):
            if all(numbers[row] for numbers in counts):
                self.ids.append(shape_id)
                items = [
                    int(values[row]) for pair in zip(firsts, counts, strict=True) for values in pair
                ]
                locations.append((len(self._shards), row, *items))
        self._shards.append(shard)
        return locations

    def _describe_left_out(self, folder: Path, split: str) -> str:
        """One sentence on shapes that lack a condition; "" where none does."""
        reasons = [
            f"{count} have no usable {SOURCES[modality]}"
            for modality, count in self._lacking.items()
            if count
        ]
        total = sum(len(read_json(shard / "index.json")["ids"]) for shard in self._shards)
        return (
            f"{total - len(self.ids)} of {total} shapes of split {split!r} are left out: "
            f"{', '.join(reasons)} ({folder / 'refused.csv'} lists them)"
            if reasons
            else ""
        )

    def _checked(self, shard: Path, array: str, index: str) -> dict:
        """The content of <index>.json, after <array>.npy has passed its SHA-256."""
        values = read_json(shard / f"{index}.json")
        shapes = values.get("ids", values.get("counts"))
        self._hashed.append(f"{array} {shapes} {values.get('lengths')} {values['sha256']}")
        if values["sha256"]:
            self._check_digest(shard, array, values["sha256"])
        return values

    def _check_digest(self, shard: Path, array: str, digest: str) -> None:
        """Raises ValueError where <array>.npy has not the SHA-256 that it was written with."""
        if sha256(shard / f"{array}.npy") != digest:
            raise ValueError(
                f"{shard / array}.npy is damaged: it is not what was written (SHA-256 differs): "
                f"{self._advice}, or delete {shard} alone"
            )

    def _check_latents(self, shard: Path, digest: str | None) -> None:
        """Raises ValueError where a shard lacks latents, or has others than were written."""
        if digest is None:
            raise ValueError(
                f"{shard} is of an earlier version and has no latents, which train.target_codes "
                f"above 1 needs: {self._advice}; or write train.target_codes=1"
            )
        self._hashed.append(f"{LATENTS} {digest}")
        self._check_digest(shard, LATENTS, digest)

    def _read_items(self, shard: Path, modality: str) -> list[int]:
        """The number of items of each shape of a shard; notes where in the file they are."""
        if not (shard / f"{modality}.json").is_file():
            raise ValueError(
                f"{shard} says nothing of the condition {modality!r}: "
                f"run python -m tar3d.data.make_tokens {shard.parent.parent} "
                "with a --gpt-type that is conditioned on it"
            )
        values = self._checked(shard, modality, modality)
        lengths = np.array(values.get("lengths", [1] * sum(values["counts"])), dtype=np.int64)
        self._items[modality].append(np.stack([np.cumsum(lengths) - lengths, lengths], axis=1))
        return values["counts"]

    def _map(self) -> list[dict[str, np.ndarray]]:
        """The arrays of each shard, memory-mapped."""
        latents = [LATENTS] if self._with_latents else []
        return [
            {
                name: np.asarray(np.load(shard / f"{name}.npy", mmap_mode="r"))
                for name in ("tokens", *latents, *self.modalities)
                if (shard / f"{name}.npy").is_file()
            }
            for shard in self._shards
        ]

    def __getstate__(self) -> dict[str, object]:
        """The state for a worker that is not forked, without the arrays: pickle would copy them."""
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._arrays = self._map()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        rng = np.random.default_rng([self.seed, position])
        row = self.row(index, *(int(rng.integers(count)) for count in self._locations[index, 3::2]))
        inputs = self.noise(row["tokens"][:-1].numpy(), rng)
        text = row["condition"].get("text")
        if self.word_dropout and text is not None and not text.is_floating_point():
            row["condition"]["text"] = drop_words(text, self.word_dropout, rng)
        image = row["condition"].get("image")
        if self.image_changes and image is not None:
            # a stream of its own, so that the other draws stay the same
            stream = np.random.default_rng([self.seed, position, 1])
            changed = change_image(image.numpy(), self.image_changes, stream)
            row["condition"]["image"] = torch.from_numpy(changed)
        return row | {name: torch.from_numpy(values) for name, values in inputs.items()}

    def row(self, index: int, *items: int) -> dict:
        """`tokens`, `latents` if asked for, and `condition` of a shape without noise.

        `items` are the numbers of the view and caption to take, one for each of `conditions`; the
        first of each by default.
        """
        shard, row, *locations = self._locations[index]
        arrays, condition = self._arrays[shard], {}
        for modality, first, item in zip(
            self.modalities, locations[::2], items or [0] * len(self.modalities), strict=True
        ):
            start, rows = self._items[modality][shard][first + item]
            condition[modality] = torch.from_numpy(
                np.array(
                    arrays[modality][start]
                    if modality == "image"
                    else self._padded(arrays[modality][start : start + rows])
                )
            )
        latents = [LATENTS] if self._with_latents else []
        return {
            "tokens": torch.from_numpy(arrays["tokens"][row].astype(np.int64)),
            **{name: torch.from_numpy(np.array(arrays[name][row])) for name in latents},
            "condition": condition,
        }

    def _padded(self, caption: np.ndarray) -> np.ndarray:
        is_ids = caption.ndim == 1
        padding = [(0, self.caption_tokens - len(caption)), *([] if is_ids else [(0, 0)])]
        return np.pad(caption, padding, constant_values=PADDING if is_ids else 0)


def drop_words(ids: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """Replaces each token id of a caption (L,) by the unknown word with probability `share`.

    The end token stays. A text encoder learns from it that an unknown word may mean anything.
    """
    length = int((ids != PADDING).sum()) - 1
    ids = ids.clone()
    ids[:length][torch.from_numpy(rng.random(length) < share)] = UNKNOWN_ID
    return ids
