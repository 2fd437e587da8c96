"""Which item each training step sees: a pure function of (seed, step), so that resuming needs no saved sampler state."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def spread(length: int, count: int) -> list[int]:
    """At most `count` different indices, evenly over 0..length-1: ids sort by category, so the first ones are all alike."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(int)).tolist()


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Batches for steps start..stop-1 of this process, each a list of (position, index).

    Position p counts the items seen since step 0 over all processes; epoch e = p // num_items is one seeded permutation
    of all items. Process r of w takes its slice of each global batch, so the order does not depend on w. Whatever is
    random about an item (views, subsets of points) is to be drawn from (seed, position).
    """

    def __init__(self, num_items: int, batch_size: int, *, seed: int, start: int, stop: int, rank: int = 0,
                 world: int = 1) -> None:
        if num_items < 1:
            raise ValueError("there is nothing to train on: the training split is empty")
        if batch_size % world:
            raise ValueError(f"a global batch of {batch_size} does not divide over {world} processes")
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        local = self.batch_size // self.world
        epoch, permutation = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.stop):
            first = step * self.batch_size + self.rank * local
            batch = []
            for position in range(first, first + local):
                if position // self.num_items != epoch:
                    epoch = position // self.num_items
                    permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_items)
                batch.append((position, int(permutation[position % self.num_items])))
            yield batch


class JoinedOrder(Sampler[list[tuple[int, int]]]):
    """Two orders of the same steps as one: each batch is the first one's and then the second one's."""

    def __init__(self, first: TrainingOrder, second: TrainingOrder) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first, second in zip(self.first, self.second, strict=True):
            yield first + second
