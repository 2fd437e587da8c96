"""The check of the decoding kernels, with stand-ins for them, and the choice that follows."""

import re
import types

import pytest
import torch
from networks import small_gpt

from tar3d.config import SamplingConfig
from tar3d.gpt import decode_ops, kernel_check, packed
from tar3d.gpt.packed import fastest_backend

CPU = torch.device("cpu")
OPERATIONS = ("norm_linear", "linear_attend", "full_attend", "linear_add", "norm_swiglu")


def kernels(**changed) -> types.SimpleNamespace:
    """Stand-ins that can be hashed, as modules can: `decode_ops` but for what is changed."""
    given = {name: getattr(decode_ops, name) for name in (*OPERATIONS, "draw_token")} | changed
    module = types.ModuleType("kernels")
    vars(module).update(given)
    return module


def fault(module, dtype=torch.bfloat16) -> str:
    return kernel_check._compared(module, CPU, dtype, 48, 2, 100)


@pytest.mark.parametrize("dtype", kernel_check.BOUNDS)
def test_kernels_that_agree_have_no_fault(dtype):
    assert fault(kernels(), dtype) == ""


def test_what_is_compiled_and_how_long_it_takes_is_said_once(capsys):
    module = kernels()
    assert fault(module) == fault(module) == ""
    said = capsys.readouterr().err
    assert re.fullmatch(r"compiling the Triton kernels .*triton/cache.*\n.* took \d+\.\d s\n", said)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kernel_that_is_off_is_named(name):
    right = getattr(decode_ops, name)
    wrong = kernels(**{name: lambda *given: 1.1 * right(*given)})
    assert f"{name} of 2 rows is off by 1.0e-01" in fault(wrong, torch.float32)


def test_a_state_that_is_not_kept_and_a_kernel_that_fails_are_faults():
    def forgetful(*given):
        return decode_ops.linear_attend(*given[:-1], given[-1].clone())

    def broken(*given):
        raise RuntimeError("out of resource: shared memory\nmore")

    assert "linear_attend of 2 rows is off" in fault(kernels(linear_attend=forgetful))
    found = fault(kernels(norm_swiglu=broken))
    assert found == "norm_swiglu of 2 rows: RuntimeError: out of resource: shared memory"
    assert "float64" in fault(kernels(), torch.float64)


def test_a_draw_that_is_wrong_is_a_fault():
    def shifted(logits, sampling, draws, *rest):
        return decode_ops.draw_token(logits, sampling, (draws + 1e-2).clamp_max(0.999), *rest)

    def forgetful(*given):
        return decode_ops.draw_token(*given[:-1], given[-1].clone())

    def unfiltered(logits, sampling, *rest):
        return decode_ops.draw_token(logits, SamplingConfig(temperature=0.8), *rest)

    assert "draw_token misses its draws by " in fault(kernels(draw_token=shifted))
    assert "draw_token does not store" in fault(kernels(draw_token=forgetful))
    assert "draw_token misses its draws by " in fault(kernels(draw_token=unfiltered))


def test_auto_on_a_gpu_is_triton_where_its_kernels_are_right(monkeypatch):
    gpt, reasons = small_gpt(), iter(["", "norm_linear is off"])
    assert fastest_backend(gpt, torch.bfloat16) == "plain"  # on a CPU
    on_gpu = types.SimpleNamespace(
        head=types.SimpleNamespace(weight=types.SimpleNamespace(device=torch.device("cuda"))),
        blocks=gpt.blocks,
        config=gpt.config,
    )
    monkeypatch.setattr(packed, "kernel_fault", lambda *given: next(reasons))
    assert fastest_backend(on_gpu, torch.bfloat16) == "triton"
    with pytest.warns(UserWarning, match="instead of the Triton kernels: norm_linear is off"):
        assert fastest_backend(on_gpu, torch.bfloat16) == "plain"
    on_gpu.blocks = small_gpt(linear_attention="gated").blocks
    assert fastest_backend(on_gpu, torch.bfloat16) == "plain"  # no kernels, nothing to check
