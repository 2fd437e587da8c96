"""The bytes of a shape's sample file. `tar3d.data.datasets.shapes` has the format, reads it and needs torch
for that; whoever only makes samples does without."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tar3d.contracts import ShapeSamples


def sample_bytes(samples: ShapeSamples) -> bytes:
    """The same samples give the same bytes."""
    content = io.BytesIO()
    np.savez(
        content,
        surface=samples.surface.astype(np.float16),
        points=samples.points.astype(np.float16),
        inside=np.packbits(samples.inside),
        is_near=np.packbits(samples.is_near),
        transform=samples.to_source,
    )
    return content.getvalue()
