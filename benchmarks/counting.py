"""Bytes, operations and kernels of a computation on tensors without data.

An eager operation is one kernel (a few are several: `SEVERAL`) that reads each of its inputs once
and writes its results once. Views cost nothing. Operations are those of matrix products,
convolutions and attention (half of the products of a causal one); a multiplication and an addition
are two.

A compiled block is split into kernels by torch.compile itself: AOTAutograd's partition into forward
and backward, inductor's passes and its scheduler, which fuses, run as they do before any code is
made. A fused kernel reads what it needs from outside and writes what is needed outside, once. The
scheduler is that of the CPU: that of Triton fuses by other rules, and no GPU has confirmed either.

Caches are left out: what the kernel before has written may still lie in one.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"  # stands for a GPU's fused kernel
FREE = ("empty", "new_empty", "_unsafe_view", "detach", "alias", "_reshape_alias", "lift_fresh")
WRITE_ONLY = ("copy_", "fill_", "zero_", "_foreach_copy_")  # do not read what they change
# (kernels, times that the largest operand is moved beside the one that is counted) of operations
# that CUDA does in several kernels.
SEVERAL = {
    "logsumexp": (5, 5),  # maximum, difference, exponential, sum, logarithm
    "constant_pad_nd": (2, 1),  # fill, copy
    "slice_backward": (2, 1),
    "select_backward": (2, 1),
}
# A launch of a multi-tensor kernel takes 320 chunks of 65,536 elements (ATen, MultiTensorApply).
FOREACH_ELEMENTS = 320 << 16


class Kernel(NamedTuple):
    """Bytes that one kernel moves, and operations that it computes."""

    part: str  # of the step
    name: str
    bytes: float
    flops: float
    half: bool  # 16-bit products, on tensor cores
    launches: int


class Traffic(TorchDispatchMode):
    """Counts the kernels of operations within it: `kernels` has how often each occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[Kernel] = Counter()
        self.part, self._paused = "", False

    @classmethod
    def is_infra_mode(cls) -> bool:
        """True, so that torch.compile runs compiled blocks within this mode."""
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._paused:
            kernel = eager_kernel(self.part, func, args, kwargs, result)
            if kernel is not None:
                self.kernels[kernel] += 1
        return result

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is counted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def add(self, name: str, moved: float, flops: float = 0, *, half: bool = True, launches=1):
        """Counts a kernel, unless within `paused`."""
        if not self._paused:
            self.kernels[Kernel(self.part, name, moved, flops, half, launches)] += 1


