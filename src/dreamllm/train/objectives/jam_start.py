"""What a run of JAM starts from: a new parent over a joint vocabulary, or two parents fused."""

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from dreamllm.checkpoint.jam import jam_encoder_of
from dreamllm.checkpoint.parts import load_image_tokenizer
from dreamllm.data.transforms import TargetTransform
from dreamllm.models.jam import JAM, JAMConfig
from dreamllm.sequence.code_tokens import add_code_tokens
from dreamllm.sequence.encode_codes import CodeSequenceEncoder
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer
from dreamllm.train.objectives.configs import JamParentConfig
from dreamllm.train.objectives.language_model import world_texts

TOKENIZER_DOCUMENTS = 2000


def new_parent(config: JamParentConfig) -> tuple[JAM, CodeSequenceEncoder]:
    """An untrained parent and its encoder.

    Raises:
        ConfigError: the image tokenizer has other codes than the vocabulary.
        CheckpointError: a folder is missing or damaged.
    """
    tokenizer = joint_tokenizer(config.tokenizer, config.vocab_size)
    image_tokenizer = None if config.image_tokenizer is None else load_image_tokenizer(config.image_tokenizer)
    model = JAM(
        JAMConfig(
            first_code=tokenizer.vocab_size,
            num_codes=config.num_codes,
            codes_per_picture=config.codes_per_picture,
        ),
        language_model=_language_model(config, tokenizer),
        image_tokenizer=image_tokenizer,
    )
    target = None if image_tokenizer is None else TargetTransform(image_px=image_tokenizer.picture_px)
    return model, jam_encoder_of(model, tokenizer, target)


def joint_tokenizer(folder: Path | None, vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder, or one trained on the world's text, with what joins text and codes.

    The world's text is the same in every run, and so is the tokenizer; invented nouns have no tokens of their
    own.
    """
    if folder is not None:
        tokenizer = Tokenizer.from_pretrained(folder)
    else:
        tokenizer = train_tokenizer(world_texts(TOKENIZER_DOCUMENTS), vocab_size)
    add_code_tokens(tokenizer.hf)
    return Tokenizer(tokenizer.hf)  # anew: it holds a copy of what it was given


def _language_model(config: JamParentConfig, tokenizer: Tokenizer) -> PreTrainedModel:
    values = {
        "vocab_size": tokenizer.vocab_size + config.num_codes,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.hidden_size // config.num_heads,
        "max_position_embeddings": config.max_length,
        "initializer_range": config.initializer_range,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    if config.qk_norm:
        return Qwen3ForCausalLM(Qwen3Config(**values))
    return LlamaForCausalLM(LlamaConfig(**values))
