"""Attention backends: choice and messages, kernels in Triton's interpreter, and (marked gpu) all of
them on CUDA."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tar3d.config import GPTConfig, load
from tar3d.contracts import Condition
from tar3d.gpt import backends, gated_attention
from tar3d.gpt.backends import FullBackend, GatedBackend, LinearBackend
from tar3d.gpt.layers import LINEAR_ATTENTION
from tar3d.gpt.layers.base import RowLengths
from tar3d.gpt.layers.full import FullAttention
from tar3d.gpt.layers.lightning import LightningAttention
from tar3d.gpt.linear_attention import alibi_slopes, chunked, layer_slopes, reference
from tar3d.gpt.model import GPT

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GATED = ("gated", "delta")  # gpt.linear_attention, besides lightning attention
MODULES = {name: kernels.module for name, kernels in {**backends.LINEAR, **backends.FULL}.items()}


@pytest.fixture
def packages(monkeypatch):
    """`packages(fla=module)` installs a stand-in, `packages(fla=None)` takes the package away."""

    def put(**modules: types.ModuleType | None) -> None:
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, MODULES[name], module)
        backends._import_error.cache_clear()
        backends._print_once.cache_clear()

    yield put
    backends._import_error.cache_clear()
    backends._print_once.cache_clear()


def stand_in(name: str, function=None) -> types.ModuleType:
    kernels = {**backends.LINEAR, **backends.FULL}[name]
    module = types.ModuleType(kernels.module)
    setattr(module, kernels.function, function)
    return module


def config(**changes) -> GPTConfig:
    return GPTConfig(
        **{
            "num_layers": 4,
            "width": 64,
            "num_heads": 2,
            "grid_size": 2,
            "codebook_size": 11,
            "condition_tokens": 6,
            "condition_width": 5,
            **changes,
        }
    )


# the choice and its messages ----------------------------------------------------------------------


def test_the_names_of_the_config_are_those_of_the_backends():
    for option, kernels, plain in (
        ("linear_backend", backends.LINEAR, {"auto", "chunked", "reference"}),
        ("attention_backend", backends.FULL, {"auto", "sdpa"}),
    ):
        with pytest.raises(ValueError, match=f"gpt.{option} is 'fastest', allowed are") as error:
            config(**{option: "fastest"})
        assert set(str(error.value).split("allowed are ")[1].split(", ")) == plain | set(kernels)
        assert getattr(load(GPTConfig, None), option) == "auto"


@pytest.mark.parametrize(
    "option, name",
    [
        ("linear_backend", "fla"),
        ("linear_backend", "lightning_attn"),
        ("attention_backend", "flash_attn"),
    ],
)
def test_a_missing_package_is_refused_when_the_model_is_built(packages, option, name):
    packages(**{name: None})
    with pytest.raises(
        ValueError,
        match=rf"gpt\.{option} is {name}.*Error.*requirements-cuda\.txt.*gpt\.{option}=auto",
    ):
        GPT(config(**{option: name}))


def test_a_package_without_its_function_is_refused_too(packages):
    packages(flash_attn=types.ModuleType("flash_attn"))
    with pytest.raises(
        ValueError, match="gpt.attention_backend is flash_attn.*AttributeError.*flash_attn_func"
    ):
        GPT(config(attention_backend="flash_attn"))


@pytest.mark.parametrize(
    "option, name",
    [
        ("linear_backend", "fla"),
        ("linear_backend", "lightning_attn"),
        ("attention_backend", "flash_attn"),
    ],
)
def test_a_wrong_device_is_refused_at_the_first_forward(packages, option, name):
    packages(**{name: stand_in(name)})
    gpt = GPT(config(**{option: name}))
    tokens, condition = (
        torch.zeros(1, 3, dtype=torch.int64),
        Condition(torch.ones(1, 6, 5), torch.ones(1, 6, dtype=torch.bool)),
    )
    with pytest.raises(
        ValueError, match=rf"gpt\.{option} is {name}.*runs on CUDA only.*on cpu.*gpt\.{option}=auto"
    ):
        gpt(tokens, condition)
    with pytest.raises(ValueError, match="runs on CUDA only"):
        gpt.prefill(condition)


def test_dtypes_and_head_dims_that_a_kernel_lacks_are_named(packages):
    packages(
        fla=stand_in("fla"),
        lightning_attn=stand_in("lightning_attn"),
        flash_attn=stand_in("flash_attn"),
    )
    with pytest.raises(
        ValueError, match="lightning_attn, which takes heads of 32 or 64 or 128, but .* is 24"
    ):
        GPT(config(linear_backend="lightning_attn", width=48))
    with pytest.raises(
        ValueError, match="flash_attn, which takes heads of up to 256, but .* is 512"
    ):
        GPT(config(attention_backend="flash_attn", width=1024))
    with pytest.raises(
        ValueError,
        match="fla, but it takes float32 or float16 or bfloat16, and the inputs are float64",
    ):
        LinearBackend("fla", 64, 64).choose(CUDA, torch.float64, gradients=False)
    assert (
        backends.FULL["flash_attn"].refusal(CUDA, torch.float32)
        == "it takes float16 or bfloat16, and the inputs are float32"
    )


def test_auto_on_a_cpu_is_chunked_and_says_nothing(packages):
    packages(fla=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LinearBackend("auto", 64, 64).choose(CPU, torch.float32, gradients=True) == "chunked"


def test_auto_on_cuda_is_fla_where_it_can_run(packages):
    packages(fla=stand_in("fla"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert LinearBackend("auto", 64, 64).choose(CUDA, dtype, gradients=False) == "fla"


@pytest.mark.parametrize(
    "module, dtype, reason",
    [(None, torch.bfloat16, "Error: .*fla"), ("stand-in", torch.float64, "inputs are float64")],
)
def test_auto_on_cuda_says_once_what_it_falls_back_to_and_why(packages, module, dtype, reason):
    packages(fla=module and stand_in("fla"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):  # three layers, each with its own backend, each asked twice
            backend = LinearBackend("auto", 64, 64)
            assert [backend.choose(CUDA, dtype, gradients=grad) for grad in (True, False)] == [
                "chunked"
            ] * 2
    assert len(said) == 1
    with pytest.raises(UserWarning, match=f"gpt.linear_backend=auto.*`chunked`.*{reason}"):
        raise said[0].message


@pytest.fixture
def machine(packages, monkeypatch):
    """`machine(triton, capability)`: fla, a version of Triton and a GPU of a compute capability."""

    def put(triton: str, capability: int) -> None:
        packages(fla=stand_in("fla"))
        module = types.ModuleType("triton")
        module.__version__ = triton
        monkeypatch.setitem(sys.modules, "triton", module)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))

    return put


@pytest.mark.parametrize(
    "triton, capability, gradients",
    [("3.6.0", 9, True), ("3.7.0", 9, True), ("3.7.1", 10, True), ("3.7.1", 12, False)],
)
def test_auto_is_chunked_where_fla_is_known_to_be_wrong(machine, triton, capability, gradients):
    machine(triton, capability)
    with pytest.warns(UserWarning, match=f"`chunked` PyTorch.*Triton {triton} .*GPUs"):
        found = LinearBackend("auto", 64, 64).choose(CUDA, torch.bfloat16, gradients=gradients)
    assert found == "chunked"


@pytest.mark.parametrize(
    "triton, capability, gradients",
    [
        ("3.6.0", 9, False),
        ("3.7.1", 9, True),
        ("3.8.0+git1234", 9, True),
        ("3.3.1", 9, True),
        ("3.6.0", 8, True),
        ("3.8.0", 10, True),
    ],
)
def test_auto_is_fla_where_no_fault_is_known(machine, triton, capability, gradients):
    machine(triton, capability)
    for name in ("auto", "fla"):
        backend = LinearBackend(name, 64, 64)
        assert backend.choose(CUDA, torch.bfloat16, gradients=gradients) == "fla"


def test_fla_by_name_is_refused_where_its_fault_is_proven(machine):
    fla = LinearBackend("fla", 64, 64)
    machine("3.6.0", 9)
    with pytest.raises(ValueError, match=r"fla, but Triton 3.6.0.*Hopper.*gpt.linear_backend=auto"):
        fla.choose(CUDA, torch.bfloat16, gradients=True)
    machine("3.7.1", 12)  # suspected only
    assert fla.choose(CUDA, torch.bfloat16, gradients=True) == "fla"


def test_a_cuda_build_of_torch_without_a_driver_has_no_known_fault(packages, monkeypatch):
    """PyPI's torch on a machine without a GPU: asking for a capability raises there."""

    def no_driver():
        raise RuntimeError("Found no NVIDIA driver on your system")

    packages(fla=stand_in("fla"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", no_driver)
    assert backends.known_fault("fla", gradients=True) == ""
    assert "runs on CUDA only" in backends.refusals(CPU, torch.float32)["gpt.linear_backend"]["fla"]


def test_a_compiled_layer_makes_its_choice_without_a_graph_break(packages):
    packages(fla=None)
    backend = LinearBackend("auto", 64, 8)

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(q):
        assert backend.choose(CUDA, q.dtype, gradients=q.requires_grad) == "chunked"
        return backend(q, q, q, alibi_slopes(2), want_state=False)[0]

    q = torch.randn(1, 2, 20, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="linear_backend=auto"):
        got = compiled(q)
    torch.testing.assert_close(got, reference(q, q, q, alibi_slopes(2))[0])


# dispatch, with stand-ins for the kernels ---------------------------------------------------------


@pytest.fixture
def anywhere(packages, monkeypatch):
    """Kernels that run on a CPU and write down when they are called."""
    calls = []

    def chunk_simple_gla(q, k, v, *, g_gamma, scale, initial_state, output_final_state):
        calls.append("fla")
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        o, final = reference(scale * q, k, v, -g_gamma, initial_state)
        return o.transpose(1, 2), final if output_final_state else None

    def lightning_attn_func(q, k, v, s):
        calls.append("lightning_attn")
        return reference(q, k, v, s)[0]

    packages(
        fla=stand_in("fla", chunk_simple_gla),
        lightning_attn=stand_in("lightning_attn", lightning_attn_func),
    )
    monkeypatch.setattr(backends.Kernels, "refusal", lambda self, device, dtype: "")
    return calls


@pytest.mark.parametrize("name", ["auto", "chunked", "reference", "fla", "lightning_attn"])
@pytest.mark.parametrize("case", ["plain", "state", "lengths", "both"])
@pytest.mark.parametrize("want_state", [True, False])
def test_every_linear_backend_has_one_meaning(anywhere, name, case, want_state):
    q, k, v = torch.randn(3, 2, 3, 21, 32, generator=torch.Generator().manual_seed(0))
    slopes = alibi_slopes(3)
    state = (
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        if case in ("state", "both")
        else None
    )
    lengths = torch.tensor([21, 5]) if case in ("lengths", "both") else None
    expected, expected_state = reference(q, k, v, slopes, state, lengths=lengths)
    o, final = LinearBackend(name, 32, 8)(
        q, k, v, slopes, state, lengths=lengths, want_state=want_state
    )
    for row, length in enumerate([21, 21] if lengths is None else lengths.tolist()):
        torch.testing.assert_close(
            o[row, :, :length], expected[row, :, :length], rtol=1e-4, atol=1e-4
        )
    if want_state:
        torch.testing.assert_close(final, expected_state, rtol=1e-4, atol=1e-4)
    runs_kernel = {
        "fla": lengths is None or not want_state,
        "lightning_attn": state is None and not want_state,
    }
    assert anywhere == ([name] if runs_kernel.get(name) else [])


def test_layers_ask_for_a_state_only_where_it_is_kept(anywhere, monkeypatch):
    """The kernels of `auto` on a GPU serve whole rows, and no prefix: they autotune for long."""
    choose = backends.ParallelForms.choose
    monkeypatch.setattr(
        backends.ParallelForms,
        "choose",
        lambda self, device, *given, **more: choose(self, CUDA, *given, **more),
    )
    x, rotary = (
        torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)),
        (torch.ones(9, 32), torch.zeros(9, 32)),
    )
    for name, of_forward, of_prefill in (
        ("fla", ["fla"], ["fla"]),
        ("lightning_attn", ["lightning_attn"], []),
        ("auto", ["fla"], []),
    ):
        layer = LightningAttention(config(linear_backend=name), 0)
        layer(x, rotary).sum().backward()
        assert anywhere == of_forward
        anywhere.clear()
        layer.prefill(x, rotary, RowLengths(None, 1))
        assert anywhere == of_prefill
        anywhere.clear()
        layer.prefill(x, rotary, RowLengths(torch.tensor([9, 4]), 1))
        assert anywhere == []


