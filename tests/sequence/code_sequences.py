"""Sequences of JAM as sentences: a vocabulary of whole words, pictures of one gray level and their two codes.

A star marks a label; `[7]` is short for the picture of gray level 7 with the `<break>` before it, `[7*]` for
one that is learned, and `|` for a `<break>` that closes a picture.
"""

from collections.abc import Callable
from functools import cache

import torch
from PIL import Image as PILImage
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dreamllm.data.transforms import TargetTransform
from dreamllm.document.document import Document, Image, Part, Role, Text
from dreamllm.sequence.batch import Sequence
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.code_tokens import CodeTokens, add_code_tokens
from dreamllm.sequence.encode_codes import CodeEncodeOptions, CodeSequenceEncoder
from dreamllm.sequence.special_tokens import add_special_tokens
from dreamllm.sequence.tokenizer import Tokenizer

NUM_CODES = 256
_WORDS = ("<s>", "</s>", "?", "a", "red", "cat", "and", "blue", "dog", "USER:", "ASSISTANT:", "draw", "here")


def sentence(text: str) -> str:
    """What `spell` says, from the short form."""
    words = []
    for word in text.split():
        star = "*" * word.endswith(("*", "*]"))
        level = word.strip("[]*")
        if word.startswith("["):
            words += [f"<break>{star}", f"c{level}{star}", f"c{int(level) + 1}{star}"]
        else:
            words.append(word.replace("|", "<break>"))
    return " ".join(words)


def say(text: str, *, role: Role | None = None, learn: bool = True) -> Text:
    return Text(text=text, role=role, learn=learn)


def show(level: int, *, role: Role | None = None, learn: bool = True) -> Image:
    return Image(source=PILImage.new("RGB", (8, 8), (level,) * 3), role=role, learn=learn)


def given(level: int, *, role: Role | None = None) -> Image:
    return show(level, role=role, learn=False)


def document(*parts: Part, id: str = "d") -> Document:
    return Document(parts=parts, id=id)


def gray_codes(pixels: Tensor) -> Tensor:
    """Two codes a picture: its gray level, and one more."""
    levels = ((pixels.mean((1, 2, 3)) + 1) * 127.5).round().long()
    return torch.stack([levels, levels + 1], dim=1)


@cache
def joint_tokenizer() -> Tokenizer:
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf_tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    add_special_tokens(hf_tokenizer)
    add_code_tokens(hf_tokenizer)
    return Tokenizer(hf_tokenizer)


def joint_tokens() -> CodeTokens:
    tokenizer = joint_tokenizer()
    first_code = tokenizer.vocab_size + 5
    return CodeTokens.of(tokenizer.hf, first_code=first_code, num_codes=NUM_CODES, codes_per_picture=2)


def make_encoder(
    picture_codes: Callable[[Tensor], Tensor] | None = gray_codes, **options: object
) -> CodeSequenceEncoder:
    return CodeSequenceEncoder(
        joint_tokenizer(),
        joint_tokens(),
        PLAIN_CHAT,
        TargetTransform(8),
        picture_codes,
        CodeEncodeOptions(**options),
    )


def spell(sequence: Sequence) -> str:
    """Its tokens, a star behind every label."""
    ids, tokens = sequence.input_ids, joint_tokens()
    names = [
        f"c{i - tokens.first_code}" if is_code else joint_tokenizer().hf.convert_ids_to_tokens(int(i))
        for i, is_code in zip(ids, tokens.is_code(ids), strict=True)
    ]
    return " ".join(name + "*" * bool(label) for name, label in zip(names, sequence.is_label, strict=True))
