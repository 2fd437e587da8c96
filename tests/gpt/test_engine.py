"""The engine against the plain prefill and decode, in tokens, logits and what it remembers."""

from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from networks import draw_large_weights
from torch.utils._python_dispatch import TorchDispatchMode

from tar3d.config import GPTConfig, SamplingConfig
from tar3d.contracts import Condition, LogitsNotFinite
from tar3d.gpt.engine import Engine
from tar3d.gpt.layers.full import KVCache
from tar3d.gpt.model import GPT
from tar3d.gpt.sampling import guide, sample, uniform_draws

P, E, V, GRID = 5, 8, 32, 3
T = 3 * GRID**2
RAGGED = (P, 2, 4)


def _gpt(**changes) -> GPT:
    """Weights large enough that every path shows in the tokens."""
    gpt = GPT(
        GPTConfig(
            **{
                "num_layers": 4,
                "width": 32,
                "num_heads": 2,
                "grid_size": GRID,
                "codebook_size": V,
                "chunk_size": 4,
                "condition_tokens": P,
                "condition_width": E,
                **changes,
            }
        )
    )
    return draw_large_weights(gpt).eval()


def _condition(lengths: tuple[int, ...], width: int = P) -> Condition:
    embeddings = torch.randn(len(lengths), width, E, generator=torch.Generator().manual_seed(1))
    return Condition(embeddings, torch.arange(width) < torch.tensor(lengths)[:, None])


def _plain(
    gpt: GPT,
    condition: Condition,
    sampling: SamplingConfig,
    draws: torch.Tensor,
    codes: torch.Tensor | None = None,
):
    """Tokens, scores (B, T, V) and cache by the plain calls."""
    batch, guided = len(draws), sampling.cfg_scale != 1
    predicted_codes = None
    if sampling.code_predictor_scale:
        predicted_codes = gpt.code_predictor(condition.embeddings, condition.mask)
    null = None
    if guided:
        condition = Condition(condition.embeddings.repeat(2, 1, 1), condition.mask.repeat(2, 1))
        null = torch.arange(2 * batch) >= batch
    logits, cache = gpt.prefill(condition, null=null)
    ids, seen = [], []
    for i in range(T):
        if i > 0:
            logits = gpt.decode(ids[-1].repeat(2) if guided else ids[-1], cache)
        scores = guide(*logits.chunk(2), sampling.cfg_scale) if guided else logits
        if predicted_codes is not None:
            scores = scores + sampling.code_predictor_scale * predicted_codes[:, i] @ codes.T
        seen.append(scores)
        ids.append(sample(scores, sampling, draws[:, i]))
    return torch.stack(ids, 1), torch.stack(seen, 1), cache


def _assert_same(gpt, condition, sampling, codes=None, backend="auto", engine=None):
    draws = uniform_draws(list(range(len(condition.mask))), T)
    engine = engine or Engine(gpt, backend)
    seen = []

    def watched(scores, *rest):
        seen.append(scores.clone())
        return sample(scores, *rest)

    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        ids, scores, cache = _plain(gpt, condition, sampling, draws, codes)
        patch.setattr("tar3d.gpt.decode_ops.sample", watched)
        got = engine.run(condition, sampling, draws, codes)
    torch.testing.assert_close(
        torch.stack(seen[-T:], 1), scores, rtol=2e-4, atol=2e-4
    )  # before them: those of a warm-up
    assert torch.equal(got, ids)
    slots = cache.layers[-1].filled if isinstance(cache.layers[-1], KVCache) else 0
    for memory, layer in zip(engine.buffers.caches, cache.layers, strict=True):
        if isinstance(layer, KVCache):
            held = (
                layer.valid[..., :slots, None]
                if layer.valid is not None
                else torch.ones(1, 1, slots, 1, dtype=torch.bool)
            )
            held = held.reshape(-1, 1, slots, 1)
            for mine, theirs in zip(memory, (layer.keys, layer.values), strict=True):
                torch.testing.assert_close(
                    mine[:, :, :slots] * held, theirs[:, :, :slots] * held, rtol=1e-4, atol=1e-4
                )
        else:
            torch.testing.assert_close(memory[0], layer.state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3], ids=["token", "cell"])