@pytest.mark.parametrize("rule", GATED)
@pytest.mark.parametrize("short", [None, 0, 5])
def test_every_gated_backend_has_one_meaning(packages, monkeypatch, rule, short):
    calls = []

    def kernels(q, k, v, log_decay, beta=None, *, scale, initial_state, output_final_state):
        calls.append("gated" if beta is None else "delta")
        rows = [x if x is None else x.transpose(1, 2) for x in (scale * q, k, v, log_decay, beta)]
        o, final = gated_attention.reference(*rows, initial_state)
        return o.transpose(1, 2), final if output_final_state else None

    delta = types.ModuleType("fla.ops.gated_delta_rule")
    delta.chunk_gated_delta_rule = kernels
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", delta)
    packages(fla=stand_in("fla", kernels))
    monkeypatch.setattr(backends.Kernels, "refusal", lambda self, device, dtype: "")
    for name in ("auto", "chunked", "reference", "fla"):
        backend = GatedBackend(name, 32, 8)
        for carried in (False, True):
            errors = gated_errors(
                backend, 21, 32, torch.float32, delta=rule == "delta", carried=carried, short=short
            )
            assert max(errors.values()) < 1e-5, (name, errors)
        assert calls == ([rule, rule] if name == "fla" else [])
    layer = LINEAR_ATTENTION[rule](config(linear_attention=rule, linear_backend="fla"), 0)
    rotary, calls[:] = (torch.ones(9, 32), torch.zeros(9, 32)), []
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    layer(x, rotary).sum().backward()
    layer.prefill(x, rotary, RowLengths(torch.tensor([9, 4]), 1))
    assert calls == [rule, rule]


