"""A checkpoint in the official layout, written with stock classes alone: tiny, with random weights and the
faults of the published ones (an odd order of special tokens, wrong ids in `config.json`)."""

import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tests.models.tiny import clip, decoder
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlamaConfig, LlamaForCausalLM

NUM_QUERIES, NUM_PATCHES, PICTURE_PX = 3, 4, 16
WIDTH, VISION_WIDTH, CONDITION_WIDTH = 32, 16, 24
ORDER = (
    "[PAD]", "<im_start>", "<dream_end>", "<dream_start>", "<im_patch>", "<im_end>", "<image>", "<dream>",
)  # fmt: skip
"""Of the ids after the words, as in the published checkpoints."""
SENTENCES = ("a red cat sits on the blue mat", "USER: draw a small green star ASSISTANT: here it is")


@dataclass(frozen=True)
class Miniature:
    """Three folders."""

    checkpoint: Path
    vision_encoder: Path
    image_decoder: Path

    def tensors(self, file: str) -> dict[str, Tensor]:
        return torch.load(self.checkpoint / file, weights_only=True)

    def change(self, file: str, **changes: Tensor | None) -> None:
        """Set tensors of a file, with dots written as `__`; None takes one away."""
        tensors = self.tensors(file)
        for name, tensor in changes.items():
            tensors[name.replace("__", ".")] = tensor
        save(self.checkpoint / file, {name: each for name, each in tensors.items() if each is not None})

    def json(self, file: str) -> dict:
        return json.loads((self.checkpoint / file).read_text())

    def change_json(self, file: str, **changes: object) -> None:
        (self.checkpoint / file).write_text(json.dumps(self.json(file) | changes))

    def sentencepiece(self) -> SentencePieceProcessor:
        return SentencePieceProcessor(model_file=str(self.checkpoint / "tokenizer.model"))


def write_miniature(folder: Path, dtype: torch.dtype = torch.float32) -> Miniature:
    """The checkpoint, and the stock folders with the configurations of its frozen parts and no weights."""
    made = Miniature(folder / "checkpoint", folder / "clip", folder / "sd")
    made.checkpoint.mkdir(parents=True)
    num_words = _write_tokenizer(made.checkpoint)
    _write_language_model(made, num_words + len(ORDER), dtype)
    torch.manual_seed(7)
    vision, brush = clip(), decoder()
    draw = {
        "projector.projector.weight": torch.randn(WIDTH, VISION_WIDTH) * 0.2,
        "projector.projector.bias": torch.randn(WIDTH) * 0.2,
    }
    frozen = {f"clip_vision_model.vision_model.{name}": each for name, each in vision.state_dict().items()}
    save(made.checkpoint / "clip_vision_embedding.bin", frozen | draw, dtype)
    queries = torch.randn(1, NUM_QUERIES, WIDTH)
    save(made.checkpoint / "dream_embedding.bin", {"dream_queries": queries}, dtype)
    head = {
        f"{part}.{name}": each
        for part, module in (("vae", brush.vae), ("unet", brush.unet))
        for name, each in module.state_dict().items()
    }
    head["projector.projector.weight"] = torch.randn(CONDITION_WIDTH, WIDTH) * 0.5
    save(made.checkpoint / "stable_diffusion_head.bin", head, dtype)
    vision.config.dtype = torch.float32  # as in OpenAI's, whatever the checkpoint holds
    vision.config.save_pretrained(made.vision_encoder)
    CLIPImageProcessorPil(
        size={"shortest_edge": PICTURE_PX}, crop_size={"height": PICTURE_PX, "width": PICTURE_PX}
    ).save_pretrained(made.vision_encoder)
    brush.unet.save_config(made.image_decoder / "unet")
    brush.vae.save_config(made.image_decoder / "vae")
    stock_schedule().save_pretrained(made.image_decoder / "scheduler")
    return made


def stock_schedule() -> PNDMScheduler:
    """What Stable Diffusion 2.1-base ships."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def save(path: Path, tensors: object, dtype: torch.dtype | None = None) -> None:
    if dtype is not None and isinstance(tensors, dict):
        tensors = {name: each.to(dtype) for name, each in tensors.items()}
    torch.save(tensors, path)


def _write_language_model(made: Miniature, num_tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    config = LlamaConfig(
        vocab_size=num_tokens,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
    )
    tensors = LlamaForCausalLM(config).to(dtype).state_dict()
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
    save(made.checkpoint / "pytorch_model.bin", dict(tensors))
    described = {
        "architectures": ["SomethingForCausalLM"],
        "model_type": "dreamllm",
        "vocab_size": num_tokens,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "pretraining_tp": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": -1,
        "loss_weight_vm": 10,
        "plugins": {"head": {"_target_": "no.such.module.Head", "pretrained_model_name_or_path": "none"}},
    }
    (made.checkpoint / "config.json").write_text(json.dumps(described))
    (made.checkpoint / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 0, "eos_token_id": 1})
    )


@cache
def _sentencepiece_model() -> bytes:
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=written,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


def _write_tokenizer(folder: Path) -> int:
    """The files of an old LlamaTokenizer; returns how many words there are."""
    (folder / "tokenizer.model").write_bytes(_sentencepiece_model())
    num_words = len(SentencePieceProcessor(model_proto=_sentencepiece_model()))
    added = {token: num_words + place for place, token in enumerate(ORDER)}
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    files = {
        "added_tokens.json": added,
        "special_tokens_map.json": {**named, "additional_special_tokens": [*ORDER[1:]]},
        "tokenizer_config.json": {
            **named, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 2048,
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return num_words
