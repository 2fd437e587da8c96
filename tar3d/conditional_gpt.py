"""The GPT with the encoders of its conditions as one module, and its model directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tar3d import checkpoint
from tar3d.condition.base import TextEncoder
from tar3d.condition.conditioner import Conditioner, ConditionInputs, Encoder, build_encoder
from tar3d.condition.image import Prepared, preprocess
from tar3d.condition.image_encoders import IMAGE_ENCODERS
from tar3d.condition.pretrained import NotLoadedError
from tar3d.condition.text_encoders import TEXT_ENCODERS, trains_tokenizer
from tar3d.condition.text_tokenizer import PreparedText, load_text_tokenizer
from tar3d.config import GPT_TYPES, GPTRunConfig
from tar3d.contracts import Condition
from tar3d.gpt.loss import token_nll
from tar3d.gpt.model import GPT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL import Image
    from transformers import PreTrainedTokenizerBase

# Folder in a GPT's model directory: the tokenizer of a text encoder that was trained with the GPT.
TEXT_TOKENIZER = "words"


def gpt_folder(gpt_type: str) -> str:
    """Name of a GPT's folder beside checkpoint.TOKENIZER, in a model directory that generates."""
    return f"gpt_{gpt_type}"


def gpt_type_of(conditions: list[str]) -> str:
    """The type of a GPT with these modalities as conditions."""
    return next(
        name for name, modalities in GPT_TYPES.items() if sorted(modalities) == sorted(conditions)
    )


class ConditionalGPT(torch.nn.Module):
    """The GPT and the encoders of its conditions as one module."""

    def __init__(self, config: GPTRunConfig, encoders: dict[str, Encoder]) -> None:
        super().__init__()
        self.config = config
        self.gpt = GPT(config.gpt)
        self.conditioner = Conditioner(
            encoders, config.gpt.condition_tokens, config.gpt.condition_width
        )

    def encoder(self, modality: str) -> Encoder:
        """The encoder of a modality; ValueError for one that this model was not trained on."""
        return self.conditioner.encoder(modality)

    def prepare_image(self, image: Image.Image) -> Prepared:
        """The pixels that the image encoder takes. Raises ImageError for an unusable image."""
        self.encoder("image")
        return preprocess(image, self.config.image_encoder)

    def prepare_text(self, text: str) -> PreparedText:
        """The token ids that the text encoder takes. Raises ValueError for an unusable text."""
        encoder = self.encoder("text")
        if not isinstance(encoder, TextEncoder):
            raise ValueError(
                f"this GPT's text encoder is a {type(encoder).__name__}, which reads no text: load "
                "the model with its own text encoder"
            )
        return encoder.text_tokenizer.prepare(text)

    def token_nll(
        self, tokens: torch.Tensor, inputs: ConditionInputs, dropped: torch.Tensor
    ) -> torch.Tensor:
        """NLL (B, T) in nats of tokens (B, T), each given those before it; without gradients."""
        tokens = self.gpt.to_model_order(tokens)
        with torch.no_grad():
            hidden = self.gpt.hidden(tokens[:, :-1], self.condition(inputs, len(tokens)), dropped)
        return self.gpt.to_raster_order(token_nll(hidden, self.gpt.head.weight, tokens))

    def condition(
        self, inputs: ConditionInputs, rows: int, turns: Sequence[int] | None = None
    ) -> Condition:
        """The prefixes encoded from `inputs`, or without any the null prefix in each of `rows`.

        `turns` says which of several modalities each row has (`Conditioner.forward`).
        """
        if inputs:
            return self.conditioner(inputs, turns)
        return Condition.of(self.gpt.null_prefix.expand(rows, -1, -1))


def load_gpt(
    folder: str | Path, encoder_folders: Mapping[str, str | Path | None] | None = None
) -> ConditionalGPT:
    """A GPT from a model directory or Hub id, with the tokenizer of its text encoder.

    `encoder_folders` says where the frozen encoder of a modality is now, if it has moved. Raises
    ValueError where an encoder cannot be loaded, and where it is not the one that the GPT was
    trained with.
    """
    config = checkpoint.read_config(folder, GPTRunConfig)
    # A saved config names the attention backends of the machine that trained the model.
    config.gpt.linear_backend = config.gpt.attention_backend = "auto"
    for modality, moved_to in (encoder_folders or {}).items():
        if moved_to is not None:
            _move_encoder(config, modality, moved_to)
    tokenizer = load_gpt_text_tokenizer(folder)
    encoders = {name: _build_encoder(config, name, tokenizer) for name in config.conditions}
    model = ConditionalGPT(config, encoders)
    checkpoint.load_weights(model, folder)
    return model


def _move_encoder(config: GPTRunConfig, modality: str, folder: str | Path) -> None:
    """Names the folder of a frozen encoder in `config`; ValueError for a GPT without one."""
    encoder = getattr(config, f"{modality}_encoder")
    if modality not in config.conditions or encoder.model in (*IMAGE_ENCODERS, *TEXT_ENCODERS):
        raise ValueError(
            f"--{modality}-encoder {folder} names a frozen encoder, but this GPT has no frozen "
            f"{modality} encoder: leave the option out"
        )
    encoder.model = str(folder)


def _build_encoder(
    config: GPTRunConfig, modality: str, tokenizer: PreTrainedTokenizerBase | None
) -> Encoder:
    """The encoder of a modality, which has the weights that the GPT was trained with."""
    option = f"--{modality}-encoder"
    try:
        encoder = build_encoder(config, modality, tokenizer)
    except NotLoadedError as e:
        raise ValueError(
            f"{e.found} This GPT was trained with that encoder: name its folder with {option} "
            "FOLDER, or download it once with a network"
        ) from e
    trained_with = {"image": config.image_encoder_weights, "text": config.text_encoder_weights}
    expected, found = trained_with[modality], encoder.weights
    if expected and expected != found:
        raise ValueError(
            f"the {modality} encoder {getattr(config, f'{modality}_encoder').model} has the "
            f"weights {found}, but this GPT was trained with {expected}: name the folder of that "
            f"encoder with {option} FOLDER"
        )
    return encoder


def load_gpt_text_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a text encoder that was trained with the GPT; None for a GPT without one."""
    config = checkpoint.read_config(folder, GPTRunConfig)
    trained = "text" in config.conditions and trains_tokenizer(config.text_encoder)
    return load_text_tokenizer(checkpoint.find_model(folder) / TEXT_TOKENIZER) if trained else None
