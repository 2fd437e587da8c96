from itertools import chain

import pytest

from tar3d.data.datasets.sampler import JoinedOrder, TrainingOrder


def batches(
    num_items=7, batch_size=4, *, seed=3, start=0, stop=14, **kwargs
) -> list[list[tuple[int, int]]]:
    return list(TrainingOrder(num_items, batch_size, seed=seed, start=start, stop=stop, **kwargs))


def test_every_item_once_an_epoch_and_epochs_differ():
    items = [
        index for batch in batches() for _, index in batch
    ]  # 56 = 8 epochs of 7, batches straddle them
    epochs = [items[k : k + 7] for k in range(0, 56, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 4


def test_positions_count_on_from_step_zero():
    assert [p for batch in batches() for p, _ in batch] == list(range(56))


@pytest.mark.parametrize("start", [1, 5, 13])
def test_starting_later_equals_the_tail_of_the_full_run(start):
    assert batches(start=start) == batches()[start:]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_see_what_one_process_would(world):
    parts = [batches(rank=rank, world=world) for rank in range(world)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == batches()


def test_seed_decides_the_order_and_a_batch_may_exceed_the_data():
    assert batches(seed=4) != batches(seed=3)
    assert sorted(index for _, index in batches(2, 6, stop=1)[0]) == [0, 0, 0, 1, 1, 1]
    assert len(TrainingOrder(7, 4, seed=0, start=3, stop=10)) == 7


def test_refusals():
    with pytest.raises(ValueError, match="training split is empty"):
        batches(0)
    with pytest.raises(ValueError, match="global batch of 4 does not divide over 3"):
        batches(world=3)


def test_joined_orders_give_the_first_ones_rows_first():
    first, second = (TrainingOrder(7, rows, seed=rows, start=2, stop=6) for rows in (2, 3))
    joined = JoinedOrder(first, second)
    assert len(joined) == 4
    assert [b[:2] for b in joined] == list(first) and [b[2:] for b in joined] == list(second)


def test_an_order_of_no_rows_adds_nothing():
    first, none = (TrainingOrder(7, rows, seed=0, start=0, stop=5) for rows in (2, 0))
    assert list(JoinedOrder(first, none)) == list(first)
