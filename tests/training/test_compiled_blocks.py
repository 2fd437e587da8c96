"""`train.compile`: each block is one graph, and names of weights stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from tar3d.config import GPTConfig, TokenizerConfig
from tar3d.contracts import Condition
from tar3d.gpt.model import GPT
from tar3d.runtime import repeated_blocks
from tar3d.tokenizer.vqvae import VQVAE


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
