from dreamllm.sequence.captions import CaptionTokens
from dreamllm.sequence.tokenizer import Tokenizer


def test_captions_are_bos_words_and_eos_to_the_end(words: Tokenizer) -> None:
    ids = CaptionTokens(words, 6)(["red cat", "", "a red cat and a blue dog"])

    spelled = [words.hf.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert spelled == [
        ["<s>", "red", "cat", "</s>", "</s>", "</s>"],
        ["<s>", "</s>", "</s>", "</s>", "</s>", "</s>"],
        ["<s>", "a", "red", "cat", "and", "</s>"],
    ]


def test_a_caption_fits_if_all_its_words_stay(words: Tokenizer) -> None:
    captions = CaptionTokens(words, 6)

    assert captions.fits("a red cat and")
    assert not captions.fits("a red cat and a")
