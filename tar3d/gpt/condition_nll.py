"""How well a GPT predicts true tokens under the right, a wrong and no condition.

A model that uses its condition has right < null and right < shuffled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    ConditionInputs = dict[str, Tensor]  # modality -> a row for each item


def of_others(inputs: ConditionInputs) -> ConditionInputs:
    """The inputs of the batch rolled by half of it.

    Each row gets a mismatched condition, even if rows are sorted by category.
    """
    return {modality: rows.roll(-(len(rows) // 2), 0) for modality, rows in inputs.items()}


@torch.no_grad()
def condition_nll(
    model: nn.Module, tokens: Tensor, inputs: ConditionInputs, batch_size: int = 16
) -> dict[str, Tensor]:
    """NLL in nats of every token, (N, T) float32 on the CPU, by condition.

    The conditions are "right", "shuffled" and "null"; without inputs, "null" alone. A single row
    has no "shuffled": there is no other row whose condition it could get.
    `model.token_nll(tokens, inputs, dropped)` gives the NLL (B, T) of tokens (B, T) int64, as that
    of the conditional GPT does. The model is in eval mode meanwhile, and then as it was before.

    Raises ValueError if the inputs have another number of rows than the tokens.
    """
    for modality, rows in inputs.items():
        if len(tokens) != len(rows):
            raise ValueError(
                f"{len(tokens)} rows of tokens but {len(rows)} of the condition {modality}: "
                "give each row its own"
            )
    token_nll = cast("Callable[..., Tensor]", model.token_nll)
    device, was_training = next(model.parameters()).device, model.training
    names = ["null"]
    if inputs:
        names = ["right", *(["shuffled"] if len(tokens) > 1 else []), "null"]
    losses: dict[str, list[Tensor]] = {name: [] for name in names}
    shuffled = of_others(inputs)
    model.eval()
    try:
        for start in range(0, len(tokens), batch_size):
            part = slice(start, start + batch_size)
            targets = tokens[part].to(device)
            for name, parts in losses.items():
                of_name = shuffled if name == "shuffled" else inputs
                batch = {modality: rows[part].to(device) for modality, rows in of_name.items()}
                dropped = torch.full((len(targets),), name == "null", device=device)
                parts.append(token_nll(targets, batch, dropped).cpu())
    finally:
        model.train(was_training)
    return {name: torch.cat(parts) for name, parts in losses.items()}
