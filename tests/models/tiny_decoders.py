"""Tiny random image decoders of every kind; all draw 16 px pictures from conditions of width 24."""

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tests.models.tiny import decoder, scheduler

from dreamllm.models.decoders.flow_matching import SanaDecoder, StableDiffusion3Decoder
from dreamllm.models.decoders.image_decoder import ImageDecoder
from dreamllm.models.decoders.stable_diffusion import StableDiffusionXLDecoder


def stable_diffusion_xl() -> StableDiffusionXLDecoder:
    torch.manual_seed(5)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=24,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 10,
        norm_num_groups=8,
    )
    return StableDiffusionXLDecoder(unet, decoder().vae, scheduler())


def stable_diffusion_3() -> StableDiffusion3Decoder:
    torch.manual_seed(6)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=20,
        pos_embed_max_size=16,
    )
    vae = decoder(shift_factor=0.1).vae
    return StableDiffusion3Decoder(
        transformer, vae, StableDiffusion3Decoder.make_scheduler({"shift": 3.0, "num_train_timesteps": 1000})
    )


def sana() -> SanaDecoder:
    torch.manual_seed(7)
    transformer = SanaTransformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    return SanaDecoder(transformer, vae, SanaDecoder.make_scheduler({"flow_shift": 3.0}))


def velocity_decoder() -> ImageDecoder:
    """Stable Diffusion 2.1's other form: v prediction."""
    return decoder(prediction_type="v_prediction")


DECODERS = {
    "sd": decoder,
    "sd-v": velocity_decoder,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "sana": sana,
}
