"""Model directories: strict, atomic, self-explaining.

A model directory holds model.safetensors, config.yaml, metrics.json and README.md, and loads from
itself alone: a local path or a Hub id. Weights above a size are split into several files, named and
indexed as those of the Hub's large models are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tar3d import config as configuration
from tar3d.config import VQVAEConfig
from tar3d.paths import HUB_PREFIX, find_local, hub_id, is_hub_address
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.upgrade import upgrade_parameters

T = TypeVar("T")
WEIGHTS, CONFIG, METRICS, README = "model.safetensors", "config.yaml", "metrics.json", "README.md"
INDEX, SPLIT = "model.safetensors.index.json", "model{suffix}.safetensors"
LARGEST_FILE = 5_000_000_000  # bytes, as the Hub's own models are split
TOKEN_PARTS = ("encoder.", "to_code.", "quantizer.codebook")
TOKENIZER = "tokenizer"  # sub-folder of a directory that holds several models


def save_model(
    folder: str | Path,
    module: nn.Module,
    config: object,
    metrics: dict,
    readme: str,
    dtype: torch.dtype = torch.float32,
    largest_file: int = LARGEST_FILE,
) -> Path:
    """Writes a model directory; `dtype` is how floating tensors are stored (they load as float32).
    Weights of more bytes than `largest_file` are split; each of their files says which weights it
    is of, so that an interrupted save is noticed."""
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: (v.to(dtype) if v.is_floating_point() else v).contiguous().cpu()
        for k, v in module.state_dict().items()
    }
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern=SPLIT, max_shard_size=largest_file
    )
    mark = {"weights": fingerprint(module)} if split.is_sharded else None
    for name, keys in split.filename_to_tensors.items():
        partial = folder / f".{name}.part"
        save_file({key: tensors[key] for key in keys}, partial, metadata=mark)
        partial.chmod(
            folder.stat().st_mode & 0o666
        )  # safetensors makes files that only their owner can read
        os.replace(partial, folder / name)
    if split.is_sharded:
        index = {"metadata": {**split.metadata, **mark}, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for path in weight_files(folder):
        if path.name not in split.filename_to_tensors:  # of an earlier save
            path.unlink()
    configuration.save(config, folder / CONFIG)
    (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    (folder / README).write_text(readme.rstrip() + "\n", encoding="utf-8")
    return folder


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def copy_model(source: Path, target: Path) -> None:
    """Another model directory with the same files."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (
        *weight_files(source),
        *(source / name for name in (INDEX, CONFIG, METRICS, README)),
    ):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def find_model(source: str | Path) -> Path:
    """The local folder of a model directory given by path, or by Hub id (downloaded, or from the
    cache when offline)."""
    path = _local_folder(source)
    missing = [
        name
        for name, there in ((WEIGHTS, _has_weights(path)), (CONFIG, (path / CONFIG).is_file()))
        if not there
    ]
    if missing:
        have = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise ValueError(
            f"{path} is not a model directory: {' and '.join(missing)} missing, it holds {have}"
        )
    return path


def _local_folder(source: str | Path) -> Path:
    """`source` if it is a folder, else the folder that the Hub id `source` is downloaded to."""
    path = find_local(source)
    if path.is_dir() and not is_hub_address(source):
        return path
    name = hub_id(source)
    if name is None:
        raise ValueError(
            f"no model at {path}, which was taken for a local path: give a model directory (with "
            f"{WEIGHTS} and {CONFIG}) or a Hub id like owner/name; {HUB_PREFIX}owner/name is always "
            "a Hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        tried = "was" if is_hub_address(source) else "is not a local folder, and was"
        raise ValueError(
            f"{source} {tried} looked up on the Hub, which did not deliver it ({type(e).__name__}): "
            f"check the name and the network, or give a local model directory, as in ./{name}"
        ) from e


def find_bundle(source: str | Path, *parts: tuple[str, ...]) -> list[Path]:
    """The model directories in a directory (path or Hub id): for each part the first of its names
    that is there."""
    path = _local_folder(source)
    found = [
        next((path / name for name in names if _has_weights(path / name)), None) for names in parts
    ]
    if missing := [names for names, folder in zip(parts, found, strict=True) if folder is None]:
        have = (
            ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir() and _has_weights(p)))
            or "none"
        )
        lacking = " and ".join(
            " or ".join(f"{name}/{WEIGHTS}" for name in names) for names in missing
        )
        raise ValueError(
            f"{path} lacks {lacking}; of models it holds {have}: "
            f"give a directory that holds {', '.join(names[0] for names in parts)}"
        )
    return found


