import pytest
import torch

from dreamllm.errors import TrainingError
from dreamllm.losses.total import DREAMLLM_WEIGHTS, Term, total


def test_total_divides_by_the_counts_of_the_whole_step_and_weighs_one_to_ten():
    terms = {"next_token": Term(torch.tensor(6.0), 3), "denoising": Term(torch.tensor(1.5), 2)}

    loss = total(terms, counts={"next_token": 12, "denoising": 6}, weights=DREAMLLM_WEIGHTS)

    assert loss.item() == pytest.approx(6 / 12 + 10 * 1.5 / 6)


def test_micro_batches_of_unequal_size_add_up_to_the_loss_of_the_whole():
    losses = torch.tensor([1.0, 2.0, 3.0, 10.0])
    parts = [Term(losses[:3].sum(), 3), Term(losses[3:].sum(), 1)]

    split = sum(
        total({"next_token": part}, counts={"next_token": 4}, weights={"next_token": 1.0}) for part in parts
    )

    assert split.item() == pytest.approx(4.0)  # 16 / 4, where the mean of the two means would be 6


def test_a_term_that_the_step_does_not_count_contributes_nothing():
    empty = Term(torch.tensor(0.0), 0)

    loss = total({"denoising": empty}, counts={"denoising": 0}, weights=DREAMLLM_WEIGHTS)

    assert loss.item() == 0
    assert not loss.requires_grad


def test_the_gradient_of_a_sum_is_its_weight_over_its_count():
    value = torch.tensor(3.0, requires_grad=True)

    total({"denoising": Term(value, 2)}, counts={"denoising": 5}, weights=DREAMLLM_WEIGHTS).backward()

    assert value.grad is not None
    assert value.grad.item() == pytest.approx(10 / 5)


def test_items_are_summed_together_and_by_document():
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)

    term = Term.of_items(losses, torch.tensor([2, 0, 2, 0]), num_documents=3)

    assert (term.sum.item(), term.count) == (15.0, 4)
    assert term.by_document.tolist() == [[10.0, 0.0, 5.0], [2.0, 0.0, 2.0]]
    assert term.sum.requires_grad
    assert not term.by_document.requires_grad


@pytest.mark.parametrize(
    ("counts", "weights", "message"),
    [
        ({}, {"next_token": 1.0}, "no count or no weight"),
        ({"next_token": 3}, {}, "no count or no weight"),
        ({"next_token": 2}, {"next_token": 1.0}, "counts 2 items in the whole step but 3 in one micro-batch"),
    ],
)
def test_counts_that_cannot_be_those_of_the_step_are_refused(counts, weights, message):
    with pytest.raises(TrainingError, match=message):
        total({"next_token": Term(torch.tensor(1.0), 3)}, counts=counts, weights=weights)
