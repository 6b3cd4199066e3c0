"""A vocabulary of whole words, so that a sequence can be written down and read as a sentence.

`spell` shows a sequence as its tokens, a star behind every label; slots have P = 2 visual tokens and Q = 3
dream queries.
"""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image as PILImage
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.sequence.batch import Sequence
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.layout import SlotSizes
from dreamllm.sequence.special_tokens import add_special_tokens
from dreamllm.sequence.tokenizer import Tokenizer

WORDS = ["<s>", "</s>", "?", "a", "red", "cat", "and", "blue", "dog", "USER:", "ASSISTANT:", "draw", "here"]


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    backend = Backend(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf_tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    add_special_tokens(hf_tokenizer)
    return Tokenizer(hf_tokenizer)


@pytest.fixture(scope="session")
def make_encoder(words: Tokenizer) -> Callable[..., SequenceEncoder]:
    def make(**options: object) -> SequenceEncoder:
        return SequenceEncoder(
            words,
            SlotSizes(num_visual_tokens=2, num_dream_queries=3),
            PLAIN_CHAT,
            VisionTransform(4),
            TargetTransform(8),
            EncodeOptions(**options),
        )

    return make


@pytest.fixture(scope="session")
def spell(words: Tokenizer) -> Callable[[Sequence], str]:
    def spelled(sequence: Sequence) -> str:
        tokens = words.hf.convert_ids_to_tokens(sequence.input_ids.tolist())
        return " ".join(
            token + "*" * bool(label) for token, label in zip(tokens, sequence.is_label, strict=True)
        )

    return spelled


@pytest.fixture(scope="session")
def picture() -> Callable[[int], PILImage.Image]:
    """An 8 x 8 picture of one gray level."""

    def make(level: int) -> PILImage.Image:
        return PILImage.fromarray(np.full((8, 8, 3), level, dtype=np.uint8))

    return make
