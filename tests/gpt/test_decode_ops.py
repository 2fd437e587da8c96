import pytest
import torch
import torch.nn.functional as F

from tar3d.gpt import decode_ops


@pytest.mark.parametrize("shape", [(512, 192), (192, 512), (64, 64), (1000, 70)])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33])
def test_a_packed_weight_multiplies_like_the_plain_one(shape, rows):
    generator = torch.Generator().manual_seed(0)
    weight, x, residual = (
        torch.randn(s, generator=generator) for s in (shape, (rows, shape[1]), (rows, shape[0]))
    )
    packed = decode_ops.pack(weight)
    assert packed.is_mkldnn == (
        torch.backends.mkldnn.is_available() and weight.numel() >= decode_ops.ONEDNN_LEAST_WEIGHTS
    )
    torch.testing.assert_close(
        decode_ops.linear_add(x, packed, residual),
        residual + F.linear(x, weight),
        rtol=1e-4,
        atol=1e-4,
    )
    gain = torch.rand(shape[1], generator=generator)
    expected = F.linear(F.rms_norm(x, (shape[1],), gain, decode_ops.NORM_EPS), weight)
    torch.testing.assert_close(
        decode_ops.norm_linear(x, gain, packed), expected, rtol=1e-4, atol=1e-4
    )
    gate, up = expected.chunk(2, -1)
    torch.testing.assert_close(
        decode_ops.norm_swiglu(x, gain, packed), F.silu(gate) * up, rtol=1e-4, atol=1e-3
    )


def test_packing_leaves_other_dtypes_and_what_it_is_given_alone():
    weight = torch.randn(512, 192)
    before = weight.clone()
    decode_ops.pack(weight)
    assert torch.equal(weight, before)
    assert (
        decode_ops.pack(weight.bfloat16()).dtype == torch.bfloat16
        and not decode_ops.pack(weight.double()).is_mkldnn
    )
