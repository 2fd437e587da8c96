"""Condition -> tokens -> triplane -> mesh, and surface points -> tokens -> mesh.

The only library file that knows both the tokenizer and the GPT:

    pipeline = Pipeline.load("pretrained/tiny")
    conditions = pipeline.prepare([Image.open("chair.png")])
    mesh = pipeline.generate(conditions.inputs, seeds=[0])[0].mesh
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tar3d import checkpoint
from tar3d.conditional_gpt import ConditionalGPT, gpt_folder, load_gpt
from tar3d.config import ANY
from tar3d.contracts import Tokens, Triplane
from tar3d.data.formats.token_file import TokenFiles
from tar3d.gpt.engine import Engine
from tar3d.gpt.generate import generate
from tar3d.layouts import layout_class
from tar3d.mesh.extract import EmptyFieldError, drop_small_components, extract
from tar3d.placement import Placement
from tar3d.prepared_conditions import PreparedConditions, prepare_conditions
from tar3d.runtime import compute_dtype, describe_machine, inference_precision
from tar3d.tokenizer.field import OccupancyField

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from tar3d.condition.conditioner import ConditionInputs
    from tar3d.config import SamplingConfig
    from tar3d.contracts import Mesh
    from tar3d.tokenizer.vqvae import VQVAE

# Pieces below 1 % of the largest one's volume are floaters of an imperfect field.
MIN_COMPONENT_SHARE = 0.01


def queries_at_once(device: torch.device) -> int:
    """Field queries of one call: what fits a CPU core's cache, or what fills a GPU."""
    return 1 << (14 if device.type == "cpu" else 20)  # a CPU takes twice the time at 2^17


def mesh_from_triplane(
    vqvae: VQVAE,
    triplane: Triplane,
    resolution: int,
    progress: Callable[[int, int], None] | None = None,
) -> Mesh:
    """The surface of the first item, as a closed mesh in the project's frame.

    `progress` is that of `extract`; raises EmptyFieldError where there is no surface.
    """
    planes = triplane.planes[0]
    with torch.inference_mode():
        return extract(
            OccupancyField(vqvae.occupancy, planes),
            resolution,
            chunk=queries_at_once(planes.device),
            device=planes.device,
            progress=progress,
        )


def mesh_from_codes(
    vqvae: VQVAE,
    tokens: Tokens,
    resolution: int,
    placement: Placement,
    progress: Callable[[int, int], None] | None,
    seconds: dict[str, float],
) -> Mesh:
    """The mesher "vqvae": tokens are codes of the tokenizer, decoded to a field with a surface."""
    with placement.timed(seconds, "decode"), placement.on_device(vqvae.quantizer, vqvae.decoder):
        ids = tokens.ids.to(placement.device)
        triplane = placement.to_stored_dtype(vqvae.decode(Tokens(ids, tokens.layout)))
    with placement.timed(seconds, "extract"), placement.on_device(vqvae.occupancy):
        return mesh_from_triplane(vqvae, triplane, resolution, progress)


# What a layout's `mesher` names; each takes the arguments of `mesh_from_codes`.
MESHERS: dict[str, Callable[..., Mesh]] = {"vqvae": mesh_from_codes}


def mesher_of(layout: str) -> Callable[..., Mesh]:
    """The mesher of a layout's tokens; ValueError where there is none."""
    name = layout_class(layout).mesher
    if name not in MESHERS:
        raise ValueError(
            f"no mesher {name!r} reads tokens of the layout {layout!r}, allowed are "
            f"{', '.join(MESHERS)}: add it to MESHERS in tar3d/pipeline.py"
        )
    return MESHERS[name]


@torch.inference_mode()
def mesh_from_tokens(
    vqvae: VQVAE,
    tokens: Tokens,
    resolution: int,
    *,
    placement: Placement | None = None,
    progress: Callable[[int, int], None] | None = None,
    seconds: dict[str, float] | None = None,
) -> Mesh:
    """The mesh of tokens (1, T), by the mesher that their layout names.

    Without a `placement` the model stays where it is. The time of each step is added to `seconds`.
    """
    placement = placement or Placement(next(vqvae.parameters()).device)
    seconds = {} if seconds is None else seconds
    return mesher_of(tokens.layout)(vqvae, tokens, resolution, placement, progress, seconds)


