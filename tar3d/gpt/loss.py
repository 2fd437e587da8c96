"""The cross-entropy of the next token, head and all, without the logits of a whole batch.

    loss = cross_entropy(gpt.hidden(tokens[:, :-1], condition, dropped), gpt.head.weight, tokens)

equals F.cross_entropy(gpt(...).flatten(0, 1).float(), tokens.flatten()). For 8 rows of 3,072 tokens
and 16,384 codes that form holds logits, their softmax and their gradient: 1.6 GB each in float32.
Here a few thousand positions at a time go through the head; their gradient is worked out on the
spot, while the logits are there, and only the gradients of the hidden states and of the head's
weight are kept for the backward pass (the idea of Liger Kernel, arXiv 2410.10989, and of Cut Your
Losses, arXiv 2411.09009). Products run in autocast's dtype, softmax and sums in float32.

Letters: N positions, D width, V codebook size.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

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


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean over all positions, in nats, a float32 scalar (float64 for float64 inputs).

    `hidden` (..., D) are what the head is applied to, `weight` (V, D) is the head's, `targets`
    (...) int64 the tokens. Can be differentiated once, with regard to `hidden` and `weight`.
    """
    _check(hidden, weight, targets)
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if not needs_gradient:
        return token_nll(hidden, weight, targets).mean()
    return _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten())


@torch.no_grad()
def token_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """NLL of every token in nats, (...) float32; arguments as in `cross_entropy`."""
    _check(hidden, weight, targets)
    flat, matrix, labels = (
        _in_compute_dtype(hidden.flatten(0, -2)),
        _in_compute_dtype(weight),
        targets.flatten(),
    )
    with torch.autocast(weight.device.type, enabled=False):
        parts = [
            F.cross_entropy(_wide(flat[part] @ matrix.T), labels[part], reduction="none")
            for part in _parts(flat, matrix)
        ]
    return torch.cat(parts).view(targets.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    """hidden (N, D), weight (V, D), targets (N,) -> mean; `backward` scales its gradients."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        flat, matrix = _in_compute_dtype(hidden), _in_compute_dtype(weight)
        sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = hidden.new_zeros((), dtype=sums)
        # float16 rounds most of (softmax - one hot) / N to 0, and no loss scale has been applied
        # yet: there the products are divided instead, in float32.
        divide_products = matrix.dtype == torch.float16
        kept = sums if divide_products else hidden.dtype
        hidden_gradient = torch.empty_like(hidden, dtype=kept)
        weight_gradient = torch.zeros_like(weight, dtype=sums)
        with torch.autocast(weight.device.type, enabled=False):
            for part in _parts(flat, matrix):
                logits = _wide(flat[part] @ matrix.T)
                labels = targets[part, None]
                norm = logits.logsumexp(dim=1, keepdim=True)
                total += (norm - logits.gather(1, labels)).sum()
                # d mean / d logits = (softmax - one hot) / N, in the place of the logits.
                gradient = logits.sub_(norm).exp_()
                gradient.scatter_add_(1, labels, gradient.new_full((1, 1), -1.0).expand_as(labels))
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
        return total / len(targets)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            (hidden_gradient * scale.to(hidden_gradient.dtype)).to(ctx.dtypes[0]),
            (weight_gradient * scale.to(weight_gradient.dtype)).to(ctx.dtypes[1]),
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
