"""Condition -> tokens -> triplane -> mesh, and surface points -> tokens -> mesh. The only library
file that knows both the tokenizer and the GPT.

    pipeline = Pipeline.load("pretrained/tiny")
    mesh = pipeline.generate(pipeline.source([Image.open("chair.png")]), seeds=[0])[0].mesh
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from tar3d import checkpoint
from tar3d.condition.conditioner import Conditioner, Encoder, Source, build_encoder
from tar3d.condition.encoders import TRAINED
from tar3d.condition.image import preprocess
from tar3d.condition.text import load_words
from tar3d.config import GPT_TYPES, GPTRunConfig, SamplingConfig
from tar3d.contracts import Condition, Mesh, Tokens, Triplane
from tar3d.data.formats.token_file import TokenFiles
from tar3d.gpt.engine import Engine
from tar3d.gpt.generate import generate
from tar3d.gpt.loss import token_nll
from tar3d.gpt.model import GPT
from tar3d.mesh.extract import COARSE, EmptyFieldError, drop_small_components, extract
from tar3d.runtime import describe_machine
from tar3d.tokenizer.field import OccupancyField

# of a GPT's model directory: the tokenizer of a text encoder that was trained along
WORDS = "words"
ANY = "any"  # the type of a GPT that serves for each of the others
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tar3d.tokenizer.vqvae import VQVAE

QUERIES_AT_ONCE = {
    "cpu": 1 << 14,
    "cuda": 1 << 20,
}  # what stays in a CPU core's cache (2^17: twice the time), and fills a GPU
# cells of the coarse lattice for planes that resolve more: from 384 cells on it costs next to
# nothing
COARSEST = 96
# pieces below 1 % of the largest one's volume are floaters of an imperfect field
MIN_COMPONENT_SHARE = 0.01


def gpt_folder(gpt_type: str) -> str:
    """Of a GPT, beside checkpoint.TOKENIZER in a model directory that generates."""
    return f"gpt_{gpt_type}"


def gpt_type_of(conditions: list[str]) -> str:
    return next(name for name, kinds in GPT_TYPES.items() if sorted(kinds) == sorted(conditions))


class ConditionalGPT(torch.nn.Module):
    """The GPT and the encoders of what it is told as one module."""

    def __init__(self, config: GPTRunConfig, encoders: dict[str, Encoder]) -> None:
        super().__init__()
        self.config = config
        self.gpt = GPT(config.gpt)
        self.conditioner = Conditioner(
            encoders, config.gpt.condition_tokens, config.gpt.condition_width
        )

    def token_nll(
        self, tokens: torch.Tensor, source: Source, dropped: torch.Tensor
    ) -> torch.Tensor:
        """NLL (B, T) in nats of tokens (B, T), each after those that the GPT has before it; no
        gradients."""
        tokens = self.gpt.to_model_order(tokens)
        with torch.no_grad():
            hidden = self.gpt.hidden(tokens[:, :-1], self.condition(source, len(tokens)), dropped)
        return self.gpt.to_raster_order(token_nll(hidden, self.gpt.head.weight, tokens))

    def condition(self, source: Source, rows: int) -> Condition:
        """The prefixes of so many rows: of what they are told (`tar3d.condition.conditioner`), or
        of nothing the null prefix."""
        if source:
            return self.conditioner(source)
        return Condition.of(self.gpt.null_prefix.expand(rows, -1, -1))


def load_gpt(folder: str | Path) -> ConditionalGPT:
    """From a model directory or Hub id, with the words of its text encoder."""
    config = checkpoint.read_config(folder, GPTRunConfig)
    config.gpt.linear_backend = config.gpt.attention_backend = (
        "auto"  # saved are those of the machine that trained it
    )
    words = words_of_model(folder)
    encoders = {kind: build_encoder(config, kind, words) for kind in config.conditions}
    return checkpoint.load_weights(ConditionalGPT(config, encoders), folder)


def words_of_model(folder: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a GPT's own text encoder; None where it has none, or one that is not its
    own."""
    config = checkpoint.read_config(folder, GPTRunConfig)
    own = "text" in config.conditions and config.text_encoder.model == TRAINED
    return load_words(checkpoint.find_model(folder) / WORDS) if own else None