def test_full_backends_get_their_layout_and_a_causal_mask(packages, monkeypatch):
    def sdpa(q, k, v, causal):
        return F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal
        ).transpose(1, 2)

    packages(flash_attn=stand_in("flash_attn", sdpa))
    monkeypatch.setattr(backends.Kernels, "refusal", lambda self, device, dtype: "")
    q, k, v = torch.randn(3, 2, 3, 21, 32, generator=torch.Generator().manual_seed(0))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for name in ("auto", "sdpa", "flash_attn"):
        torch.testing.assert_close(FullBackend(name, 32)(q, k, v), expected)


# kernels against the definition -------------------------------------------------------------------


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm())


def linear_errors(
    form,
    T: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device = CPU,
    *,
    carried: bool = True,
    batch: int = 2,
    heads: int = 3,
    state_out: bool = True,
) -> dict[str, float]:
    """Relative errors, in the worst head, of a form's output, final state and gradients against
    `reference` in float64.

    `state_out=False`: the form gives no state, and the loss has none. The heads forget within two
    positions, within a hundred, and not at all.
    """
    generator = torch.Generator().manual_seed(T)
    q, k, v, weights = torch.randn(4, batch, heads, T, head_dim, generator=generator).to(
        device, dtype
    )
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [q, k, v]
    if carried:
        leaves.append(
            torch.randn(batch, heads, head_dim, head_dim, generator=generator).to(
                device, state_dtype
            )
        )
    slopes = torch.tensor([0.5, 0.01, 1e-5], device=device)[:heads]
    results = []
    for function, precise in ((reference, True), (form, False)):
        inputs = [
            x.to(torch.float64 if precise else x.dtype, copy=True).requires_grad_() for x in leaves
        ]
        o, final = function(*inputs[:3], slopes.double() if precise else slopes, *inputs[3:])
        loss = (o * weights.to(o.dtype)).sum()
        if state_out:
            loss = loss + final.square().sum()
        loss.backward()
        results.append(
            {
                "o": o.detach(),
                **({"state": final.detach()} if state_out else {}),
                **{
                    f"d{name}": x.grad
                    for name, x in zip(("q", "k", "v", "state"), inputs, strict=False)
                },
            }
        )
    expected, got = results
    assert got["o"].dtype == dtype
    assert not state_out or got["state"].dtype == state_dtype
    return {
        name: max(relative_error(got[name][:, h], expected[name][:, h]) for h in range(heads))
        for name in expected
    }


