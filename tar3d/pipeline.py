"""Condition -> tokens -> triplane -> mesh, and surface points -> tokens -> mesh. The only library file that knows both
the tokenizer and the GPT.

    pipeline = Pipeline.load("pretrained/tiny")
    mesh = pipeline.generate(pixels, seeds=[0])[0].mesh
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tar3d import checkpoint
from tar3d.condition.encoders import ImageEncoder, build_image_encoder
from tar3d.config import GPTRunConfig, SamplingConfig
from tar3d.contracts import Condition, Mesh, Tokens, Triplane
from tar3d.gpt.engine import Engine
from tar3d.gpt.generate import generate
from tar3d.gpt.loss import token_nll
from tar3d.gpt.model import GPT
from tar3d.mesh.extract import COARSE, EmptyFieldError, drop_small_components, extract
from tar3d.tokenizer.field import OccupancyField
from tar3d.tokenizer.vqvae import VQVAE

GPT_I23D = "gpt_i23d"  # beside checkpoint.TOKENIZER, a sub-folder of a model directory that generates
QUERIES_AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 20}  # what stays in a CPU core's cache (2^17: twice the time), and fills a GPU
COARSEST = 96  # cells of the coarse lattice for planes that resolve more: from 384 cells on it costs next to nothing
MIN_COMPONENT_SHARE = 0.01  # pieces below 1 % of the largest one's volume are floaters of an imperfect field


class I23D(torch.nn.Module):
    """The GPT and its image encoder as one module. A frozen encoder is not among the weights: its source is. Without an
    `encoder` the one that the config names is built."""

    def __init__(self, config: GPTRunConfig, encoder: ImageEncoder | None = None) -> None:
        super().__init__()
        encoder = encoder or build_image_encoder(config.image_encoder)
        if (encoder.num_tokens, encoder.width) != (config.gpt.condition_tokens, config.gpt.condition_width):
            raise ValueError(f"the image encoder gives {encoder.num_tokens} x {encoder.width} embeddings, but "
                             "gpt.condition_tokens x gpt.condition_width is "
                             f"{config.gpt.condition_tokens} x {config.gpt.condition_width}: write "
                             f"gpt.condition_tokens={encoder.num_tokens} gpt.condition_width={encoder.width}")
        self.config = config
        self.gpt = GPT(config.gpt)
        if encoder.frozen:
            self._frozen_encoder = [encoder]  # in a list: neither weights nor optimizers see it
        else:
            self.trained_encoder = encoder

    @property
    def encoder(self) -> ImageEncoder:
        return self._frozen_encoder[0] if hasattr(self, "_frozen_encoder") else self.trained_encoder

    def token_nll(self, tokens: torch.Tensor, source: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        """NLL (B, T) in nats of tokens (B, T), each after those before it; no gradients."""
        with torch.no_grad():
            hidden = self.gpt.hidden(tokens[:, :-1], self.condition(source), dropped)
        return token_nll(hidden, self.gpt.head.weight, tokens)

    def condition(self, source: torch.Tensor) -> Condition:
        """`source` is what a token shard holds: uint8 pixels (B, S, S, 3) for an encoder that is trained along, embeddings
        (B, P, E) for a frozen one."""
        if source.dtype == torch.uint8:
            return self.encoder.to(source.device)(source)
        return Condition.of(source.float())


@dataclass(frozen=True)
class Placement:
    """Where models are: on `device`, or with `low_vram` only while they work, and in main memory in between. Planes of features
    are float16 then."""

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


def mesh_from_triplane(vqvae: VQVAE, triplane: Triplane, resolution: int,
                       progress: Callable[[int, int], None] | None = None) -> Mesh:
    """The surface of the first item, as a closed mesh in the project's frame; `progress` as in `extract`."""
    planes = triplane.planes[0]
    with torch.inference_mode():
        return extract(OccupancyField(vqvae.occupancy, planes), resolution, chunk=QUERIES_AT_ONCE[planes.device.type],
                       coarse=coarse_cells(planes.shape[-1]), device=planes.device, progress=progress)


def coarse_cells(plane_side: int) -> int:
    """How fine the coarse lattice has to be for a field over planes of this side."""
    return min(max(plane_side, COARSE), COARSEST)


@torch.inference_mode()
def reconstruct(vqvae: VQVAE, surface: np.ndarray, resolution: int, quantize: bool = True, placement: Placement | None = None,
                progress: Callable[[int, int], None] | None = None) -> tuple[Mesh, Tokens | None]:
    """Surface points (N, 6) -> mesh and the tokens it was rebuilt from; `quantize=False` bypasses the codebook. Without a
    `placement` the model stays where it is."""
    placement = placement or Placement(next(vqvae.parameters()).device)
    points = torch.from_numpy(np.ascontiguousarray(surface, dtype=np.float32)).to(placement.device)[None]
    tokens = None
    if quantize:
        with placement.working(vqvae.encoder, vqvae.to_code, vqvae.quantizer):
            tokens = vqvae.tokenize(points)
        with placement.working(vqvae.quantizer, vqvae.decoder):
            triplane = vqvae.decode(tokens)
    else:
        with placement.working(vqvae.encoder, vqvae.to_code, vqvae.decoder):
            triplane = Triplane(vqvae.decoder(vqvae.encode(points)))
    triplane = placement.stored(triplane)
    with placement.working(vqvae.occupancy):
        return mesh_from_triplane(vqvae, triplane, resolution, progress), tokens


