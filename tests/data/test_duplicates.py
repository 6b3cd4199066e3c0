"""What repeats is found within what is remembered, and nothing else is called a repetition."""

import numpy as np
import pytest
from PIL import Image as PILImage

from dreamllm.data.duplicates import DocumentSketch, RecentDigests, RecentDocuments
from dreamllm.data.sketches import text_sketch, thumbnail

WORDS = [f"word{number}" for number in range(500)]


def words(seed: int, num: int = 60) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, num))


def picture(seed: int) -> PILImage.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return PILImage.fromarray(cells).resize((64, 64), PILImage.Resampling.NEAREST)


def sketch(text: str = "", *pictures: PILImage.Image) -> DocumentSketch:
    return DocumentSketch(
        text=text_sketch(text),
        picture=thumbnail(pictures[0]) if pictures else None,
        num_pictures=len(pictures),
    )


def test_digests_are_a_set_while_they_fit() -> None:
    rng = np.random.default_rng(0)
    digests = [0, *(int(number) for number in rng.integers(1, 2**64, 2000, dtype=np.uint64))]
    recent = RecentDigests(4000)

    first = [recent.seen(digest) for digest in digests]
    second = [recent.seen(digest) for digest in digests]

    assert not any(first)
    assert all(second)


def test_digests_that_do_not_fit_forget_the_oldest_and_invent_nothing() -> None:
    rng = np.random.default_rng(0)
    digests = [int(number) for number in rng.integers(1, 2**64, 5000, dtype=np.uint64)]
    recent = RecentDigests(100)

    assert not any(recent.seen(digest) for digest in digests)
    assert all(recent.seen(digest) for digest in digests[-10:])
    assert not any(recent.seen(digest) for digest in digests[:1000])


def test_a_text_with_a_few_changes_is_found_and_its_number_told() -> None:
    recent = RecentDocuments(1000)
    texts = [words(seed) for seed in range(300)]
    assert [recent.find_or_add(sketch(text), number) for number, text in enumerate(texts)] == [None] * 300

    found = [recent.find_or_add(sketch(text.upper() + " and more"), 1000) for text in texts]

    assert found == list(range(300))


@pytest.mark.parametrize(
    ("one", "other", "is_alike"),
    [
        (sketch(words(1), picture(1)), sketch(words(1), picture(1)), True),
        (sketch(words(1), picture(1)), sketch(words(2), picture(1)), False),  # another caption
        (sketch(words(1), picture(1)), sketch(words(1), picture(2)), False),  # the same caption
        (sketch(words(1), picture(1)), sketch(words(1)), False),
        (sketch(words(1), picture(1)), sketch(words(1), picture(1), picture(2)), False),
        (sketch("", picture(1)), sketch("", picture(1)), True),
        (sketch("", picture(1)), sketch("a", picture(1)), False),
        (sketch(), sketch(), False),
    ],
)
def test_text_number_of_pictures_and_first_picture_must_all_be_alike(
    one: DocumentSketch, other: DocumentSketch, is_alike: bool
) -> None:
    recent = RecentDocuments(10)

    assert recent.find_or_add(one, 5) is None
    assert recent.find_or_add(other, 6) == (5 if is_alike else None)


def test_a_pair_is_found_among_many_with_the_same_caption() -> None:
    recent = RecentDocuments(1000)
    for seed in range(200):
        recent.find_or_add(sketch("one caption for all", picture(seed)), seed)

    found = [recent.find_or_add(sketch("one caption for all", picture(seed)), 999) for seed in range(200)]

    missed = found.count(None)
    assert missed == 0
    assert found == list(range(200))


def test_the_most_recent_documents_are_remembered_and_memory_stays() -> None:
    recent = RecentDocuments(200)
    for seed in range(1000):
        assert recent.find_or_add(sketch(words(seed)), seed) is None

    late = [recent.find_or_add(sketch(words(seed)), 5000) for seed in range(900, 1000)]
    early = recent.find_or_add(sketch(words(3)), 5000)

    assert late == list(range(900, 1000))
    assert early is None


def test_similarity_decides_what_is_almost_the_same() -> None:
    text = words(1, 100)
    changed = " ".join([*text.split()[:85], *words(2, 15).split()])  # a Jaccard similarity of about 0.74

    strict, loose = (RecentDocuments(10, similarity=share) for share in (0.9, 0.6))

    for recent in (strict, loose):
        recent.find_or_add(sketch(text), 0)
    assert strict.find_or_add(sketch(changed), 1) is None
    assert loose.find_or_add(sketch(changed), 1) == 0
