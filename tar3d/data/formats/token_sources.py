"""Hashes of what token shards are made of: samples, views and captions.

    sources = TokenSources(DATA)
    sources.hash_of("tokens", ids)       # of the samples that the tokens of these shapes come from
    sources.hash_of("image", ids)        # of their views
    sources.hash_of("text", ids)         # of their captions
    sources.save()

make_tokens writes each hash into the shard, under the key "sources" of index.json, image.json and
text.json; where the data has another hash later, that part of the shard is stale. Hashes are of
content, so a copy of a data set has the same. Views are read once: their hashes are kept in
tokens/sources.json and hold for as long as size and times of the files stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from typing import TYPE_CHECKING

from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.token_shards import hash_texts, read_stamp
from tar3d.data.formats.views import Views
from tar3d.io import atomic_write, read_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from tar3d.data.formats.sample_reader import SampleReader

SOURCES = "sources"  # key of a shard's .json files
INDEX_FILES = {"tokens": "index.json", "image": "image.json", "text": "text.json"}
NAMES = {"tokens": "samples", "image": "views", "text": "captions"}  # of the sources, for messages
CACHE = "sources.json"  # in the folder of the shards


class TokenSources:
    """What the token shards of the data set `data` are made of.

    `samples` and `views` are readers that are open already, if there are any.
    """

    def __init__(
        self, data: Path, samples: SampleReader | None = None, views: Views | None = None
    ) -> None:
        self.data, self._cache_file = data, data / "tokens" / CACHE
        self.samples, self._open_views = samples or open_samples(data), views
        self._known: dict[str, list[str]] = self._read_cache()  # id -> version and hash of views
        self._changed = False
        self._hashes: dict[tuple[str, tuple[str, ...]], str] = {}

    @cached_property
    def _views(self) -> Views:
        return self._open_views or Views(self.data)

    @cached_property
    def _captions(self) -> dict[str, list[str]]:
        return captions_of(self.data)

    def _read_cache(self) -> dict[str, list[str]]:
        try:
            return dict(read_json(self._cache_file)["views"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # not there, damaged or of another program: it is only a cache

    def hash_of(self, kind: str, ids: Iterable[str]) -> str:
        """A hash of what these shapes' part `kind` ("tokens", "image" or "text") is made of."""
        of_shape = {"tokens": self.samples.checksum, "image": self._view_hash, "text": self._text}
        key = kind, tuple(ids)
        if key not in self._hashes:
            self._hashes[key] = hash_texts(f"{i} {of_shape[kind](i)}" for i in key[1])
        return self._hashes[key]

    def _text(self, shape_id: str) -> str:
        return json.dumps(self._captions.get(shape_id, []))

    def _view_hash(self, shape_id: str) -> str:
        names, files = self._views.names(shape_id), self._views.files
        version = hash_texts(f"{name} {files.version(name)}" for name in names)
        known = self._known.get(shape_id)
        if known is None or known[0] != version:
            digest = hashlib.sha256()
            for name in names:
                content = files.read(name)
                digest.update(f"{name} {len(content)} ".encode())
                digest.update(content)
            known = self._known[shape_id] = [version, digest.hexdigest()[:16]]
            self._changed = True
        return known[1]

    def save(self) -> None:
        """Keeps the hashes of views beside the shards, where there are shards to write to."""
        folder = self._cache_file.parent
        if self._changed and folder.is_dir() and os.access(folder, os.W_OK):
            with atomic_write(self._cache_file, "w", encoding="utf-8") as f:
                json.dump({"views": self._known}, f, ensure_ascii=False)
            self._changed = False


def stale_parts(
    data: Path, kinds: Collection[str] = tuple(INDEX_FILES), sources: TokenSources | None = None
) -> Iterator[tuple[Path, str]]:
    """The .json file and a sentence for each part of a token shard whose sources have changed.

    Only parts of these `kinds`. Parts of earlier versions, embeddings that were given, and shards
    of shapes whose samples were deleted have nothing to compare and are passed over. Raises
    ValueError for a folder without a stamp.
    """
    folder = data / "tokens"
    if not folder.is_dir():
        return
    sources, stamp = sources or TokenSources(data), read_stamp(folder)
    sampled = {i for split in SPLITS for i in sources.samples.ids(split)}
    for index in sorted(folder.glob("*/index.json")):
        ids = read_json(index)["ids"]
        for kind in kinds:
            path = index.with_name(INDEX_FILES[kind])
            known = kind in stamp or (kind == "tokens" and sampled.issuperset(ids))
            recorded = read_json(path).get(SOURCES) if known and path.is_file() else None
            if recorded and recorded != sources.hash_of(kind, ids):
                yield path, f"the {NAMES[kind]} of its shapes have changed since it was made"
