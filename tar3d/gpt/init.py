"""Initial weights of a GPT.

A module says in `init_as` how its parameters and children start, by name:

| word       | start                                                               |
|------------|---------------------------------------------------------------------|
| "normal"   | normal, std 0.02; the start of all that no module speaks of         |
| "residual" | normal, std 0.02 / sqrt(2 L): o and down, which end on the residual |
| "scale"    | normal, std 1 / sqrt(inputs): the output is as large as an input    |
| "ones"     | 1: gains of norms                                                   |
| "zeros"    | 0: position embeddings, projection of the code predictor            |
| "own"      | as the module's constructor left it                                 |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

INIT_STD = 0.02


@torch.no_grad()
def init_parameters(
    module: nn.Module, num_layers: int, generator: torch.Generator | None = None
) -> None:
    """Draws all parameters in the order of their registration.

    Without a generator from torch's default one.
    """
    starts = parameter_starts(module)
    for name, parameter in module.named_parameters():
        start = starts.get(name, "normal")
        if start in ("ones", "zeros"):
            parameter.fill_(1.0 if start == "ones" else 0.0)
        elif start != "own":
            stds = {
                "residual": INIT_STD / math.sqrt(2 * num_layers),
                "scale": 1.0 / math.sqrt(parameter.shape[-1]),
            }
            parameter.normal_(0.0, stds.get(start, INIT_STD), generator=generator)


def parameter_starts(module: nn.Module) -> dict[str, str]:
    """Parameter name -> its initialisation, for all parameters that an `init_as` lists.

    An outer module's entry goes before that of a module inside it.
    """
    starts: dict[str, str] = {}
    for prefix, owner in module.named_modules():
        for child, start in getattr(owner, "init_as", {}).items():
            for name, _ in owner.named_parameters():
                if name == child or name.startswith(f"{child}."):
                    starts.setdefault(f"{prefix}.{name}".removeprefix("."), start)
    return starts
