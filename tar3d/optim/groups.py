"""Which optimizer each parameter belongs to: Muon for hidden matrices, AdamW for everything else.

The rule, which serves any module (the GPT, the tokenizer, a ViT from `transformers`):

| owner and parameter                                            | kind       | optimizer | decay |
|----------------------------------------------------------------|------------|-----------|-------|
| weight of nn.Linear                                            | `muon`     | Muon      | yes   |
| ... under a name that a parent lists in `adamw_parameters`     | `matrix`   | AdamW     | yes   |
| weight of a convolution                                        | `matrix`   | AdamW     | yes   |
| nn.Embedding, nn.Parameter of any other module, norms, biases  | `vector`   | AdamW     | no    |

`adamw_parameters` is a class attribute, a tuple of names of children or parameters, e.g. ("head",):
an output head is a classifier, not a hidden matrix. Muon is `torch.optim.Muon` with
"match_rms_adamw" (arXiv 2502.16982), so that both rates are of one scale. Frozen parameters
(requires_grad False) belong to none. With `optim.optimizer=adamw` those of kind `muon` are of
kind `matrix`: AdamW is all there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn, optim
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tar3d.config import OptimConfig

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
STACKED = (
    1 << 25
    # entries of matrices that go through Newton-Schulz together: 32 of 1,024 x 1,024, 64 MiB in
    # bfloat16
)
KINDS = ("muon", "matrix", "vector")  # from the boldest update to the most careful


class Muon(optim.Muon):
    """`torch.optim.Muon` with Nesterov momentum and "match_rms_adamw", for many matrices at a time.

    A GPT-L has 192 of them, for which torch's loop launches some 4,000 small operations a step;
    here all of one shape go through Newton-Schulz as one batch. Where a CPU only emulates bfloat16
    this one multiplies in float32, many times faster. The state is torch's: either can go on from
    the other's.
    """

    def __init__(
        self, params: Iterable, *, lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
            gradients = [p.grad for p in parameters]
            momenta = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for members in _batches(parameters):
                update = orthogonalise(
                    torch.stack([_whole(directions[i]) for i in members]).to(
                        _product_dtype(parameters[0].device)
                    ),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                scale = 0.2 * math.sqrt(
                    max(update.shape[1:])
                )  # arXiv 2502.16982, "match_rms_adamw"
                updates = [
                    held_part(u, parameters[i])
                    for i, u in zip(members, update.to(parameters[0].dtype).unbind(), strict=True)
                ]
                torch._foreach_add_(
                    [parameters[i] for i in members], updates, alpha=-group["lr"] * scale
                )
        return loss


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A matrix of which this process holds some rows (FSDP2), gathered from all: Newton-Schulz
    needs the whole of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held_part(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """What this process holds of a whole `tensor` that is shaped and spread as `parameter` is; all
    of it where that is whole."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def _batches(parameters: list[nn.Parameter]) -> Iterator[list[int]]:
    """Indices of matrices of one shape, so many together that their stack has at most `STACKED`
    entries, or one."""
    shapes: dict[torch.Size, list[int]] = {}
    for index, parameter in enumerate(parameters):
        shapes.setdefault(parameter.shape, []).append(index)
    for shape, members in shapes.items():
        size = max(1, STACKED // shape.numel())
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _product_dtype(device: torch.device) -> torch.dtype:
    emulated = device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16


def orthogonalise(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Newton-Schulz with Muon's quintic on matrices (n, rows, columns): the same singular vectors,
    singular values near 1. In their dtype."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@dataclass(frozen=True)
class Route:
    """One parameter, the dotted name it goes by, and its kind (see the table above)."""

    name: str
    parameter: nn.Parameter
    kind: str


def parameter_kind(module: nn.Module, name: str) -> str:
    """Kind of the parameter `name` that `module` itself owns, before any `adamw_parameters` is
    heard."""
    if name == "weight" and isinstance(module, nn.Linear):
        return "muon"
    if name == "weight" and isinstance(module, CONVOLUTIONS):
        return "matrix"
    return "vector"


def routes(modules: nn.Module | list[nn.Module]) -> list[Route]:
    """Every trainable parameter once, in module order. A parameter shared by two owners takes the
    more careful kind.

    Raises ValueError when an `adamw_parameters` entry names nothing.
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
    assert {id(r.parameter) for r in result} == expected and len(result) == len(expected)
    return result


def _routes(modules: nn.Module | list[nn.Module], config: OptimConfig) -> list[Route]:
    """`routes` as the configuration wants them."""
    found = routes(modules)
    if config.optimizer == "muon":
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
                    f"{type(module).__name__}.adamw_parameters lists {entry!r}, which has no parameter"
                )
            listed.append(f"{path}.{entry}" if path else entry)
    return listed


def build_optimizers(
    modules: nn.Module | list[nn.Module], config: OptimConfig
) -> tuple[Muon | None, optim.AdamW | None]:
    """(Muon, AdamW) over all trainable parameters; an optimizer that would have none is None.

    Each group keeps its base rate as "initial_lr" (see `schedule`) and its kind as "kind". Raises
    ValueError when nothing is trainable.
    """
    by_kind: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
    for route in _routes(modules, config):
        by_kind[route.kind].append(route.parameter)
    if not any(by_kind.values()):
        raise ValueError("no trainable parameter: every one is frozen (requires_grad is False)")
    muon = adamw = None
    if by_kind["muon"]:
        group = {"params": by_kind["muon"], "initial_lr": config.muon_lr, "kind": "muon"}
        muon = Muon(
            [group],
            lr=config.muon_lr,
            weight_decay=config.weight_decay,
            momentum=config.muon_momentum,
        )
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
    return muon, adamw


def routing_table(modules: nn.Module | list[nn.Module], config: OptimConfig) -> str:
    """One line per parameter: name, shape, optimizer, base rate and weight decay; then the
    totals."""
    lines = [f"{'parameter':<56} {'shape':<18} {'optimizer':<9} {'lr':>9} {'decay':>7}"]
    counts = {"Muon": 0, "AdamW": 0}
    for route in _routes(modules, config):
        optimizer, rate = (
            ("Muon", config.muon_lr) if route.kind == "muon" else ("AdamW", config.adamw_lr)
        )
        decay = 0.0 if route.kind == "vector" else config.weight_decay
        shape = "x".join(str(n) for n in route.parameter.shape) or "scalar"
        lines.append(f"{route.name:<56} {shape:<18} {optimizer:<9} {rate:>9.2e} {decay:>7.3g}")
        counts[optimizer] += route.parameter.numel()
    lines.append(", ".join(f"{name} {count:,} parameters" for name, count in counts.items()))
    return "\n".join(lines)
