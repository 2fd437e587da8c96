"""The weights that a GPT training starts from: `--init` and `--init-code-predictor`.

Without either, every weight is drawn from `train.seed`, and token embeddings and head start as
random linear maps of the tokenizer's codes.

`--init MODEL` continues a GPT of the same layers. Its weights are taken over, except for parts that
the new configuration makes different; these start from scratch, and a line says which:

- an encoder that MODEL lacks, or whose configuration differs;
- where no encoder is the same, or the prefix has another shape: all that reads the prefix
  (`PREFIX_PARTS`), as the embeddings in it mean something else;
- the code predictor, if its codes have another size or only one of the two models has one;
- its network alone (`PREDICTED_CODES`), if only the shape of that differs.

`--init-code-predictor MODEL` takes the encoders and the network of the code predictor, and nothing
else, from a GPT of any size (`train.stage=code_predictor` trains them). It is applied after
`--init`, so layers can come from one model and the code predictor from another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tar3d import checkpoint
from tar3d.conditional_gpt import ConditionalGPT
from tar3d.config import CONDITIONS, GPTRunConfig
from tar3d.gpt.layers import linear_attention_class
from tar3d.layouts import base, layout_class
from tar3d.training.gpt_objective import CODE_PREDICTOR_STAGE, PREDICTED_CODES

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tar3d.condition.conditioner import Encoder
    from tar3d.tokenizer.vqvae import VQVAE

# Config fields of the prefix's shape, and of the shape of the code predictor's network.
PREFIX_SHAPE = ("condition_tokens", "condition_width")
NETWORK_SHAPE = ("code_predictor_local", "code_predictor_hidden")
# Name prefixes of the parameters that read the condition prefix, encoders excluded.
PREFIX_PARTS = (
    "conditioner.project.",
    "gpt.condition_mlp.",
    "gpt.null_prefix",
    "gpt.code_predictor.",
)


def new_model(
    config: GPTRunConfig,
    vqvae: VQVAE,
    encoders: dict[str, Encoder],
    init: str | None,
    init_code_predictor: str | None,
    fabric: Fabric,
) -> ConditionalGPT:
    """The model that a training starts from.

    Raises ValueError where the code predictor does not fit the tokenizer, and where the stage
    "transformer" has no trained encoders and code predictor to build on.
    """
    dim, code_dim = config.gpt.code_predictor_dim, vqvae.config.code_dim
    if dim not in (0, code_dim):
        raise ValueError(
            f"gpt.code_predictor_dim is {dim}, but the tokenizer's codes have {code_dim} "
            f"coordinates: write gpt.code_predictor_dim={code_dim}, or 0 for none"
        )
    if config.train.stage == "transformer" and not (init or init_code_predictor):
        raise ValueError(
            "train.stage=transformer goes on from encoders and a code predictor that are trained: "
            "give them with --init-code-predictor, or train them with train.stage=code_predictor"
        )
    model = ConditionalGPT(config, encoders)
    if init:
        init_from(model, init, fabric)
    else:
        model.gpt.start_from_codes(
            vqvae.quantizer.codebook, torch.Generator().manual_seed(config.train.seed)
        )
    if init_code_predictor:
        init_code_predictor_from(model, init_code_predictor)
    return model


def init_from(model: ConditionalGPT, init: str, fabric: Fabric) -> None:
    """Fills the model from another GPT, by the rules at the top of this file."""
    mine, theirs = model.config, checkpoint.read_config(init, GPTRunConfig)
    same_prefix = _same(mine, theirs, PREFIX_SHAPE)
    same_encoders = [
        modality
        for modality in mine.conditions
        if modality in theirs.conditions
        and same_prefix
        and getattr(mine, f"{modality}_encoder") == getattr(theirs, f"{modality}_encoder")
    ]
    skip = tuple(f"conditioner.trained.{m}." for m in CONDITIONS if m not in same_encoders)
    fresh = [f"the {m} encoder" for m in mine.conditions if m not in same_encoders]
    if not same_encoders and (mine.conditions or not same_prefix):
        skip += PREFIX_PARTS
        fresh.append("condition_mlp, null_prefix and code predictor")
    elif not _same(mine, theirs, ("code_predictor_dim",)):
        skip += ("gpt.code_predictor.",)
        fresh += ["the code predictor"] if mine.gpt.code_predictor_dim else []
    elif mine.gpt.code_predictor_dim and not _same(mine, theirs, NETWORK_SHAPE):
        skip += PREDICTED_CODES
        fresh.append("the network of the code predictor")
    checkpoint.load_weights(model, init, skip)
    if fresh:
        fabric.print(
            f"--init {init} does not fit these, which start from scratch: {', '.join(fresh)}"
        )


def init_code_predictor_from(model: ConditionalGPT, init: str) -> None:
    """Fills the encoders and the code predictor's network from another GPT, of any layers.

    Raises ValueError where its code predictor has another shape, or its tokens another order.
    """
    theirs = checkpoint.read_config(init, GPTRunConfig)
    for name in ("code_predictor_dim", *NETWORK_SHAPE, "token_order"):
        mine, other = getattr(model.config.gpt, name), getattr(theirs.gpt, name)
        if mine != other:
            raise ValueError(
                f"--init-code-predictor {init} has gpt.{name} {other}, but this GPT {mine}: write "
                f"gpt.{name}={other}"
            )
    checkpoint.load_weights(model, init, only=CODE_PREDICTOR_STAGE)


def _same(mine: GPTRunConfig, theirs: GPTRunConfig, fields: tuple[str, ...]) -> bool:
    return all(getattr(mine.gpt, name) == getattr(theirs.gpt, name) for name in fields)


def check_tokenizer(config: GPTRunConfig, vqvae: VQVAE) -> None:
    """Records in `config` the tokenizer whose codes the GPT learns.

    Raises ValueError where the GPT's grid, vocabulary or layout is not the tokenizer's, and for a
    name of a layer that does not exist: both before tokens are made, which may take hours.
    """
    linear_attention_class(config.gpt.linear_attention)
    if layout_class(config.gpt.layout).mesher != base.VQVAE:
        raise ValueError(
            f"gpt.layout is {config.gpt.layout}, whose tokens are not those of a triplane: "
            "write gpt.layout=triplane"
        )
    for name in ("grid_size", "codebook_size"):
        mine, theirs = getattr(config.gpt, name), getattr(vqvae.config, name)
        if mine != theirs:
            raise ValueError(
                f"gpt.{name} is {mine}, but the tokenizer's is {theirs}: "
                f"write gpt.{name}={theirs}, or choose another --vq-ckpt"
            )
    config.tokenizer_fingerprint = checkpoint.token_fingerprint(vqvae)
