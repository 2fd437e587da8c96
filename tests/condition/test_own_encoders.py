"""An encoder of one's own is a class and one line in a table."""

import pytest
import torch
from torch import nn

from tar3d.condition.conditioner import Conditioner, build_encoder
from tar3d.condition.image_encoders import IMAGE_ENCODERS, ImageEncoder
from tar3d.condition.text_encoders import TEXT_ENCODERS, TextEncoder, trains_tokenizer
from tar3d.condition.text_tokenizer import TextTokenizer, train_text_tokenizer
from tar3d.config import GPTRunConfig, ImageEncoderConfig, TextEncoderConfig


class MeanColour(ImageEncoder):
    """One embedding of an image: its mean colour."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.num_tokens, self.width, self.frozen = 1, config.width, False
        self.image_size, self.identity = config.image_size, "mean colour"
        self.linear = nn.Linear(3, config.width)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels.float().mean((1, 2)))[:, None]


class BagOfWords(TextEncoder):
    """Word embeddings and nothing else, with a tokenizer of the training captions."""

    trains_tokenizer = True

    def __init__(self, config: TextEncoderConfig, tokenizer) -> None:
        super().__init__()
        self.text_tokenizer = TextTokenizer(tokenizer, config.max_tokens)
        self.width, self.frozen, self.identity = config.width, False, "bag of words"
        self.table = nn.Embedding(config.vocabulary, config.width)

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.table(ids)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(IMAGE_ENCODERS, "mean_colour", MeanColour)
    monkeypatch.setitem(TEXT_ENCODERS, "bag_of_words", BagOfWords)
    return GPTRunConfig(
        conditions=["image", "text"],
        image_encoder=ImageEncoderConfig(model="mean_colour", image_size=4, width=8),
        text_encoder=TextEncoderConfig(
            model="bag_of_words", max_tokens=5, vocabulary=16, width=8, num_heads=2
        ),
    )


def test_encoders_of_ones_own_are_chosen_by_name(config):
    tokenizer = train_text_tokenizer(["a chair", "a chair"], 16)
    encoders = {m: build_encoder(config, m, tokenizer) for m in config.conditions}
    assert [type(encoder) for encoder in encoders.values()] == [MeanColour, BagOfWords]
    model = Conditioner(encoders, 5, 8)
    ids = torch.from_numpy(encoders["text"].text_tokenizer.prepare("a chair").ids)
    condition = model(
        {"image": torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "text": ids.repeat(2, 1)}
    )
    assert condition.mask.sum(1).tolist() == [1, 3]
    assert {name.split(".")[1] for name, _ in model.named_parameters()} == {"image", "text"}


def test_a_text_encoder_says_whether_it_needs_a_tokenizer_of_the_captions(config):
    assert trains_tokenizer(config.text_encoder) and trains_tokenizer(
        TextEncoderConfig(model="trained")
    )
    assert not trains_tokenizer(TextEncoderConfig())