@dataclass
class Generated:
    """One shape: its mesh, or None and the `problem` where the field is empty, its tokens (T,), and the seconds spent on it: its
    share of the batch's `condition`, `prepare` (buffers, warm-up, capture: next to nothing after the first batch) and
    `tokens`, and its own `decode` and `extract`."""

    mesh: Mesh | None
    tokens: torch.Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    problem: str = ""


class Pipeline:
    """Holds the models in eval mode. Repeated calls do not change it. `decoding` is the engine's backend.

    With `low_vram` each model is on the device only while it works, planes are float16, and the engine, which copies the GPT's
    weights, is made anew for each batch. The tokens are the same."""

    def __init__(self, vqvae: VQVAE, i23d: I23D, device: torch.device, precision: str = "32-true",
                 decoding: str = "auto", low_vram: bool = False) -> None:
        wanted, found = i23d.config.tokenizer_fingerprint, checkpoint.fingerprint(vqvae)
        if wanted and wanted != found:
            raise ValueError(f"the GPT was trained on the tokens of tokenizer {wanted}, but the tokenizer given is {found}: "
                             "give the one that was saved beside it")
        at = torch.device("cpu") if low_vram else device
        self.vqvae, self.i23d, self.device, self.precision = vqvae.eval().to(at), i23d.eval().to(at), device, precision
        self.placement, self.decoding = Placement(device, low_vram), decoding
        self.engine, self.backend = None if low_vram else self._new_engine(), decoding  # the one used, once it has been

    def _new_engine(self) -> Engine:
        with self._autocast():  # which decides the engine's dtype
            return Engine(self.i23d.gpt, self.decoding)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    @classmethod
    def load(cls, model: str | Path | None = None, *, vqvae: str | Path | None = None, gpt: str | Path | None = None,
             device: torch.device | None = None, precision: str = "32-true", decoding: str = "auto",
             low_vram: bool = False) -> Pipeline:
        """From a model directory with tokenizer/ and gpt_i23d/ (or a Hub id of one), or from the two apart."""
        if vqvae and gpt:
            vqvae_source, gpt_source = vqvae, gpt
        elif model:
            folder = checkpoint.find_bundle(model, (checkpoint.TOKENIZER, GPT_I23D))
            vqvae_source, gpt_source = vqvae or folder / checkpoint.TOKENIZER, gpt or folder / GPT_I23D
        else:
            raise ValueError("give a model directory with tokenizer/ and gpt_i23d/, or vqvae and gpt apart")
        device = device or torch.device("cpu")
        config = checkpoint.read_config(gpt_source, GPTRunConfig)
        config.gpt.linear_backend = config.gpt.attention_backend = "auto"  # saved are those of the machine that trained it
        i23d = checkpoint.load_weights(I23D(config), gpt_source)
        return cls(checkpoint.load_tokenizer(vqvae_source), i23d, device, precision, decoding, low_vram)

    @property
    def sampling(self) -> SamplingConfig:
        """The sampling settings that the model was saved with."""
        return self.i23d.config.sampling

    def generate(self, source: torch.Tensor, seeds: list[int], *, sampling: SamplingConfig | None = None, resolution: int = 128,
                 progress: Callable[[int, int], None] | None = None,
                 extraction_progress: Callable[[int, int], None] | None = None) -> list[Generated]:
        """Prepared pictures (B, S, S, 3) uint8, or embeddings (B, P, E) -> B shapes; row b is decided by its own source and
        seeds[b], and by B only so far as arithmetic rounds differently for more rows. An empty field leaves the mesh of its own
        row None. `progress` is called with (tokens done, T), `extraction_progress` as that of `extract`, shape after shape."""
        seconds: dict[str, float] = {}
        with torch.inference_mode(), self._autocast():
            tokens = self._sample(source, seeds, sampling or self.sampling, progress, seconds)
            results = []
            for row in tokens.ids:
                spent = {name: value / len(seeds) for name, value in seconds.items()}
                with timed(spent, "decode"), self.placement.working(self.vqvae.quantizer, self.vqvae.decoder):
                    triplane = self.placement.stored(self.vqvae.decode(Tokens(row[None])))
                mesh, problem = None, ""
                with timed(spent, "extract"), self.placement.working(self.vqvae.occupancy):
                    try:
                        mesh = mesh_from_triplane(self.vqvae, triplane, resolution, extraction_progress)
                        mesh = drop_small_components(mesh, MIN_COMPONENT_SHARE)
                    except EmptyFieldError as e:
                        problem = str(e)
                results.append(Generated(mesh, row, spent, problem))
        return results

    @torch.inference_mode()
    def tokens(self, source: torch.Tensor, seeds: list[int], sampling: SamplingConfig) -> Tokens:
        """The tokens that `generate` makes its shapes of."""
        with self._autocast():
            return self._sample(source, seeds, sampling, None, {})

    def _sample(self, source: torch.Tensor, seeds: list[int], sampling: SamplingConfig,
                progress: Callable[[int, int], None] | None, seconds: dict[str, float]) -> Tokens:
        """The tokens of each row; adds what it takes to `seconds`."""
        gpt, codes = self.i23d.gpt, self.vqvae.quantizer.codebook.to(self.device)
        with timed(seconds, "condition"), self.placement.working(self.i23d.encoder):
            condition = self.i23d.condition(source.to(self.device))
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
            torch.cuda.synchronize()  # or the time of a kernel would be booked where its result is first needed
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.start
