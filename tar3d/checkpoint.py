"""Model directories: saving and loading, strict about names and shapes of weights.

A model directory holds model.safetensors, config.yaml, metrics.json and README.md, and loads from
itself alone: from a local path or a Hub id. Weights above a size are split into several files,
named and indexed as those of the Hub's large models are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tar3d import config as configuration
from tar3d.config import GPTRunConfig, VQVAEConfig
from tar3d.paths import hub_id, is_hub_address, local_model
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.upgrade import upgrade_model_config, upgrade_parameters

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
WEIGHTS, CONFIG, METRICS, README = "model.safetensors", "config.yaml", "metrics.json", "README.md"
INDEX, SPLIT = "model.safetensors.index.json", "model{suffix}.safetensors"
LARGEST_FILE = 5_000_000_000  # bytes, as the Hub's own models are split
# Parts of the tokenizer that decide which tokens a shape gets.
TOKEN_PARTS = ("encoder.", "to_code.", "quantizer.codebook")
# The config of each kind of model, its section that no other kind has, and the model in words.
KINDS: dict[type | None, tuple[str, str]] = {
    VQVAEConfig: ("tokenizer", "a tokenizer (made by train_vqvae.py)"),
    GPTRunConfig: ("gpt", "a GPT (made by train_gpt.py)"),
    None: ("categories", "an evaluator"),
}
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
    """Writes a model directory, each file atomically.

    `dtype` is how floating tensors are stored; they load as float32. Weights of more bytes than
    `largest_file` are split; each file then says which weights it belongs to, so that an
    interrupted save is noticed.
    """
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
    mark = {"weights": fingerprint(module)} if split.is_sharded else {}
    for name, keys in split.filename_to_tensors.items():
        partial = folder / f".{name}.part"
        save_file({key: tensors[key] for key in keys}, partial, metadata=mark or None)
        # safetensors makes files that only their owner can read.
        partial.chmod(folder.stat().st_mode & 0o666)
        partial.replace(folder / name)
    if split.is_sharded:
        index = {"metadata": {**split.metadata, **mark}, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for path in weight_files(folder):
        if path.name not in split.filename_to_tensors:  # left by an earlier save
            path.unlink()
    configuration.save(config, folder / CONFIG)
    (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    (folder / README).write_text(readme.rstrip() + "\n", encoding="utf-8")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a model directory."""
    return sorted(folder.glob("model*.safetensors"))


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def copy_model(source: Path, target: Path) -> None:
    """Copies the files of a model directory to another one."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (
        *weight_files(source),
        *(source / name for name in (INDEX, CONFIG, METRICS, README)),
    ):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def find_model(source: str | Path) -> Path:
    """The local folder of a model directory given by path or Hub id.

    A Hub id is downloaded, or taken from the cache when offline. A shipped model is found from any
    working directory. Raises ValueError when it is not there or is no model directory.
    """
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
    path, name = local_model(source), hub_id(source)
    if path is not None:
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(str(name)))
    except GatedRepoError as e:
        reason = "its owner lets in only those who asked on its page and ran `hf auth login`"
        raise _not_delivered(source, reason) from e
    except RepositoryNotFoundError as e:
        raise _not_delivered(source, "there is no model of this name that you may read") from e
    except LocalEntryNotFoundError as e:
        raise _not_delivered(source, "it cannot be reached, nor is it in the local cache") from e
    except (HfHubHTTPError, OSError) as e:
        raise _not_delivered(source, str(e).strip().splitlines()[0]) from e


def _not_delivered(source: str | Path, reason: str) -> ValueError:
    """The error for a Hub id that the Hub does not deliver."""
    tried = "was" if is_hub_address(source) else "is not a local folder, and was"
    return ValueError(
        f"{source} {tried} looked up on the Hub, which did not deliver it: {reason}; check the "
        f"name and the network, or give a local model directory, as in ./{hub_id(source)}"
    )


def find_bundle(source: str | Path, *parts: tuple[str, ...]) -> list[Path]:
    """The model directories in a directory that is given by path or Hub id.

    Each part may have several names; the first that exists is taken. Raises ValueError when a part
    has none.
    """
    path = _local_folder(source)
    found: list[Path] = []
    missing: list[str] = []
    for names in parts:
        folders = [path / name for name in names if _has_weights(path / name)]
        found += folders[:1]
        missing += [] if folders else [" or ".join(f"{name}/{WEIGHTS}" for name in names)]
    if missing:
        have = sorted(p.name for p in path.iterdir() if p.is_dir() and _has_weights(p))
        raise ValueError(
            f"{path} lacks {' and '.join(missing)}; of models it holds "
            f"{', '.join(have) or 'none'}: "
            f"give a directory that holds {', '.join(names[0] for names in parts)}"
        )
    return found


def read_config(source: str | Path, cls: type[T]) -> T:
    """The config of a model directory, as the dataclass `cls`.

    Raises ValueError for a model of another kind, and for a config that cannot be read.
    """
    path = find_model(source) / CONFIG
    wanted, found = KINDS.get(cls, KINDS[None]), _kind_of(path)
    if found and found != wanted:
        raise ValueError(
            f"{path.parent} is the model directory of {found[1]}, but that of {wanted[1]} is needed"
        )
    values = upgrade_model_config(configuration.read_values(path))
    return configuration.from_mapping(cls, values, str(path))


def _kind_of(config: Path) -> tuple[str, str] | None:
    """The entry of KINDS that a config.yaml is of, by its sections; None if it is of none."""
    lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((kind for kind in KINDS.values() if f"{kind[0]}:" in lines), None)


def load_weights(
    module: M, source: str | Path, skip: tuple[str, ...] = (), only: tuple[str, ...] = ("",)
) -> M:
    """Fills `module` from a model directory, strictly, and returns it.

    Tensors whose names begin with one of `skip`, or with none of `only`, stay as they are. Raises
    ValueError for a missing, surplus or misshapen tensor; nothing is then loaded.
    """
    path = find_model(source)
    path /= INDEX if (path / INDEX).is_file() else WEIGHTS
    stored = upgrade_parameters(_read_weights(path))
    own, tensors = (
        {
            name: tensor
            for name, tensor in named.items()
            if name.startswith(only) and not name.startswith(skip)
        }
        for named in (module.state_dict(), stored)
    )
    wrong = [f"{k} is missing" for k in own if k not in tensors]
    wrong += [f"{k} is not part of this model" for k in tensors if k not in own]
    wrong += [
        f"{k} is {tuple(tensors[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{path} does not fit its model: {'; '.join(wrong[:3])}{more}")
    module.load_state_dict(
        {k: v.to(own[k].dtype) for k, v in tensors.items()}, strict=not skip and only == ("",)
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
                        f"{path} belongs to other weights than {INDEX}: a save was interrupted, "
                        "or files of two models were mixed; fetch or make the model again"
                    )
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return tensors
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as e:
        raise ValueError(
            f"{path} cannot be read ({e}): the file is damaged or incomplete, fetch or make it "
            "again"
        ) from e


def find_tokenizer(source: str | Path) -> Path:
    """The local folder of a tokenizer.

    `source` is its model directory, a directory that holds it as tokenizer/, or the Hub id of
    either.
    """
    folder = _local_folder(source)
    nested = folder / TOKENIZER
    return find_model(nested if nested.is_dir() else folder)


def load_tokenizer(source: str | Path) -> VQVAE:
    """The tokenizer that `find_tokenizer` finds, in eval mode."""
    folder = find_tokenizer(source)
    config = read_config(folder, VQVAEConfig)
    if config.train.stage == "ae":
        raise ValueError(
            f"{folder} is an autoencoder, whose codebook is not trained: continue it with "
            f"python train_vqvae.py --init {folder} train.stage=vq"
        )
    return load_weights(VQVAE(config.tokenizer), folder).eval()


def token_fingerprint(vqvae: VQVAE) -> str:
    """The `fingerprint` of what decides which tokens a shape gets: encoder and codebook.

    Tokenizers that differ in their decoders alone (`train.stage=decoder`) make the same tokens.
    """
    return fingerprint(vqvae, TOKEN_PARTS)


def fingerprint(module: nn.Module, parts: tuple[str, ...] = ("",)) -> str:
    """A short hash of names, shapes and float16 values of a module's tensors.

    Only of those whose names begin with one of `parts`. Float16, so that weights stored in half
    precision keep the fingerprint that they were stored with.
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