def gated_errors(
    form,
    T: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device = CPU,
    *,
    delta: bool,
    carried: bool = True,
    short: int | None = None,
    heads: int = 3,
    gradients: bool = True,
) -> dict[str, float]:
    """The same of the forms of tar3d/gpt/gated_attention.py, over all heads; with `short` the
    second of two rows has that many positions and then padding. Gates are float32, as in the
    layers."""
    generator = torch.Generator().manual_seed(T)
    q, k, v, weights = torch.randn(4, 2, heads, T, head_dim, generator=generator)
    gates = torch.rand(2, 2, heads, T, generator=generator)
    state = torch.randn(2, heads, head_dim, head_dim, generator=generator) if carried else None
    lengths = None if short is None else torch.tensor([T, short], device=device)
    if short is not None:
        weights[1, :, short:] = 0.0
    leaves = {
        "q": q.to(dtype),
        "k": F.normalize(k, dim=-1).to(dtype),
        "v": v.to(dtype),
        "log_decay": gates[0].log(),
        "beta": gates[1] if delta else None,
        "state": state,
    }
    results = []
    for function, precise in ((gated_attention.reference, True), (form, False)):
        inputs = {
            name: x
            if x is None
            else x.to(device, torch.float64 if precise else x.dtype, copy=True).requires_grad_()
            for name, x in leaves.items()
        }
        o, final = function(*inputs.values(), lengths=lengths)
        if gradients:
            ((o * weights.to(o)).sum() + final.square().sum()).backward()
        counted = torch.cat(
            [
                row[:, :length]
                for row, length in zip(o, [T, T if short is None else short], strict=True)
            ],
            dim=1,
        )
        results.append(
            {
                "o": counted,
                "state": final,
                **{f"d{name}": x.grad for name, x in inputs.items() if gradients and x is not None},
            }
        )
    expected, got = results
    assert got["o"].dtype == dtype and got["state"].dtype == torch.float32
    return {name: relative_error(got[name], expected[name]) for name in expected}


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("T", [1, 63, 64, 65, 199])
def test_the_measure_itself_on_the_chunked_form(T, carried, dtype):
    errors = linear_errors(chunked, T, 64, dtype, carried=carried)
    assert max(errors.values()) < TOLERANCE[dtype], errors
    wrong = linear_errors(
        lambda q, k, v, slopes, *state: chunked(q, k, v, 1.2 * slopes, *state),
        T,
        64,
        dtype,
        carried=carried,
    )
    assert (T == 1 and not carried) or max(wrong.values()) > 2 * TOLERANCE[dtype], wrong


