"""The conditional loss: what each kind sees, its value for known logits, and that the model's mode
is kept."""

import math

import pytest
import torch
from torch import nn

from tar3d.gpt.condition_nll import condition_nll

V = 5


class Told(nn.Module):
    """Knows the tokens of a row if its source says which row it is; without a condition all codes
    are alike."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.answers, self.modes = answers, []

    def token_nll(self, tokens, source, dropped):
        self.modes.append(self.training)
        sure = 8.0 * nn.functional.one_hot(self.answers[source["row"]], V)
        logits = torch.where(dropped[:, None, None], torch.zeros_like(sure), sure) + self.weight
        return nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_kind_sees_its_own_condition(batch_size):
    answers = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 2, 3]])
    model = Told(answers).train()
    nll = condition_nll(model, answers, {"row": torch.arange(3)}, batch_size)
    right = -math.log(math.exp(8) / (math.exp(8) + V - 1))
    torch.testing.assert_close(nll["right"], torch.full((3, 3), right), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        nll["shuffled"], torch.full((3, 3), right + 8.0)
    )  # the next row's tokens differ everywhere
    torch.testing.assert_close(nll["null"], torch.full((3, 3), math.log(V)))
    assert not any(model.modes) and model.training


def test_rows_must_match():
    with pytest.raises(ValueError, match="2 rows of tokens but 3 of the condition row"):
        condition_nll(
            Told(torch.zeros(2, 3, dtype=torch.int64)),
            torch.zeros(2, 3, dtype=torch.int64),
            {"row": torch.arange(3)},
        )


def test_without_a_source_there_is_only_the_null_condition():
    nll = condition_nll(Free(), torch.zeros(3, 2, dtype=torch.int64), {})
    assert list(nll) == ["null"] and nll["null"].shape == (3, 2)


class Free(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)

    def token_nll(self, tokens, source, dropped):
        assert not source and dropped.all()
        return tokens.float()