def touched(tensor: Tensor) -> int:
    """Bytes of the elements of a tensor, those of an expanded axis once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size() if tensor.numel() else 0


def _tensors(values: object) -> list[Tensor]:
    """The distinct tensors in a structure."""
    found = {}
    for t in tree_leaves(values):
        if isinstance(t, Tensor):
            place = id(t.untyped_storage()), t.storage_offset(), t.shape, t.stride()
            found.setdefault(place, t)
    return list(found.values())


def eager_kernel(part: str, func, args: tuple, kwargs: dict, result: object) -> Kernel | None:
    """The kernel of an operation; None for a view and the like."""
    name = func._schema.name.removeprefix("aten::")
    if func.namespace != "aten" or func.is_view or name.startswith(FREE):
        return None
    arguments = func._schema.arguments
    given = list(zip(arguments, args, strict=False)) + [
        (a, kwargs[a.name]) for a in arguments if a.name in kwargs
    ]
    changed = _tensors([v for a, v in given if a.alias_info and a.alias_info.is_write])
    inputs = _tensors([v for a, v in given if not (a.alias_info and a.alias_info.is_write)])
    aliased = any(r.alias_info for r in func._schema.returns)
    if aliased and not changed:
        return None
    results = [] if aliased else _tensors(result)
    moved = _indexed_bytes(name, inputs, changed, results)
    if moved is None:
        reads = inputs + ([] if name in WRITE_ONLY else changed)
        moved = sum(map(touched, reads + changed + results))
    if not moved:
        return None
    launches, again = SEVERAL.get(name, (1, 0))
    moved += again * max(map(touched, inputs + results + changed))
    if name.startswith(("_foreach", "_fused_adam")):
        elements = sum(t.numel() for t in _tensors(args[0]))
        launches = max(1, -(-elements // FOREACH_ELEMENTS))
    return Kernel(part, name, moved, *_products(func, args, kwargs, result), launches)


def _indexed_bytes(
    name: str, inputs: list[Tensor], changed: list[Tensor], results: list[Tensor]
) -> int | None:
    """Bytes of an operation that touches the entries of a tensor that indices name, else None."""
    if name in ("gather", "embedding", "index", "index_select"):
        indices = sum(touched(t) for t in inputs[1:])
        return indices + 2 * sum(map(touched, results))
    if name in ("scatter_add_", "index_copy_", "index_add_", "index_put_", "index_fill_"):
        source = max(inputs, key=lambda t: t.numel())
        entries = source.numel() * changed[0].element_size()
        return sum(map(touched, inputs)) + entries * (2 if "add" in name else 1)
    return None


def _products(func, args: tuple, kwargs: dict, result: object) -> tuple[float, bool]:
    """(operations, whether in 16 bits) of matrix products, convolutions and attention."""
    name = func._schema.name.removeprefix("aten::")
    if name.startswith(ATTENTION):
        backward = name.endswith("backward")
        q, k = args[1:3] if backward else args[:2]
        causal = (args[7:8] or (False,))[0] if backward else (args[4:5] or (False,))[0]
        products = 4 * q.numel() * k.shape[2] / (2 if causal else 1)
        return products * (2.5 if backward else 1), q.dtype in HALF
    formula = flop_registry.get(func._overloadpacket)
    if formula is None:
        return 0, True
    first = next(t for t in tree_leaves(args) if isinstance(t, Tensor))
    return formula(*args, **kwargs, out_val=result), first.dtype in HALF


@contextlib.contextmanager
def fused_norms(traffic: Traffic) -> Iterator[None]:
    """Within it an eager F.rms_norm is a kernel, as on CUDA; a CPU has none."""
    plain = F.rms_norm

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, gain):
            ctx.save_for_backward(x, gain)
            with traffic.paused():
                out = torch.empty_like(x)
            traffic.add("rms_norm", 2 * touched(x) + touched(gain))
            return out

        @staticmethod
        def backward(ctx, gradient):
            x, gain = ctx.saved_tensors
            with traffic.paused():
                result = torch.empty_like(x), torch.empty_like(gain)
            # One kernel for the gradient of x, one for that of the gain.
            moved = 2 * touched(gradient) + 3 * touched(x) + 2 * touched(gain)
            traffic.add("rms_norm_backward", moved, launches=2)
            return result

    def norm(x, shape, weight=None, eps=None):
        if torch.compiler.is_compiling() or weight is None:
            return plain(x, shape, weight, eps)
        return Norm.apply(x, weight)

    with mock.patch.object(F, "rms_norm", norm):
        yield


def counting_backend(traffic: Traffic) -> Callable:
    """A backend of torch.compile that counts the kernels that inductor would make.

    A compiled graph computes its operations one by one, which is not counted, and adds its kernels
    to `traffic` each time it runs.
    """
    from torch._inductor.compile_fx import compile_fx

    known: dict[tuple, list[Kernel]] = {}

    def inner(gm: torch.fx.GraphModule, inputs: list, **options: object) -> Callable:
        shapes = tuple((tuple(t.shape), t.dtype) if isinstance(t, Tensor) else t for t in inputs)
        key = gm.code, shapes
        if key not in known:
            known[key] = _scheduled(gm, inputs, is_backward=bool(options.get("is_backward")))

        def run(values: list) -> object:
            part = traffic.part
            for kernel in known[key]:
                traffic.add(
                    kernel.name,
                    kernel.bytes,
                    kernel.flops,
                    half=kernel.half,
                    launches=kernel.launches,
                )
            with traffic.paused():
                result = gm(*values)
            assert traffic.part == part
            return result

        run._boxed_call = True  # type: ignore[attr-defined]  # takes its inputs as a list
        return run

    return lambda gm, inputs: compile_fx(gm, inputs, inner_compile=inner)


def _scheduled(gm: torch.fx.GraphModule, inputs: list, *, is_backward: bool) -> list[Kernel]:
    """The kernels of a graph after inductor's scheduler."""
    from torch._inductor import compile_fx as inductor
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    inductor.view_to_reshape(gm)
    fake = inductor.fake_tensor_prop(gm, inputs)
    inductor.record_original_output_strides(gm)
    with V.set_fake_mode(fake):
        inductor._recursive_post_grad_passes(gm, is_inference=False)
        inductor.fake_tensor_prop(gm, inputs, True)
        graph, debug = GraphLowering(gm, is_backward=is_backward), DebugContext()
        with (
            V.set_graph_handler(graph),
            V.set_real_inputs(inputs),
            debug,
            V.set_debug_handler(debug),
        ):
            graph.run(*inputs)
            graph.init_wrapper_code()
            graph._update_scheduler()
            return [k for node in graph.scheduler.nodes if (k := _node_kernel(node)) is not None]


def _node_kernel(node) -> Kernel | None:
    """The kernel of a node of inductor's scheduler, None where it makes none."""
    kind = type(node.node).__name__
    if type(node).__name__ == "NopKernelSchedulerNode" or kind == "MultiOutput":
        return None
    if node.is_extern():
        origin = _called(node.node)
        if origin is not None:
            args, kwargs = torch.fx.map_arg(
                (origin.args, origin.kwargs), lambda argument: argument.meta["val"]
            )
            return eager_kernel("", origin.target, args, kwargs, origin.meta["val"])
    moved = node.get_read_write_buffers_sizes()
    how = "extern" if node.is_extern() else "fused"
    return Kernel("", f"{how} {_origins(node)}", moved, 0, True, 1) if moved else None


def _called(extern) -> torch.fx.Node | None:
    """The operation of the graph that an extern kernel of inductor calls, None if not known."""
    origin, called = extern.get_origin_node(), getattr(extern, "op_overload", None)
    if origin is None and called is not None:
        origin = next((o for o in extern.get_origins() if o.target is called), None)
    return origin if origin and isinstance(origin.target, torch._ops.OpOverload) else None


def _origins(node) -> str:
    """The operations that a kernel is made of, by name."""
    names = {
        origin.target._schema.name.split("::")[1]
        for part in node.get_nodes()
        if part.node is not None
        for origin in part.node.get_origins()
        if isinstance(origin.target, torch._ops.OpOverload) and not origin.target.is_view
    }
    return ", ".join(sorted(names - {"clone", "reshape", "convert_element_type", "full"})) or "cast"
