"""The CM3 transform: by hand where its spans are given, by its properties where they are drawn."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamllm.errors import ConfigError, LayoutError
from dreamllm.sequence.cm3 import Cm3Config, Ids, Labels, draw_spans, invert, move_spans, transform
from dreamllm.sequence.code_tokens import CodeTokens

BOS, EOS, BREAK, MASK, INFILL, FIRST_CODE = 0, 1, 2, 3, 4, 100
TOKENS = CodeTokens(
    break_=BREAK, mask=MASK, infill=INFILL, first_code=FIRST_CODE, num_codes=8, codes_per_picture=3
)
ALWAYS = Cm3Config(probability=1)
PAIR = np.asarray([BOS, 10, 11, 12, BREAK, 100, 101, 102, EOS])  # three words, a picture
DRAWN = np.asarray([False] * 4 + [True] * 5)

_words = st.lists(st.integers(10, 30), min_size=1, max_size=6)
_pictures = st.lists(st.integers(100, 107), min_size=3, max_size=3)
_turns = st.lists(
    _words | st.tuples(st.just(BREAK), _pictures).map(lambda p: [p[0], *p[1], BREAK]), max_size=5
)


@st.composite
def _sequences(draw: st.DrawFn) -> tuple[Ids, Labels]:
    """Words and pictures in turns, some of which end with EOS; random labels."""
    ids = [BOS]
    for turn in draw(_turns):
        ids += [*turn, *([EOS] if draw(st.booleans()) else [])]
    ids.append(EOS)
    labels = draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1))
    return np.asarray(ids), np.asarray([False, *labels])


_configs = st.builds(
    Cm3Config,
    probability=st.just(1.0),
    max_spans=st.integers(1, 5),
    whole_segment=st.sampled_from([0, 0.5, 1]),
)


def _transformed(ids: Ids, labels: Labels, seed: int, **options: object) -> tuple[Ids, Labels]:
    given_options = {"tokens": TOKENS, "eos_id": EOS, "config": ALWAYS, **options}
    return transform(ids, labels, rng=np.random.default_rng(seed), **given_options)


def test_spans_move_behind_their_sentinels_in_order_and_keep_their_labels() -> None:
    ids, labels = move_spans(PAIR, DRAWN, tokens=TOKENS, spans=[(2, 4), (6, 7)])

    assert ids.tolist() == [BOS, 10, MASK, BREAK, 100, MASK, 102, INFILL, 11, 12, INFILL, 101, EOS]
    assert labels.astype(int).tolist() == [0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 1, 1]


def test_neighbouring_spans_have_a_mask_each() -> None:
    ids, _ = move_spans(PAIR, DRAWN, tokens=TOKENS, spans=[(1, 2), (2, 4)])

    assert ids.tolist() == [BOS, MASK, MASK, BREAK, 100, 101, 102, INFILL, 10, INFILL, 11, 12, EOS]
    assert invert(ids, TOKENS).tolist() == PAIR.tolist()


@settings(deadline=None, max_examples=100)
@given(_sequences(), _configs, st.integers(0, 999))
def test_the_inverse_gives_the_ids_back(sequence: tuple[Ids, Labels], config: Cm3Config, seed: int) -> None:
    ids, labels = sequence

    moved, moved_labels = _transformed(ids, labels, seed, config=config)

    num_spans = int((moved == MASK).sum())
    assert invert(moved, TOKENS).tolist() == ids.tolist()
    assert Counter(moved.tolist()) == Counter([*ids.tolist(), *[MASK, INFILL] * num_spans])
    assert 0 <= num_spans <= config.max_spans
    assert (num_spans > 0) == any(i not in (BOS, EOS, BREAK) for i in ids)
    assert len(moved_labels) == len(moved)
    assert moved.dtype == ids.dtype


@settings(deadline=None, max_examples=100)
@given(_sequences(), _configs, st.integers(0, 999))
def test_labels_move_with_their_tokens_and_sentinels_have_none(
    sequence: tuple[Ids, Labels], config: Cm3Config, seed: int
) -> None:
    ids, labels = sequence
    names = np.where(
        np.isin(ids, [BOS, EOS, BREAK]), ids, 200 + np.arange(len(ids))
    )  # tell equal tokens apart
    label_of = dict(zip(names.tolist(), labels.tolist(), strict=True))

    moved, moved_labels = _transformed(names, labels, seed, config=config)

    assert not moved_labels[np.isin(moved, [MASK, INFILL])].any()
    for token, label in zip(moved.tolist(), moved_labels.tolist(), strict=True):
        if token >= 200:
            assert label == label_of[token]
    structure = np.isin(moved, [BOS, EOS, BREAK])
    assert moved_labels[structure].tolist() == labels[np.isin(names, [BOS, EOS, BREAK])].tolist()


@settings(deadline=None, max_examples=100)
@given(_sequences(), _configs, st.integers(0, 999))
def test_no_span_holds_a_break_or_an_end(sequence: tuple[Ids, Labels], config: Cm3Config, seed: int) -> None:
    ids, labels = sequence

    moved, _ = _transformed(ids, labels, seed, config=config)

    at = np.flatnonzero(moved == INFILL)
    tail = moved[at[0] : -1] if len(at) else moved[:0]
    assert not np.isin(tail, [BOS, EOS, BREAK, MASK]).any()
    for span in np.split(tail, np.flatnonzero(tail == INFILL))[1:]:
        assert len(span) > 1  # behind its sentinel
        assert len(set(TOKENS.is_code(span[1:]).tolist())) == 1  # words, or codes


@settings(deadline=None, max_examples=50)
@given(_sequences(), st.integers(0, 99))
def test_what_stands_before_the_start_stays(sequence: tuple[Ids, Labels], seed: int) -> None:
    ids, labels = sequence
    start = len(ids) // 2 + 1

    moved, moved_labels = _transformed(ids, labels, seed, start=start)

    np.testing.assert_array_equal(moved[:start], ids[:start])
    np.testing.assert_array_equal(moved_labels[:start], labels[:start])


@settings(deadline=None, max_examples=50)
@given(_sequences(), st.integers(0, 99), st.integers(0, 5))
def test_no_more_spans_move_than_there_is_room_for(
    sequence: tuple[Ids, Labels], seed: int, room: int
) -> None:
    ids, labels = sequence
    config = Cm3Config(probability=1, max_spans=3)

    moved, _ = _transformed(ids, labels, seed, config=config, max_length=len(ids) + room)

    assert len(moved) <= len(ids) + room
    if room >= 2 and any(i >= 10 for i in ids):
        assert len(moved) > len(ids)


def test_probability_0_changes_nothing_and_1_everything() -> None:
    never = Cm3Config(probability=0)

    for seed in range(50):
        ids, labels = _transformed(PAIR, DRAWN, seed, config=never)
        assert ids is PAIR
        assert labels is DRAWN
        assert MASK in _transformed(PAIR, DRAWN, seed)[0]


def test_the_probability_is_the_share_of_documents_that_change() -> None:
    config = Cm3Config(probability=0.3)

    changed = sum(MASK in _transformed(PAIR, DRAWN, seed, config=config)[0] for seed in range(400))

    assert 92 < changed < 148  # 120, and three standard deviations of a binomial


def test_the_generator_alone_decides() -> None:
    first, second = (_transformed(PAIR, DRAWN, 5)[0].tolist() for _ in range(2))
    others = {tuple(_transformed(PAIR, DRAWN, seed)[0].tolist()) for seed in range(20)}

    assert first == second
    assert len(others) > 10


def test_a_sequence_that_no_end_closes_stays() -> None:
    ids, labels = _transformed(PAIR[:-1], DRAWN[:-1], 0)

    np.testing.assert_array_equal(ids, PAIR[:-1])
    np.testing.assert_array_equal(labels, DRAWN[:-1])


def test_the_number_of_spans_is_a_clamped_poisson_number() -> None:
    config = Cm3Config(probability=1, max_spans=3, whole_segment=0)
    rng = np.random.default_rng(0)

    counts = Counter(len(draw_spans([(0, 10_000)], config=config, rng=rng, max_spans=3)) for _ in range(2000))

    # Poisson(1): P(0) + P(1) = 2/e, P(2) = 1/(2e), the rest 1 - 2.5/e; three standard deviations.
    for spans, share in ((1, 2 / np.e), (2, 0.5 / np.e), (3, 1 - 2.5 / np.e)):
        assert abs(counts[spans] / 2000 - share) < 3 * np.sqrt(share * (1 - share) / 2000)


def test_every_span_of_every_run_is_as_likely_as_any_other() -> None:
    config = Cm3Config(probability=1, max_spans=1, whole_segment=0)
    rng = np.random.default_rng(1)

    counts = Counter(
        draw_spans([(1, 3), (5, 8)], config=config, rng=rng, max_spans=1)[0] for _ in range(4500)
    )

    expected = {(1, 2), (1, 3), (2, 3), (5, 6), (5, 7), (5, 8), (6, 7), (6, 8), (7, 8)}
    assert counts.keys() == expected
    assert all(abs(count - 500) < 3.5 * np.sqrt(500 * 8 / 9) for count in counts.values())


def test_whole_segments_are_as_frequent_as_asked_for() -> None:
    segments = [(1, 1000), (1001, 2000)]  # long: a random span is hardly ever a whole one
    config = Cm3Config(probability=1, max_spans=1, whole_segment=0.3)
    rng = np.random.default_rng(2)

    counts = Counter(draw_spans(segments, config=config, rng=rng, max_spans=1)[0] for _ in range(1000))

    assert 257 < sum(counts[segment] for segment in segments) < 343
    assert min(counts[segment] for segment in segments) > 100


def test_what_is_left_of_a_segment_is_no_whole_one() -> None:
    config = Cm3Config(probability=1, max_spans=2, whole_segment=0.5)
    rng = np.random.default_rng(3)

    drawn = [draw_spans([(1, 1000)], config=config, rng=rng, max_spans=2) for _ in range(1000)]

    pairs = [spans for spans in drawn if len(spans) == 2]  # half of 1 - 2/e, where the first is no whole one
    assert len(pairs) > 90
    assert sum(first == 1 or end == 1000 for (first, _), (_, end) in pairs) < len(pairs) / 10


def test_whole_segments_run_out_without_an_overlap() -> None:
    config = Cm3Config(probability=1, max_spans=9, whole_segment=1)

    for seed in range(50):
        spans = draw_spans([(1, 3), (5, 6)], config=config, rng=np.random.default_rng(seed), max_spans=9)
        assert set(spans) <= {(1, 3), (5, 6)}
        assert spans == sorted(set(spans))


@pytest.mark.parametrize(
    "ids",
    [
        [BOS, MASK, BREAK, 100, 101, 102, EOS],
        [BOS, 10, INFILL, 11, EOS],
        [BOS, MASK, INFILL, 10, MASK, EOS],
        [BOS, MASK, INFILL, 10, INFILL, 11, EOS],
    ],
)
def test_sentinels_that_do_not_belong_together_are_refused(ids: list[int]) -> None:
    with pytest.raises(LayoutError, match="do not belong together"):
        invert(np.asarray(ids), TOKENS)


@pytest.mark.parametrize("options", [{"probability": 1.5}, {"max_spans": 0}, {"whole_segment": -0.1}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        Cm3Config(**options)
