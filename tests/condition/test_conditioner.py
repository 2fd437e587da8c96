"""Conditions of a GPT: one encoder a modality, rows of several modalities in turn, and embeddings
in the place of what they were made of."""

import numpy as np
import pytest
import torch
from torch import nn

from tar3d.condition.conditioner import Conditioner, build_encoder, rows_of
from tar3d.condition.given import GivenEmbeddings
from tar3d.condition.text_tokenizer import train_text_tokenizer
from tar3d.config import GPTRunConfig, ImageEncoderConfig, TextEncoderConfig

TOKENIZER = train_text_tokenizer(["a chair", "a table", "a low chair", "a low table"], 16)
CONFIG = GPTRunConfig(
    conditions=["image", "text"],
    image_encoder=ImageEncoderConfig(
        model="trained", image_size=16, patch_size=8, width=8, num_layers=1, num_heads=2
    ),
    text_encoder=TextEncoderConfig(
        model="trained", max_tokens=6, vocabulary=16, width=8, num_layers=1, num_heads=2
    ),
)


def conditioner(modalities=("image", "text"), num_tokens: int = 6, width: int = 8) -> Conditioner:
    torch.manual_seed(0)
    return Conditioner(
        {modality: build_encoder(CONFIG, modality, TOKENIZER) for modality in modalities},
        num_tokens,
        width,
    )


def condition_inputs(rows: int = 5) -> dict[str, torch.Tensor]:
    rng, words = np.random.default_rng(0), build_encoder(CONFIG, "text", TOKENIZER).text_tokenizer
    captions = ["a chair", "a low table", "", "a table", "a low chair"]
    return {
        "image": torch.from_numpy(rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)),
        "text": torch.from_numpy(np.stack([words.prepare(c).ids for c in captions[:rows]])),
    }


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_of_several_modalities_take_turns(rows):
    model, inputs = conditioner(), condition_inputs(rows)
    both = model(inputs)
    for modality, k in (("image", 0), ("text", 1)):
        alone = model({modality: inputs[modality]})
        for row in range(k, rows, 2):
            length = int(alone.mask[row].sum())
            assert both.mask[row].tolist() == [True] * length + [False] * (6 - length)
            torch.testing.assert_close(
                both.embeddings[row, :length], alone.embeddings[row, :length], atol=1e-5, rtol=1e-5
            )
    assert not both.full and model({"image": inputs["image"]}).full


def test_parts_of_a_batch_begin_with_the_first_modality_again():
    model, inputs = conditioner(), condition_inputs(4)
    whole, parts = model(inputs), [model(rows_of(inputs, slice(k, k + 2))) for k in (0, 2)]
    torch.testing.assert_close(
        whole.embeddings, torch.cat([p.embeddings for p in parts]), atol=1e-5, rtol=1e-5
    )


def test_rows_of_a_part_keep_the_turns_that_they_have_in_the_whole():
    model, inputs = conditioner(), condition_inputs(5)
    whole = model(inputs)
    for rows in (slice(1, 4), slice(2, 4), slice(3, 5)):
        part = model(rows_of(inputs, rows), range(rows.start, rows.stop))
        torch.testing.assert_close(whole.embeddings[rows], part.embeddings, atol=1e-5, rtol=1e-5)
        assert torch.equal(whole.mask[rows], part.mask)


def test_every_encoder_learns_from_a_mixed_batch():
    model = conditioner()
    condition = model(condition_inputs(4))
    (condition.embeddings * condition.mask[..., None] * torch.randn(8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert {name.split(".")[1] for name, _ in model.named_parameters()} == {"image", "text"}


def test_a_modality_that_the_model_does_not_know_is_refused():
    with pytest.raises(
        ValueError,
        match="not trained on the condition 'text', but on image: choose another --gpt-type",
    ):
        conditioner(("image",), 4)({"text": condition_inputs()["text"]})
    with pytest.raises(ValueError, match="but on none at all"):
        Conditioner({}, 1, 8).encoder("image")


@pytest.mark.parametrize(
    "modalities, num_tokens, width, message",
    [
        (
            ("image",),
            6,
            8,
            "the image encoder gives 4 x 8 embeddings, but .* is 6 x 8: write "
            "gpt.condition_tokens=4 gpt.condition_w",
        ),
        (
            ("text",),
            6,
            16,
            "the text encoder gives 6 x 8 embeddings, .* write gpt.condition_tokens=6 "
            "gpt.condition_width=8",
        ),
        (
            ("image", "text"),
            4,
            8,
            "the image encoder gives 4 x 8 embeddings and the text encoder gives 6 x 8 .* write "
            "gpt.cond",
        ),
    ],
)
def test_a_prefix_of_another_shape_is_refused(modalities, num_tokens, width, message):
    with pytest.raises(ValueError, match=message):
        conditioner(modalities, num_tokens, width)


def test_several_modalities_of_other_widths_are_mapped_to_the_prefix():
    model = conditioner(width=12)
    assert sorted(model.project) == ["image", "text"] and all(
        isinstance(p, nn.Linear) for p in model.project.values()
    )
    condition = model(condition_inputs())
    assert condition.embeddings.shape == (5, 6, 12)
    alone = model({"text": condition_inputs()["text"]})
    torch.testing.assert_close(
        condition.embeddings[1, :2], alone.embeddings[1, :2], atol=1e-5, rtol=1e-5
    )


def test_embeddings_stand_for_what_they_were_made_of():
    given = {
        "image": GivenEmbeddings(ImageEncoderConfig(model="owner/dino"), 6, 8),
        "text": GivenEmbeddings(TextEncoderConfig(model="owner/t5"), 6, 8),
    }
    model = Conditioner(given, 6, 8)
    assert not list(model.parameters())
    image, text = torch.randn(3, 6, 8).half(), torch.randn(3, 6, 8).half()
    text[0, 2:] = 0
    condition = model({"text": text})
    assert (
        condition.mask.sum(1).tolist() == [2, 6, 6] and condition.embeddings.dtype == torch.float32
    )
    assert model({"image": image}).full
    with pytest.raises(
        ValueError, match="the embeddings of owner/t5 were given, so that it was not loaded"
    ):
        model({"text": torch.zeros(1, 6, dtype=torch.int32)})
    with pytest.raises(
        ValueError,
        match="but text_encoder.model is 'trained': .* as in text_encoder.model=google/flan-t5-xl",
    ):
        GivenEmbeddings(TextEncoderConfig(model="trained"), 6, 8)
