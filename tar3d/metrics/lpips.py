"""LPIPS (Zhang et al., arXiv 1801.03924, version 0.1) of two images, without torchvision.

Every image goes through the network by itself, so a score does not depend on what else is scored.
Letters: H, W height and width of an image, C channels.
"""

from __future__ import annotations

import functools
import pickle
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tar3d.metrics.networks import full_precision, weights_digest

if TYPE_CHECKING:
    from pathlib import Path

GET_LPIPS = (
    "get them once, on any machine with pip install lpips torchvision: "
    'python -c "import lpips, torch; '
    "torch.save(lpips.LPIPS(net='alex').state_dict(), 'lpips_alex.pth')\"; "
    "then give --lpips-path lpips_alex.pth"
)

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# mean and standard deviation by channel, for pixels in [-1, 1]
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class Stack:
    """The convolutions of a feature network in five stages."""

    # index in torchvision's `features`, stride and padding of each convolution
    stages: tuple[tuple[tuple[int, int, int], ...], ...]
    pooled: tuple[int, ...]  # stages that start with a max pool
    pool: tuple[int, int]  # its kernel and stride
    smallest: int  # least side of an image, in pixels


STACKS = {
    "alex": Stack(
        (((0, 4, 2),), ((3, 1, 2),), ((6, 1, 1),), ((8, 1, 1),), ((10, 1, 1),)), (1, 2), (3, 2), 31
    ),
    "vgg": Stack(
        tuple(
            tuple((i, 1, 1) for i in stage)
            for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
        ),
        (1, 2, 3, 4),
        (2, 2),
        16,
    ),
}
_FIRST_KERNEL = {11: "alex", 3: "vgg"}  # side of the first kernel, in which the two differ


