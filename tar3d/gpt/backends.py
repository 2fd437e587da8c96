"""The code that computes attention: a choice of the machine, not a property of the weights.

| gpt.linear_backend | runs on  | dtypes             | head_dim    |                               |
|--------------------|----------|--------------------|-------------|-------------------------------|
| auto               | anything | any                | any         | fla on CUDA, else chunked;    |
|                    |          |                    |             | chunked for a prefix          |
| chunked, reference | anything | any                | any         | tar3d/gpt/linear_attention.py |
| fla                | CUDA     | float32 and 16 bit | any         | Triton kernels of fla-core    |
| lightning_attn     | CUDA     | float32 and 16 bit | 32, 64, 128 | lightning-attn; outputs only  |

| gpt.attention_backend | runs on  | dtypes             | head_dim   |                             |
|-----------------------|----------|--------------------|------------|-----------------------------|
| auto, sdpa            | anything | any                | any        | torch picks its own kernel  |
| flash_attn            | CUDA     | 16 bit             | up to 256  | compute capability from 8.0 |

On CUDA `auto` is `chunked` too where fla cannot run, and for the prefix of a generation (whenever
the state is wanted): fla tries dozens of configurations of its kernels at their first call, for
half a minute, and a prefix of a few hundred positions costs next to nothing in any form. A kernel
asked for by name serves prefixes too; what it lacks `chunked` does: `fla` gives a state at the end
of all rows only, so with fixed decays it is not used for states at rows' own lengths (decaying a
padded tail and undoing it overflows float32); `lightning_attn` neither takes nor gives a state, so
it serves training alone. Triton multiplies float32 as TF32 unless TRITON_F32_DEFAULT=ieee is set,
so kernels and PyTorch agree to about three digits there.

With `gpt.linear_attention` "gated" or "delta" the same names stand for the forms of
tar3d/gpt/gated_attention.py and fla's kernels of those, and there is no `lightning_attn`.

A package that is missing is found when a model is built; a device, a dtype or a Triton that does
not fit, at the first forward. Decoding one token has no backend: it is `recurrent_step` in a linear
layer and SDPA over the cache in a full one.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tar3d.gpt import gated_attention, linear_attention
from tar3d.gpt.kernel_faults import constant, known_fault

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Kernels:
    """A package with CUDA kernels: its function, and the inputs that it takes.

    `head_dims` None: the function itself says which.
    """

    module: str
    function: str
    dtypes: tuple[torch.dtype, ...]
    head_dims: tuple[int, ...] | range | None = None

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str:
        """Why it cannot take such inputs, or ""."""
        if device.type != "cuda":
            return f"it runs on CUDA only, and the inputs are on {device.type}"
        if dtype not in self.dtypes:
            taken = " or ".join(map(_name, self.dtypes))
            return f"it takes {taken}, and the inputs are {_name(dtype)}"
        return ""


LINEAR = {
    "fla": Kernels("fla.ops.simple_gla", "chunk_simple_gla", (torch.float32, *HALF)),
    "lightning_attn": Kernels(
        "lightning_attn.ops", "lightning_attn_func", (torch.float32, *HALF), (32, 64, 128)
    ),
}
FULL = {
    "flash_attn": Kernels("flash_attn", "flash_attn_func", HALF, range(1, 257)),
}


class ParallelForms:
    """`gpt.linear_backend` for whole rows of a linear-attention layer; a subclass calls them."""

    def __init__(self, name: str, head_dim: int, chunk_size: int) -> None:
        self.name, self.chunk_size = name, chunk_size
        if name in LINEAR:
            _check_package("gpt.linear_backend", name, LINEAR[name], head_dim)

    def form_for(self, *inputs: Tensor, want_state: bool) -> str:
        if want_state and self.name == "auto":
            return "chunked"
        gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        return self.choose(inputs[0].device, inputs[0].dtype, gradients=gradients)

    def choose(self, device: torch.device, dtype: torch.dtype, *, gradients: bool) -> str:
        """The form for such inputs. `auto` is `chunked` on a CPU; on CUDA it warns of that once."""
        if self.name in LINEAR:
            reason = LINEAR[self.name].refusal(device, dtype)
            _check("gpt.linear_backend", self.name, reason or known_fault(self.name, gradients))
        if self.name != "auto":
            return self.name
        return _fastest_on_cuda(dtype, gradients) if device.type == "cuda" else "chunked"


class LinearBackend(ParallelForms):
    """The forms of tar3d/gpt/linear_attention.py; shapes and dtypes are given there."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        slopes: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        want_state: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """(o, state). `want_state=False`, for training, lets a kernel give None as the state."""
        form = self.form_for(q, k, v, want_state=want_state)
        if form == "fla" and (lengths is None or not want_state):
            return fla(q, k, v, slopes, state, want_state=want_state)
        if form == "lightning_attn" and state is None and not want_state:
            return lightning_attn(q, k, v, slopes), None
        if form == "reference":
            return linear_attention.reference(q, k, v, slopes, state, lengths=lengths)
        return linear_attention.chunked(
            q, k, v, slopes, state, lengths=lengths, chunk_size=self.chunk_size
        )


class GatedBackend(ParallelForms):
    """The forms of tar3d/gpt/gated_attention.py."""

    def __init__(self, name: str, head_dim: int, chunk_size: int) -> None:
        if name == "lightning_attn":
            raise ValueError(
                "gpt.linear_backend is lightning_attn, which computes lightning attention alone, "
                "but these layers read their decay from the data: write gpt.linear_backend=auto"
            )
        super().__init__(name, head_dim, chunk_size)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        beta: Tensor | None,
        state: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        want_state: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        form = self.form_for(q, k, v, want_state=want_state)
        if form == "fla":
            return fla_gated(
                q, k, v, log_decay, beta, state, lengths=lengths, want_state=want_state
            )
        if form == "reference":
            return gated_attention.reference(q, k, v, log_decay, beta, state, lengths=lengths)
        return gated_attention.chunked(
            q, k, v, log_decay, beta, state, lengths=lengths, chunk_size=self.chunk_size
        )


class FullBackend:
    """`gpt.attention_backend`: causal softmax attention of whole rows.

    q, k, v (B, H, S, D) -> o (B, H, S, D).
    """

    def __init__(self, name: str, head_dim: int) -> None:
        self.name = name
        if name in FULL:
            _check_package("gpt.attention_backend", name, FULL[name], head_dim)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.name not in FULL:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        _check("gpt.attention_backend", self.name, FULL[self.name].refusal(q.device, q.dtype))
        return flash_attn(q, k, v)


def fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    state: Tensor | None = None,
    *,
    want_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """fla-core's chunked kernels, without gradient for `slopes`.

    `torch.compile` breaks its graph here.
    """
    from fla.ops.simple_gla import chunk_simple_gla

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, D)
    o, final = chunk_simple_gla(
        q,
        k,
        v,
        g_gamma=-slopes.float(),
        scale=1.0,
        initial_state=state,
        output_final_state=want_state,
    )
    return o.transpose(1, 2), final


def fla_gated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    want_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """fla-core's chunked kernels of gated attention, or with beta of the gated delta rule.

    Padding neither enters nor decays a state, so the one at the end of all rows is that at each
    row's own.
    """
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.simple_gla import chunk_simple_gla

    k, log_decay, beta = gated_attention.without_padding(lengths, k, log_decay, beta)
    rows = [
        x.transpose(1, 2) for x in (q, k, v, log_decay, beta) if x is not None
    ]  # (B, T, H, D), (B, T, H)
    kernels = chunk_simple_gla if beta is None else chunk_gated_delta_rule
    o, final = kernels(*rows, scale=1.0, initial_state=state, output_final_state=want_state)
    return o.transpose(1, 2), final


def lightning_attn(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """lightning-attn's kernels, compiled again for every length and batch size."""
    from lightning_attn.ops import lightning_attn_func

    with torch.cuda.device_of(
        q
    ):  # Triton launches on the current device, whatever the inputs are on
        return lightning_attn_func(q, k, v, slopes.float())


def flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)


def refusals(device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, str]]:
    """Option -> package -> why training cannot use it here, or "".

    Inputs are of `dtype` on `device`.
    """
    result: dict[str, dict[str, str]] = {"gpt.linear_backend": {}, "gpt.attention_backend": {}}
    for reasons, packages in zip(result.values(), (LINEAR, FULL), strict=True):
        for name, kernels in packages.items():
            reason = _import_error(kernels.module, kernels.function) or kernels.refusal(
                device, dtype
            )
            reasons[name] = reason or known_fault(name, gradients=True)
    return result


def _check_package(option: str, name: str, kernels: Kernels, head_dim: int) -> None:
    reason = _import_error(kernels.module, kernels.function)
    if reason:
        raise ValueError(
            f"{option} is {name}, but the package cannot be used here ({reason}): "
            f"install it as requirements-cuda.txt says, or write {option}=auto"
        )
    if kernels.head_dims is not None and head_dim not in kernels.head_dims:
        takes = (
            "up to 256"
            if isinstance(kernels.head_dims, range)
            else " or ".join(map(str, kernels.head_dims))
        )
        raise ValueError(
            f"{option} is {name}, which takes heads of {takes}, but gpt.width / gpt.num_heads is "
            f"{head_dim}: write {option}=auto, or change one of the two"
        )


def _check(option: str, name: str, reason: str) -> None:
    if reason:
        raise ValueError(f"{option} is {name}, but {reason}: write {option}=auto")


@constant
def _fastest_on_cuda(dtype: torch.dtype, gradients: bool) -> str:
    kernels = LINEAR["fla"]
    reason = _import_error(kernels.module, kernels.function) or kernels.refusal(
        torch.device("cuda"), dtype
    )
    reason = reason or known_fault("fla", gradients, suspected=True)
    if not reason:
        return "fla"
    _print_once(
        "gpt.linear_backend=auto: linear attention is `chunked` PyTorch on this GPU instead of "
        f"fla's kernels ({reason}). requirements-cuda.txt says how to install those; "
        "gpt.linear_backend=chunked asks for the former and is silent"
    )
    return "chunked"


@functools.cache
def _import_error(module: str, function: str) -> str:
    """Why `function` of an optional package cannot be had, or ""."""
    try:
        getattr(importlib.import_module(module), function)
    except (
        ImportError,
        OSError,
        RuntimeError,
        AttributeError,
    ) as e:  # absent, or made for another torch, Triton or CUDA
        return f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else 'no reason given'}"
    return ""


@functools.cache
def _print_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
