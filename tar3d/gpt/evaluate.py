"""How well a GPT predicts true tokens under the right, a wrong and no condition: the loss that tells whether it uses one.

A model that does has right < null and right < shuffled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def condition_nll(model: nn.Module, tokens: Tensor, source: Tensor, batch_size: int = 16) -> dict[str, Tensor]:
    """NLL in nats of every token, (N, T) float32 on the CPU, under "right", "shuffled" and "null".

    Shuffled is the source half the rows further on: where rows are sorted by category, the next would hardly be wrong.

    `model.token_nll(tokens, source, dropped)` gives the NLL (B, T) of tokens (B, T) int64 under sources (B, ...), as that of
    `tar3d.pipeline.I23D` does. The model is in eval mode meanwhile, and then as it was before.
    """
    if len(tokens) != len(source):
        raise ValueError(f"{len(tokens)} rows of tokens but {len(source)} of conditions: give each row its own")
    device, was_training = next(model.parameters()).device, model.training
    losses: dict[str, list[Tensor]] = {"right": [], "shuffled": [], "null": []}
    shuffled = source.roll(-(len(source) // 2), 0)
    model.eval()
    try:
        for start in range(0, len(tokens), batch_size):
            part = slice(start, start + batch_size)
            targets = tokens[part].to(device)
            for kind, parts in losses.items():
                given = (shuffled if kind == "shuffled" else source)[part].to(device)
                dropped = torch.full((len(targets),), kind == "null", device=device)
                parts.append(model.token_nll(targets, given, dropped).cpu())
    finally:
        model.train(was_training)
    return {kind: torch.cat(parts) for kind, parts in losses.items()}
