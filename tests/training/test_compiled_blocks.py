"""`train.compile`: each block is one graph, and names of weights stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from tar3d.config import GPTConfig, TokenizerConfig
from tar3d.contracts import Condition
from tar3d.gpt.model import GPT
from tar3d.runtime import prepare_blocks, repeated_blocks
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.training.block_choice import COMPILED_SHARE
from tar3d.training.memory import LiveTensors


def gpt() -> tuple[torch.nn.Module, list]:
    config = GPTConfig(num_layers=2, width=32, num_heads=2, grid_size=2, codebook_size=16)
    config.layer_pattern, config.condition_tokens, config.condition_width = "LF", 4, 8
    condition = Condition.of(torch.randn(2, 4, 8))
    tokens = torch.randint(16, (2, config.num_tokens - 1))
    return GPT(config), [tokens, condition]


def tokenizer() -> tuple[torch.nn.Module, list]:
    config = TokenizerConfig(grid_size=4, width=24, num_heads=2, num_frequencies=3)
    config.encoder_layers = config.decoder_layers = config.upsample_stages = 1
    return VQVAE(config), [torch.rand(1, 50, 6), torch.rand(1, 30, 3), False]


@pytest.mark.parametrize("make", [gpt, tokenizer])
def test_a_compiled_block_is_one_graph(make):
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    module, inputs = make()
    names, graphs = list(module.state_dict()), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for block in repeated_blocks(module):
        block.compile(backend=backend)  # as `prepare_blocks` does, without generating code
    output = module(*inputs)
    (output if isinstance(output, torch.Tensor) else output.logits).sum().backward()
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert len(graphs) == len(repeated_blocks(module)) > 0
    assert list(module.state_dict()) == names


def kept_bytes(pattern: str, how: str) -> int:
    """Bytes that a block keeps for its backward pass, beside the weights."""
    torch.manual_seed(0)
    config = GPTConfig(num_layers=1, width=64, num_heads=2, grid_size=4, codebook_size=16)
    config.layer_pattern, config.condition_width = pattern, 8
    module, positions = GPT(config), 48
    rotary = module.rope.packed(1, positions)
    x, (block,) = torch.randn(1, positions, 64, requires_grad=True), repeated_blocks(module)
    with torch.autocast("cpu", torch.bfloat16):
        if how != "compiled":
            prepare_blocks(module, how, compile=False)
            with LiveTensors() as live:
                y = block(x, rotary)
                return live.now - y.untyped_storage().nbytes() + x.untyped_storage().nbytes()
        block.compile(backend="aot_eager_decomp_partition")
        block(x, rotary)
        given = {t.data_ptr() for t in (*module.parameters(), *module.buffers(), *rotary)}
        kept = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in given:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = block(x, rotary)
        return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("pattern", ["L", "F"])
def test_a_compiled_block_keeps_little_more_than_cheap_checkpointing(pattern):
    torch._dynamo.reset()
    none, cheap, compiled = (kept_bytes(pattern, how) for how in ("none", "cheap", "compiled"))
    assert cheap < compiled < cheap + COMPILED_SHARE * (none - cheap)
