"""Text encoders: any text gives a usable prefix, padding changes nothing, models come and go
through `transformers`."""

import shutil

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from tar3d.condition.text_encoders import FrozenText, TrainedText, build_text_encoder
from tar3d.condition.text_tokenizer import (
    END,
    PADDING,
    UNKNOWN,
    TextTokenizer,
    load_text_tokenizer,
    train_text_tokenizer,
)
from tar3d.config import TextEncoderConfig
from tar3d.optim.groups import routes

CAPTIONS = [
    "a low round table with three legs",
    "a tall chair; it has arms, a round seat and four legs",
    "a chair",
    "a T-tail plane",
    "a table with a T-tail",
    "a tall plane",
    "three low chairs",
]
TRAINED = TextEncoderConfig(
    model="trained", max_tokens=12, vocabulary=32, width=24, num_layers=2, num_heads=3
)
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
MODELS = {
    "t5": lambda: T5EncoderModel(T5Config(**T5)),
    "whole t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "bert": lambda: BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        ),
        add_pooling_layer=False,
    ),
    "clip": lambda: CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            eos_token_id=1,
        )
    ),
}


@pytest.fixture(scope="module")
def words():
    return train_text_tokenizer(CAPTIONS, 32)


@pytest.fixture(scope="module")
def directories(tmp_path_factory, words):
    """One saved random model of each kind, with the words of the captions."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        make().eval().save_pretrained(root / name)
        words.save_pretrained(root / name)
    return root


@pytest.fixture
def trained(words):
    torch.manual_seed(0)
    return build_text_encoder(TRAINED, words)


def test_words_are_those_seen_twice_and_come_back_from_a_folder(words, tmp_path):
    known = set(words.get_vocab()) - {UNKNOWN, END}
    assert known == {
        "a",
        "chair",
        "legs",
        "low",
        "plane",
        "round",
        "t",
        "-",
        "tail",
        "table",
        "tall",
        "three",
        "with",
    }
    words.save_pretrained(tmp_path)
    again = load_text_tokenizer(tmp_path)
    for caption in [*CAPTIONS, "", "A TALL, Round   Chair!", "椅子 🪑"]:
        assert (
            TextTokenizer(again, 12).prepare(caption).ids.tolist()
            == TextTokenizer(words, 12).prepare(caption).ids.tolist()
        )
    assert (
        TextTokenizer(again, 12).identity
        == TextTokenizer(words, 12).identity
        != TextTokenizer(words, 11).identity
    )
    assert len(train_text_tokenizer(CAPTIONS, 6)) == 6


def test_upper_case_and_spaces_do_not_matter(words):
    a, b = (
        TextTokenizer(words, 12).prepare(text).ids
        for text in ("A tall\n  Round TABLE", "a tall round table")
    )
    assert (
        np.array_equal(a, b)
        and a.dtype == np.int32
        and a.shape == (12,)
        and list(a[5:]) == [PADDING] * 7
    )


@pytest.mark.parametrize(
    "caption, unknown",
    [
        ("a purple chair", "purple"),
        ("椅子", "椅子"),
        ("🪑", "🪑"),
        ("стул chair", "стул"),
        ("ﬁve chair", "ﬁve"),
        ("x y z q v w u chair", r"x, y, z, q, v and 2 more"),
        ("\x00", "\x00"),
    ],
)
def test_unknown_words_are_named_and_stand_for_themselves(words, trained, caption, unknown):
    prepared = TextTokenizer(words, 12).prepare(caption)
    assert prepared.warning == f"words that this model does not know are passed over: {unknown}"
    assert (
        words.unk_token_id in prepared.ids
        and torch.isfinite(trained(torch.from_numpy(prepared.ids)[None]).embeddings).all()
    )


@pytest.mark.parametrize("caption", ["", "   ", "\n"])
def test_an_empty_caption_is_its_end(words, trained, caption):
    prepared = TextTokenizer(words, 12).prepare(caption)
    assert (prepared.ids != PADDING).sum() == 1 and prepared.warning is None
    assert trained(torch.from_numpy(prepared.ids)[None]).mask.sum() == 1


def test_a_long_caption_is_cut_before_its_end_and_says_so(words):
    prepared = TextTokenizer(words, 12).prepare("a chair " * 5000)
    assert (
        prepared.warning
        == "the caption has 10001 tokens, the first 12 are read (text_encoder.max_tokens)"
    )
    assert (
        words.convert_ids_to_tokens(prepared.ids.tolist())[-2:] == ["a", END]
        and PADDING not in prepared.ids
    )


def test_a_tokenizer_without_an_end_is_refused_for_empty_captions(words):
    from tokenizers import processors

    bare = train_text_tokenizer(CAPTIONS, 32)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )
    with pytest.raises(
        ValueError, match="makes nothing of the caption '': it has no end mark; use one that does"
    ):
        TextTokenizer(bare, 12).prepare("")


def test_padding_and_batch_mates_change_nothing(trained):
    ids = torch.from_numpy(
        np.stack([trained.text_tokenizer.prepare(c).ids for c in (CAPTIONS[0], "a chair", "")])
    )
    together = trained.eval()(ids)
    for row, of_one in enumerate(ids):
        length = int((of_one != PADDING).sum())
        alone = trained(of_one[None, :length])
        assert alone.mask.all() and together.mask[row].sum() == length
        torch.testing.assert_close(
            together.embeddings[row, :length], alone.embeddings[0], atol=1e-5, rtol=1e-5
        )


def test_the_order_of_words_matters(trained):
    a, b = (
        torch.from_numpy(trained.text_tokenizer.prepare(c).ids)[None]
        for c in ("a low round table", "a round low table")
    )
    assert not torch.allclose(trained(a).embeddings, trained(b).embeddings, atol=1e-4)


def test_every_parameter_of_the_trained_encoder_learns(trained):
    ids = torch.from_numpy(np.stack([trained.text_tokenizer.prepare(c).ids for c in CAPTIONS]))
    condition = trained(ids)
    (condition.embeddings * condition.mask[..., None] * torch.randn(24)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())
    kinds = {route.name: route.kind for route in routes(trained)}
    assert kinds["word_embedding.weight"] != "muon" and kinds["blocks.0.q.weight"] == "muon"
    assert isinstance(trained, TrainedText) and not trained.frozen and trained.flops() > 0


def test_a_trained_encoder_needs_its_words_and_room_for_them(words):
    with pytest.raises(ValueError, match="needs a tokenizer: give one"):
        build_text_encoder(TRAINED)
    small = TextEncoderConfig(model="trained", vocabulary=8, width=24, num_heads=3)
    with pytest.raises(
        ValueError,
        match=r"knows 15 words, text_encoder.vocabulary is 8: write text_encoder.vocabulary=15",
    ):
        build_text_encoder(small, words)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_encoders_are_pretrained_models(directories, name, dtype):
    encoder = build_text_encoder(
        TextEncoderConfig(model=str(directories / name), max_tokens=12, dtype=dtype)
    )
    assert (
        isinstance(encoder, FrozenText)
        and encoder.frozen
        and (encoder.num_tokens, encoder.width) == (12, 16)
    )
    assert {(p.dtype, p.requires_grad) for p in encoder.parameters()} == {
        (getattr(torch, dtype), False)
    }
    ids = torch.from_numpy(np.stack([encoder.text_tokenizer.prepare(c).ids for c in CAPTIONS[:3]]))
    encoder.train()
    condition = encoder(ids)
    assert condition.embeddings.dtype == torch.float32 and torch.equal(
        condition.mask, ids != PADDING
    )
    assert not condition.embeddings.requires_grad and torch.equal(
        encoder(ids).embeddings, condition.embeddings
    ), "no dropout"
    length, close = int((ids[2] != PADDING).sum()), 1e-5 if dtype == "float32" else 0.05
    alone = encoder(ids[2:, :length]).embeddings[0]
    torch.testing.assert_close(condition.embeddings[2, :length], alone, atol=close, rtol=close)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(ids).embeddings, condition.embeddings), (
            "autocast changes nothing"
        )


def test_the_identity_is_of_weights_words_dtype_and_length(directories, tmp_path):
    def identity(source, **values) -> str:
        values = {"max_tokens": 12, "dtype": "float32"} | values
        return build_text_encoder(TextEncoderConfig(model=str(source), **values)).identity

    shutil.copytree(directories / "t5", tmp_path / "copy")
    known = identity(directories / "t5")
    assert known == identity(tmp_path / "copy") and "float32" in known and "12 tokens" in known
    train_text_tokenizer(CAPTIONS[:3] * 2, 32).save_pretrained(tmp_path / "copy")
    others = {
        identity(directories / "t5", dtype="bfloat16"),
        identity(directories / "t5", max_tokens=9),
        identity(directories / "bert"),
        identity(tmp_path / "copy"),
    }
    assert len(others | {known}) == 5


def test_float16_is_refused():
    with pytest.raises(
        ValueError, match="text_encoder.dtype is 'float16', allowed are bfloat16, float32"
    ):
        TextEncoderConfig(dtype="float16")


def test_missing_models_are_named(tmp_path, monkeypatch, directories):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match=r"of text encoder 'no-such-owner/t5' was not found .* Remedy: .*tokenizer.json",
    ):
        build_text_encoder(TextEncoderConfig(model="no-such-owner/t5"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="tried as a local directory: "):
        build_text_encoder(TextEncoderConfig(model=str(tmp_path / "empty")))
    train_text_tokenizer(CAPTIONS, 32).save_pretrained(tmp_path / "empty")
    with pytest.raises(
        ValueError,
        match=r"text encoder .* cannot be loaded.* text_encoder.model=trained needs no download",
    ):
        build_text_encoder(TextEncoderConfig(model=str(tmp_path / "empty")))


def test_only_ids_are_taken(trained):
    with pytest.raises(
        ValueError,
        match=r"takes \(B, L\) token ids as TextTokenizer.prepare gives .* \(2, 3\) torch.float32",
    ):
        trained(torch.zeros(2, 3))
