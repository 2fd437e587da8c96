"""Captions -> `Condition`: the text encoders of the GPT behind one interface.

    TrainedText    a small transformer trained along with the GPT; its words are those of the training captions
    FrozenText     a pretrained one (T5, CLIP's text half, BERT, ...) from the Hub or a directory, never trained

Both take the token ids that `Words.prepare` makes of a caption, padded with `PADDING`; what makes
the ids is a tokenizer of `transformers` in either case, so a model is loaded the same way whoever
made its words. Letters: B batch, L tokens of the longest caption, E width.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import nn

from tar3d.condition.encoders import (
    TRAINED,
    ViTBlock,
    init_transformer,
    load_pretrained,
    not_loaded,
    transformer_flops,
    weights_hash,
)
from tar3d.contracts import Condition

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tar3d.config import TextEncoderConfig

PADDING = -1  # the id where a caption has ended
UNKNOWN, END = "[UNK]", "[END]"
UNKNOWN_ID = 0  # of `learn_words`
# of a word that gets a row of its own: rarer ones teach what an unknown word means, namely nothing
LEAST_SIGHTINGS = 2
SHOWN = 5  # unknown words that a warning names


def learn_words(captions: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A tokenizer whose words are the `vocabulary` commonest of the captions: lower case, split at
    spaces and punctuation, NFKC, with an end mark, so that even an empty caption has a token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    words.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        captions,
        trainers.WordLevelTrainer(
            vocab_size=vocabulary,
            min_frequency=LEAST_SIGHTINGS,
            special_tokens=[UNKNOWN, END],
            show_progress=False,
        ),
    )
    words.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, words.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token=UNKNOWN, eos_token=END, pad_token=END
    )


def load_words(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or Hub id."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, ImportError, json.JSONDecodeError) as e:
        raise not_loaded(
            "the tokenizer of text encoder",
            source,
            "text encoder",
            "tokenizer.json and the model",
            e,
        ) from e


@dataclass(frozen=True)
class PreparedText:
    """`ids` (L,) int32 of one caption, padded with `PADDING`, and what the user should know about
    it, or None."""

    ids: np.ndarray
    warning: str | None


class Words:
    """What makes ids of captions: a tokenizer, and how many tokens are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def prepare(self, caption: str) -> PreparedText:
        """Any text: an empty one is its end mark alone, one of more than `max_tokens` is cut before
        its end mark, and what the tokenizer does not know is an unknown word each time."""
        caption = " ".join(caption.split())
        encoded = self.tokenizer(
            caption,
            truncation=True,
            max_length=self.max_tokens,
            return_offsets_mapping=self.tokenizer.is_fast,
        )
        ids, full = encoded["input_ids"], len(self.tokenizer(caption)["input_ids"])
        if not ids:
            raise ValueError(
                f"the tokenizer of this text encoder makes nothing of the caption {caption!r}: it has no end mark; "
                "use one that does, such as T5's"
            )
        problems = []
        if self.tokenizer.is_fast:
            unknown = [
                caption[a:b]
                for (a, b), i in zip(encoded["offset_mapping"], ids, strict=True)
                if i == self.tokenizer.unk_token_id and b > a
            ]
            if unknown:
                more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
                problems.append(
                    f"words that this model does not know are passed over: {', '.join(unknown[:SHOWN])}{more}"
                )
        if full > self.max_tokens:
            problems.append(
                f"the caption has {full} tokens, the first {self.max_tokens} are read (text_encoder.max_tokens)"
            )
        padded = np.full(self.max_tokens, PADDING, dtype=np.int32)
        padded[: len(ids)] = ids
        return PreparedText(padded, "; ".join(problems) or None)

    @property
    def identity(self) -> str:
        """The same for tokenizers that make the same ids."""
        table = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return f"{len(self.tokenizer)} words {hashlib.sha256(table.encode()).hexdigest()[:16]}, {self.max_tokens} tokens"


class TextEncoder(nn.Module):
    """(B, L) token ids -> `Condition` of L embeddings of E = `width`, valid where the caption has a
    token.

    `num_tokens` is the most that a caption may have; `identity` stamps what is cached: ids of a
    trained encoder, embeddings of a `frozen` one.
    """

    words: Words
    width: int
    frozen: bool
    identity: str

    @property
    def num_tokens(self) -> int:
        return self.words.max_tokens

    def forward(self, ids: torch.Tensor) -> Condition:
        if ids.ndim != 2 or ids.is_floating_point():
            raise ValueError(
                "the text encoder takes (B, L) token ids as Words.prepare gives them, got "
                f"{tuple(ids.shape)} {ids.dtype}"
            )
        mask = ids != PADDING
        return Condition(self.embed(ids.clamp_min(0).long(), mask), mask)

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, L) int64 and (B, L) bool -> (B, L, E); what it gives where the mask is False is
        nothing."""
        raise NotImplementedError


def build_text_encoder(
    config: TextEncoderConfig, words: PreTrainedTokenizerBase | None = None
) -> TextEncoder:
    """The encoder that `config.model` names: "trained" for the tokenizer `words`, or a local
    directory or Hub id."""
    if config.model != TRAINED:
        return FrozenText(config)
    if words is None:
        raise ValueError(
            "a text encoder that is trained along needs the tokenizer of its words: give the one of its captions "
            "(learn_words) or of its model directory"
        )
    return TrainedText(config, Words(words, config.max_tokens))


class TrainedText(TextEncoder):
    """A pre-norm transformer encoder over word and position embeddings; every word sees every
    other."""

    def __init__(self, config: TextEncoderConfig, words: Words) -> None:
        super().__init__()
        if len(words.tokenizer) > config.vocabulary:
            raise ValueError(
                f"the tokenizer knows {len(words.tokenizer)} words, text_encoder.vocabulary is {config.vocabulary}: "
                f"write text_encoder.vocabulary={len(words.tokenizer)}"
            )
        self.words, self.width, self.frozen = words, config.width, False
        self.identity = f"trained text encoder, {words.identity}"
        self.word_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.max_tokens, config.width)
        self.blocks = nn.ModuleList(
            ViTBlock(config.width, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        init_transformer(self, len(self.blocks))

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.word_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        seen = rearrange(mask, "b l -> b 1 1 l")
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x)

    def flops(self) -> int:
        """Operations for one caption of the longest kind, a multiplication and an addition being
        two."""
        return transformer_flops(self, self.num_tokens, self.width, len(self.blocks))


class FrozenText(TextEncoder):
    """The last hidden state of a pretrained text encoder that `transformers` knows, e.g.
    google/flan-t5-xl (E = 2,048).

    Always in eval mode, without gradients, in `config.dtype` even under autocast, so that live and
    cached features agree. The identity holds a hash of the weights instead of the path.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        from transformers import AutoModelForTextEncoding

        self.words, self.frozen = Words(load_words(config.model), config.max_tokens), True
        self.dtype = getattr(torch, config.dtype)
        model, missing = load_pretrained(
            AutoModelForTextEncoding, config.model, self.dtype, "text encoder"
        )
        self.model = model.requires_grad_(False)
        self.train(False)
        self.width = self.embed(
            torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
        ).shape[-1]
        self.identity = f"{type(model).__name__}, weights {weights_hash(model, missing)}, {self.words.identity}, {config.dtype}"

    def train(self, mode: bool = True) -> FrozenText:
        """Stays in eval mode whatever `mode` says: dropout in a frozen encoder would only add
        noise."""
        return super().train(False)

    @torch.no_grad()
    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast(ids.device.type, enabled=False):
            return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