@torch.inference_mode()
def reconstruct(
    vqvae: VQVAE,
    surface: np.ndarray,
    resolution: int,
    quantize: bool = True,
    placement: Placement | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Mesh, Tokens | None]:
    """The mesh rebuilt from surface points (N, 6), and its tokens (1, T).

    With `quantize=False` the codebook is bypassed, and there are no tokens.
    """
    placement = placement or Placement(next(vqvae.parameters()).device)
    array = np.ascontiguousarray(surface, dtype=np.float32)
    points = torch.from_numpy(array).to(placement.device)[None]
    if quantize:
        with placement.on_device(vqvae.encoder, vqvae.to_code, vqvae.quantizer):
            tokens = vqvae.tokenize(points)
        mesh = mesh_from_tokens(vqvae, tokens, resolution, placement=placement, progress=progress)
        return mesh, tokens
    with placement.on_device(vqvae.encoder, vqvae.to_code, vqvae.decoder):
        triplane = placement.to_stored_dtype(Triplane(vqvae.decoder(vqvae.encode(points))))
    with placement.on_device(vqvae.occupancy):
        return mesh_from_triplane(vqvae, triplane, resolution, progress), None


@dataclass
class GeneratedShape:
    """One shape: its mesh, its tokens (T,), and the seconds spent on it.

    Where the field is empty, `mesh` is None and `problem` says so. `seconds` holds its share of the
    batch's `condition`, `prepare` (buffers, warm-up, capture: next to nothing after the first
    batch) and `tokens`, and its own `decode` and `extract`.
    """

    mesh: Mesh | None
    tokens: torch.Tensor
    seconds: dict[str, float] = field(default_factory=dict)
    problem: str = ""


