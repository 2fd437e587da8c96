"""Token ids -> `Condition`: the text encoders of the GPT behind one interface.

    TrainedText    a small transformer that is trained along with the GPT
    FrozenText     a pretrained one (T5, CLIP's text half, BERT, ...), never trained

Both take the token ids that `TextTokenizer.prepare` makes of a caption, padded with `PADDING`.

An encoder of your own is one file with a subclass of `tar3d.condition.base.TextEncoder`, and one
line in `TEXT_ENCODERS`; `text_encoder.model` then chooses it by name.

Letters: B batch, L tokens of the longest caption, E width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from tar3d.condition.base import TextEncoder
from tar3d.condition.pretrained import load_pretrained, weights_hash
from tar3d.condition.text_tokenizer import TextTokenizer, load_text_tokenizer
from tar3d.condition.transformer import ViTBlock, init_transformer, transformer_flops

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

    from tar3d.config import TextEncoderConfig


class TrainedText(TextEncoder):
    """A pre-norm transformer encoder over word and position embeddings, not causal.

    Raises ValueError without a tokenizer, and for one of more than `config.vocabulary` words.
    """

    trains_tokenizer = True

    def __init__(
        self, config: TextEncoderConfig, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        super().__init__()
        if tokenizer is None:
            raise ValueError(
                "a text encoder that is trained along needs a tokenizer: give one that was trained "
                "on its captions (train_text_tokenizer), or that of its model directory"
            )
        if len(tokenizer) > config.vocabulary:
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} words, text_encoder.vocabulary is "
                f"{config.vocabulary}: write text_encoder.vocabulary={len(tokenizer)}"
            )
        self.text_tokenizer = TextTokenizer(tokenizer, config.max_tokens)
        self.width, self.frozen = config.width, False
        self.identity = f"trained text encoder, {self.text_tokenizer.identity}"
        self.word_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.max_tokens, config.width)
        self.blocks = nn.ModuleList(
            ViTBlock(config.width, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        init_transformer(self, len(self.blocks))

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.word_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        attended = rearrange(mask, "b l -> b 1 1 l")
        for block in self.blocks:
            x = block(x, attended)
        return self.norm(x)

    def flops(self) -> int:
        """FLOPs for one caption of the greatest length."""
        return transformer_flops(self, self.num_tokens, self.width, len(self.blocks))


class FrozenText(TextEncoder):
    """The last hidden state of a pretrained text encoder that `transformers` knows.

    For example google/flan-t5-xl (E = 2,048). Always in eval mode, without gradients, in
    `config.dtype` even under autocast, so that live and cached features agree. The identity holds a
    hash of the weights instead of the path.

    Raises ValueError when model or tokenizer cannot be found or loaded completely.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        from transformers import AutoModelForTextEncoding

        self.text_tokenizer = TextTokenizer(load_text_tokenizer(config.model), config.max_tokens)
        self.frozen = True
        self.dtype = getattr(torch, config.dtype)
        model, missing = load_pretrained(
            AutoModelForTextEncoding, config.model, self.dtype, "text encoder"
        )
        self.model = model.requires_grad_(False)
        self.train(False)
        self.width = self.embed(
            torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
        ).shape[-1]
        self.weights = weights_hash(model, missing)
        self.identity = (
            f"{type(model).__name__}, weights {self.weights}, "
            f"{self.text_tokenizer.identity}, {config.dtype}"
        )

    def train(self, mode: bool = True) -> FrozenText:  # noqa: ARG002 (nn.Module's signature)
        """Stays in eval mode whatever `mode` says: dropout would only add noise."""
        return super().train(False)

    @torch.no_grad()
    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, enabled=False):
            return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()


# Encoders that `text_encoder.model` chooses by name; any other name is a pretrained model.
TEXT_ENCODERS: dict[
    str, Callable[[TextEncoderConfig, PreTrainedTokenizerBase | None], TextEncoder]
] = {
    "trained": TrainedText,
}


def trains_tokenizer(config: TextEncoderConfig) -> bool:
    """Whether the encoder that `config.model` names needs a tokenizer trained on the captions."""
    return getattr(TEXT_ENCODERS.get(config.model), "trains_tokenizer", False)


def build_text_encoder(
    config: TextEncoderConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> TextEncoder:
    """The encoder that `config.model` names: one in `TEXT_ENCODERS`, or a pretrained one.

    `tokenizer` is for encoders with `trains_tokenizer`; the others bring their own.
    """
    if config.model not in TEXT_ENCODERS:
        return FrozenText(config)
    return TEXT_ENCODERS[config.model](config, tokenizer)
