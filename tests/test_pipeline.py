"""What a pipeline does with a model that was made elsewhere."""

import warnings
from pathlib import Path

import pytest

from tar3d import checkpoint, config
from tar3d.config import GPTRunConfig
from tar3d.pipeline import GPT_I23D, I23D, Pipeline

TINY = Path(__file__).resolve().parent.parent / "pretrained" / "tiny"


@pytest.mark.parametrize("linear, full", [("fla", "flash_attn"), ("lightning_attn", "xformers"), ("reference", "sdpa")])
def test_a_model_is_loaded_whatever_attention_backends_it_was_trained_with(tmp_path, linear, full):
    trained = checkpoint.read_config(TINY / GPT_I23D, GPTRunConfig)
    trained.gpt.linear_backend, trained.gpt.attention_backend = linear, full
    folder = tmp_path / GPT_I23D
    folder.mkdir()
    (folder / checkpoint.WEIGHTS).symlink_to(TINY / GPT_I23D / checkpoint.WEIGHTS)
    config.save(trained, folder / checkpoint.CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = Pipeline.load(vqvae=TINY / checkpoint.TOKENIZER, gpt=folder)
    assert {block.attention.attend.name for block in pipeline.i23d.gpt.blocks} == {"auto"}
    assert isinstance(pipeline.i23d, I23D)
