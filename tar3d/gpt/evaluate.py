"""How well a GPT predicts true tokens under the right, a wrong and no condition: the loss that
tells whether it uses one.

A model that does has right < null and right < shuffled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def of_others(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """For each row what the one half the rows further on is told: where they are sorted by
    category, the next is hardly wrong."""
    return {kind: shown.roll(-(len(shown) // 2), 0) for kind, shown in source.items()}


@torch.no_grad()
def condition_nll(
    model: nn.Module, tokens: Tensor, source: dict[str, Tensor], batch_size: int = 16
) -> dict[str, Tensor]:
    """NLL in nats of every token, (N, T) float32 on the CPU, under "right", "shuffled" and "null";
    with no source, "null" alone.

    `model.token_nll(tokens, source, dropped)` gives the NLL (B, T) of tokens (B, T) int64 under a
    source of tensors (B, ...), as that of `tar3d.conditional_gpt.ConditionalGPT` does. The model is in
    eval mode meanwhile, and then as it was before.
    """
    for kind, shown in source.items():
        if len(tokens) != len(shown):
            raise ValueError(
                f"{len(tokens)} rows of tokens but {len(shown)} of the condition {kind}: give each row its own"
            )
    device, was_training = next(model.parameters()).device, model.training
    losses: dict[str, list[Tensor]] = {
        name: [] for name in (("right", "shuffled", "null") if source else ("null",))
    }
    shuffled = of_others(source)
    model.eval()
    try:
        for start in range(0, len(tokens), batch_size):
            part = slice(start, start + batch_size)
            targets = tokens[part].to(device)
            for name, parts in losses.items():
                given = {
                    kind: shown[part].to(device)
                    for kind, shown in (shuffled if name == "shuffled" else source).items()
                }
                dropped = torch.full((len(targets),), name == "null", device=device)
                parts.append(model.token_nll(targets, given, dropped).cpu())
    finally:
        model.train(was_training)
    return {name: torch.cat(parts) for name, parts in losses.items()}
