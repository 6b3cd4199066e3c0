"""A tiny random JAM whose words are bytes; its head has a bias, which decides what it likes to say."""

import string
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image as PILImage
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dreamllm.data.transforms import TargetTransform
from dreamllm.document.document import Document, Image, Text
from dreamllm.generate.codes import CodeGenerator, Scorer
from dreamllm.generate.options import GenerationOptions
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.jam import JAM, JAMConfig
from dreamllm.models.jam_cross import JamCrossConfig, JamCrossForCausalLM
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.code_tokens import CodeTokens, add_code_tokens
from dreamllm.sequence.encode_codes import CodeEncodeOptions, CodeSequenceEncoder
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer

FIRST_CODE, NUM_CODES, G = 272, 16, 4
VOCAB = FIRST_CODE + NUM_CODES + 3  # rows that no token has
PICTURE_PX = 4
CONTEXT = 100


def make_tokenizer() -> Tokenizer:
    hf = train_tokenizer([], vocab_size=266).hf
    add_code_tokens(hf)
    return Tokenizer(hf)


TOKENIZER = make_tokenizer()
TOKENS = CodeTokens.of(TOKENIZER.hf, first_code=FIRST_CODE, num_codes=NUM_CODES, codes_per_picture=G)

LETTERS = {TOKENIZER.encode(letter)[0]: 12.0 for letter in string.ascii_lowercase}
CHATTY = {**LETTERS, TOKENS.break_: 14.0, TOKENIZER.eos_id: 11.0}
"""Says letters, draws now and then, and comes to an end."""
DRAWS = LETTERS | {TOKENS.break_: 90.0}
OPTIONS = GenerationOptions(max_new_tokens=20, max_images=3, temperature=1.0, guidance_scale=2.0, seed=3)


def make_image_tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    vq_model = VQModel(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        sample_size=PICTURE_PX,
        num_vq_embeddings=NUM_CODES,
        vq_embed_dim=3,
        norm_num_groups=2,
    )
    nn.init.normal_(vq_model.quantize.embedding.weight)
    return ImageTokenizer(vq_model)


def make_language_model(likes: Mapping[int, float], *, seed: int = 0, context: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
        )
    )
    head = nn.Linear(32, VOCAB)
    nn.init.normal_(head.weight, std=0.3)
    head.bias.data.zero_()
    for token, bias in likes.items():
        head.bias.data[token] = bias
    language_model.set_output_embeddings(head)
    return language_model


def make_towers(*, text_skips_images: bool) -> PreTrainedModel:
    """Two random towers that do read each other."""
    torch.manual_seed(0)
    tower = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
    )
    config = JamCrossConfig(
        text_config=tower.to_dict(),
        image_config=tower.to_dict(),
        first_code=FIRST_CODE,
        special_ids=[TOKENS.break_, TOKENS.mask, TOKENS.infill],
        cross_every=1,
        gating="random",
        text_skips_images=text_skips_images,
    )
    return JamCrossForCausalLM(config)


def make_generator(
    likes: Mapping[int, float] | None = None,
    *,
    seed: int = 0,
    context: int = CONTEXT,
    scorer: Scorer | None = None,
    draws: bool = True,
    language_model: PreTrainedModel | None = None,
) -> CodeGenerator:
    image_tokenizer = make_image_tokenizer() if draws else None
    model = JAM(
        JAMConfig(first_code=FIRST_CODE, num_codes=NUM_CODES, codes_per_picture=G),
        language_model=language_model or make_language_model(likes or {}, seed=seed, context=context),
        image_tokenizer=image_tokenizer,
    ).eval()
    encoder = CodeSequenceEncoder(
        TOKENIZER,
        TOKENS,
        PLAIN_CHAT,
        TargetTransform(PICTURE_PX),
        None if image_tokenizer is None else image_tokenizer.encode,
        CodeEncodeOptions(max_length=context),
    )
    return CodeGenerator(model, encoder, scorer=scorer)


@contextmanager
def watch(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The inputs that a module is given meanwhile."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    try:
        yield seen
    finally:
        hook.remove()


make_cached = lru_cache(lambda pairs, **given: make_generator(dict(pairs), **given))


def generator_that(likes, **given):
    return make_cached(tuple(likes.items()), **given)


def picture(seed):
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return PILImage.fromarray(values)


def plain(*texts, id=""):
    return Document(parts=tuple(Text(text=text) for text in texts), id=id)


def asked(*parts):
    return Document(
        parts=tuple(
            Text(text=p, role="user") if isinstance(p, str) else Image(source=p, role="user") for p in parts
        )
    )


def prompts():
    """Documents of every end: words, a picture, neighbours, a question, an unfinished answer."""
    return [
        plain("once"),
        plain("a longer beginning of a story"),
        asked("what is this", picture(1)),
        Document(parts=(Text(text="see "), Image(source=picture(2)))),
        Document(parts=(Image(source=picture(3)), Image(source=picture(4)), Text(text=" so"))),
        Document(parts=(*asked("draw").parts, Image(source=picture(5), role="assistant"))),
    ]


def shown(parts):
    """Something of each part, or each PIL picture, that is equal for equals."""
    pictures = [part.load() if isinstance(part, Image) else part for part in parts]
    return [each.text if isinstance(each, Text) else each.tobytes() for each in pictures]


def watch_codes(generator):
    return watch(generator.model.image_tokenizer.vq_model.quantize.embedding)


def decoded(seen):
    """Codes of the pictures that were decoded; the codebook is also asked when one is encoded."""
    return [codes for each in seen if each.dim() == 2 for codes in each.tolist()]