@dataclass(frozen=True)
class Placement:
    """Where models are: on `device`, or with `low_vram` only while they work, and in main memory in
    between. Planes of features are float16 then."""

    device: torch.device
    low_vram: bool = False

    @contextmanager
    def working(self, *modules: torch.nn.Module) -> Iterator[None]:
        """Within it the modules are on the device."""
        if not self.low_vram:
            yield
            return
        try:
            _move(modules, self.device)
            yield
        finally:
            _move(modules, torch.device("cpu"))

    def stored(self, triplane: Triplane) -> Triplane:
        return Triplane(triplane.planes.half()) if self.low_vram else triplane


@torch.inference_mode(False)  # weights that are moved within it could not be trained afterwards
def _move(modules: tuple[torch.nn.Module, ...], device: torch.device) -> None:
    for module in modules:
        module.to(device)


def mesh_from_triplane(
    vqvae: VQVAE,
    triplane: Triplane,
    resolution: int,
    progress: Callable[[int, int], None] | None = None,
) -> Mesh:
    """The surface of the first item, as a closed mesh in the project's frame; `progress` as in
    `extract`."""
    planes = triplane.planes[0]
    with torch.inference_mode():
        return extract(
            OccupancyField(vqvae.occupancy, planes),
            resolution,
            chunk=QUERIES_AT_ONCE[planes.device.type],
            coarse=coarse_cells(planes.shape[-1]),
            device=planes.device,
            progress=progress,
        )


def coarse_cells(plane_side: int) -> int:
    """How fine the coarse lattice has to be for a field over planes of this side."""
    return min(max(plane_side, COARSE), COARSEST)