class Pipeline:
    """Generates shapes; holds the models in eval mode, and no call changes them.

    `precision` is that of matrix products: 32-true, bf16-mixed, 16-mixed, or auto (see
    `inference_precision`; the attribute holds what it came to). `decoding` is the engine's backend;
    `token_files` reads and writes the tokens of shapes. With `low_vram` each model is on the device
    only while it works, feature planes are float16, and the engine, which copies the GPT's weights,
    is built again for each batch. The tokens are the same.
    """

    def __init__(
        self,
        vqvae: VQVAE,
        model: ConditionalGPT,
        device: torch.device,
        precision: str = "auto",
        decoding: str = "auto",
        low_vram: bool = False,
    ) -> None:
        mesher_of(model.config.gpt.layout)  # raises where no mesher reads the GPT's tokens
        self.token_files = TokenFiles(vqvae)
        expected, found = model.config.tokenizer_fingerprint, self.token_files.tokenizer
        if expected and expected != found:
            raise ValueError(
                f"the GPT was trained on the tokens of tokenizer {expected}, but the tokenizer "
                f"given is {found}: give the one that was saved beside it"
            )
        start = torch.device("cpu") if low_vram else device
        self.vqvae, self.model = vqvae.eval().to(start), model.eval().to(start)
        self.device, self.precision = device, inference_precision(precision, device)
        self.placement, self.decoding = Placement(device, low_vram), decoding
        self.engine = None if low_vram else self._new_engine()
        self.backend = decoding  # the engine's own choice, once it has decoded

    def _new_engine(self) -> Engine:
        with self._autocast():  # sets the engine's dtype
            return Engine(self.model.gpt, self.decoding)

    def _autocast(self) -> torch.autocast:
        dtype = compute_dtype(self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    @classmethod
    def load(  # noqa: PLR0913  each an option of its own
        cls,
        model: str | Path | None = None,
        gpt_type: str = "i23d",
        *,
        vqvae: str | Path | None = None,
        gpt: str | Path | None = None,
        encoders: Mapping[str, str | Path | None] | None = None,
        device: torch.device | None = None,
        precision: str = "auto",
        decoding: str = "auto",
        low_vram: bool = False,
    ) -> Pipeline:
        """A pipeline from a model directory or Hub id, or from `vqvae` and `gpt` apart.

        A directory holds tokenizer/ and gpt_<type>/; a GPT of the type `any` serves as each of the
        other types. `encoders` says where the frozen encoder of a modality is, if not where it was
        in the training.
        """
        if vqvae is None or gpt is None:
            if not model:
                raise ValueError(
                    "give a model directory with tokenizer/ and gpt_<type>/, or vqvae and gpt apart"
                )
            parts = (checkpoint.TOKENIZER,), (gpt_folder(gpt_type), gpt_folder(ANY))
            own_vqvae, own_gpt = checkpoint.find_bundle(model, *parts)
            vqvae, gpt = vqvae or own_vqvae, gpt or own_gpt
        return cls(
            checkpoint.load_tokenizer(vqvae),
            load_gpt(gpt, encoders),
            device or torch.device("cpu"),
            precision,
            decoding,
            low_vram,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of a shape."""
        return self.model.config.gpt.num_tokens

    def prepare(
        self,
        conditions: Sequence[Image.Image | str | None],
        *,
        preview_size: int | None = None,
        warn: bool = True,
        any_text: bool = False,
    ) -> PreparedConditions:
        """Images, texts, or None for unconditional shapes, one a row, as the encoders take them.

        What the model cannot make use of, such as words that it does not know, is a UserWarning
        unless `warn` is False; the rows hold it in any case. Raises ValueError for conditions that
        cannot be used (an image without an object: ImageError; unless `any_text`, a text that is
        empty or says nothing that the model knows), and for a modality that this model was not
        trained on.
        """
        prepared = prepare_conditions(self.model, conditions, preview_size, any_text=any_text)
        for row in prepared.rows:
            if warn and row.warning:
                warnings.warn(row.warning, stacklevel=2)
        return prepared

    def source(self, conditions: Sequence[Image.Image | str | None]) -> ConditionInputs:
        """The condition inputs of `prepare`, under the name of earlier versions."""
        return self.prepare(conditions).inputs

    def sampling(self, modalities: Collection[str]) -> SamplingConfig:
        """The sampling settings saved with the model, for conditions of these modalities.

        Unconditional generation has neither guidance nor code predictor: guidance away from the
        null prefix is none, and the code predictor's output there is a mean of all shapes. Raises
        ValueError for a modality that the model was not trained on.
        """
        for modality in modalities:
            self.model.encoder(modality)
        saved = self.model.config.sampling
        if modalities:
            return saved
        return dataclasses.replace(saved, cfg_scale=1.0, code_predictor_scale=0.0)

    def generate(
        self,
        inputs: ConditionInputs,
        seeds: list[int],
        *,
        sampling: SamplingConfig | None = None,
        resolution: int = 128,
        progress: Callable[[int, int], None] | None = None,
        extraction_progress: Callable[[int, int], None] | None = None,
    ) -> list[GeneratedShape]:
        """B shapes of B rows of condition inputs; of an empty dict, unconditional shapes.

        Row b is decided by its own part of `inputs` and seeds[b], and by B only so far as
        arithmetic rounds differently for more rows. An empty field leaves the mesh of its own row
        None. `progress` is called with (tokens done, T), `extraction_progress` as that of
        `extract`, shape after shape.
        """
        seconds: dict[str, float] = {}
        sampling = sampling or self.sampling(inputs)
        with torch.inference_mode(), self._autocast():
            tokens = self._sample(inputs, seeds, sampling, progress, seconds)
            share = {name: value / len(seeds) for name, value in seconds.items()}
            return [
                self._decode(
                    Tokens(row[None], tokens.layout), dict(share), resolution, extraction_progress
                )
                for row in tokens.ids
            ]

    @torch.inference_mode()
    def tokens(self, inputs: ConditionInputs, seeds: list[int], sampling: SamplingConfig) -> Tokens:
        """The tokens from which `generate` makes its shapes."""
        with self._autocast():
            return self._sample(inputs, seeds, sampling, None, {})

    def record(
        self, shape: GeneratedShape, seed: int, sampling: SamplingConfig, resolution: int
    ) -> dict[str, Any]:
        """Settings and times of one shape, for the file beside its mesh."""
        return {
            "seed": seed,
            "sampling": dataclasses.asdict(sampling),
            "resolution": resolution,
            "precision": self.precision,
            "decoding": self.backend,
            "low_vram": self.placement.low_vram,
            "seconds": shape.seconds,
            **describe_machine(self.device),
        }

    def _sample(
        self,
        inputs: ConditionInputs,
        seeds: list[int],
        sampling: SamplingConfig,
        progress: Callable[[int, int], None] | None,
        seconds: dict[str, float],
    ) -> Tokens:
        """The tokens of each row; adds the time of each step to `seconds`."""
        gpt, codebook = self.model.gpt, self.vqvae.quantizer.codebook.to(self.device)
        encoders = [self.model.encoder(modality) for modality in inputs]
        with self.placement.timed(seconds, "condition"), self.placement.on_device(*encoders):
            on_device = {name: values.to(self.device) for name, values in inputs.items()}
            condition = self.model.condition(on_device, len(seeds))
        with self.placement.on_device(gpt):
            with self.placement.timed(seconds, "prepare"):
                engine = self.engine or self._new_engine()
                self.backend = engine.backend
                engine.prepare(len(seeds), sampling, codebook)
            with self.placement.timed(seconds, "tokens"):
                return generate(gpt, condition, sampling, seeds, progress, codebook, engine)

    def _decode(
        self,
        tokens: Tokens,
        seconds: dict[str, float],
        resolution: int,
        progress: Callable[[int, int], None] | None,
    ) -> GeneratedShape:
        """The shape of tokens (1, T); adds the time of each step to `seconds`."""
        try:
            mesh = mesh_from_tokens(
                self.vqvae,
                tokens,
                resolution,
                placement=self.placement,
                progress=progress,
                seconds=seconds,
            )
            with self.placement.timed(seconds, "extract"):
                mesh = drop_small_components(mesh, MIN_COMPONENT_SHARE)
        except EmptyFieldError as e:
            return GeneratedShape(None, tokens.ids[0], seconds, str(e))
        return GeneratedShape(mesh, tokens.ids[0], seconds)
