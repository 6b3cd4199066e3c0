"""The benchmark on a JAM: every task runs, and perplexity is what a reference computes."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tests.checkpoint.tiny_jam import CODES_PER_PICTURE, PICTURE_PX, byte_tokenizer, jam, llama
from torch import nn

from dreamllm.checkpoint.jam import jam_encoder_of
from dreamllm.data.transforms import TargetTransform
from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import ConfigError
from dreamllm.eval.runner import TASKS, TASKS_OF, evaluate, task_names
from dreamllm.eval.scores import TaskResult
from dreamllm.eval.subject import EvalOptions, Subject
from dreamllm.eval.tasks import deciding, perplexity
from dreamllm.generate.codes import CodeGenerator
from dreamllm.models.jam import JAM
from dreamllm.world.documents import make_document


def subject_of(model: JAM) -> Subject:
    tokenizer = byte_tokenizer()
    encoder = jam_encoder_of(model.eval(), tokenizer, TargetTransform(image_px=PICTURE_PX))
    return Subject(generator=CodeGenerator(model, encoder))


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Says bytes in no order; its head has a bias, so that documents draw and come to an end."""
    tokenizer = byte_tokenizer()
    language_model = llama(tokenizer, max_position_embeddings=1024)
    head = nn.Linear(32, language_model.config.vocab_size)
    nn.init.normal_(head.weight, std=0.2)
    head.bias.data.zero_()
    language_model.set_output_embeddings(head)
    made = subject_of(jam(tokenizer, language_model))
    head.bias.data[tokenizer.eos_id] = 3.0
    head.bias.data[made.opens_picture] = 2.0
    return made


@pytest.fixture
def bias(subject: Subject) -> Iterator[torch.Tensor]:
    """The head's bias, for a test to change."""
    head = subject.generator.model.language_model.get_output_embeddings()
    before = head.bias.data.clone()
    yield head.bias.data
    head.bias.data.copy_(before)


@pytest.fixture(scope="module")
def results(subject: Subject) -> dict[str, TaskResult]:
    options = EvalOptions(num=2, is_quick=True, guidance_scale=1.0)
    return {name: result for name, result, _ in evaluate(subject, options, ["world"])}


def test_every_task_runs_and_every_score_lies_inside_its_interval(results: dict[str, TaskResult]) -> None:
    assert list(results) == list(TASKS)
    for result in results.values():
        for table in result.tables:
            for row in table.rows:
                for score in row.scores:
                    if score is not None and score.value is not None:
                        assert score.low <= score.value <= score.high, (table.title, row.label)
                        assert table.unit == "number" or 0 <= score.low <= score.high <= 1


def test_there_is_no_baseline_and_pictures_keep_their_size(results: dict[str, TaskResult]) -> None:
    drawing = results["drawing"]

    assert drawing.tables[0].columns == ("model",)
    assert "U-Net" not in drawing.tables[0].note
    assert [row.label for row in drawing.sheet[:2]] == ["1 object, truth", "1 object, model"]
    assert drawing.sheet[1].pictures[0].size == (PICTURE_PX, PICTURE_PX)


def test_a_jam_is_asked_for_how_to_documents_too(results: dict[str, TaskResult]) -> None:
    form = next(table for table in results["documents"].tables if "form" in table.title)

    assert form.columns == ("how-to", "story", "guide", "album", "all")


def test_who_can_be_asked_what(subject: Subject) -> None:
    words = subject_of(jam(byte_tokenizer(), has_pictures=False))

    assert (subject.kind, words.kind) == ("JAM", "JAM of words alone")
    assert task_names(["world"], words.kind) == ["perplexity"]
    assert task_names(["perplexity", "vqa"], subject.kind) == ["vqa", "perplexity"]
    with pytest.raises(
        ConfigError, match="tasks drawing cannot be run; expected world, perplexity for a JAM"
    ):
        task_names(["drawing"], words.kind)
    assert "perplexity" not in TASKS_OF["DreamLLM"]


def test_a_model_of_words_alone_is_asked_about_words(subject: Subject) -> None:
    words = subject_of(jam(byte_tokenizer(), has_pictures=False))

    result = perplexity.run(words, EvalOptions(num=2, is_quick=True))

    assert [row.label for row in result.tables[0].rows] == ["words"]


# ---- deciding -----------------------------------------------------------------------------------------


