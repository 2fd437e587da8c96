"""Which optimizer each parameter belongs to: Muon for hidden matrices, AdamW for everything else.

The rule, which serves any module (the GPT, the tokenizer, a ViT from `transformers`):

| owner and parameter                                            | kind       | optimizer | decay |
|----------------------------------------------------------------|------------|-----------|-------|
| weight of nn.Linear                                            | `muon`     | Muon      | yes   |
| ... under a name that a parent lists in `adamw_parameters`     | `matrix`   | AdamW     | yes   |
| weight of a convolution                                        | `matrix`   | AdamW     | yes   |
| nn.Embedding, nn.Parameter of any other module, norms, biases  | `vector`   | AdamW     | no    |

`adamw_parameters` is a class attribute, a tuple of names of children or parameters, e.g. ("head",):
an output head is a classifier, not a hidden matrix. Frozen parameters (requires_grad False) belong
to none.

`optim.optimizer` names what trains the hidden matrices (`HIDDEN_OPTIMIZERS`). With "adamw" they are
of kind `matrix`: AdamW trains everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn, optim

from tar3d.optim.muon import Muon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tar3d.config import OptimConfig

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
KINDS = ("muon", "matrix", "vector")  # from the boldest update to the most careful


def _muon(groups: list[dict], config: OptimConfig) -> optim.Optimizer:
    return Muon(
        groups,
        lr=config.muon_lr,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
    )


# Optimizers of the hidden matrices by the value of `optim.optimizer`. With any other value AdamW
# trains them.
HIDDEN_OPTIMIZERS: dict[str, Callable[[list[dict], OptimConfig], optim.Optimizer]] = {
    "muon": _muon,
}


@dataclass(frozen=True)
class Route:
    """A parameter with its dotted name and its kind (see the table above)."""

    name: str
    parameter: nn.Parameter
    kind: str


def parameter_kind(module: nn.Module, name: str) -> str:
    """Kind of a parameter that `module` itself owns, not counting `adamw_parameters`."""
    if name == "weight" and isinstance(module, nn.Linear):
        return "muon"
    if name == "weight" and isinstance(module, CONVOLUTIONS):
        return "matrix"
    return "vector"


def routes(modules: nn.Module | list[nn.Module]) -> list[Route]:
    """Every trainable parameter once, in module order.

    One that is shared by two owners takes the more careful kind. Raises ValueError when an
    `adamw_parameters` entry names nothing.
    """
    found: dict[int, Route] = {}
    for name, parameter, kind in _walk(modules):
        known = found.get(id(parameter))
        if known is None:
            found[id(parameter)] = Route(name, parameter, kind)
        elif KINDS.index(kind) > KINDS.index(known.kind):
            found[id(parameter)] = Route(known.name, parameter, kind)
    result = list(found.values())
    roots = [modules] if isinstance(modules, nn.Module) else modules
    expected = {id(p) for root in roots for p in root.parameters() if p.requires_grad}
    assert {id(r.parameter) for r in result} == expected
    assert len(result) == len(expected)
    return result


def _routes(modules: nn.Module | list[nn.Module], config: OptimConfig) -> list[Route]:
    """`routes` for the optimizers that the configuration chooses."""
    found = routes(modules)
    if config.optimizer in HIDDEN_OPTIMIZERS:
        return found
    return [replace(route, kind="matrix") if route.kind == "muon" else route for route in found]


def _walk(modules: nn.Module | list[nn.Module]) -> Iterator[tuple[str, nn.Parameter, str]]:
    for index, root in enumerate([modules] if isinstance(modules, nn.Module) else modules):
        prefix = "" if isinstance(modules, nn.Module) else f"{index}.{type(root).__name__}."
        listed = _listed_names(root)
        for path, module in root.named_modules(remove_duplicate=False):
            for own_name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                name = f"{path}.{own_name}" if path else own_name
                kind = parameter_kind(module, own_name)
                if kind == "muon" and any(
                    name == entry or name.startswith(entry + ".") for entry in listed
                ):
                    kind = "matrix"
                yield prefix + name, parameter, kind


def _listed_names(root: nn.Module) -> list[str]:
    listed = []
    for path, module in root.named_modules():
        names = [name for name, _ in module.named_parameters()]
        for entry in getattr(module, "adamw_parameters", ()):
            if not any(name == entry or name.startswith(entry + ".") for name in names):
                raise ValueError(
                    f"{type(module).__name__}.adamw_parameters lists {entry!r}, which has no "
                    "parameter"
                )
            listed.append(f"{path}.{entry}" if path else entry)
    return listed


def build_optimizers(
    modules: nn.Module | list[nn.Module], config: OptimConfig
) -> tuple[optim.Optimizer | None, optim.AdamW | None]:
    """(Muon, AdamW) over all trainable parameters; an optimizer that would have none is None.

    Each group keeps its base rate as "initial_lr" (see `schedule`) and its kind as "kind". Raises
    ValueError when nothing is trainable.
    """
    by_kind: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
    for route in _routes(modules, config):
        by_kind[route.kind].append(route.parameter)
    if not any(by_kind.values()):
        raise ValueError("no trainable parameter: every one is frozen (requires_grad is False)")
    hidden = adamw = None
    if by_kind["muon"]:
        group = {"params": by_kind["muon"], "initial_lr": config.muon_lr, "kind": "muon"}
        hidden = HIDDEN_OPTIMIZERS[config.optimizer]([group], config)
    groups = [
        {
            "params": by_kind[kind],
            "weight_decay": decay,
            "initial_lr": config.adamw_lr,
            "kind": kind,
        }
        for kind, decay in (("matrix", config.weight_decay), ("vector", 0.0))
        if by_kind[kind]
    ]
    if groups:
        adamw = optim.AdamW(
            groups, lr=config.adamw_lr, betas=(config.beta1, config.beta2), fused=True
        )
    return hidden, adamw


def new_optimizers(
    modules: nn.Module | list[nn.Module], config: OptimConfig
) -> list[optim.Optimizer]:
    """The optimizers of `build_optimizers` that have parameters."""
    return [optimizer for optimizer in build_optimizers(modules, config) if optimizer is not None]


def routing_table(modules: nn.Module | list[nn.Module], config: OptimConfig) -> str:
    """One line a parameter: name, shape, optimizer, base rate and weight decay; then the totals.

    Optimizers have their names in the configuration.
    """
    lines = [f"{'parameter':<56} {'shape':<18} {'optimizer':<9} {'lr':>9} {'decay':>7}"]
    counts = dict.fromkeys((config.optimizer, "adamw"), 0)
    for route in _routes(modules, config):
        optimizer, rate = (
            (config.optimizer, config.muon_lr)
            if route.kind == "muon"
            else ("adamw", config.adamw_lr)
        )
        decay = 0.0 if route.kind == "vector" else config.weight_decay
        shape = "x".join(str(n) for n in route.parameter.shape) or "scalar"
        lines.append(f"{route.name:<56} {shape:<18} {optimizer:<9} {rate:>9.2e} {decay:>7.3g}")
        counts[optimizer] += route.parameter.numel()
    lines.append(", ".join(f"{name} {count:,} parameters" for name, count in counts.items()))
    return "\n".join(lines)
