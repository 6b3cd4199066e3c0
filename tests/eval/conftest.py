"""A tiny random DreamLLM with room for the world's prompts, and a baseline that shares its image decoder."""

import numpy as np
import pytest
import torch
from tests.generate.conftest import IMAGE_PX, tiny_model
from transformers import CLIPTextConfig, CLIPTextModel

from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Text
from dreamllm.eval.baseline import Baseline
from dreamllm.eval.subject import EvalOptions, Subject
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer
from dreamllm.world.documents import DOCUMENT_KINDS, make_document

CONTEXT = 512
CONDITION_WIDTH = 24
TEXT_LENGTH = 24


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    rng = np.random.default_rng(0)
    documents = [make_document(kind, rng) for kind in DOCUMENT_KINDS for _ in range(8)]
    return train_tokenizer([part.text for d in documents for part in d if isinstance(part, Text)], 420)


@pytest.fixture(scope="session")
def generator(tokenizer: Tokenizer) -> InterleavedGenerator:
    """Says words of the world in no order, draws now and then, and comes to an end."""
    model = tiny_model(tokenizer, CONTEXT)
    model.language_model.lm_head.bias.data.zero_()
    for token, bias in ((tokenizer.special.dream_start, 1.5), (tokenizer.eos_id, 2.0)):
        model.language_model.lm_head.bias.data[token] = bias
    encoder = SequenceEncoder(
        tokenizer,
        model.slot_sizes,
        PLAIN_CHAT,
        VisionTransform(IMAGE_PX),
        TargetTransform(IMAGE_PX),
        EncodeOptions(max_length=CONTEXT),
    )
    return InterleavedGenerator(model, encoder)


@pytest.fixture(scope="session")
def text_encoder(tokenizer: Tokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=CONDITION_WIDTH,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
    )


@pytest.fixture(scope="session")
def subject(generator: InterleavedGenerator, text_encoder: CLIPTextModel, tokenizer: Tokenizer) -> Subject:
    return Subject(
        generator=generator, baseline=Baseline(text_encoder, tokenizer, generator.model.image_decoder)
    )


@pytest.fixture(scope="session")
def options() -> EvalOptions:
    """As little as can be: two items a cell, one denoising step."""
    return EvalOptions(num=2, is_quick=True, num_inference_steps=1, guidance_scale=1.0)
