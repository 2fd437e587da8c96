"""The cross-entropy of the next token, head and all, without the logits of a whole batch.

    loss = cross_entropy(gpt.hidden(tokens[:, :-1], condition, dropped), gpt.head.weight, tokens)

equals F.cross_entropy(gpt(...).flatten(0, 1).float(), tokens.flatten()). For 8 rows of 3,072 tokens
and 16,384 codes that form holds logits, their softmax and their gradient: 1.6 GB each in float32.
Here a few thousand positions at a time go through the head; their gradient is worked out on the
spot, while the logits are there, and only the gradients of the hidden states and of the head's
weight are kept for the backward pass (the idea of Liger Kernel, arXiv 2410.10989, and of Cut Your
Losses, arXiv 2411.09009). Products run in autocast's dtype, softmax and sums in float32.

Targets are tokens, or `SoftTargets`: several codes a position, with weights.

Letters: N positions, D width, V codebook size, K codes of a soft target.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

# Logits at a time: 2^24 float32 are 64 MiB. Smaller parts save no memory that matters; larger ones
# leave a CPU's caches.
LOGITS_AT_ONCE = 1 << 24
# Times as many on a GPU, 256 MiB: it reads and writes the float32 gradient of the head's weight
# once a part (128 MiB for a width of 1,024 and 16,384 codes).
ON_CUDA = 4
# Positions at a time in float16, whose largest number is 65,504: the gradient of the head's weight
# is a sum over them of entries up to the size of a hidden state's.
FLOAT16_POSITIONS = 1024


class SoftTargets(NamedTuple):
    """Codes that may stand at each position; the first of them is the token itself.

    `ids` (..., K) int64, all different; `weights` (..., K), a position's sum to 1.
    """

    ids: Tensor
    weights: Tensor


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean over all positions, in nats, a float32 scalar (float64 for float64 inputs).

    `hidden` (..., D) are what the head is applied to, `weight` (V, D) is the head's, `targets`
    (...) int64 the tokens. Can be differentiated once, with regard to `hidden` and `weight`.
    """
    _check(hidden, weight, targets)
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if not needs_gradient:
        return token_nll(hidden, weight, targets).mean()
    one_hot = hidden.new_ones(targets.numel(), 1, dtype=_sum_dtype(hidden))
    return _LinearCrossEntropy.apply(
        hidden.flatten(0, -2), weight, targets.flatten()[:, None], one_hot
    )[0]


def soft_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: SoftTargets
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy with soft targets, and the mean NLL of the tokens, which has no gradient.

    The other arguments, and what can be differentiated, as in `cross_entropy`. The first is
    F.cross_entropy of the logits with class probabilities.
    """
    _check(hidden, weight, targets.ids[..., 0])
    return _LinearCrossEntropy.apply(
        hidden.flatten(0, -2),
        weight,
        targets.ids.flatten(0, -2),
        targets.weights.flatten(0, -2).to(_sum_dtype(hidden)),
    )


@torch.no_grad()
def token_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """NLL of every token in nats, (...) float32; arguments as in `cross_entropy`."""
    _check(hidden, weight, targets)
    labels = targets.flatten()
    parts = [
        F.cross_entropy(logits, labels[part], reduction="none")
        for logits, part in logits_in_parts(hidden.flatten(0, -2), weight)
    ]
    return torch.cat(parts).view(targets.shape)


def logits_in_parts(hidden: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """The logits (n, V) in float32 (float64) of some positions at a time, and which these are.

    `hidden` (N, D), `weight` (V, D); for use without gradients.
    """
    flat, matrix = _in_compute_dtype(hidden), _in_compute_dtype(weight)
    for part in _parts(flat, matrix):
        with torch.autocast(weight.device.type, enabled=False):
            logits = _wide(flat[part] @ matrix.T)
        yield logits, part


class _LinearCrossEntropy(torch.autograd.Function):
    """The means of `soft_cross_entropy`, of which `backward` scales the first one's gradients.

    hidden (N, D), weight (V, D), targets (N, K) and their shares (N, K), in the dtype of the sums.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        flat, matrix = _in_compute_dtype(hidden), _in_compute_dtype(weight)
        sums = _sum_dtype(hidden)
        total, of_tokens = hidden.new_zeros(2, dtype=sums)
        # float16 rounds most of (softmax - shares) / N to 0, and no loss scale has been applied
        # yet: there the products are divided instead, in float32.
        divide_products = matrix.dtype == torch.float16
        kept = sums if divide_products else hidden.dtype
        hidden_gradient = torch.empty_like(hidden, dtype=kept)
        weight_gradient = torch.zeros_like(weight, dtype=sums)
        with torch.autocast(weight.device.type, enabled=False):
            for part in _parts(flat, matrix):
                logits = _wide(flat[part] @ matrix.T)
                labels, share = targets[part], shares[part]
                norm = logits.logsumexp(dim=1, keepdim=True)
                picked = logits.gather(1, labels)
                total += (norm - (share * picked).sum(1, keepdim=True)).sum()
                of_tokens += (norm - picked[:, :1]).sum()
                # d mean / d logits = (softmax - shares) / N, in the place of the logits.
                gradient = logits.sub_(norm).exp_()
                gradient.scatter_add_(1, labels, -share)
                if not divide_products:
                    gradient.div_(len(targets))
                gradient = gradient.to(matrix.dtype)
                hidden_gradient[part] = gradient @ matrix
                weight_gradient += gradient.T @ flat[part]
        if divide_products:
            hidden_gradient.div_(len(targets))
            weight_gradient.div_(len(targets))
        else:
            weight_gradient = weight_gradient.to(weight.dtype)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes = hidden.dtype, weight.dtype
        of_tokens = of_tokens / len(targets)
        ctx.mark_non_differentiable(of_tokens)
        return total / len(targets), of_tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            (hidden_gradient * scale.to(hidden_gradient.dtype)).to(ctx.dtypes[0]),
            (weight_gradient * scale.to(weight_gradient.dtype)).to(ctx.dtypes[1]),
            None,
            None,
        )


def _parts(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Slices of the positions, as equal as they can be."""
    at_once = LOGITS_AT_ONCE * (ON_CUDA if hidden.device.type == "cuda" else 1)
    count = max(1, -(-len(hidden) * len(weight) // at_once))
    if weight.dtype == torch.float16:
        count = max(count, -(-len(hidden) // FLOAT16_POSITIONS))
    bounds = [len(hidden) * k // count for k in range(count + 1)]
    return (slice(*ends) for ends in itertools.pairwise(bounds))


def _in_compute_dtype(x: Tensor) -> Tensor:
    """x as a matrix product under autocast would read it."""
    kind = x.device.type
    return (
        x.to(torch.get_autocast_dtype(kind))
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64
        else x
    )


def _sum_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of sums over positions."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    if (
        hidden.shape[:-1] != targets.shape
        or hidden.shape[-1] != weight.shape[1]
        or targets.numel() == 0
    ):
        raise ValueError(
            "cross-entropy takes hidden states (..., D), a head's weight (V, D) and at least one "
            "target (...); got "
            f"{tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        )