@pytest.mark.parametrize("scale", [1.0, 2.5], ids=["alone", "guided"])
@pytest.mark.parametrize("lengths", [(P, P), RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("pattern", ["L", "F", "LLLF"])
def test_the_engine_is_the_plain_decoding_in_tokens_scores_and_memory(pattern, lengths, scale, n):
    gpt = _gpt(layer_pattern=pattern, tokens_per_step=n)
    _assert_same(gpt, _condition(lengths), SamplingConfig(top_p=0.9, cfg_scale=scale))


@pytest.mark.parametrize(
    "options",
    [
        {"code_predictor_dim": 3},
        {"code_predictor_dim": 3, "code_predictor_local": 2, "code_predictor_hidden": 20},
        {"code_predictor_dim": 3, "tokens_per_step": 3},
        {"linear_gate": False},
        {"absolute_positions": False},
        {"absolute_positions": False, "tokens_per_step": 3},
        {"rope": "paper_sum", "prefix_rope": "zero"},
        {"rope": "sequence"},
        {"token_order": "planes"},
        {"num_heads": 4},
        {"linear_attention": "gated"},
        {"linear_attention": "delta"},
        {"linear_attention": "delta", "linear_gate": False},
    ],
)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_every_option_of_the_model_is_decoded(options, scale):
    gpt, codes = _gpt(**options), None
    if gpt.code_predictor is not None:
        codes = F.normalize(torch.randn(V, 3, generator=torch.Generator().manual_seed(4)), dim=-1)
    for code_predictor_scale in (0.0, 3.0) if codes is not None else (0.0,):
        _assert_same(
            gpt,
            _condition(RAGGED),
            SamplingConfig(cfg_scale=scale, code_predictor_scale=code_predictor_scale),
            codes,
        )


def test_a_prefix_shorter_than_the_longest():
    for scale in (1.0, 2.0):
        _assert_same(_gpt(), _condition((3, 3), width=3), SamplingConfig(cfg_scale=scale))


def test_one_engine_serves_one_call_after_another_and_nothing_is_left_of_the_one_before():
    gpt = _gpt(code_predictor_dim=3)
    engine = Engine(gpt)
    guided = SamplingConfig(cfg_scale=2.0)
    for lengths, sampling in (
        ((P, P), SamplingConfig()),
        (RAGGED, guided),
        ((P,), guided),
        (RAGGED, SamplingConfig(top_k=3)),
        ((P, P), SamplingConfig()),
    ):
        _assert_same(gpt, _condition(lengths), sampling, engine=engine)


def test_an_engine_takes_the_codes_of_each_call():
    gpt, sampling = _gpt(code_predictor_dim=3), SamplingConfig(code_predictor_scale=5.0)
    engine, tokens = Engine(gpt), []
    for seed in (4, 5):
        codes = torch.randn(V, 3, generator=torch.Generator().manual_seed(seed))
        _assert_same(gpt, _condition((P, P)), sampling, codes, engine=engine)
        tokens.append(engine.buffers.ids.clone())
    assert not torch.equal(*tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "name", ["head.weight", "norm.weight", "blocks.3.mlp.down.weight", "token_embedding.weight"]
)
def test_a_gpt_with_weights_that_are_not_finite_does_not_generate(name, value, temperature):
    gpt, sampling = _gpt(), SamplingConfig(temperature=temperature)
    with torch.no_grad():
        gpt.get_parameter(name)[3] = value
        if name == "token_embedding.weight":  # whichever token is drawn
            gpt.get_parameter(name)[:] = value
    with pytest.raises(LogitsNotFinite, match="infinite, because its weights or its conditions"):
        Engine(gpt).run(_condition((P, P)), sampling, uniform_draws([0, 1], T))


def test_rows_whose_condition_is_not_finite_are_named_and_the_next_call_is_right():
    gpt, sampling, condition = _gpt(), SamplingConfig(cfg_scale=2.0), _condition((P, P, P))
    engine, draws = Engine(gpt), uniform_draws([0, 1, 2], T)
    expected = engine.run(condition, sampling, draws).clone()
    damaged = condition.embeddings.clone()
    damaged[1, 2, 0] = torch.nan
    with pytest.raises(LogitsNotFinite, match="infinite for row 1, "):
        engine.run(Condition(damaged, condition.mask), sampling, draws)
    assert torch.equal(engine.run(condition, sampling, draws), expected)


def test_buffers_are_kept_while_rows_and_sampling_stay():
    engine, sampling = Engine(_gpt()), SamplingConfig(cfg_scale=2.0)
    engine.prepare(2, sampling)
    buffers = engine.buffers
    engine.run(_condition((P, P)), sampling, uniform_draws([0, 1], T))
    assert engine.buffers is buffers
    engine.run(_condition((P,)), sampling, uniform_draws([0], T))
    assert engine.buffers is not buffers


def test_the_cache_is_a_quarter_of_full_attention():
    def slots(pattern: str) -> int:
        engine = Engine(_gpt(layer_pattern=pattern))
        engine.prepare(2, SamplingConfig())
        return sum(
            m.numel()
            for memory in engine.buffers.caches
            for m in memory
            if m.shape[2] == engine.capacity
        )

    assert slots("LLLF") * 4 == slots("F") > 0 == slots("L")


def test_dtype_is_that_of_autocast_or_of_the_weights_and_states_are_float32():
    gpt, draws = _gpt(), uniform_draws([0, 1, 2], T)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        engine = Engine(gpt)
        engine.run(_condition(RAGGED), SamplingConfig(), draws)
    assert engine.dtype == torch.bfloat16 and Engine(gpt).dtype == torch.float32
    for block, memory in zip(engine._blocks, engine.buffers.caches, strict=True):
        assert block.weights.attention.o.dtype == torch.bfloat16
        assert {m.dtype for m in memory} == {torch.bfloat16 if len(memory) == 2 else torch.float32}
    assert torch.isfinite(engine.buffers.hidden).all()


def test_bfloat16_scores_stay_close_to_float32_over_a_whole_sequence():
    """Both take in the same tokens, so that a rounding that tips one choice does not tip all that
    follow."""
    gpt = _gpt()
    sampling, draws = SamplingConfig(temperature=0), uniform_draws([0, 1], T)
    hidden = []
    for dtype in (torch.float32, torch.bfloat16):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
            torch.inference_mode(),
        ):
            engine = Engine(gpt)
            engine.prepare(2, sampling)
            prefix = engine._fill(_condition((P, P)), draws)
        engine._draw_step = lambda: None
        with torch.inference_mode():
            engine.buffers.ids.copy_(torch.arange(2 * T).view(2, T) % V)
            for step in range(T - 1):
                engine.take_step(engine.window_for(prefix + step + 1))
        hidden.append(engine.buffers.hidden.clone())
    assert (hidden[0] - hidden[1]).norm() < 0.05 * hidden[0].norm()


def _static(gpt: GPT, backend: str = "plain") -> Engine:
    """An engine with the windows and masks that CUDA graphs need."""
    engine = Engine(gpt, backend)
    engine.static, engine.window = True, 8
    return engine


@pytest.mark.parametrize("lengths", [(P, P), RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("n", [1, 3])
def test_windows_of_few_sizes_are_the_plain_decoding(n, lengths):
    gpt = _gpt(tokens_per_step=n)
    engine = _static(gpt)
    assert {engine.window_for(i) for i in range(1, engine.capacity + 1)} == (
        {8, 16, 24, 31} if n == 1 else {8, 13}
    )
    _assert_same(gpt, _condition(lengths), SamplingConfig(cfg_scale=2.0), engine=engine)


# Wide enough for the packing of eager operations.
COMPILED = {"num_layers": 2, "layer_pattern": "LF", "width": 128}


def test_compiled_layers_are_the_plain_decoding():
    gpt = _gpt(**COMPILED)
    engine = Engine(gpt, "compiled")
    _assert_same(gpt, _condition(RAGGED), SamplingConfig(cfg_scale=2.0), engine=engine)


def test_no_layer_is_compiled_too_often(monkeypatch):
    """At most for the first number of rows and for any other, in each engine.

    torch runs a function that was compiled 8 times as it stands, with a line in a log.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    graphs, gpt = torch._dynamo.utils.counters["stats"], _gpt(**COMPILED)
    graphs.clear()
    for engines in (1, 2):
        engine = Engine(gpt, "compiled")
        assert engine.window_for(1) == engine.capacity
        for rows in (2, 3, 4, 5):
            condition = _condition(RAGGED[:1] * rows)
            _assert_same(gpt, condition, SamplingConfig(cfg_scale=2.0), engine=engine)
        assert len(gpt.blocks) <= graphs["unique_graphs"] <= engines * len(gpt.blocks) * 2


class _NoHostReads(TorchDispatchMode):
    """Fails on what makes a GPU wait for the host, or the host for a GPU, and would break the
    capture of a graph."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in (
            "_local_scalar_dense",
            "item",
            "nonzero",
            "equal",
            "is_nonzero",
            "masked_select",
            "unique",
        ), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("n", [1, 3])
def test_a_step_reads_nothing_back_to_the_host(n):
    gpt = _gpt(code_predictor_dim=3, tokens_per_step=n)
    engine, codes = _static(gpt), torch.randn(V, 3)
    sampling = SamplingConfig(
        cfg_scale=2.0, top_k=9, top_p=0.9, min_p=0.01, code_predictor_scale=1.0
    )
    engine.run(_condition(RAGGED), sampling, uniform_draws([0, 1, 2], T), codes)
    with torch.inference_mode():
        engine._fill(_condition(RAGGED), uniform_draws([0, 1, 2], T))
        with _NoHostReads():
            for _ in range(3):
                engine.take_step(engine.window_for(P + 3))
        with pytest.raises(AssertionError, match="_local_scalar_dense"), _NoHostReads():
            engine.buffers.step.item()


class _FakeGraph:
    """A CUDA graph that is replayed by the step it was captured from: all of the engine's way with
    graphs but the GPU."""

    def replay(self) -> None:
        assert self.current, "replayed while another device may be the current one"
        self.step()


@pytest.fixture
def fake_graphs(monkeypatch):
    """Engines of a CPU believe to be on a GPU.

    A graph is captured and replayed only while the engine's device is the current one, and is
    captured in the mode in which other threads may use the GPU.
    """
    capturing: list[_FakeGraph] = []
    take_step = Engine.take_step
    current: list[Engine] = []

    @contextmanager
    def current_device(self):
        current.append(self)
        yield
        current.pop()

    def step(self, window):
        if capturing:  # a capture executes nothing
            capturing[-1].step = lambda: take_step(self, window)
        else:
            take_step(self, window)

    @contextmanager
    def graph(target, pool, capture_error_mode="global"):
        assert current, "captured while another device may be the current one"
        assert capture_error_mode == "thread_local"
        target.current = current
        capturing.append(target)
        yield
        capturing.pop()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in (
        ("Stream", lambda device: stream),
        ("current_stream", lambda device: stream),
        ("graph", graph),
        ("stream", lambda stream: nullcontext()),
        ("graph_pool_handle", lambda: 0),
        ("CUDAGraph", _FakeGraph),
        ("synchronize", lambda device: None),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Engine, "take_step", step)
    monkeypatch.setattr(Engine, "_current_device", current_device)


@pytest.mark.parametrize("lengths", [(P, P), RAGGED], ids=["full", "ragged"])
def test_graphs_are_captured_once_for_each_window_and_leave_nothing_of_their_warm_up(
    fake_graphs, lengths, capsys
):
    gpt, sampling = _gpt(code_predictor_dim=3), SamplingConfig(cfg_scale=2.0)
    engine = _static(gpt)
    engine.graphed = True
    for _ in range(2):
        _assert_same(gpt, _condition(lengths), sampling, engine=engine)
        graphs = engine._graphs
    assert set(graphs) == {8, 16, 24, 31}
    _assert_same(gpt, _condition(lengths), sampling, engine=engine)
    assert engine._graphs is graphs and engine.prepare_seconds > 0
    reports = []
    engine.run(
        _condition(lengths),
        sampling,
        uniform_draws(list(range(len(lengths))), T),
        progress=lambda *r: reports.append(r),
    )
    assert reports == [(1, T), (T, T)]  # a report waits for the device, so there are few
    assert not capsys.readouterr().err
    engine._compiles = True  # as for a backend asked for by name
    engine.prepare(1, sampling)
    assert engine._graphs is not graphs
    assert "compiling the decoding backend plain ..." in capsys.readouterr().err


def test_the_device_of_an_engine_is_the_current_one_while_it_works():
    engine = _static(_gpt())
    engine.device = torch.device("cuda", 1)
    assert engine._current_device().idx == 1
    engine.device = torch.device("cpu")
    with engine._current_device():
        pass


def test_refusals():
    with pytest.raises(
        ValueError, match="backend is 'fast', allowed are auto, plain, compiled, triton"
    ):
        Engine(_gpt(), "fast")
    with pytest.raises(ValueError, match="needs a CUDA GPU, the model is on cpu"):
        Engine(_gpt(), "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 3], ids=["token", "cell"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("backend", ["plain", "compiled", "triton"])
def test_graphs_on_a_gpu_are_the_plain_decoding_on_a_cpu(backend, scale, n, monkeypatch):
    monkeypatch.setattr("tar3d.gpt.engine.MIN_WINDOW", 8)
    gpt, condition, draws = (
        _gpt(tokens_per_step=n, width=128),
        _condition(RAGGED),
        uniform_draws([0, 1, 2], T),
    )
    sampling = SamplingConfig(top_p=0.9, cfg_scale=scale)
    with torch.inference_mode():
        expected, _, _ = _plain(gpt, condition, sampling, draws)
    gpt, condition = gpt.cuda(), Condition(condition.embeddings.cuda(), condition.mask.cuda())
    engine = Engine(gpt, backend)
    for _ in range(2):  # the second replays what the first captured
        assert torch.equal(engine.run(condition, sampling, draws).cpu(), expected)
