"""What a GPT is told: one encoder a kind, rows of several kinds in turn, embeddings in the place of
what they were made of."""

import numpy as np
import pytest
import torch
from torch import nn

from tar3d.condition.conditioner import Conditioner, build_encoder, rows_of
from tar3d.condition.encoders import GivenEmbeddings
from tar3d.condition.text import learn_words
from tar3d.config import GPTRunConfig, ImageEncoderConfig, TextEncoderConfig

WORDS = learn_words(["a chair", "a table", "a low chair", "a low table"], 16)
CONFIG = GPTRunConfig(
    conditions=["image", "text"],
    image_encoder=ImageEncoderConfig(
        model="trained", image_size=16, patch_size=8, width=8, num_layers=1, num_heads=2
    ),
    text_encoder=TextEncoderConfig(
        model="trained", max_tokens=6, vocabulary=16, width=8, num_layers=1, num_heads=2
    ),
)


def conditioner(kinds=("image", "text"), num_tokens: int = 6, width: int = 8) -> Conditioner:
    torch.manual_seed(0)
    return Conditioner(
        {kind: build_encoder(CONFIG, kind, WORDS) for kind in kinds}, num_tokens, width
    )


def source(rows: int = 5) -> dict[str, torch.Tensor]:
    rng, words = np.random.default_rng(0), build_encoder(CONFIG, "text", WORDS).words
    captions = ["a chair", "a low table", "", "a table", "a low chair"]
    return {
        "image": torch.from_numpy(rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)),
        "text": torch.from_numpy(np.stack([words.prepare(c).ids for c in captions[:rows]])),
    }


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_of_several_kinds_take_turns(rows):
    model, told = conditioner(), source(rows)
    both = model(told)
    for kind, k in (("image", 0), ("text", 1)):
        alone = model({kind: told[kind]})
        for row in range(k, rows, 2):
            length = int(alone.mask[row].sum())
            assert both.mask[row].tolist() == [True] * length + [False] * (6 - length)
            torch.testing.assert_close(
                both.embeddings[row, :length], alone.embeddings[row, :length], atol=1e-5, rtol=1e-5
            )
    assert not both.full and model({"image": told["image"]}).full


def test_parts_of_a_batch_begin_with_the_first_kind_again():
    model, told = conditioner(), source(4)
    whole, parts = model(told), [model(rows_of(told, slice(k, k + 2))) for k in (0, 2)]
    torch.testing.assert_close(
        whole.embeddings, torch.cat([p.embeddings for p in parts]), atol=1e-5, rtol=1e-5
    )


def test_every_encoder_learns_from_a_mixed_batch():
    model = conditioner()
    condition = model(source(4))
    (condition.embeddings * condition.mask[..., None] * torch.randn(8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert {name.split(".")[1] for name, _ in model.named_parameters()} == {"image", "text"}


def test_a_kind_that_the_model_does_not_know_is_refused():
    with pytest.raises(
        ValueError,
        match="not trained on the condition 'text', but on image: choose another --gpt-type",
    ):
        conditioner(("image",), 4)({"text": source()["text"]})
    with pytest.raises(ValueError, match="but on none at all"):
        Conditioner({}, 1, 8).encoder("image")


@pytest.mark.parametrize(
    "kinds, num_tokens, width, message",
    [
        (
            ("image",),
            6,
            8,
            "the image encoder gives 4 x 8 embeddings, but .* is 6 x 8: write gpt.condition_tokens=4 gpt.condition_w",
        ),
        (
            ("text",),
            6,
            16,
            "the text encoder gives 6 x 8 embeddings, .* write gpt.condition_tokens=6 gpt.condition_width=8",
        ),
        (
            ("image", "text"),
            4,
            8,
            "the image encoder gives 4 x 8 embeddings and the text encoder gives 6 x 8 .* write gpt.cond",
        ),
    ],
)
def test_a_prefix_of_another_shape_is_refused(kinds, num_tokens, width, message):
    with pytest.raises(ValueError, match=message):
        conditioner(kinds, num_tokens, width)


def test_several_kinds_of_other_widths_are_mapped_to_the_prefix():
    model = conditioner(width=12)
    assert sorted(model.project) == ["image", "text"] and all(
        isinstance(p, nn.Linear) for p in model.project.values()
    )
    condition = model(source())
    assert condition.embeddings.shape == (5, 6, 12)
    alone = model({"text": source()["text"]})
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
