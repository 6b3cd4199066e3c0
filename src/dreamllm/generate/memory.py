"""A model that is to generate, made to fit into memory: weights in 8 or 4 bits, and parts that take turns.

Quantised are the linear layers of the language model's blocks and of the denoiser, where most weights are.
Offloaded parts wait in the memory of the CPU and come to the accelerator when they are called; what is small
or read at any time (tables, norms, head, connectors) stays there.
"""

from collections.abc import Iterator
from typing import Final, Literal

import torch
from torch import nn

from dreamllm.errors import ConfigError
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.quantization import Quantization, check_quantization, quantize_linears

Offload = Literal["model", "layer"]

OFFLOADS: Final = ("model", "layer")


def fit(
    model: DreamLLM,
    device: str | torch.device,
    *,
    quantize: Quantization | None = None,
    offload: Offload | None = None,
) -> DreamLLM:
    """Bring a model from the CPU to the device it generates on, smaller; changed in place and returned.

    Weights are quantised before they move. With offload `model` the blocks of the language model, the vision
    model, the denoiser and the two halves of the VAE take turns on the device. With `layer` the single blocks
    of language model and denoiser do, which needs the least memory and the most time. Errors are those of
    `check_fit`.
    """
    device = torch.device(device)
    check_fit(device, quantize=quantize, offload=offload)
    if quantize is not None:
        quantize_linears(model.language_model.get_decoder(), quantize)
        quantize_linears(model.image_decoder.denoiser, quantize)
    if offload is None:
        return model.to(device)
    turns = Turns(device)
    for part, caller in _parts(model, offload):
        turns.add(part, caller=caller)
    turns.settle_the_rest(model)
    return model


def check_fit(
    device: str | torch.device, *, quantize: Quantization | None = None, offload: Offload | None = None
) -> None:
    """Find out whether `fit` can do this, before a model is loaded.

    Raises:
        ConfigError: an unknown choice, or offload to a CPU.
        MissingExtraError: the package that quantises is not installed.
    """
    if quantize is not None:
        check_quantization(quantize)
    if offload is not None and offload not in OFFLOADS:
        raise ConfigError(f"offload is {offload!r}; choose one of {', '.join(OFFLOADS)}")
    if offload is not None and torch.device(device).type == "cpu":
        raise ConfigError(
            f"offload={offload!r} lets parts wait on the CPU for their turn on a GPU, but the device is "
            f"{device}; leave it out, and use quantize='int8' to save memory"
        )


class Turns:
    """Modules of which one at a time is on a device, while the others wait on the CPU.

    The hooks of accelerate and diffusers move a module when it is called itself, in the order of a pipeline.
    Here tables are read without the blocks, and which part comes next is the model's decision.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: set[nn.Module] = set()
        self._present: nn.Module | None = None

    def add(self, module: nn.Module, *, caller: nn.Module) -> None:
        """Bring a module whenever its caller, itself or one around it, is about to compute."""
        module.to("cpu")
        self._waiting.update(module.modules())
        caller.register_forward_pre_hook(lambda *_: self._bring(module))

    def settle_the_rest(self, model: nn.Module) -> None:
        """Move what takes no turns to the device, for good."""
        for module in model.modules():
            if module not in self._waiting:
                module._apply(lambda tensor: tensor.to(self._device), recurse=False)

    def _bring(self, module: nn.Module) -> None:
        if self._present is module:
            return
        if self._present is not None:
            self._present.to("cpu")
        self._present = module.to(self._device)


def _parts(model: DreamLLM, offload: Offload) -> Iterator[tuple[nn.Module, nn.Module]]:
    """What takes turns, and the module whose call needs it."""
    decoder, denoiser, vae = (
        model.language_model.get_decoder(),
        model.image_decoder.denoiser,
        model.image_decoder.vae,
    )
    for part in (model.vision_encoder.model, vae.encoder, vae.decoder):
        yield part, part
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
    if offload == "model":
        yield denoiser, denoiser
        yield from ((blocks, decoder) for blocks in lists)
    else:
        children = [*lists, *denoiser.children()]
        for child in children:
            for block in child if isinstance(child, nn.ModuleList) else (child,):
                yield block, block
