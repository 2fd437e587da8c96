"""Typed configuration: dataclasses hold every default once, files and overrides change values.

`load(VQVAEConfig, "configs/vqvae3d.yaml", ["train.batch_size=4"])` returns a checked dataclass; an
unknown key, a value of the wrong type or a contradiction is a ValueError that names it. Precedence,
from low to high: the dataclass, a base such as the named GPT size, the YAML file, `key=value`
overrides and flags. Each dataclass is in the file that is named after what it configures; this
package imports no torch, so it can be read anywhere.
"""

from tar3d.config.base import from_mapping, load, read_values, save, to_mapping, with_defaults
from tar3d.config.conditions import (
    ANY,
    CONDITIONS,
    GPT_TYPES,
    ImageEncoderConfig,
    TextEncoderConfig,
)
from tar3d.config.data import PointSamplingConfig, PrepareConfig, ToyConfig, ViewConfig
from tar3d.config.evaluation import ALIGNMENTS, DEFAULT_CLIP, EvalProtocol
from tar3d.config.flags import add_config_flags, config_from_flags, help_texts
from tar3d.config.gpt import GPT_SIZES, GPTConfig, gpt_config, size_values
from tar3d.config.optimizer import OptimConfig
from tar3d.config.runs import GPTRunConfig, VQVAEConfig, load_gpt_run, size_note
from tar3d.config.sampling import (
    DECODING_BACKENDS,
    SamplingConfig,
    add_sampling_flags,
    sampling_from_flags,
)
from tar3d.config.tokenizer import TokenizerConfig
from tar3d.config.training import (
    ACTIVATION_CHECKPOINTING,
    AugmentConfig,
    GPTTrainConfig,
    TrainConfig,
    VQVAETrainConfig,
)

__all__ = [
    "ACTIVATION_CHECKPOINTING",
    "ALIGNMENTS",
    "ANY",
    "CONDITIONS",
    "DECODING_BACKENDS",
    "DEFAULT_CLIP",
    "GPT_SIZES",
    "GPT_TYPES",
    "AugmentConfig",
    "EvalProtocol",
    "GPTConfig",
    "GPTRunConfig",
    "GPTTrainConfig",
    "ImageEncoderConfig",
    "OptimConfig",
    "PointSamplingConfig",
    "PrepareConfig",
    "SamplingConfig",
    "TextEncoderConfig",
    "TokenizerConfig",
    "ToyConfig",
    "TrainConfig",
    "VQVAEConfig",
    "VQVAETrainConfig",
    "ViewConfig",
    "add_config_flags",
    "add_sampling_flags",
    "config_from_flags",
    "from_mapping",
    "gpt_config",
    "help_texts",
    "load",
    "load_gpt_run",
    "read_values",
    "sampling_from_flags",
    "save",
    "size_note",
    "size_values",
    "to_mapping",
    "with_defaults",
]
