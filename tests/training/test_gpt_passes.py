"""However a step is split over processes and forward passes, its rows are told the same."""

from __future__ import annotations

import pytest
import torch

from tar3d.config import GPTConfig, GPTRunConfig, GPTTrainConfig
from tar3d.training.gpt_objective import inputs_of_pass, rows_of_pass

ROWS, MODALITIES = 8, ["image", "text"]


def run_config(micro: int, rows: int = ROWS, predictor_rows: int = 0) -> GPTRunConfig:
    train = GPTTrainConfig(
        global_batch_size=rows,
        micro_batch_size=micro,
        code_predictor_rows=predictor_rows,
        code_predictor_weight=1.0,
    )
    return GPTRunConfig(
        conditions=MODALITIES, train=train, gpt=GPTConfig(code_predictor_dim=4, condition_width=8)
    )


def told(processes: int, micro: int, further: int) -> dict[int, str]:
    """What each row of a step is conditioned on; rows for the code predictor begin at 100."""
    result = {}
    first, more = torch.arange(ROWS), 100 + torch.arange(further)
    for rank in range(processes):
        own = [part.chunk(processes)[rank] for part in (first, more) if len(part)]
        ids, count = torch.cat(own), len(own[0])
        batch = {"tokens": ids[:, None], "inputs": ids[:count], "condition": {"image": ids}}
        batch["latents"] = ids
        size = rows_of_pass(run_config(micro, ROWS, further), count, len(ids) - count)
        for start in range(0, count, size):
            given = inputs_of_pass(batch, slice(start, start + size), count, rank)
            tokens = given["tokens"]
            assert torch.equal(tokens[:size, 0], given["inputs"])
            assert torch.equal(given["latents"], given["inputs"])  # of the layers' rows alone
            assert torch.equal(tokens[:, 0], given["condition_inputs"]["image"])
            for row, turn in zip(tokens[:, 0].tolist(), given["turns"], strict=True):
                assert row not in result
                result[row] = MODALITIES[turn % 2]
    return result


@pytest.mark.parametrize("further", [0, 4, 12])
@pytest.mark.parametrize(("processes", "micro"), [(1, 4), (1, 2), (2, 4), (2, 2), (4, 2)])
def test_every_split_tells_the_rows_of_a_step_the_same(processes, micro, further):
    whole = told(1, 8, further)
    assert len(whole) == ROWS + further
    for first in (0, 100):
        told_image = [m == "image" for row, m in whole.items() if first <= row < first + 100]
        assert 2 * sum(told_image) == len(told_image)
    assert told(processes, micro, further) == whole


@pytest.mark.parametrize(
    ("micro", "rows", "further", "processes", "message"),
    [
        (3, 8, 0, 1, "3 does not divide the 8 rows of each device: .*micro_batch_size=2 or 4"),
        (1, 8, 0, 1, "1 makes .* 2 conditions cannot take turns: .*micro_batch_size=2"),
        (2, 8, 6, 1, "4 forward passes .* 6 rows .* do not divide: .*micro_batch_size=4"),
        (16, 8, 0, 1, "16 does not divide the 8 rows of each device: .*micro_batch_size=8"),
        (0, 12, 0, 4, "12 gives each process 3 .* train.global_batch_size=8 or 16"),
        (0, 1, 0, 1, "1 gives each process 1 .* train.global_batch_size=2$"),
    ],
)
def test_splits_that_would_change_a_step_are_refused(micro, rows, further, processes, message):
    config = run_config(micro, rows, further)
    with pytest.raises(ValueError, match=message):
        rows_of_pass(config, rows // processes, further // processes)