IN_THE_INTERPRETER = """
import json, os, sys
assert os.environ["TRITON_INTERPRET"] == "1"  # read when triton is imported
import torch
from triton.runtime.autotuner import Autotuner

torch.set_num_threads(1)
init = Autotuner.__init__
def with_one_config(self, fn, arg_names, configs, *args, **kwargs):
    # There is nothing to tune, and no driver to time it.
    init(self, fn, arg_names, configs[:1], *args, **kwargs)
Autotuner.__init__ = with_one_config

from tar3d.gpt import backends
from test_backends import GATED, gated_errors, linear_errors

class Index(int):
    # In the interpreter a loop index is a Python int, but fla's kernels cast it as Triton's.
    def to(self, dtype):
        return self

def indices(*bounds):
    whole = (int(b.handle.data.item()) if hasattr(b, "handle") else int(b) for b in bounds)
    return (Index(i) for i in range(*whole))

C = 64  # both packages'
LENGTHS = (1, C - 1, C, C + 1, 3 * C + 7)

def gated(name):
    for T in LENGTHS:
        longest = T == LENGTHS[-1]
        for short in (None, T, T // 2) if longest else (None, T // 2):
            errors = gated_errors(backends.fla_gated, T, 16, torch.float32, delta=name == "delta",
                                  carried=T != C - 1, short=short, heads=2,
                                  gradients=longest and short != T)
            yield 5e-6, errors

def linear(name):
    cases, training = [], lambda *args: (backends.lightning_attn(*args), None)
    if name == "fla":
        cases = [dict(T=T, carried=T != C - 1) for T in LENGTHS]
        training = lambda *args: backends.fla(*args, want_state=False)
    lengths = (C + 1,) if name == "fla" else LENGTHS
    cases += [dict(T=T, carried=False, state_out=False) for T in lengths]
    for case in cases:
        function = backends.fla if case.get("state_out", True) else training
        yield 2e-6, linear_errors(function, head_dim=HEAD_DIM[name], dtype=torch.float32, batch=1,
                                  heads=2, **case)

HEAD_DIM = {"fla": 16, "lightning_attn": 32}
names = sys.argv[1:]
if names != ["lightning_attn"]:
    from fla.ops.common import chunk_delta_h, chunk_h, chunk_o
    from fla.ops.gated_delta_rule import chunk_fwd, wy_fast

    for module in (chunk_delta_h, chunk_h, chunk_o, chunk_fwd, wy_fast):
        module.range = indices
print(json.dumps({name: list((gated if name in GATED else linear)(name)) for name in names}))
"""


