"""The order of training items, a pure function of (seed, step): no sampler state is saved."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Batches for steps start..stop-1 of this process, each a list of (position, index).

    Position p counts the items seen since step 0 over all processes; epoch e = p // num_items is
    one seeded permutation of all items. Process r of w takes its slice of each global batch, so the
    order does not depend on w. A data set draws what is random about an item (the view, the subset
    of points) from (seed, position).
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if num_items < 1:
            raise ValueError("there is nothing to train on: the training split is empty")
        if batch_size % world:
            raise ValueError(
                f"a global batch of {batch_size} does not divide over {world} processes"
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.stop - self.start

    def of_step(self, step: int) -> list[tuple[int, int]]:
        """The global batch of a step, that is the batches of all processes."""
        return [
            (position, self._index(position))
            for position in range(step * self.batch_size, (step + 1) * self.batch_size)
        ]

    def _index(self, position: int) -> int:
        epoch = position // self.num_items
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._permutation = epoch, rng.permutation(self.num_items)
        return int(self._permutation[position % self.num_items])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        local = self.batch_size // self.world
        for step in range(self.start, self.stop):
            yield self.of_step(step)[self.rank * local :][:local]


class JoinedOrder(Sampler[list[tuple[int, int]]]):
    """Two orders of the same steps as one: each batch joins a batch of either."""

    def __init__(self, first: TrainingOrder, second: TrainingOrder) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first, second in zip(self.first, self.second, strict=True):
            yield first + second

    def of_step(self, step: int) -> list[tuple[int, int]]:
        return self.first.of_step(step) + self.second.of_step(step)
