"""The layout in which the authors of DreamLLM publish checkpoints, and the way to ours and back.

    pytorch_model.bin           the language model (or shards with an index, or safetensors)
    clip_vision_embedding.bin   vision encoder and visual projector
    dream_embedding.bin         the dream queries
    stable_diffusion_head.bin   VAE, U-Net and condition projector
    config.json  generation_config.json
    added_tokens.json  special_tokens_map.json  tokenizer.model  tokenizer_config.json

What the stock parts do not say of themselves is fixed there: the vision encoder is read before its last layer
and without its class token, and conversations are spelled as Vicuna 1.1 does (arXiv:2309.11499, section 3.2).
"""
