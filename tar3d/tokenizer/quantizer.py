"""The interface of a quantizer: latents -> code ids -> codes, with straight-through gradients.

A quantizer of another kind (FSQ, LFQ, residual) is a subclass in a file of its own and one line in
`vqvae.QUANTIZERS`; `tokenizer.quantizer` in a config names it.

Letters: L any number of latents, V codebook size, K code width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Quantized:
    """Result of a forward pass: codes, their ids, and the loss that ties latents to their codes."""

    codes: Tensor  # (..., K), with the latents' gradients (straight-through)
    ids: Tensor  # (...) int64
    commitment: Tensor  # scalar


class Quantizer(nn.Module):
    """Base class of quantizers.

    A subclass registers `codebook`, every code by its id, as a buffer, and defines `project`,
    `forward`, `nearest` and `flops`; it overrides the rest if its codebook is learned. The codebook
    is saved with the weights and is what a GPT's code predictor predicts, so a
    quantizer without a learned one (FSQ) lists its implied codes there.
    """

    codebook: Tensor  # (V, K) float32

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.codebook_size, self.code_dim = codebook_size, code_dim

    def project(self, latents: Tensor) -> Tensor:
        """Latents (..., K) of any scale -> (..., K) float32 in the space of the codes.

        The autoencoder stage decodes these as they are.
        """
        raise NotImplementedError

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (..., K) -> the codes that stand for them."""
        raise NotImplementedError

    def nearest(self, flat: Tensor) -> Tensor:
        """Ids (L,) int64 of the codes that stand for projected latents (L, K)."""
        raise NotImplementedError

    def flops(self, num_latents: int) -> int:
        """Operations of `forward` for this many latents, a multiply-add counted as two."""
        raise NotImplementedError

    def lookup(self, ids: Tensor) -> Tensor:
        """Ids (...) int64 -> codes (..., K); ValueError for an id outside the codebook."""
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.codebook_size):
            raise ValueError(
                f"token ids {int(ids.min())}..{int(ids.max())} leave the codebook "
                f"0..{self.codebook_size - 1}: the tokens come from another tokenizer"
            )
        return self.codebook[ids]

    def neighbours(self, ids: Tensor, count: int) -> Tensor:
        """The `count` codes nearest to each of `ids` (L,), the nearest first -> (L, count) int64.

        A code is no neighbour of itself.
        """
        distance = torch.cdist(self.codebook[ids], self.codebook)  # (L, V)
        distance.scatter_(1, ids[:, None], torch.inf)
        return distance.topk(count, largest=False).indices

    def init_from_latents(self, latents: Tensor, generator: torch.Generator) -> None:
        """Starts a learned codebook from projected latents (L, K); here there is nothing to start.

        The training loop calls it once, before the first quantized step.
        """

    def step(
        self,
        generator: torch.Generator,  # noqa: ARG002 (for subclasses)
        gather: Callable[[Tensor], Tensor] = lambda t: t,  # noqa: ARG002 (for subclasses)
    ) -> int:
        """Updates a learned codebook and returns the number of revived codes; here it does nothing.

        The training loop calls it once per optimizer step. A code is revived when nothing used it.
        `gather` stacks a tensor of all W processes, (W, ...), or returns that of the only one.
        """
        return 0

    def discard_statistics(self) -> None:
        """Drops what `forward` collected since the last `step`; here it collects nothing.

        The training loop calls it after every step, also after one that was skipped.
        """


def replace_codes(
    quantized: Quantized,
    quantizer: Quantizer,
    rows: float,
    codes: float,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """The codes (B, ..., K) of which a decoder learns to bear plausible wrong ones.

    In a share `rows` of the B shapes a share `codes` of the codes is replaced by one of their
    `count` nearest, as RobusTok does (arXiv 2509.12474). Gradients pass as if it had not been.
    """
    chosen = torch.rand(len(quantized.ids), generator=generator) < rows
    mask = torch.rand(quantized.ids.shape, generator=generator) < codes
    mask &= chosen.view(-1, *[1] * (mask.dim() - 1))
    places = mask.flatten().nonzero()[:, 0]
    drawn = torch.randint(count, (len(places), 1), generator=generator)
    if not len(places):
        return quantized.codes
    places, drawn = (t.to(quantized.ids.device) for t in (places, drawn))
    old = quantized.ids.flatten()[places]
    new = quantizer.neighbours(old, count).gather(1, drawn)[:, 0]
    change = quantizer.codebook[new] - quantizer.codebook[old]
    flat = quantized.codes.flatten(0, -2)
    return flat.index_add(0, places, change.to(flat.dtype)).view_as(quantized.codes)


@torch.no_grad()
def codebook_usage(counts: Tensor) -> tuple[float, float]:
    """Counts (V,) of assigned ids -> share of codes in use, perplexity (exp of the entropy)."""
    p = counts.double() / counts.sum().clamp_min(1)
    entropy = -(p * p.clamp_min(1e-12).log()).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())