def test_only_the_decision_to_open_a_picture_counts(subject: Subject, bias: torch.Tensor) -> None:
    options = EvalOptions(num=6)
    rng = np.random.default_rng([0, 5])
    num = sum(len(make_document(kind, rng, split="test").images) for kind in deciding.KINDS for _ in range(2))

    bias[subject.opens_picture] = 1e4
    always = deciding.run(subject, options).tables[0]
    bias[subject.opens_picture] = -1e4
    never = deciding.run(subject, options).tables[0]

    recall, precision = always.score("recall", "all"), always.score("precision", "all")
    assert recall is not None
    assert precision is not None
    assert (recall.value, recall.n) == (1.0, num)  # the <break> after a picture is no decision to draw
    assert precision.value is not None
    assert 0 < precision.value < 0.2
    missed = never.score("recall", "all")
    assert missed is not None
    assert missed.value == 0


# ---- perplexity ---------------------------------------------------------------------------------------


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    tokenizer = byte_tokenizer()
    model = jam(tokenizer)
    model.language_model.lm_head.weight.data.zero_()
    size = model.language_model.config.vocab_size

    (table,) = perplexity.run(subject_of(model), EvalOptions(num=3)).tables

    assert table.columns == ("1 object", "2 objects", "3 objects", "held-out pairs")
    for row in table.rows:
        for score in row.scores:
            assert score is not None
            assert (score.value, score.low, score.high) == pytest.approx((size, size, size), rel=1e-4)
    codes = table.score("codes, given the caption", "1 object")
    assert codes is not None
    assert codes.n == 3 * CODES_PER_PICTURE


@pytest.mark.parametrize("of_codes", [True, False])
def test_losses_are_those_of_the_stock_model(subject: Subject, of_codes: bool) -> None:
    document = make_document("draw_pair" if of_codes else "read_pair", np.random.default_rng(0), split="test")
    generator = subject.generator
    assert isinstance(generator, CodeGenerator)

    first, second = perplexity.token_losses(generator, [document, document], of_codes=of_codes)

    ids = torch.from_numpy(generator.encoder.encode(document)[0].input_ids)
    with torch.no_grad():
        chances = generator.model.language_model(ids[None]).logits[0].softmax(-1)
    scored = [
        -float(chances[i - 1, ids[i]].log())
        for i in range(1, len(ids))
        if (bool(ids[i] >= generator.tokens.first_code) if of_codes else ids[i] < generator.tokens.break_)
    ]
    assert first.tolist() == pytest.approx(scored, rel=1e-4)
    assert second.tolist() == pytest.approx(scored, rel=1e-4)
    text = document.parts[0 if of_codes else 1]
    assert isinstance(text, Text)
    assert len(scored) == (CODES_PER_PICTURE if of_codes else len(text.text.encode()) + 1)  # with EOS


def test_losses_of_a_batch_are_those_of_its_documents(subject: Subject) -> None:
    generator = subject.generator
    assert isinstance(generator, CodeGenerator)
    rng = np.random.default_rng(0)
    documents = [make_document("facts", rng, num_objects=(count,)) for count in (3, 1, 2)]

    together = perplexity.token_losses(generator, documents, of_codes=False)

    alone = [perplexity.token_losses(generator, [each], of_codes=False)[0] for each in documents]
    assert [len(each) for each in together] == [len(document.text.encode()) + 1 for document in documents]
    for one, other in zip(together, alone, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), rel=1e-4)


def test_the_options_of_training_change_no_loss(subject: Subject) -> None:
    generator = subject.generator
    assert isinstance(generator, CodeGenerator)
    document = Document(parts=(Text(text="a red circle", learn=False), Image(source=_picture(), learn=False)))
    options = dataclasses.replace(generator.encoder.options, learn="marked", mask_prompt=1.0)
    trained = CodeGenerator(generator.model, dataclasses.replace(generator.encoder, options=options))

    plain = perplexity.token_losses(generator, [document], of_codes=True)
    masked = perplexity.token_losses(trained, [document], of_codes=True)

    assert plain[0].tolist() == masked[0].tolist()
    assert len(plain[0]) == CODES_PER_PICTURE


def test_perplexity_is_over_tokens_and_its_interval_over_documents() -> None:
    two, eight = np.full(4, np.log(2.0)), np.full(2, np.log(8.0))

    score = perplexity.perplexity([two, eight])
    certain = perplexity.perplexity([two, two, two])
    nothing = perplexity.perplexity([])

    assert score.value == pytest.approx(2 ** ((4 * 1 + 2 * 3) / 6))
    assert (score.low, score.high, score.n) == (pytest.approx(2.0), pytest.approx(8.0), 6)
    assert (certain.value, certain.low, certain.high) == pytest.approx((2, 2, 2))
    assert (nothing.value, nothing.n) == (None, 0)


def _picture() -> PILImage.Image:
    return PILImage.new("RGB", (PICTURE_PX, PICTURE_PX), (10, 200, 30))
