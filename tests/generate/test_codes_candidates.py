from dataclasses import replace

import pytest
import torch
from tests.generate.tiny_jam import (
    DRAWS,
    FIRST_CODE,
    NUM_CODES,
    OPTIONS,
    TOKENIZER,
    TOKENS,
    G,
    decoded,
    generator_that,
    plain,
    shown,
    watch_codes,
)
from tests.generate.tiny_jam import make_generator as make

from dreamllm.errors import ConfigError

BREAK = TOKENS.break_


def test_of_several_candidates_the_scorer_decides_and_the_document_goes_on_with_its_choice():
    seen = []

    def scorer(document, images):
        seen.append((shown(document.parts), shown(images)))
        return [float(number == wanted) for number in range(len(images))]

    generator = make(DRAWS, scorer=scorer)
    options = replace(OPTIONS, num_candidates=3, max_images=2)
    single = generator_that(DRAWS).generate([plain("x")], replace(options, num_candidates=1))[0]
    for wanted in range(3):
        seen.clear()
        (document,) = generator.generate([plain("x")], options)
        (reread,) = generator.generate([plain("x")], replace(options, use_cache=False))

        assert shown(document.parts) == shown(reread.parts)
        (_, first), (so_far, second) = seen[:2]
        assert so_far == ["x", first[wanted]]
        assert shown(document.images) == [first[wanted], second[wanted]]
        assert first[0] == shown(single.images)[0]  # a candidate does not depend on the others
        assert len(set(first)) == 3
        if wanted == 0:
            assert shown(document.parts) == shown(single.parts)


@pytest.mark.parametrize("wanted", [0, 2])
def test_the_words_after_a_choice_are_those_of_a_full_forward_pass_over_it(wanted):
    generator = make(DRAWS, scorer=lambda _, images: [float(n == wanted) for n in range(len(images))])
    options = replace(OPTIONS, num_candidates=3, max_images=1, temperature=0.0)
    with watch_codes(generator) as seen:
        (document,) = generator.generate([plain("x")], options)

    words = TOKENIZER.encode(document.parts[-1].text)
    codes = [FIRST_CODE + code for code in decoded(seen)[wanted]]
    before = [*generator.encoder.encode_prompt(plain("x")).input_ids, BREAK, *codes, BREAK]
    with torch.no_grad():
        logits = generator.model.language_model(input_ids=torch.tensor([before + words])).logits[0]
    logits[:, BREAK] = -torch.inf  # no second picture is allowed
    logits[:, FIRST_CODE:] = -torch.inf
    assert len(words) == options.max_new_tokens
    assert logits[len(before) - 1 : -1].argmax(-1).tolist() == words


def test_without_a_scorer_the_likeliest_candidate_is_kept():
    candidates = []
    generator = make(DRAWS, scorer=lambda _, images: candidates.extend(shown(images)) or [0.0] * len(images))
    options = replace(OPTIONS, mode="image", num_candidates=6)
    model = generator.model
    with watch_codes(generator) as seen:
        generator.generate([plain("x")], options)
    codes = torch.tensor(decoded(seen))

    generator.scorer = None
    (document,) = generator.generate([plain("x")], options)

    before = torch.tensor([*generator.encoder.encode_prompt(plain("x")).input_ids, BREAK]).expand(6, -1)
    with torch.no_grad():
        logits = model.language_model(input_ids=torch.cat([before, FIRST_CODE + codes], dim=1)).logits
    log_p = logits[:, -1 - G : -1, FIRST_CODE : FIRST_CODE + NUM_CODES].log_softmax(-1)
    best = int(log_p.gather(2, codes[:, :, None]).mean(dim=(1, 2)).argmax())
    assert best != 0
    assert shown(document.images) == [candidates[best]]


def test_a_scorer_that_leaves_one_out_is_told_so():
    generator = make(DRAWS, scorer=lambda _, images: [1.0])

    with pytest.raises(ConfigError, match="the scorer gave 1 scores for 2 pictures"):
        generator.generate([plain("x")], replace(OPTIONS, num_candidates=2))
