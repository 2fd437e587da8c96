"""The data sets of a model's evaluation, and which of their shapes have a condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.views import Views

if TYPE_CHECKING:
    from pathlib import Path

CONDITION_NAMES = {"image": "views", "text": "captions"}


class EvalData(NamedTuple):
    """The data set of unseen shapes, and the one that the model was trained on."""

    test: Path
    train: Path


def conditioned_ids(folder: Path, modality: str) -> set[str]:
    """The ids of a data set that have the condition: a view, a caption, or with "" nothing."""
    if modality == "text":
        return set(captions_of(folder))
    views, samples = Views(folder), open_samples(folder)
    return {i for split in SPLITS for i in samples.listed(split) if not modality or views.names(i)}


def choose_shapes(data: EvalData, modality: str, count: int, seed: int) -> list[str]:
    """`count` ids of unseen shapes in random order, so that a row's neighbour is any shape.

    Where test and training set are one folder, they are those of its test split. Raises ValueError
    where there is no such shape.
    """
    samples, known = open_samples(data.test), conditioned_ids(data.test, modality)
    splits = ("test",) if data.test.resolve() == data.train.resolve() else SPLITS
    ids = sorted(i for split in splits for i in samples.ids(split) if i in known)
    if not ids:
        conditions = f" and {CONDITION_NAMES[modality]}" if modality else ""
        raise ValueError(
            f"{data.test} holds no test shape with samples{conditions}: make them with "
            f"python -m tar3d.data.make_samples {data.test} views.count=4"
        )
    return [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]]


def training_ids(train: Path, modality: str) -> list[str]:
    """The training shapes that have the condition. Raises ValueError where there are none."""
    known = conditioned_ids(train, modality)
    ids = [i for i in open_samples(train).listed("train") if i in known]
    if not ids:
        conditions = f" with {CONDITION_NAMES[modality]}" if modality else ""
        raise ValueError(
            f"{train} holds no training shape{conditions}, so there is nothing to compare with"
        )
    return ids
