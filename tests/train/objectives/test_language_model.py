import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from dreamllm.runtime.seeding import make_generator
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.train.objectives import language_model
from dreamllm.train.objectives.language_model import LanguageModelObjective, world_texts
from dreamllm.train.step import StepResult

MakeLanguageModel = Callable[[], LanguageModelObjective]


@pytest.fixture
def objective(make_language_model: MakeLanguageModel) -> LanguageModelObjective:
    return make_language_model()


def test_every_kind_of_document_teaches_the_tokenizer_plain_and_after_its_role() -> None:
    texts = list(world_texts(15))

    assert texts == list(world_texts(15))
    assert texts[::2] == [f"{'USER' if t.startswith('USER') else ' ASSISTANT'}: {u}" for t, u in pairs(texts)]
    assert {text.split(":")[0] for text in texts[::2]} == {"USER", " ASSISTANT"}


def pairs(texts: list[str]) -> list[tuple[str, str]]:
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_the_same_run_makes_the_same_tokenizer_weights_and_data(
    make_language_model: MakeLanguageModel,
) -> None:
    first, second = make_language_model(), make_language_model()

    assert first.tokenizer.hf.get_vocab() == second.tokenizer.hf.get_vocab()
    assert all(
        torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True)
    )
    assert all(
        torch.equal(a.input_ids, b.input_ids) for a, b in zip(first.data[3], second.data[3], strict=True)
    )


def test_the_loss_of_a_document_is_that_of_the_stock_model(objective: LanguageModelObjective) -> None:
    """Documents are packed into rows, so each is cut out again and read on its own."""
    [batch, *_] = objective.data[0]
    ids, mark = batch.input_ids.flatten(), torch.full((batch.input_ids.numel(),), -100)
    mark[batch.label_positions + 1] = batch.labels
    expected = torch.zeros(())
    for row in range(batch.input_ids.shape[0]):
        for number in range(1, int(batch.document_index[row].max()) + 1):
            own = torch.zeros_like(batch.document_index, dtype=torch.bool)
            own[row] = batch.document_index[row] == number
            labels = mark[own.flatten()]
            mean = objective.module(input_ids=ids[own.flatten()][None], labels=labels[None]).loss
            expected = expected + mean * (labels >= 0).sum()

    term = objective.losses(batch, make_generator(0))["next_token"]

    assert term.count == batch.num_labels == objective.counts(batch)["next_token"]
    assert_close(term.sum, expected, rtol=1e-4, atol=0)


def test_two_steps_lower_the_loss_from_the_logarithm_of_the_vocabulary(
    objective: LanguageModelObjective, take_steps: Callable[..., list[StepResult]]
) -> None:
    [batch, *_] = objective.data[0]

    first, _ = take_steps(objective, lr=1e-2)

    assert first.terms["next_token"] == pytest.approx(math.log(objective.tokenizer.vocab_size), abs=0.1)
    with torch.no_grad():
        after = objective.losses(batch, make_generator(0))["next_token"]
    assert after.sum.item() / after.count < first.terms["next_token"] - 0.1
    assert all(parameter.grad is not None for parameter in objective.module.parameters())


def test_the_exported_model_and_tokenizer_load_with_their_own_libraries(
    objective: LanguageModelObjective, tmp_path: Path
) -> None:
    objective.export(tmp_path)

    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "language_model")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = objective.tokenizer.encode("What color is the circle?")
    assert tokenizer.encode("What color is the circle?") == ids
    assert_close(stock(torch.tensor([ids])).logits, objective.module(torch.tensor([ids])).logits)


def test_the_gate_counts_exact_answers_and_an_untrained_model_gives_none(
    objective: LanguageModelObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "GATE_DOCUMENTS", 3)

    with torch.no_grad():
        result = objective.gate()

    assert not result.passed
    assert result.metrics["mean"] < 0.2
    assert "the bar is 0.9" in result.message


def test_a_sample_is_three_continued_openings(objective: LanguageModelObjective, tmp_path: Path) -> None:
    objective.sample(tmp_path, 0)

    text = (tmp_path / "text.txt").read_text()
    assert all(opening in text for opening in ("A small red circle", "How to draw", "The picture has"))
