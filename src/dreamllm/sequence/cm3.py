"""The CM3 transform (arXiv:2201.07520): spans of a document move to its end, so that a model which writes
from left to right also learns to fill in.

    BOS a red cat <break> codes EOS   ->   BOS a <mask> <break> codes <infill> red cat EOS

In the form of CM3Leon (arXiv:2309.02591) and JAM (arXiv:2309.15564) every span uses the same two sentinels,
in order, and no span crosses a `<break>`: otherwise a model learns to begin pictures in their middle. Ids and
label flags go in and come out, on the CPU; where a span lies follows from the generator alone.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from dreamllm.errors import ConfigError, LayoutError
from dreamllm.sequence.code_tokens import CodeTokens

SENTINELS_PER_SPAN = 2
"""Positions that a moved span adds: its `<mask>` and its `<infill>`."""
_RATE = 1.0  # of the Poisson distribution of CM3, section 2

Ids = Int[np.ndarray, " T"]
Labels = Bool[np.ndarray, " T"]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cm3Config:
    """How often, and which spans."""

    probability: float = 0.5
    """That a document is transformed at all; the papers do not say, so it is our choice."""
    max_spans: int = 2
    """Spans are as many as Clamp(Poisson(1), 1, max_spans) says; CM3 itself has 16."""
    whole_segment: float = 0.3
    """Probability that a span is a whole run of text or a whole picture, which is what captioning by
    infilling and guidance ask for. Our choice; 0 is CM3."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 <= self.whole_segment <= 1 or self.max_spans < 1:
            raise ConfigError(
                f"probability={self.probability}, max_spans={self.max_spans} and "
                f"whole_segment={self.whole_segment} cannot be meant; "
                "expected probabilities in [0, 1] and at least 1 span; correct them"
            )


def transform(
    ids: Ids,
    is_label: Labels,
    *,
    tokens: CodeTokens,
    eos_id: int,
    config: Cm3Config,
    rng: np.random.Generator,
    start: int = 1,
    max_length: int | None = None,
) -> tuple[Ids, Labels]:
    """Either the sequence as it is, or with some of its spans moved to its end; `invert` undoes it.

    A sequence without a closing EOS is left as it is. A moved token keeps its label flag, and sentinels are
    never labels.

    Args:
        ids: what to transform.
        is_label: which of the ids are targets.
        tokens: the joint vocabulary.
        eos_id: the id that closes a document, or a turn; no span holds it.
        config: how often, and which spans.
        rng: the only source of randomness.
        start: the first position that may move; what stands before (BOS, retrieved documents) stays.
        max_length: positions of the longest sequence that may come out; no more spans move than have room.
    """
    if rng.random() >= config.probability or ids[-1] != eos_id:
        return ids, is_label
    room = config.max_spans if max_length is None else max(0, max_length - len(ids)) // SENTINELS_PER_SPAN
    segments = _segments(ids, tokens=tokens, eos_id=eos_id, start=start)
    spans = draw_spans(segments, config=config, rng=rng, max_spans=min(room, config.max_spans))
    return move_spans(ids, is_label, tokens=tokens, spans=spans)


def draw_spans(
    segments: SequenceOf[Span], *, config: Cm3Config, rng: np.random.Generator, max_spans: int
) -> list[Span]:
    """Disjoint spans `[first, end)` within segments, in order.

    The ends of a span are as if both were drawn uniformly over the document, and drawn again as long as the
    span is empty, leaves its segment or overlaps another: CM3, section 2.
    """
    wanted = min(max_spans, int(np.clip(rng.poisson(_RATE), 1, config.max_spans)))
    whole, free = set(segments), list(segments)
    spans: list[Span] = []
    while free and len(spans) < wanted:
        untouched = [run for run in free if run in whole]
        is_whole = rng.random() < config.whole_segment
        if is_whole and untouched:
            run = span = untouched[int(rng.integers(len(untouched)))]
        else:
            run, span = _random_span(free, rng)
        rest = [(run[0], span[0]), (span[1], run[1])]
        free = [other for other in free if other != run] + [(a, b) for a, b in rest if a < b]
        spans.append(span)
    return sorted(spans)


def move_spans(
    ids: Ids, is_label: Labels, *, tokens: CodeTokens, spans: SequenceOf[Span]
) -> tuple[Ids, Labels]:
    """Put `<mask>` in the place of every span, and `<infill>` and the span before the last id, in order.

    Spans are disjoint, sorted, and hold neither the first id nor the last.
    """
    body, body_labels = [], []
    tail, tail_labels = [], []
    unlabelled = np.zeros(1, dtype=np.bool_)
    last = 0
    for first, end in spans:
        body += [ids[last:first], np.asarray([tokens.mask], dtype=ids.dtype)]
        body_labels += [is_label[last:first], unlabelled]
        tail += [np.asarray([tokens.infill], dtype=ids.dtype), ids[first:end]]
        tail_labels += [unlabelled, is_label[first:end]]
        last = end
    return (
        np.concatenate([*body, ids[last:-1], *tail, ids[-1:]]),
        np.concatenate([*body_labels, is_label[last:-1], *tail_labels, is_label[-1:]]),
    )


def invert(ids: Ids, tokens: CodeTokens) -> Ids:
    """The ids before the transform; ids without sentinels come back as they are.

    Raises:
        LayoutError: a `<mask>` has no `<infill>`, or the other way round.
    """
    infills = np.flatnonzero(ids == tokens.infill)
    body_end = int(infills[0]) if len(infills) else len(ids) - 1
    body, tail = ids[:body_end], ids[body_end:-1]
    masks = np.flatnonzero(body == tokens.mask)
    if len(masks) != len(infills) or (tail == tokens.mask).any():
        raise LayoutError(
            f"{int((ids == tokens.mask).sum())} <mask> and {len(infills)} <infill> do not belong together; "
            "expected as many of each, and every <mask> first; give ids that the CM3 transform made"
        )
    spans = np.split(tail, infills[1:] - body_end) if len(infills) else []
    pieces = [body[: masks[0]]] if len(masks) else [body]
    for number, span in enumerate(spans):
        end = masks[number + 1] if number + 1 < len(masks) else body_end
        pieces += [span[1:], body[masks[number] + 1 : end]]
    return np.concatenate([*pieces, ids[-1:]])


def _segments(ids: Ids, *, tokens: CodeTokens, eos_id: int, start: int) -> list[Span]:
    """Runs of words, or of codes, between `<break>`, EOS and sentinels."""
    is_border = np.isin(ids, [tokens.break_, tokens.mask, tokens.infill, eos_id])
    is_border[:start] = True
    change = np.diff(np.concatenate([[1], is_border.astype(np.int8), [1]]))
    firsts, ends = np.flatnonzero(change == -1), np.flatnonzero(change == 1)
    return [(int(first), int(end)) for first, end in zip(firsts, ends, strict=True)]


def _random_span(runs: list[Span], rng: np.random.Generator) -> tuple[Span, Span]:
    """A run, and a span in it: every span of every run is as likely as any other."""
    lengths = np.asarray([end - first for first, end in runs])
    num_spans = lengths * (lengths + 1) // 2
    run = runs[int(rng.choice(len(runs), p=num_spans / num_spans.sum()))]
    first, end = sorted(rng.choice(run[1] - run[0] + 1, size=2, replace=False).tolist())
    return run, (run[0] + first, run[0] + end)
