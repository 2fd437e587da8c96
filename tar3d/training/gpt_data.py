"""The inputs of a GPT training: encoders, the token shards of a data set, their row order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from tar3d.conditional_gpt import load_gpt_text_tokenizer
from tar3d.data.datasets.sampler import JoinedOrder
from tar3d.data.datasets.tokens import TokenDataset
from tar3d.data.tokens.make_tokens import REPORT, TokenMaker, condition_readers, encoders_of
from tar3d.training.loader import training_order

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_fabric import Fabric

    from tar3d.condition.conditioner import Encoder
    from tar3d.config import GPTRunConfig
    from tar3d.tokenizer.vqvae import VQVAE


@dataclass
class Inputs:
    """The inputs of a training: data set, tokenizer, encoders, and the models to start from.

    `vqvae`, of the model directory `vq_ckpt`, has made the tokens of `data`.
    """

    data: Path
    vqvae: VQVAE
    vq_ckpt: str | Path
    encoders: dict[str, Encoder]
    init: str | None = None
    init_code_predictor: str | None = None


def new_encoders(config: GPTRunConfig, data: Path, init: str | None = None) -> dict[str, Encoder]:
    """The encoders of a run, with the text tokenizer of the model `init`.

    Encoders that are trained are initialised first, then the GPT, both from the seed.
    """
    torch.manual_seed(config.train.seed)  # initial weights only
    return encoders_of(config, data, load_gpt_text_tokenizer(init) if init else None)


def make_tokens(
    config: GPTRunConfig, data: Path, vqvae: VQVAE, encoders: dict[str, Encoder], fabric: Fabric
) -> None:
    """Writes the token shards of a data set, where they are missing.

    Shards whose embeddings were all given are left as they are; so are those of a finished run
    where the GPT has no condition.
    """
    readers = condition_readers(data, encoders, config, fabric.device)
    finished = (data / "tokens" / REPORT).is_file()
    if readers or not (encoders or finished):
        TokenMaker(data, vqvae, readers, fabric.device).run()


def read_tokens(
    config: GPTRunConfig, data: Path, encoders: dict[str, Encoder], overfit: int | None
) -> tuple[TokenDataset, TokenDataset]:
    """The shapes to train and to validate on; with `overfit` that many, the same for both.

    Raises ValueError where the tokens were made with another tokenizer or other encoders.
    """
    t = config.train
    stamp: dict[str, object] = {"tokenizer": config.tokenizer_fingerprint}
    stamp |= {modality: encoder.identity for modality, encoder in encoders.items()}
    read = partial(
        TokenDataset,
        data,
        seed=t.seed,
        expected_stamp=stamp,
        conditions=config.conditions,
        limit=overfit,
        caption_tokens=config.text_encoder.max_tokens,
    )
    training = read("train", token_noise=t.token_noise, word_dropout=t.word_dropout)
    return training, read("train" if overfit else "val")


def row_order(config: GPTRunConfig, shapes: int, start: int, fabric: Fabric) -> JoinedOrder:
    """The rows of each step from `start` on.

    Each step has those of the GPT, and after them those that only the code predictor sees.
    """
    t = config.train
    rows = training_order(shapes, t.global_batch_size, t.seed, start, t.steps, fabric)
    more = training_order(shapes, t.code_predictor_rows, t.seed + 1, start, t.steps, fabric)
    return JoinedOrder(rows, more)
