"""An encoder of one's own is a class and one line in a table."""

import importlib
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from tar3d import condition as condition_package
from tar3d.condition.base import ImageEncoder, TextEncoder
from tar3d.condition.conditioner import Conditioner, build_encoder
from tar3d.condition.image_encoders import IMAGE_ENCODERS
from tar3d.condition.text_encoders import TEXT_ENCODERS, trains_tokenizer
from tar3d.condition.text_tokenizer import TextTokenizer, train_text_tokenizer
from tar3d.conditional_gpt import ConditionalGPT
from tar3d.config import GPTConfig, GPTRunConfig, ImageEncoderConfig, TextEncoderConfig
from tar3d.optim.groups import new_optimizers
from tar3d.training.gpt_objective import GPTObjective


class MeanColour(ImageEncoder):
    """One embedding of an image: its mean colour."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.num_tokens, self.width, self.frozen = 1, config.width, False
        self.image_size, self.identity = config.image_size, "mean colour"
        self.linear = nn.Linear(3, config.width)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels.float().mean((1, 2)))[:, None]

    def flops(self) -> int:
        return 2 * self.linear.weight.numel()


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

    def flops(self) -> int:
        return 0  # rows of a table are looked up


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(IMAGE_ENCODERS, "mean_colour", MeanColour)
    monkeypatch.setitem(TEXT_ENCODERS, "bag_of_words", BagOfWords)
    return GPTRunConfig(
        conditions=["image", "text"],
        gpt=GPTConfig(
            num_layers=1,
            width=16,
            num_heads=2,
            grid_size=2,
            codebook_size=16,
            layer_pattern="F",
            condition_tokens=5,
            condition_width=8,
        ),
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


def test_encoders_of_ones_own_take_a_training_step(config):
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(["a chair", "a chair"], 16)
    encoders = {m: build_encoder(config, m, tokenizer) for m in config.conditions}
    model = ConditionalGPT(config, encoders)
    objective = GPTObjective(model, torch.zeros(16, 4), config.train)
    layers = model.gpt.flops(config.gpt.condition_tokens, config.gpt.num_tokens)
    assert objective.flops(4, 0) == 3 * (2 * 3 * 8 * 4 // 2 + 4 * layers)

    optimizers = new_optimizers(objective, config.optim)
    before = {name: p.detach().clone() for name, p in model.conditioner.named_parameters()}
    tokens = torch.randint(16, (4, config.gpt.num_tokens))
    ids = torch.from_numpy(encoders["text"].text_tokenizer.prepare("a chair").ids)
    pixels = torch.randint(256, (4, 4, 4, 3), dtype=torch.uint8)
    inputs = {"image": pixels, "text": ids.repeat(4, 1)}
    losses = objective(tokens, tokens[:, :-1], inputs, torch.zeros(4, dtype=torch.bool))
    objective.total(losses).backward()
    for optimizer in optimizers:
        optimizer.step()
    moved = {n for n, p in model.conditioner.named_parameters() if not torch.equal(p, before[n])}
    assert {"trained.image.linear.weight", "trained.text.table.weight"} <= moved


@pytest.mark.parametrize("base", [ImageEncoder, TextEncoder])
def test_a_trained_encoder_without_flops_is_named(base):
    class Own(base):
        pass

    with pytest.raises(NotImplementedError, match=r"Own is trained.*a method flops\(\)"):
        Own().flops()


@pytest.mark.parametrize(
    ("file", "base", "entry"),
    [
        ("image_encoders", "ImageEncoder", '"trained": TrainedViT,'),
        ("text_encoders", "TextEncoder", '"trained": TrainedText,'),
    ],
)
@pytest.mark.parametrize("first", ["own", "table"])
def test_an_encoder_of_ones_own_is_a_file_that_the_table_imports(
    tmp_path, file, base, entry, first
):
    """A file in tar3d/condition that is imported before or after the file with the table."""
    own, table = "tar3d.condition.own_encoder", f"tar3d.condition.{file}"
    (tmp_path / "own_encoder.py").write_text(
        f"from tar3d.condition.base import {base}\n\n\nclass Own({base}):\n    pass\n"
    )
    source = Path(sys.modules[table].__file__).read_text(encoding="utf-8")
    line = f"from tar3d.condition.base import {base}\n"
    assert line in source and entry in source
    source = source.replace(line, f"{line}from tar3d.condition.own_encoder import Own\n")
    (tmp_path / f"{file}.py").write_text(source.replace(entry, f'{entry} "own": Own,'), "utf-8")
    paths = {"__path__": [str(tmp_path), *condition_package.__path__]}
    with mock.patch.dict(sys.modules), mock.patch.dict(vars(condition_package), paths):
        for name in (table, "tar3d.condition.base"):
            del sys.modules[name]
        for name in (own, table) if first == "own" else (table, own):
            importlib.import_module(name)
        encoders = getattr(sys.modules[table], file.upper())
        assert encoders["own"] is sys.modules[own].Own
    assert own not in sys.modules