def read_config(source: str | Path, cls: type[T]) -> T:
    return configuration.load(cls, find_model(source) / CONFIG)


def load_weights(
    module: nn.Module, source: str | Path, anew: tuple[str, ...] = (), only: tuple[str, ...] = ("",)
) -> nn.Module:
    """Fills `module` from a model directory, strictly: a missing, surplus or misshapen tensor is a
    ValueError. But tensors whose names begin with one of `anew`, or with none of `only`, stay as
    they are."""
    path = find_model(source)
    path /= INDEX if (path / INDEX).is_file() else WEIGHTS
    tensors = upgrade_parameters(_read_weights(path))
    wanted, tensors = (
        {
            name: tensor
            for name, tensor in named.items()
            if name.startswith(only) and not name.startswith(anew)
        }
        for named in (module.state_dict(), tensors)
    )
    wrong = [f"{k} is missing" for k in wanted if k not in tensors]
    wrong += [f"{k} is not part of this model" for k in tensors if k not in wanted]
    wrong += [
        f"{k} is {tuple(tensors[k].shape)}, not {tuple(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{path} does not fit its model: {'; '.join(wrong[:3])}{more}")
    module.load_state_dict(
        {k: v.to(wanted[k].dtype) for k, v in tensors.items()}, strict=not anew and only == ("",)
    )
    return module


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of all files that an index names."""
    try:
        if path.name == WEIGHTS:
            return load_file(path)
        index = json.loads(path.read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(index["weight_map"].values())):
            path = path.with_name(Path(name).name)
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("weights") != index["metadata"].get("weights"):
                    raise ValueError(
                        f"{path} belongs to other weights than {INDEX}: a save was interrupted, or files of two "
                        "models were mixed; fetch or make the model again"
                    )
                tensors |= {key: file.get_tensor(key) for key in file.keys()}
        return tensors
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as e:
        raise ValueError(
            f"{path} cannot be read ({e}): the file is damaged or incomplete, fetch or make it again"
        ) from e


def find_tokenizer(source: str | Path) -> Path:
    """The local folder of a tokenizer, given its model directory, one that holds it as tokenizer/,
    or the Hub id of either."""
    folder = _local_folder(source)
    nested = folder / TOKENIZER
    return find_model(nested if nested.is_dir() else folder)


def load_tokenizer(source: str | Path) -> VQVAE:
    """The tokenizer that `find_tokenizer` finds, in eval mode."""
    folder = find_tokenizer(source)
    config = read_config(folder, VQVAEConfig)
    if config.train.stage == "ae":
        raise ValueError(
            f"{folder} is an autoencoder, whose codebook is not trained: continue it with python train_vqvae.py "
            f"--init {folder} train.stage=vq"
        )
    return load_weights(VQVAE(config.tokenizer), folder).eval()


def token_fingerprint(vqvae: VQVAE) -> str:
    """`fingerprint` of what decides which tokens a shape gets: encoder and codebook. Tokenizers
    that differ in their decoders alone (`train.stage=decoder`) speak the same tokens."""
    return fingerprint(vqvae, TOKEN_PARTS)


def fingerprint(module: nn.Module, parts: tuple[str, ...] = ("",)) -> str:
    """A short hash of what a module computes with: names, shapes and float16 values of its tensors,
    of those whose names begin with one of `parts`.

    Float16, so that weights stored in half precision keep the fingerprint they were stored with.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not name.startswith(parts):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.detach().cpu()
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous().numpy().tobytes()
