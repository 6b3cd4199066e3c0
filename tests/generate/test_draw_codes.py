import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.generate.tiny_jam import TOKENIZER, TOKENS, make_image_tokenizer
from torch.testing import assert_close

from dreamllm.generate.draw_codes import (
    Picture,
    code_scores,
    contrast,
    decode_pictures,
    guide,
    has_other_side,
    preview_pictures,
    without_words,
)
from dreamllm.generate.options import GenerationOptions
from dreamllm.generate.sampling import pick

CONDITIONAL = torch.tensor([[2.0, -1.0, 0.5]])
UNCONDITIONAL = torch.tensor([[1.0, 1.0, 0.25]])
BOS, BREAK, MASK = TOKENIZER.bos_id, TOKENS.break_, TOKENS.mask
CODES = [TOKENS.first_code + code for code in (3, 0, 5, 1)]
SIZES = st.integers(1, 12)


def test_guidance_goes_from_one_side_through_the_other():
    assert_close(guide(CONDITIONAL, UNCONDITIONAL, scale=0.0), UNCONDITIONAL, atol=0, rtol=0)
    assert_close(guide(CONDITIONAL, UNCONDITIONAL, scale=1.0), CONDITIONAL, atol=0, rtol=0)
    # 1 + 3 (2 - 1), 1 + 3 (-1 - 1), 0.25 + 3 (0.5 - 0.25)
    assert_close(guide(CONDITIONAL, UNCONDITIONAL, scale=3.0), torch.tensor([[4.0, -5.0, 1.0]]))


def test_contrast_is_the_ratio_of_probabilities_among_the_likely():
    p_c = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    p_u = torch.tensor([[0.7, 0.1, 0.1, 0.1]])

    # the second largest is 0.3; half of it, 0.15, is still reached by the third
    scores = contrast(p_c.log() + 5, p_u.log() - 2, k=2, alpha=0.499)

    assert_close(scores[:, :3].exp(), torch.tensor([[0.5 / 0.7, 3.0, 1.5]]))
    assert scores[0, 3] == -torch.inf


def test_with_the_largest_and_alpha_1_contrast_is_greedy():
    p_c = torch.tensor([[0.5, 0.3, 0.2]])

    scores = contrast(p_c.log(), torch.tensor([[0.9, 0.05, 0.05]]).log(), k=1, alpha=1.0)

    assert torch.isfinite(scores).tolist() == [[True, False, False]]


@given(
    num=SIZES,
    k=st.integers(1, 20),
    alpha=st.floats(0.01, 1.0),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1.0, 50.0]),
)
def test_the_support_of_contrast_holds_the_k_likeliest_and_nothing_below_the_bar(num, k, alpha, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    conditional, unconditional = (torch.randn(1, num, generator=generator) * spread for _ in range(2))

    support = torch.isfinite(contrast(conditional, unconditional, k=k, alpha=alpha))[0]

    log_p = conditional[0].double().log_softmax(dim=-1)
    ranked = log_p.sort(descending=True)
    bar = ranked.values[min(k, num) - 1]
    assert support[ranked.indices[: min(k, num)]].all()
    assert (log_p[support] >= bar + np.log(alpha) - 1e-4).all()
    assert (log_p[~support] <= bar + np.log(alpha) + 1e-4).all()
    scores = contrast(conditional, unconditional, k=k, alpha=alpha)
    assert support[pick(scores, None, temperature=0.0, top_p=1.0)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"guidance_scale": 1.0}, False),
        ({"guidance_scale": 1.5}, True),
        ({"guidance_scale": 0.0}, True),
        ({"guidance_scale": 1.0, "contrastive_k": 5}, True),
    ],
)
def test_the_other_side_is_read_only_if_it_is_compared_with(changes, expected):
    assert has_other_side(GenerationOptions(**changes)) is expected


def test_contrast_takes_the_place_of_guidance():
    options = GenerationOptions(guidance_scale=7.0, contrastive_k=2, contrastive_alpha=0.5)

    scores = code_scores(CONDITIONAL, UNCONDITIONAL, options)

    assert_close(scores, contrast(CONDITIONAL, UNCONDITIONAL, k=2, alpha=0.5))
    assert code_scores(CONDITIONAL, None, GenerationOptions(guidance_scale=1.0)) is CONDITIONAL


def test_without_words_pictures_and_their_breaks_stay():
    words = TOKENIZER.encode("two words")

    assert without_words([BOS, *words, BREAK], TOKENS) == [BOS, MASK, BREAK]
    assert without_words([BOS, BREAK, *CODES, BREAK, *words, BREAK], TOKENS) == [
        *(BOS, BREAK, *CODES, BREAK),
        *(MASK, BREAK),
    ]
    neighbours = [BOS, *words, BREAK, *CODES, BREAK, BREAK]
    assert without_words(neighbours, TOKENS) == [BOS, MASK, BREAK, *CODES, BREAK, BREAK]


def begin(**changes):
    given = {"name": "a", "number": 0, "codes_per_picture": 4, "seed": 0} | changes
    return Picture.begin([0, 1], [], **given)


def test_what_is_drawn_follows_from_seed_name_number_and_candidate():
    points = begin().points

    assert points == begin().points
    others = [begin(**change).points for change in ({"name": "b"}, {"number": 1}, {"seed": 1})]
    rows = [tuple(row) for picture in (points, *others) for row in picture]
    assert len(set(rows)) == 8
    assert all(len(row) == 4 and 0 <= min(row) <= max(row) < 1 for row in rows)


def test_a_preview_shows_what_is_drawn_and_grey():
    tokenizer = make_image_tokenizer()
    codes = [[3, 0, 5], [7]]

    images = preview_pictures(tokenizer, codes, batch_size=8)
    whole = decode_pictures(tokenizer, [[3, 0, 5, 5], [7, 7, 7, 7]], batch_size=8)

    for drawn, image, full in zip(codes, images, whole, strict=True):
        cells, expected = np.asarray(image), np.asarray(full)
        for place, (top, left) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
            cell = cells[top : top + 2, left : left + 2]
            if place < len(drawn):
                assert (cell == expected[top : top + 2, left : left + 2]).all()
            else:
                assert (cell == 127).all()


def test_a_batch_of_decodings_holds_at_most_so_many():
    tokenizer = make_image_tokenizer()
    sizes = []
    hook = tokenizer.vq_model.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))

    images = decode_pictures(tokenizer, [[n] * 4 for n in range(5)], batch_size=2)
    hook.remove()

    assert sizes == [2, 2, 1]
    assert len({image.tobytes() for image in images}) == 5
