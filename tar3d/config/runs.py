"""Everything that one training run is configured with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tar3d.config.base import load
from tar3d.config.checks import one_of, require
from tar3d.config.conditions import CONDITIONS, GPT_TYPES, ImageEncoderConfig, TextEncoderConfig
from tar3d.config.gpt import GPTConfig, size_values
from tar3d.config.optimizer import OptimConfig
from tar3d.config.sampling import SamplingConfig
from tar3d.config.tokenizer import TokenizerConfig
from tar3d.config.training import GPTTrainConfig, VQVAETrainConfig


@dataclass(kw_only=True)
class VQVAEConfig:
    """Everything `train_vqvae.py` needs; saved beside the weights."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: VQVAETrainConfig = field(default_factory=VQVAETrainConfig)


@dataclass(kw_only=True)
class GPTRunConfig:
    """Everything `train_gpt.py` needs; saved beside the weights."""

    # Modalities that the GPT can be conditioned on, one of them per row.
    conditions: list[str] = field(default_factory=lambda: ["image"])
    gpt: GPTConfig = field(default_factory=GPTConfig)
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: GPTTrainConfig = field(default_factory=GPTTrainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    # Words for the things that the GPT makes, in lower case: a prompt with none of them is refused.
    # Empty for a GPT that knows too many to list.
    nouns: list[str] = field(default_factory=list)
    # Written by the training: the tokenizer whose tokens the GPT was trained on.
    tokenizer_fingerprint: str = ""
    # Written by the training: hashes of the weights of frozen encoders ("" for others).
    image_encoder_weights: str = ""
    text_encoder_weights: str = ""

    def __post_init__(self) -> None:
        for modality in self.conditions:
            one_of("conditions", modality, CONDITIONS)
        require(
            len(set(self.conditions)) == len(self.conditions),
            f"conditions has an entry twice: {', '.join(self.conditions)}",
        )
        train, code_dim = self.train, self.gpt.code_predictor_dim
        require(
            train.stage == "gpt" or (code_dim > 0 and len(self.conditions) > 0),
            f"train.stage is {train.stage}, but the GPT has no code predictor "
            f"(gpt.code_predictor_dim {code_dim}, "
            f"conditions {', '.join(self.conditions) or 'none'}): set gpt.code_predictor_dim to "
            "the tokenizer's code_dim, and choose a --gpt-type with a condition",
        )
        require(
            train.stage != "code_predictor"
            or train.code_predictor_weight > 0
            or train.occupancy_weight > 0,
            "train.stage=code_predictor trains the code predictor alone, but "
            "train.code_predictor_weight and train.occupancy_weight are 0, so nothing would be "
            "learnt: write train.code_predictor_weight=1",
        )
        require(
            code_dim > 0
            or not (
                train.code_predictor_rows or train.code_predictor_weight or train.occupancy_weight
            ),
            f"train.code_predictor_rows {train.code_predictor_rows}, "
            f"train.code_predictor_weight {train.code_predictor_weight:g} and "
            f"train.occupancy_weight {train.occupancy_weight:g} train a code predictor, "
            "but gpt.code_predictor_dim is 0: set it to the tokenizer's code_dim, or these to 0",
        )


def load_gpt_run(
    path: str | Path,
    model: str,
    tokenizer: TokenizerConfig,
    overrides: list[str] | tuple[str, ...] = (),
    gpt_type: str = "i23d",
) -> GPTRunConfig:
    """The run that the file `path` describes for a GPT of the named size and type.

    The size of that name, the type's conditions, and the tokenizer's grid and vocabulary are the
    base: the file changes them, and `key=value` overrides change the file.
    """
    size = size_values(model)
    tokens = {"grid_size": tokenizer.grid_size, "codebook_size": tokenizer.codebook_size}
    return load(
        GPTRunConfig,
        path,
        overrides,
        base={"gpt": {**size, **tokens}, "conditions": GPT_TYPES[gpt_type]},
    )


def size_note(config: GPTConfig, model: str) -> str | None:
    """A line that says how `config` differs from the size that its name promises, or None."""
    differing = [
        f"gpt.{name} {getattr(config, name)} instead of {value}"
        for name, value in size_values(model).items()
        if getattr(config, name) != value
    ]
    if not differing:
        return None
    return f"not the size {model}: config file or overrides set {', '.join(differing)}"
