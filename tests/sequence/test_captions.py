import torch

from dreamllm.sequence.captions import CaptionTokens
from dreamllm.sequence.tokenizer import Tokenizer


def test_captions_are_bos_words_eos_and_padding(words: Tokenizer) -> None:
    ids = CaptionTokens(words, 6)(["red cat", "", "a red cat and a blue dog"])

    spelled = [words.hf.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert spelled == [
        ["<s>", "red", "cat", "</s>", "[PAD]", "[PAD]"],
        ["<s>", "</s>", "[PAD]", "[PAD]", "[PAD]", "[PAD]"],
        ["<s>", "a", "red", "cat", "and", "</s>"],
    ]


def test_the_mask_covers_everything_but_padding(words: Tokenizer) -> None:
    captions = CaptionTokens(words, 6)

    mask = captions.mask(captions(["red cat", ""]))

    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert mask.dtype == torch.int64


def test_a_caption_fits_if_all_its_words_stay(words: Tokenizer) -> None:
    captions = CaptionTokens(words, 6)

    assert captions.fits("a red cat and")
    assert not captions.fits("a red cat and a")
