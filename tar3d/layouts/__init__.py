"""The layouts of a token sequence, by the name that `gpt.layout` and `Tokens` give them.

A layout says what a sequence is made of; the GPT, its engine and `Tokens` know sequences through it
alone. A new one is one file with a subclass of `Layout` and one line in `LAYOUTS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tar3d.layouts.triplane import TriplaneLayout

if TYPE_CHECKING:
    from tar3d.config import GPTConfig
    from tar3d.layouts.base import Layout

LAYOUTS: dict[str, type[Layout]] = {
    "triplane": TriplaneLayout,
}


def layout_class(name: str, option: str = "the layout") -> type[Layout]:
    """The class of that name; raises ValueError for an unknown one, which `option` gave."""
    if name not in LAYOUTS:
        raise ValueError(f"{option} is {name!r}, allowed are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def build_layout(config: GPTConfig) -> Layout:
    """The layout of a GPT's sequences; raises ValueError for options that it does not have."""
    return layout_class(config.layout, "gpt.layout")(config)
