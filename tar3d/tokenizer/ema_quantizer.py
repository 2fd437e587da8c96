"""Vector quantizer with codes on the unit sphere and a codebook of moving averages.

The codebook follows exponential moving averages (van den Oord et al., arXiv 1711.00937, appendix
A.1) and moves only in `step`, which the training loop calls once per optimizer step: `forward`
collects statistics in training mode and none after `eval()`. So the codebook cannot move in
validation, and gradient accumulation counts once. All arithmetic is float32, also under autocast.

Letters: L any number of latents, V codebook size, K code width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tar3d.config import TokenizerConfig
from tar3d.tokenizer.quantizer import Quantized, Quantizer

EMA_DECAY = 0.99
# a code is dead when its averaged count falls below this share of an evenly used code's
DEAD_BELOW = 0.02
CHUNK = 16_384  # latents compared with the codebook at a time: bounds the (L, V) similarity matrix
KMEANS_ITERATIONS = 20


class EMAQuantizer(Quantizer):
    """Nearest code by cosine. Dead codes are moved onto random latents (`step`)."""

    ema_count: Tensor  # (V,)
    ema_sum: Tensor  # (V, K)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config.codebook_size, config.code_dim)
        codes = F.normalize(torch.randn(self.codebook_size, self.code_dim), dim=-1)
        self.register_buffer("codebook", codes)  # (V, K), unit rows
        self.register_buffer("ema_count", torch.ones(self.codebook_size))
        self.register_buffer("ema_sum", codes.clone())
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def project(self, latents: Tensor) -> Tensor:
        """Latents (..., K) -> (..., K) unit vectors, float32."""
        return normalize(latents)

    def forward(self, latents: Tensor) -> Quantized:
        """Latents (..., K) of any scale -> unit codes.

        The commitment loss is the mean squared distance of the unit latents to their codes, which
        count as fixed.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = normalize(latents)
            flat = z.detach().reshape(-1, self.code_dim)
            ids = self.nearest(flat)
            codes = self.codebook[ids].view_as(z)
            if self.training:
                self._collect(z.detach(), ids)
            commitment = (z - codes).square().sum(-1).mean()
            return Quantized(z + (codes - z).detach(), ids.view(z.shape[:-1]), commitment)

    def nearest(self, flat: Tensor) -> Tensor:
        """Ids (L,) of the codes with the largest cosine to the unit latents (L, K)."""
        with torch.autocast(flat.device.type, enabled=False):
            return torch.cat([(part @ self.codebook.T).argmax(-1) for part in flat.split(CHUNK)])

    def flops(self, num_latents: int) -> int:
        return 2 * num_latents * self.codebook_size * self.code_dim

    def _collect(self, z: Tensor, ids: Tensor) -> None:
        flat = z.reshape(-1, self.code_dim)
        # not torch.bincount: it makes the processor wait for a GPU
        count = torch.zeros_like(self.ema_count).index_add_(0, ids, torch.ones_like(flat[:, 0]))
        total = torch.zeros_like(self.codebook).index_add_(0, ids, flat)
        self._pending.append((count, total, flat))

    @torch.no_grad()
    def step(
        self, generator: torch.Generator, gather: Callable[[Tensor], Tensor] = lambda t: t
    ) -> int:
        """Moves the codebook, revives dead codes, and returns their number.

        The codebook follows what `forward` saw since the last call. Statistics of all processes are
        added up, so the codebook does not depend on how many share a batch. Each dead code moves
        onto another latent of the step, drawn from all of them; where there are more dead codes
        than latents, the rest waits for the next step. A revived code also gets a fresh count and
        sum, or its next average would drag it back to where it died. Raises RuntimeError without a
        forward pass in training mode.
        """
        if not self._pending:
            raise RuntimeError(
                "EMAQuantizer.step() needs a forward pass in training mode since the last step"
            )
        counts, totals, latents = zip(*self._pending, strict=True)
        self._pending = []
        count = gather(torch.stack(counts).sum(0)).view(-1, self.codebook_size).sum(0)
        total = gather(torch.stack(totals).sum(0)).view(-1, *self.codebook.shape).sum(0)
        self.ema_count.lerp_(count, 1 - EMA_DECAY)
        self.ema_sum.lerp_(total, 1 - EMA_DECAY)
        self.codebook.copy_(normalize(self.ema_sum))
        even = self.ema_count.sum() / self.codebook_size
        dead = (self.ema_count < DEAD_BELOW * even).nonzero()[:, 0]
        if len(dead):
            pool = gather(torch.cat(latents)).view(-1, self.code_dim)
            chosen = draw_without_replacement(pool, len(dead), generator)
            dead = dead[: len(chosen)]
            self.codebook[dead] = chosen
            self.ema_count[dead] = even
            self.ema_sum[dead] = chosen * even
        return len(dead)

    def discard_statistics(self) -> None:
        self._pending = []

    @torch.no_grad()
    def init_from_latents(
        self, latents: Tensor, generator: torch.Generator, iterations: int = KMEANS_ITERATIONS
    ) -> None:
        """Starts the codebook at the centres of a spherical k-means over latents (L, K).

        Raises ValueError for fewer latents than codes.
        """
        flat = normalize(latents.float()).reshape(-1, self.code_dim)
        if len(flat) < self.codebook_size:
            raise ValueError(
                f"k-means needs at least {self.codebook_size} latents (one per code), "
                f"got {len(flat)}: use more shapes or a smaller tokenizer.codebook_size"
            )
        self.codebook.copy_(draw_without_replacement(flat, self.codebook_size, generator))
        for _ in range(iterations):
            ids = self.nearest(flat)
            count = torch.bincount(ids, minlength=self.codebook_size).float()
            total = torch.zeros_like(self.codebook).index_add_(0, ids, flat)
            empty = (count == 0).nonzero()[:, 0]
            total[empty] = draw_without_replacement(flat, len(empty), generator)
            count[empty] = 1.0
            self.codebook.copy_(normalize(total))
        share = count / count.sum() * self.codebook_size
        self.ema_count.copy_(share)
        self.ema_sum.copy_(self.codebook * share[:, None])


def draw_without_replacement(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different rows in a random order; all of them where there are fewer."""
    order = torch.randperm(len(rows), generator=generator)
    return rows[order[:count].to(rows.device)]


def normalize(x: Tensor) -> Tensor:
    """Unit vectors along the last axis, in float32."""
    return F.normalize(x.float(), dim=-1)
