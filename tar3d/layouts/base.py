"""The interface of the layouts of a token sequence. It loads no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from tar3d.config import GPTConfig

VQVAE = "vqvae"  # the mesher that is tar3d.tokenizer


@dataclass(frozen=True)
class Axis:
    """One coordinate of every step of a sequence, for rotary tables and position embeddings.

    A categorical axis names one of a few things (a plane); its rotary frequencies fall from 1 rad,
    so that neighbouring values differ clearly. Those of the others are geometric. An axis that is
    not `embedded` gets no learned position embedding.
    """

    name: str  # also names the embedding in saved weights: position_embedding.NAME
    size: int
    values: np.ndarray  # (steps,) int64 in [0, size)
    categorical: bool = False
    embedded: bool = True


class Layout(ABC):
    """The layout of the sequences of one GPT, made from its configuration.

    Files hold a sequence in file order, the GPT goes through it in model order; `permutation` is
    the way from one to the other. Positions of the GPT's layers are steps, of `tokens_per_step`
    tokens each; a sequence has a fixed number of tokens.

    A subclass sets `mesher` and `num_tokens` and defines `axes` and `check_length`; it overrides
    `permutation` where the two orders differ. Its `__init__` raises ValueError for options of the
    configuration that it does not have.
    """

    mesher: ClassVar[str]  # the reader of its tokens, which makes a mesh of them
    num_tokens: int  # T

    def __init__(self, config: GPTConfig) -> None:
        self.name, self.tokens_per_step = config.layout, config.tokens_per_step

    @property
    def num_steps(self) -> int:
        return self.num_tokens // self.tokens_per_step

    @abstractmethod
    def axes(self) -> tuple[Axis, ...]:
        """The coordinates of all steps in model order, of at least one axis."""

    def permutation(self) -> np.ndarray:
        """The file positions of all tokens in model order, (T,) int64.

        `sequence[:, permutation]` brings tokens (B, T) from file order into model order, and its
        argsort brings them back.
        """
        return np.arange(self.num_tokens)

    def checked_permutation(self) -> np.ndarray:
        """`permutation` as a contiguous array; raises ValueError if it is not one."""
        permutation = np.ascontiguousarray(self.permutation(), dtype=np.int64)
        if not np.array_equal(np.sort(permutation), np.arange(self.num_tokens)):
            raise ValueError(
                f"the order of layout {self.name} is no permutation of its {self.num_tokens} "
                "tokens: it must name each position of a file once"
            )
        return permutation

    @classmethod
    @abstractmethod
    def check_length(cls, num_tokens: int) -> None:
        """Raises ValueError if no sequence of this layout has so many tokens."""
