"""Loading pretrained encoders with `transformers`, from a local directory or the Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tar3d.paths import HUB_PREFIX, find_local, hub_id, is_hub_address, looks_local


class NotLoadedError(ValueError):
    """A pretrained encoder cannot be loaded; `found` is the message without the remedy."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found} Remedy: {remedy}")
        self.found = found


def load_pretrained(
    auto_class: Any, source: str, dtype: torch.dtype, name: str
) -> tuple[nn.Module, set[str]]:
    """-> (model, names of its parameters that the files do not hold, at most an unused pooler).

    `auto_class` is one of the Auto classes of `transformers`. `name` is how errors call the
    encoder: "image encoder" has its field image_encoder.model. Raises ValueError when the model
    cannot be found or loaded completely.
    """
    try:
        model, report = auto_class.from_pretrained(
            resolve(source), dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
        raise not_loaded(name, source, name, "config.json and model.safetensors", e) from e
    missing = set(report["missing_keys"])
    needed = sorted(key for key in missing if "pooler" not in key)
    if needed:
        raise ValueError(
            f"{name} {source!r} lacks {len(needed)} of its weights, e.g. {needed[0]}: the files "
            "and their config.json do not belong together"
        )
    return model, missing


def resolve(source: str | Path) -> str:
    """The local directory or Hub id that `transformers` is given for `source`.

    Raises ValueError for a local path that leads nowhere, which must not become a Hub id, and for
    an hf://owner/name that a folder of the same name hides.
    """
    path = find_local(source)
    if is_hub_address(source):
        name = str(hub_id(source))
        if Path(name).is_dir():
            raise ValueError(f"the folder {name} hides the Hub id: run from another folder.")
        return name
    if not path.is_dir() and looks_local(source):
        raise ValueError(f"{path} is not a directory.")
    return str(path)


def not_loaded(
    what: str, source: str | Path, name: str, files: str, error: Exception
) -> NotLoadedError:
    """The error for `what` of the encoder `name` that cannot be loaded.

    `files` are those that a local directory must have.
    """
    if find_local(source).is_dir():
        tried = "as a local directory"
    elif is_hub_address(source):
        tried = "as a Hub id"
    elif looks_local(source):
        tried = f"as a local directory (there is none); {HUB_PREFIX}owner/name is always a Hub id"
    else:
        tried = "as a local directory (there is none) and as a Hub id"
    return NotLoadedError(
        f"{what} {str(source)!r} was not found or cannot be loaded; tried {tried}: "
        f"{str(error).splitlines()[0]}",
        f"give a directory with {files}, or download the model once with a network and then set "
        f"HF_HUB_OFFLINE=1; {name.replace(' ', '_')}.model=trained needs no download",
    )


def weights_hash(model: nn.Module, missing: set[str]) -> str:
    """First 16 hex digits of the SHA-256 over names, shapes and values of a model's tensors.

    Those in `missing`, which the files did not hold, are left out.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not any(m == name or m.endswith("." + name) for m in missing):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()[:16]