@torch.inference_mode()
def mesh_from_tokens(
    vqvae: VQVAE,
    tokens: Tokens,
    resolution: int,
    *,
    placement: Placement | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Mesh:
    """Tokens (1, T) -> the mesh. Without a `placement` the model stays where it is."""
    placement = placement or Placement(next(vqvae.parameters()).device)
    with placement.working(vqvae.quantizer, vqvae.decoder):
        triplane = placement.stored(vqvae.decode(Tokens(tokens.ids.to(placement.device))))
    with placement.working(vqvae.occupancy):
        return mesh_from_triplane(vqvae, triplane, resolution, progress)


@torch.inference_mode()
def reconstruct(
    vqvae: VQVAE,
    surface: np.ndarray,
    resolution: int,
    quantize: bool = True,
    placement: Placement | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Mesh, Tokens | None]:
    """Surface points (N, 6) -> mesh and the tokens it was rebuilt from; `quantize=False` bypasses
    the codebook."""
    placement = placement or Placement(next(vqvae.parameters()).device)
    points = torch.from_numpy(np.ascontiguousarray(surface, dtype=np.float32)).to(placement.device)[
        None
    ]
    if quantize:
        with placement.working(vqvae.encoder, vqvae.to_code, vqvae.quantizer):
            tokens = vqvae.tokenize(points)
        return mesh_from_tokens(
            vqvae, tokens, resolution, placement=placement, progress=progress
        ), tokens
    with placement.working(vqvae.encoder, vqvae.to_code, vqvae.decoder):
        triplane = placement.stored(Triplane(vqvae.decoder(vqvae.encode(points))))
    with placement.working(vqvae.occupancy):
        return mesh_from_triplane(vqvae, triplane, resolution, progress), None


@dataclass
class Generated:
    """One shape: its mesh, or None and the `problem` where the field is empty, its tokens (T,), and
    the seconds spent on it: its share of the batch's `condition`, `prepare` (buffers, warm-up,
    capture: next to nothing after the first batch) and `tokens`, and its own `decode` and
    `extract`."""

    mesh: Mesh | None
    tokens: torch.Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    problem: str = ""


class Pipeline:
    """Holds the models in eval mode. Repeated calls do not change it. `decoding` is the engine's
    backend; `token_files` keeps the tokens of what was generated.

    With `low_vram` each model is on the device only while it works, planes are float16, and the
    engine, which copies the GPT's weights, is made anew for each batch. The tokens are the same."""

    def __init__(
        self,
        vqvae: VQVAE,
        model: ConditionalGPT,
        device: torch.device,
        precision: str = "32-true",
        decoding: str = "auto",
        low_vram: bool = False,
    ) -> None:
        self.token_files = TokenFiles(vqvae)
        wanted, found = model.config.tokenizer_fingerprint, self.token_files.tokenizer
        if wanted and wanted != found:
            raise ValueError(
                f"the GPT was trained on the tokens of tokenizer {wanted}, but the tokenizer given is {found}: "
                "give the one that was saved beside it"
            )
        at = torch.device("cpu") if low_vram else device
        self.vqvae, self.model, self.device, self.precision = (
            vqvae.eval().to(at),
            model.eval().to(at),
            device,
            precision,
        )
        self.placement, self.decoding = Placement(device, low_vram), decoding
        self.engine, self.backend = (
            None if low_vram else self._new_engine(),
            decoding,
        )  # the one used, once it has been

    def _new_engine(self) -> Engine:
        with self._autocast():  # which decides the engine's dtype
            return Engine(self.model.gpt, self.decoding)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"
        )

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        gpt_type: str = "i23d",
        *,
        vqvae: str | Path | None = None,
        gpt: str | Path | None = None,
        device: torch.device | None = None,
        precision: str = "32-true",
        decoding: str = "auto",
        low_vram: bool = False,
    ) -> Pipeline:
        """From a model directory with tokenizer/ and gpt_<type>/ (or a Hub id of one), or from the
        two apart. In a directory, a GPT of the type `any` does for each of the others."""
        if vqvae and gpt:
            vqvae_source, gpt_source = vqvae, gpt
        elif model:
            parts = (checkpoint.TOKENIZER,), (gpt_folder(gpt_type), gpt_folder(ANY))
            vqvae_source, gpt_source = (
                given or found
                for given, found in zip(
                    (vqvae, gpt), checkpoint.find_bundle(model, *parts), strict=True
                )
            )
        else:
            raise ValueError(
                "give a model directory with tokenizer/ and gpt_<type>/, or vqvae and gpt apart"
            )
        return cls(
            checkpoint.load_tokenizer(vqvae_source),
            load_gpt(gpt_source),
            device or torch.device("cpu"),
            precision,
            decoding,
            low_vram,
        )

    def source(self, told: Sequence[Image.Image | str]) -> Source:
        """Pictures, or texts, one a row, as `generate` takes them. What the model cannot make use
        of, such as words that it does not know, is a UserWarning. Raises ValueError (a picture
        without an object: ImageError) for what cannot be used, and for a kind that this model is
        not told."""
        kinds = {
            "text" if isinstance(one, str) else "image" if isinstance(one, Image.Image) else ""
            for one in told
        }
        if isinstance(told, str) or kinds not in ({"text"}, {"image"}):
            raise ValueError(
                f"a source is a list of pictures (PIL.Image) or a list of texts, with one a row; got {told!r}"
            )
        (kind,) = kinds
        encoder = self.model.conditioner.encoder(kind)
        if kind == "text":
            prepared = [encoder.words.prepare(text) for text in told]
            rows = [one.ids for one in prepared]
        else:
            prepared = [preprocess(image, self.model.config.image_encoder) for image in told]
            rows = [one.pixels for one in prepared]
        for one in prepared:
            if one.warning:
                warnings.warn(one.warning, stacklevel=2)
        return {kind: torch.from_numpy(np.stack(rows))}

    def sampling(self, told: Collection[str]) -> SamplingConfig:
        """The sampling settings that the model was saved with, for the kinds of condition that it
        is told. Of nothing there is nothing to heed: the code predictor of the null prefix is a mean of all
        shapes, and guidance away from it is none."""
        saved = self.model.config.sampling
        return (
            saved if told else dataclasses.replace(saved, cfg_scale=1.0, code_predictor_scale=0.0)
        )

    def generate(
        self,
        source: Source,
        seeds: list[int],
        *,
        sampling: SamplingConfig | None = None,
        resolution: int = 128,
        progress: Callable[[int, int], None] | None = None,
        extraction_progress: Callable[[int, int], None] | None = None,
    ) -> list[Generated]:
        """What B rows are told -> B shapes (with an empty source, whatever the model likes); row b
        is decided by its own part and seeds[b], and by B only so far as arithmetic rounds
        differently for more rows. An empty field leaves the mesh of its own row None. `progress` is
        called with (tokens done, T), `extraction_progress` as that of `extract`, shape after
        shape."""
        seconds: dict[str, float] = {}
        with torch.inference_mode(), self._autocast():
            tokens = self._sample(
                source, seeds, sampling or self.sampling(source), progress, seconds
            )
            results = []
            for row in tokens.ids:
                spent = {name: value / len(seeds) for name, value in seconds.items()}
                with (
                    timed(spent, "decode"),
                    self.placement.working(self.vqvae.quantizer, self.vqvae.decoder),
                ):
                    triplane = self.placement.stored(self.vqvae.decode(Tokens(row[None])))
                mesh, problem = None, ""
                with timed(spent, "extract"), self.placement.working(self.vqvae.occupancy):
                    try:
                        mesh = mesh_from_triplane(
                            self.vqvae, triplane, resolution, extraction_progress
                        )
                        mesh = drop_small_components(mesh, MIN_COMPONENT_SHARE)
                    except EmptyFieldError as e:
                        problem = str(e)
                results.append(Generated(mesh, row, spent, problem))
        return results

    @torch.inference_mode()
    def tokens(self, source: Source, seeds: list[int], sampling: SamplingConfig) -> Tokens:
        """The tokens that `generate` makes its shapes of."""
        with self._autocast():
            return self._sample(source, seeds, sampling, None, {})

    def record(
        self, result: Generated, seed: int, sampling: SamplingConfig, resolution: int
    ) -> dict[str, Any]:
        """What one shape was made with, and what it took, for the file beside its mesh."""
        return {
            "seed": seed,
            "sampling": dataclasses.asdict(sampling),
            "resolution": resolution,
            "precision": self.precision,
            "decoding": self.backend,
            "low_vram": self.placement.low_vram,
            "seconds": result.seconds,
            **describe_machine(self.device),
        }

    def _sample(
        self,
        source: Source,
        seeds: list[int],
        sampling: SamplingConfig,
        progress: Callable[[int, int], None] | None,
        seconds: dict[str, float],
    ) -> Tokens:
        """The tokens of each row; adds what it takes to `seconds`."""
        gpt, codes = self.model.gpt, self.vqvae.quantizer.codebook.to(self.device)
        with (
            timed(seconds, "condition"),
            self.placement.working(*(self.model.conditioner.encoder(kind) for kind in source)),
        ):
            condition = self.model.condition(
                {kind: shown.to(self.device) for kind, shown in source.items()}, len(seeds)
            )
        with self.placement.working(gpt):
            with timed(seconds, "prepare"):
                engine = self.engine or self._new_engine()
                self.backend = engine.backend
                engine.prepare(len(seeds), sampling, codes)
            with timed(seconds, "tokens"):
                return generate(gpt, condition, sampling, seeds, progress, codes, engine)


class timed:
    """Adds the seconds of a block to `seconds[name]`."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        if torch.cuda.is_available():
            # or the time of a kernel would be booked where its result is first needed
            torch.cuda.synchronize()
        self.seconds[self.name] = (
            self.seconds.get(self.name, 0.0) + time.perf_counter() - self.start
        )
