"""Tiny stock parts and hand-made batches for the tests of models and checkpoints."""

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.pixels import Pixels

VOCAB = 48
NUM_QUERIES = 3
NUM_PATCHES = 4
PATCH, IM_START, IM_END, DREAM_START, DREAM_END = 40, 41, 42, 43, 44
BRACKETS = (IM_START, IM_END, DREAM_START, DREAM_END)


def llama(*, tie: bool = False) -> PreTrainedModel:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tie,
    )
    return LlamaForCausalLM(config)


def qwen3() -> PreTrainedModel:
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def clip() -> CLIPVisionModel:
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=8,
    )
    return CLIPVisionModel(config)


def scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )


def decoder(*, prediction_type: str = "epsilon", shift_factor: float | None = None) -> StableDiffusionDecoder:
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        shift_factor=shift_factor,
    )
    return StableDiffusionDecoder(unet, vae, scheduler(prediction_type))


def dreamllm(language_model: PreTrainedModel | None = None, **config: object) -> DreamLLM:
    language_model = llama() if language_model is None else language_model
    torch.manual_seed(4)
    return DreamLLM(
        DreamLLMConfig(num_dream_queries=NUM_QUERIES, **config),
        language_model=language_model,
        vision_model=clip(),
        image_decoder=decoder(),
    )


IMAGE = [IM_START, *[PATCH] * NUM_PATCHES, IM_END]
DREAM = [DREAM_START, *[PATCH] * NUM_QUERIES, DREAM_END]


def picture(seed: int) -> torch.Tensor:
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch_of(rows: list[list[list[int]]], length: int) -> Batch:
    """Rows of documents of token ids; ids below PATCH and DREAM_START are labels, every dream is a target."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions, document = torch.zeros_like(ids), torch.zeros_like(ids)
    label_positions, labels, image_slots, dream_slots = [], [], [], []
    label_documents, target_documents, number_of_documents = [], [], 0
    for row, documents in enumerate(rows):
        start = 0
        for number, tokens in enumerate(documents, start=1):
            end = start + len(tokens)
            ids[row, start:end] = torch.tensor(tokens)
            positions[row, start:end] = torch.arange(len(tokens))
            document[row, start:end] = number
            for offset, token in enumerate(tokens):
                here = row * length + start + offset
                if offset > 0 and (token < PATCH or token == DREAM_START):
                    label_positions.append(here - 1)
                    labels.append(token)
                    label_documents.append(number_of_documents)
                if token == IM_START:
                    image_slots.append([here + 1 + i for i in range(NUM_PATCHES)])
                if token == DREAM_START:
                    dream_slots.append([here + 1 + i for i in range(NUM_QUERIES)])
                    target_documents.append(number_of_documents)
            start = end
            number_of_documents += 1
    num_images, num_dreams = len(image_slots), len(dream_slots)
    return Batch(
        input_ids=ids,
        position_ids=positions,
        document_index=document,
        label_positions=torch.tensor(label_positions, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        image_slots=torch.tensor(image_slots, dtype=torch.long).reshape(num_images, NUM_PATCHES),
        dream_slots=torch.tensor(dream_slots, dtype=torch.long).reshape(num_dreams, NUM_QUERIES),
        vision_pixels=Pixels(torch.stack([picture(i) for i in range(num_images or 1)])[:num_images]),
        target_pixels=Pixels(torch.stack([picture(50 + i) for i in range(num_dreams or 1)])[:num_dreams]),
        target_dreams=torch.arange(num_dreams),
        label_documents=torch.tensor(label_documents, dtype=torch.long),
        target_documents=torch.tensor(target_documents, dtype=torch.long),
        document_ids=tuple(f"document-{i}" for i in range(number_of_documents)),
        sources=("",) * number_of_documents,
    )


STORY = [1, 5, 6, *DREAM, *IMAGE, 7, 8, *DREAM, *IMAGE, 9, 2]
CAPTION = [1, *IMAGE, 11, 12, 13, 2]
CREATION = [1, 14, 15, *DREAM, 2]