def lacks_package(name: str) -> bool:
    packages = ("triton", "packaging", "fla" if name in GATED else name)
    return any(importlib.util.find_spec(package) is None for package in packages)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list]:
    """A bound and the errors for each case of each backend whose package is there, computed in one
    process."""
    env = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
    }
    names = [name for name in INTERPRETED if not lacks_package(name)]
    command = [sys.executable, "-c", IN_THE_INTERPRETER, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


INTERPRETED = {"fla": 6, "lightning_attn": 5, **dict.fromkeys(GATED, 11)}  # numbers of cases


@pytest.mark.parametrize("name", INTERPRETED)
def test_triton_kernels_are_the_reference_in_the_interpreter(request, name):
    """In float32 and with one autotuning configuration: what the interpreter can say. The rest
    needs a GPU, below. Gradients of the gated forms are taken at the longest length alone."""
    if lacks_package(name):
        pytest.skip(f"a package of {name} is not installed")
    cases = request.getfixturevalue("interpreted")[name]
    assert len(cases) == INTERPRETED[name]
    assert sum("dq" in errors for _, errors in cases) == (2 if name in GATED else len(cases))
    for bound, errors in cases:
        assert max(errors.values()) < bound, errors


def compare_gpts(
    linear: str, full: str, device: torch.device, ragged: bool, half: bool, rule: str = "lightning"
) -> None:
    """Logits, gradients, prefill and decoding of a small hybrid GPT: with these backends no further
    from float64 than thrice the chunked form and SDPA are in the same precision, or than TF32
    allows."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (3, 192), generator=generator).to(device)
    mask = (
        torch.arange(40) < torch.tensor([[40], [7], [25]])
        if ragged
        else torch.ones(3, 40, dtype=torch.bool)
    )
    condition = Condition(torch.randn(3, 40, 5, generator=generator).to(device), mask.to(device))
    null = torch.tensor([False, False, True], device=device)

    def run(names: tuple[str, str], dtype: torch.dtype, half: bool) -> dict[str, torch.Tensor]:
        gpt = GPT(
            config(
                linear_backend=names[0],
                attention_backend=names[1],
                linear_attention=rule,
                width=128,
                grid_size=8,
                condition_tokens=40,
                codebook_size=64,
            )
        )
        gpt.init_weights(torch.Generator().manual_seed(1))
        gpt.to(device, dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = gpt(tokens[:, :-1], condition, null)
            loss = F.cross_entropy(logits.transpose(1, 2).to(dtype), tokens)
        loss.backward()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            step, cache = gpt.prefill(condition, tokens[:, :100], null)
            steps = [step, *(gpt.decode(tokens[:, i], cache) for i in range(100, 104))]
        return {
            "logits": logits.detach(),
            "decoded": torch.stack(steps, 1),
            **{n: p.grad for n, p in gpt.named_parameters()},
        }

    exact = run(("chunked", "sdpa"), torch.float64, False)
    plain, got = (
        run(names, torch.float32, half) for names in (("chunked", "sdpa"), (linear, full))
    )
    for name, expected in exact.items():
        error, allowed = (
            relative_error(got[name], expected),
            3 * relative_error(plain[name], expected),
        )
        assert error < max(allowed, 2e-2), (name, error, allowed)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("rule", ["lightning", *GATED])
def test_the_hybrid_gpt_with_the_reference(rule, ragged, half):
    compare_gpts("reference", "sdpa", CPU, ragged, half, rule)


# on a GPU -----------------------------------------------------------------------------------------

gpu = pytest.mark.gpu
# Triton's float32 products are TF32 (10 bits) by default; the chunked form's are float32 unless
# torch is told otherwise.
KERNEL_TOLERANCE = {torch.float32: 3e-3, torch.bfloat16: 2e-2}
GPU_LENGTHS = [1, 63, 64, 65, 199, 3269]


def _package(name: str, *, gradients: bool = True) -> None:
    if name in MODULES:
        pytest.importorskip(MODULES[name], exc_type=ImportError)
    if name == "fla" and gradients and backends._fla_backward_fault():
        pytest.skip(backends._fla_backward_fault())


@gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("T", GPU_LENGTHS)
def test_chunked_on_a_gpu(T, dtype):
    for carried in (False, True):
        errors = linear_errors(chunked, T, 64, dtype, CUDA, carried=carried)
        assert max(errors.values()) < TOLERANCE[dtype], errors


@gpu
@pytest.mark.parametrize("dtype", list(KERNEL_TOLERANCE), ids=str)
@pytest.mark.parametrize("T", GPU_LENGTHS)
@pytest.mark.parametrize("name", list(backends.LINEAR))
def test_linear_kernels_on_a_gpu(name, T, dtype):
    """Without a state, which is training; then with states in and out."""
    _package(name)
    backend = LinearBackend(name, 64, 64)
    training = linear_errors(
        lambda *args: backend(*args, want_state=False),
        T,
        64,
        dtype,
        CUDA,
        carried=False,
        state_out=False,
    )
    assert max(training.values()) < KERNEL_TOLERANCE[dtype], training
    for carried in (False, True):
        prefill = linear_errors(backend, T, 64, dtype, CUDA, carried=carried)
        assert max(prefill.values()) < KERNEL_TOLERANCE[dtype], prefill


@gpu
@pytest.mark.parametrize("dtype", list(KERNEL_TOLERANCE), ids=str)
@pytest.mark.parametrize("T", [1, 63, 64, 65, 777])
@pytest.mark.parametrize("rule", GATED)
@pytest.mark.parametrize("name", ["chunked", "fla"])
def test_gated_forms_on_a_gpu(name, rule, T, dtype):
    _package(name)
    for short in (None, T // 3):
        errors = gated_errors(
            GatedBackend(name, 64, 64), T, 64, dtype, CUDA, delta=rule == "delta", short=short
        )
        assert max(errors.values()) < KERNEL_TOLERANCE[dtype], errors


@gpu
@pytest.mark.parametrize("dtype", list(KERNEL_TOLERANCE), ids=str)
@pytest.mark.parametrize("T", GPU_LENGTHS)
def test_fla_itself_on_a_gpu(T, dtype):
    """The wrapper without the guard around it: outputs and states everywhere, gradients where the
    guard lets them pass."""
    _package("fla", gradients=False)
    for carried in (False, True):
        errors = linear_errors(backends.fla, T, 64, dtype, CUDA, carried=carried)
        spoilt = ("dq", "dk", "dv", "dstate") if backends._fla_backward_fault() else ()
        assert (
            max(error for key, error in errors.items() if key not in spoilt)
            < KERNEL_TOLERANCE[dtype]
        ), errors
        print(
            f"T {T}, {dtype}, carried {carried}: {errors}"
        )  # with -s: whether the guard is needed


@gpu
@pytest.mark.parametrize("name", ["auto", *backends.LINEAR])
def test_ragged_rows_and_layers_of_any_depth_on_a_gpu(name):
    """The state at each row's own length, and the slopes of every layer of GPT-B."""
    _package(name, gradients=False)
    backend, T = LinearBackend(name, 64, 64), 777
    q, k, v = torch.randn(3, 3, 12, T, 64, generator=torch.Generator().manual_seed(0)).to(
        CUDA, torch.bfloat16
    )
    lengths = torch.tensor([T, 1, 130], device=CUDA)
    for layer in range(12):
        slopes = layer_slopes(12, layer, 12).to(CUDA)
        expected, expected_state = reference(
            q.double(), k.double(), v.double(), slopes, lengths=lengths
        )
        o, state = backend(q, k, v, slopes, lengths=lengths)
        trained, _ = backend(q, k, v, slopes, want_state=False)
        for row, length in enumerate(lengths.tolist()):
            for got in (o, trained):
                assert (
                    relative_error(got[row, :, :length], expected[row, :, :length])
                    < KERNEL_TOLERANCE[torch.bfloat16]
                )
            assert (
                relative_error(state[row], expected_state[row]) < KERNEL_TOLERANCE[torch.bfloat16]
            )


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T", GPU_LENGTHS)
@pytest.mark.parametrize("name", ["sdpa", *backends.FULL])
def test_full_backends_on_a_gpu(name, T, dtype):
    """Outputs and gradients against softmax attention in float64."""
    _package(name)
    if name in backends.FULL and backends.FULL[name].refusal(CUDA, dtype):
        pytest.skip(backends.FULL[name].refusal(CUDA, dtype))
    leaves = (
        torch.randn(4, 2, 3, T, 64, generator=torch.Generator().manual_seed(T))
        .to(CUDA, dtype)
        .unbind()
    )
    results = []
    for backend, precision in (
        (FullBackend("sdpa", 64), torch.float64),
        (FullBackend(name, 64), dtype),
    ):
        q, k, v = (x.to(precision, copy=True).requires_grad_() for x in leaves[:3])
        o = backend(q, k, v)
        (o * leaves[3].to(precision)).sum().backward()
        results.append([o.detach(), q.grad, k.grad, v.grad])
    for expected, got in zip(*results, strict=True):
        if T == 1 and expected.norm() < 1e-6:  # q and k of one position alone change nothing
            assert got.abs().max() < KERNEL_TOLERANCE[dtype]
        else:
            assert relative_error(got, expected) < KERNEL_TOLERANCE[dtype]


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize(
    "linear, full",
    [
        ("auto", "auto"),
        ("fla", "sdpa"),
        ("lightning_attn", "sdpa"),
        ("chunked", "flash_attn"),
        ("fla", "flash_attn"),
    ],
)
def test_the_hybrid_gpt_on_a_gpu(linear, full, ragged, precision):
    for name in (linear, full):
        _package(name)
    if full == "flash_attn" and precision == "float32":
        pytest.skip("flash_attn takes 16 bit")
    compare_gpts(linear, full, CUDA, ragged, half=precision == "bfloat16")


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("rule", GATED)
def test_the_hybrid_gpt_with_gated_layers_on_a_gpu(rule, ragged, precision):
    _package("fla")
    compare_gpts("fla", "sdpa", CUDA, ragged, precision == "bfloat16", rule)


@gpu
def test_a_full_layer_with_each_backend_on_a_gpu():
    x = torch.randn(2, 130, 128, generator=torch.Generator().manual_seed(0)).to(CUDA)
    rotary = (torch.ones(130, 64, device=CUDA), torch.zeros(130, 64, device=CUDA))
    torch.manual_seed(0)
    plain = FullAttention(config(width=128), 0).to(CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        expected = plain(x, rotary)
        for name in backends.FULL:
            if not backends._import_error(MODULES[name], backends.FULL[name].function):
                layer = FullAttention(config(width=128, attention_backend=name), 0).to(CUDA)
                layer.load_state_dict(plain.state_dict())
                assert relative_error(layer(x, rotary), expected.double()) < 2e-2