class LPIPS:
    """LPIPS network with an AlexNet or a VGG16, recognised by its weights.

    `weights` have torchvision's names for the features (features.0.weight, ...) and the lpips
    package's for the heads (lin0.model.1.weight, ...). Widths are those of the weights. Raises
    ValueError when they make no network. `identity` names network and weights in reports.
    """

    def __init__(self, weights: dict[str, Tensor], device: torch.device) -> None:
        first = weights.get("features.0.weight")
        self.net = _FIRST_KERNEL.get(
            first.shape[-1] if first is not None and first.ndim == 4 else 0, ""
        )
        if not self.net:
            raise ValueError(
                "it does not hold the features of an AlexNet or a VGG16 (features.0.weight of "
                "11 x 11 or 3 x 3)"
            )
        self._stack = STACKS[self.net]
        convolutions = [
            f"features.{index}" for stage in self._stack.stages for index, _, _ in stage
        ]
        heads = [f"lin{k}.model.1.weight" for k in range(len(self._stack.stages))]
        names = [f"{name}.{part}" for name in convolutions for part in ("weight", "bias")] + heads
        missing = [name for name in names if name not in weights]
        if missing:
            raise ValueError(
                f"it lacks {len(missing)} of the {len(names)} weights of LPIPS {self.net}, "
                f"e.g. {missing[0]}"
            )
        self._weights = {name: weights[name].to(device, torch.float32) for name in names}
        self._check_shapes()
        bad = [name for name, value in self._weights.items() if not bool(value.isfinite().all())]
        if bad:
            raise ValueError(f"its {bad[0]} holds NaN or infinite values")
        self.device = device
        self.identity = f"LPIPS {self.net}, weights {weights_digest(self._weights)}"
        self._shift, self._scale = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE)
        )

    def _check_shapes(self) -> None:
        channels = 3
        for k, stage in enumerate(self._stack.stages):
            for index, _, _ in stage:
                shape = tuple(self._weights[f"features.{index}.weight"].shape)
                if len(shape) != 4 or shape[1] != channels:
                    raise ValueError(
                        f"its features.{index}.weight has the shape {shape}, but {channels} "
                        "channels come in"
                    )
                channels = shape[0]
            head = tuple(self._weights[f"lin{k}.model.1.weight"].shape)
            if head != (1, channels, 1, 1):
                raise ValueError(
                    f"its lin{k}.model.1.weight has the shape {head}, but the {self.net} features "
                    f"before it need {(1, channels, 1, 1)}: the heads are those of another network"
                )

    @torch.inference_mode()
    def compare(
        self, pred: np.ndarray, truth: np.ndarray, foreground: np.ndarray
    ) -> tuple[float, float]:
        """LPIPS of two (H, W, 3) uint8 images, and the mean of its map over the foreground.

        `foreground` is (H, W) bool. The map is the sum of the layers' maps, each upsampled to
        (H, W) (bilinear), as with the lpips package's spatial=True. Raises ValueError for an image
        smaller than the network takes.
        """
        if min(pred.shape[:2]) < self._stack.smallest:
            raise ValueError(
                f"LPIPS with {self.net} needs images of at least {self._stack.smallest} pixels a "
                f"side, got {pred.shape[1]} x {pred.shape[0]}"
            )
        pairs = zip(self.features(pred), self.features(truth), strict=True)
        layers = [
            ((_unit(f) - _unit(g)) ** 2 * self._weights[f"lin{k}.model.1.weight"]).sum(
                1, keepdim=True
            )  # (1, 1, h, w)
            for k, (f, g) in enumerate(pairs)
        ]
        whole = sum(float(layer.double().mean()) for layer in layers)
        size = pred.shape[:2]
        maps = (
            F.interpolate(layer, size=size, mode="bilinear", align_corners=False)
            for layer in layers
        )
        local = functools.reduce(torch.add, maps)[0, 0]  # (H, W)
        return whole, float(local[torch.from_numpy(foreground).to(self.device)].double().mean())

    def features(self, image: np.ndarray) -> list[Tensor]:
        """Outputs (1, C, h, w) of the five stages, after the ReLU, for a (H, W, 3) uint8 image."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
        x = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1  # (1, 3, H, W)
        x = (x - self._shift) / self._scale
        found = []
        with full_precision():
            for k, stage in enumerate(self._stack.stages):
                if k in self._stack.pooled:
                    x = F.max_pool2d(x, *self._stack.pool)
                for index, stride, padding in stage:
                    weight, bias = (
                        self._weights[f"features.{index}.{part}"] for part in ("weight", "bias")
                    )
                    x = F.relu(F.conv2d(x, weight, bias, stride, padding))
                found.append(x)
        return found


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(path: Path, device: torch.device) -> LPIPS:
    """Loads LPIPS from a weight file, or from all weight files of a folder.

    They hold a whole state dict of lpips.LPIPS, or torchvision's AlexNet (or VGG16) and the lpips
    package's heads in two files, as safetensors or as .pth, which is read without running code from
    it. Raises ValueError, with the remedy, for files that cannot be used.
    """
    files = (
        sorted(p for p in path.iterdir() if p.suffix in _WEIGHT_SUFFIXES)
        if path.is_dir()
        else [path]
    )
    if not files or not all(p.is_file() for p in files):
        suffixes = ", ".join(_WEIGHT_SUFFIXES)
        reason = f"holds no {suffixes} file" if path.is_dir() else "does not exist"
        raise ValueError(f"LPIPS weights: {path} {reason}; {GET_LPIPS}")
    weights: dict[str, Tensor] = {}
    for file in files:
        for name, value in _read_weights(file).items():
            name = _canonical(name)
            if name in weights and not (
                weights[name].shape == value.shape and torch.equal(weights[name], value)
            ):
                raise ValueError(
                    f"LPIPS weights: {name} of {file} is also in another file of {path}, with "
                    "other values: leave the files of one network there"
                )
            if name:
                weights[name] = value
    try:
        return LPIPS(weights, device)
    except ValueError as e:
        raise ValueError(f"LPIPS weights: {path} cannot be used: {e}; {GET_LPIPS}") from e


def _canonical(name: str) -> str:
    """The name that `LPIPS` has for a weight of the lpips package or of torchvision.

    For example net.slice2.3.weight -> features.3.weight; "" for a weight that is not needed.
    """
    found = re.fullmatch(r"(?:net\.slice\d+|features)\.(\d+)\.(weight|bias)", name)
    if found:
        return f"features.{found[1]}.{found[2]}"
    return name if re.fullmatch(r"lin\d+\.model\.1\.weight", name) else ""


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        values = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(
            f"LPIPS weights: {file} cannot be read as a file of weights ({reason}); {GET_LPIPS}"
        ) from e
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise ValueError(
            f"LPIPS weights: {file} holds no plain table of tensors; save a state_dict(), "
            f"{GET_LPIPS}"
        )
    return values
