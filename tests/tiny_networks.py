"""LPIPS and CLIP of random weights, tiny, with the files of real ones: what the loading code is
tested on."""

import json
from pathlib import Path

import torch

from tar3d.metrics.lpips import STACKS

WORDS = ["a", "chair", "red", "table", "<|startoftext|>", "<|endoftext|>", "<unk>"]


def lpips_weights(net: str, seed: int = 0, width: int = 3) -> dict[str, torch.Tensor]:
    """Random weights in the layout of an AlexNet or VGG16 of `width` channels, and heads."""
    generator, channels, weights = torch.Generator().manual_seed(seed), 3, {}
    for k, stage in enumerate(STACKS[net].stages):
        for index, _, padding in stage:
            kernel = 11 if (net, index) == ("alex", 0) else 2 * padding + 1
            out = width + k
            weights[f"features.{index}.weight"] = (
                torch.randn(out, channels, kernel, kernel, generator=generator) / kernel
            )
            weights[f"features.{index}.bias"] = torch.randn(out, generator=generator) / 4
            channels = out
        weights[f"lin{k}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    return weights


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A random CLIP for 32 px pictures and captions of at most 8 tokens, with all the files of a
    real one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    text = small | {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 8,
        "bos_token_id": 4,
        "eos_token_id": 5,
        "pad_token_id": 5,
    }
    CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=small | {"image_size": 32, "patch_size": 8},
            projection_dim=6,
        )
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{WORDS[4]} $A {WORDS[5]}", special_tokens=[(WORDS[4], 4), (WORDS[5], 5)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=WORDS[4],
        eos_token=WORDS[5],
        pad_token=WORDS[5],
        unk_token="<unk>",
    ).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": {"height": 32, "width": 32},
                "size": {"shortest_edge": 32},
                "resample": 3,
                "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2, 0.3, 0.4],
            }
        )
    )
    return folder
