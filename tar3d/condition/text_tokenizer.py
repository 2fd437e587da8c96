"""Captions -> token ids: tokenizers of `transformers`, pretrained or trained on a set of captions.

A GPT is loaded the same way whoever made the tokenizer of its text encoder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tar3d.condition.pretrained import not_loaded, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

PADDING = -1  # the id where a caption has ended
UNKNOWN, END = "[UNK]", "[END]"
UNKNOWN_ID = 0  # id of unknown words in `train_text_tokenizer`
# A word that occurs less often gets no id of its own: rare words teach what an unknown word means,
# namely nothing.
MIN_COUNT = 2
MAX_NAMED = 5  # unknown words that a warning names


def train_text_tokenizer(captions: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A tokenizer of the `vocabulary` commonest words of the captions.

    Lower case, split at spaces and punctuation, NFKC, with an end mark, so that even an empty
    caption has a token.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        captions,
        trainers.WordLevelTrainer(
            vocab_size=vocabulary,
            min_frequency=MIN_COUNT,
            special_tokens=[UNKNOWN, END],
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END, pad_token=END
    )


def load_text_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or Hub id. Raises ValueError when it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(source))
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
    """Token ids (L,) int32 of one caption, padded with `PADDING`; `warning` is for the user.

    `is_known` is False where the tokenizer knows no word of the caption.
    """

    ids: np.ndarray
    warning: str | None
    is_known: bool = True


class TextTokenizer:
    """Makes token ids of captions: a tokenizer, and how many tokens are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def prepare(self, caption: str) -> PreparedText:
        """The token ids of any text.

        An empty caption is its end mark alone, one of more than `max_tokens` is cut before its end
        mark, and what the tokenizer does not know is an unknown word each time. Raises ValueError
        when the tokenizer makes no token of it.
        """
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
                f"the tokenizer of this text encoder makes nothing of the caption {caption!r}: it "
                "has no end mark; use one that does, such as T5's"
            )
        problems, is_known = [], True
        if self.tokenizer.is_fast:
            words = [
                (caption[a:b], i != self.tokenizer.unk_token_id)
                for (a, b), i in zip(encoded["offset_mapping"], ids, strict=True)
                if b > a
            ]
            is_known = any(known for word, known in words if any(map(str.isalnum, word)))
            if unknown := [word for word, known in words if not known]:
                more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
                problems.append(
                    "words that this model does not know are passed over: "
                    f"{', '.join(unknown[:MAX_NAMED])}{more}"
                )
        if full > self.max_tokens:
            problems.append(
                f"the caption has {full} tokens, the first {self.max_tokens} are read "
                "(text_encoder.max_tokens)"
            )
        padded = np.full(self.max_tokens, PADDING, dtype=np.int32)
        padded[: len(ids)] = ids
        return PreparedText(padded, "; ".join(problems) or None, is_known)

    @property
    def identity(self) -> str:
        """The same for tokenizers that make the same ids."""
        table = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        digest = hashlib.sha256(table.encode()).hexdigest()[:16]
        return f"{len(self.tokenizer)} words {digest}, {self.max_tokens} tokens"
