"""Low-rank adapters (LoRA, arXiv:2106.09685) in a stock model by peft, and the way back to stock layers.

The model keeps its class; linear layers that are adapted are wrapped where they stand, quantised ones too
(QLoRA, arXiv:2305.14314). `merged` is the same model as its library knows it, to be saved.
"""

import copy
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dreamllm.errors import ConfigError, MissingExtraError
from dreamllm.models.quantization import is_packed, is_quantized, plain_weight
from dreamllm.models.trainable import LoraConfig

ATTENTION: Final = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of transformers that attend to text jointly
)
"""Ends of the names of the projections of attention in a denoiser."""

_Model = TypeVar("_Model", bound=nn.Module)


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Put adapters, which compute zero at first, into a language model or a denoiser, whose weights freeze.

    Their first weights are drawn from torch's global generator, in float32.

    Raises:
        ConfigError: no linear layer has one of the names.
        MissingExtraError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("LoRA needs peft, which is not installed; run `pip install 'dreamllm[lora]'`")
    import peft

    chosen = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_targets(model, config.target_modules),
    )
    vars(model)["is_loaded_in_4bit"] = True  # where peft looks for NF4; it then asks every layer
    with warnings.catch_warnings():  # that torchao's layers cannot be merged by peft: here they need not be
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")
        peft.inject_adapter_in_model(chosen, model)
    del model.is_loaded_in_4bit, model.peft_config


def lora_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The weights of all adapters inside."""
    return [parameter for name, parameter in module.named_parameters() if ".lora_" in name]


def merged(model: _Model) -> _Model:
    """The same model of stock layers alone: adapters are added to the weights, and packed weights unpacked.

    It is to be saved: on the CPU and in evaluation mode. What the model itself has on the CPU is shared, and
    the model is left as it is. New weights are summed in float32 and have the type that the layer had before
    it was adapted or quantised.
    """
    tensors = (*model.parameters(), *model.buffers())
    twin = copy.deepcopy(model, {id(tensor): _on_cpu(tensor) for tensor in tensors})
    _make_plain(twin, device=torch.device("cpu"))
    return twin.eval()


def merge_in_place(model: nn.Module) -> None:
    """Add all adapters to the weights they stand beside."""
    if lora_parameters(model):
        _make_plain(model)


def _on_cpu(tensor: Tensor) -> Tensor:
    """The tensor itself if it is there, or is to be unpacked where it is."""
    if tensor.device.type == "cpu" or is_packed(tensor):
        return tensor
    copied = tensor.detach().cpu()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def _targets(model: nn.Module, ends: Sequence[str]) -> list[str]:
    """Full names of the linear layers to be adapted."""
    blocks, prefix = model, ""
    if isinstance(model, PreTrainedModel):
        blocks = model.get_decoder()
        prefix = next(f"{name}." for name, module in model.named_modules() if module is blocks)
    else:
        ends = ends or ATTENTION
    linears = [name for name, layer in blocks.named_modules() if isinstance(layer, nn.Linear)]
    chosen = [name for name in linears if not ends or f".{name}".endswith(tuple(f".{end}" for end in ends))]
    if not chosen:
        raise ConfigError(
            f"no linear layer of {type(model).__name__} has a name that ends in {', '.join(ends)}; "
            f"there are {', '.join(sorted({name.rpartition('.')[2] for name in linears})) or 'none'}; "
            "mend target_modules"
        )
    return [prefix + name for name in chosen]


@torch.no_grad()
def _make_plain(model: nn.Module, *, device: torch.device | None = None) -> None:
    """Replace every adapted or quantised layer by a stock one."""
    outermost: dict[str, Any] = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") or (is_quantized(layer) and not name.endswith(".base_layer")):
            outermost[name] = layer
    for name, layer in outermost.items():
        base = getattr(layer, "base_layer", layer)
        weight = plain_weight(base)
        if hasattr(layer, "lora_A"):
            delta = layer.get_delta_weight("default")
            weight = (weight.float() + delta.to(weight.device, torch.float32)).to(weight.dtype)
        plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight.to(device or weight.device), requires_grad=False)
        plain.bias = base.bias
        model.set_submodule(name, plain.train(layer.training))
