"""The inputs of a GPT training: encoders, the token shards of a data set, their row order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from tar3d.conditional_gpt import load_gpt_text_tokenizer
from tar3d.data.datasets.sampler import JoinedOrder
from tar3d.data.datasets.token_noise import TokenNoise
from tar3d.data.datasets.tokens import TokenDataset
from tar3d.data.formats.token_file import token_dtype
from tar3d.data.formats.token_shards import SAMPLINGS
from tar3d.data.formats.token_sources import stale_parts
from tar3d.data.tokens.make_tokens import condition_readers, encoders_of
from tar3d.data.tokens.token_maker import REPORT, TokenMaker
from tar3d.gpt.soft_targets import nearest_codes
from tar3d.training.loader import training_order

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_fabric import Fabric

    from tar3d.condition.conditioner import Encoder
    from tar3d.config import GPTRunConfig, GPTTrainConfig
    from tar3d.tokenizer.vqvae import VQVAE

NOISE_NEIGHBOURS = 16  # nearest codes of a token, itself among them, that noise draws from
DRY_RUN_SHAPES = 8  # of each split, whose tokens a dry run makes where there are none


@dataclass
class Inputs:
    """The inputs of a training: tokens, tokenizer, encoders, and the models to start from.

    `vqvae`, of the model directory `vq_ckpt`, has made the tokens of the data set `data`. They are
    in tokens/ there, or of the folder `tokens`; a `dry` run does not say where its results are.
    """

    data: Path
    vqvae: VQVAE
    vq_ckpt: str | Path
    encoders: dict[str, Encoder]
    init: str | None = None
    init_code_predictor: str | None = None
    tokens: Path | None = None
    dry: bool = False

    @property
    def token_folder(self) -> Path:
        """The folder that holds tokens/."""
        return self.tokens or self.data


def new_encoders(config: GPTRunConfig, data: Path, init: str | None = None) -> dict[str, Encoder]:
    """The encoders of a run, with the text tokenizer of the model `init`.

    Encoders that are trained are initialised first, then the GPT, both from the seed. The weights
    of frozen ones are recorded in `config`.
    """
    torch.manual_seed(config.train.seed)  # initial weights only
    encoders = encoders_of(config, data, load_gpt_text_tokenizer(init) if init else None)
    config.image_encoder_weights = getattr(encoders.get("image"), "weights", "")
    config.text_encoder_weights = getattr(encoders.get("text"), "weights", "")
    return encoders


def make_tokens(
    config: GPTRunConfig,
    data: Path,
    vqvae: VQVAE,
    encoders: dict[str, Encoder],
    fabric: Fabric,
    *,
    resumed: bool = False,
    scratch: Path | None = None,
) -> Path:
    """Writes the token shards of a data set, where they are missing or stale.

    Returns the folder that holds tokens/: `data`, or for a dry run, where `data` has no tokens yet,
    the folder `scratch` with those of a few shapes.

    Shards whose embeddings were all given are left as they are; so are those of a finished run
    where the GPT has no condition. Raises ValueError where such shards are stale, and where a
    resumed run would learn from others than before.
    """
    folder, samplings = data / "tokens", config.train.token_samplings
    readers = condition_readers(data, encoders, config, fabric.device)
    finished = (folder / REPORT).is_file()
    if scratch is not None:
        ready = finished and all(any(folder.glob(f"*/{m}.json")) for m in encoders)
        if not ready:
            place = scratch / "tokens"
            few = DRY_RUN_SHAPES
            TokenMaker(
                data, vqvae, readers, fabric.device, samplings=samplings, folder=place, limit=few
            ).run()
        return data if ready else scratch
    given = bool(encoders) and not readers
    if resumed or given or (finished and not encoders):
        for path, reason in stale_parts(data, ("tokens", *encoders)):
            if resumed and not path.parent.name.startswith("test-"):
                raise ValueError(
                    f"{path}: {reason}, so this is no longer the data that the run to resume has "
                    "learnt from: put that back, or start a new run with another --out"
                )
            if given:
                raise ValueError(
                    f"{path}: {reason}; run python -m tar3d.data.make_tokens {data} again, with "
                    "--embeddings or --caption-embeddings as before"
                )
            finished = False
    if readers or not (encoders or finished):
        maker = TokenMaker(data, vqvae, readers, fabric.device, samplings=samplings)
        maker.run()
        for note in maker.notes:
            fabric.print(note)
    return data


def gpt_facts(
    encoders: dict[str, Encoder],
    overfit: int | None,
    training: TokenDataset | None = None,
    validation: TokenDataset | None = None,
) -> dict[str, str]:
    """What identifies a GPT training beside its configuration; of the data only what is given."""
    facts = {f"the {modality} encoder": encoder.identity for modality, encoder in encoders.items()}
    facts["--overfit"] = str(overfit or "not given")
    sets = {"training": training, "validation": validation}
    facts |= {
        f"the {name} data": f"{len(part)} shapes ({part.content_hash})"
        for name, part in sets.items()
        if part is not None
    }
    return facts


def read_tokens(
    config: GPTRunConfig, inputs: Inputs, overfit: int | None
) -> tuple[TokenDataset, TokenDataset]:
    """The shapes to train and to validate on; with `overfit` that many, the same for both.

    Raises ValueError where the tokens were made with another tokenizer or other encoders.
    """
    t = config.train
    stamp: dict[str, object] = {
        "tokenizer": config.tokenizer_fingerprint,
        SAMPLINGS: t.token_samplings,
    }
    stamp |= {modality: encoder.identity for modality, encoder in inputs.encoders.items()}
    read = partial(
        TokenDataset,
        inputs.token_folder,
        seed=t.seed,
        expected_stamp=stamp,
        conditions=config.conditions,
        limit=overfit,
        caption_tokens=config.text_encoder.max_tokens,
    )
    training = read(
        "train",
        noise=token_noise(t, inputs.vqvae),
        latents=t.target_codes > 1,
        word_dropout=t.word_dropout,
        image_changes=t.image_changes,
    )
    return training, read("train" if overfit else "val")


def token_noise(train: GPTTrainConfig, vqvae: VQVAE) -> TokenNoise:
    """The noise that a configuration asks for in the tokens of `vqvae`."""
    codes, neighbours = vqvae.quantizer.codebook, None
    if train.token_noise_kind == "neighbours":
        neighbours = nearest_codes(codes, min(NOISE_NEIGHBOURS, len(codes))).cpu().numpy()
        neighbours = neighbours.astype(token_dtype(len(codes)))
    return TokenNoise(
        train.token_noise, len(codes), neighbours, own=train.token_noise_kind == "own"
    )


def row_order(config: GPTRunConfig, shapes: int, start: int, fabric: Fabric) -> JoinedOrder:
    """The rows of each step from `start` on.

    Each step has those of the GPT, and after them those that only the code predictor sees.
    """
    t = config.train
    rows = training_order(shapes, t.global_batch_size, t.seed, start, t.steps, fabric)
    more = training_order(shapes, t.code_predictor_rows, t.seed + 1, start, t.steps, fabric)
    return JoinedOrder(rows, more)
