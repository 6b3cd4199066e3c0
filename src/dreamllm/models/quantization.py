"""Weights of linear layers in 8 or 4 bits, in place; what they compute stays in the type of their inputs.

`int8` has one scale a row and `float8` (e4m3) one too, by torchao; `nf4` has 4 bits and a scale for each 64
weights, by bitsandbytes (QLoRA, arXiv:2305.14314, section 3). Gradients pass through to the inputs, never to
the weights. Embeddings, norms and convolutions are left as they are.
"""

import importlib.util
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from dreamllm.errors import ConfigError, MissingExtraError

Quantization = Literal["int8", "float8", "nf4"]

PACKAGES: dict[Quantization, str] = {"int8": "torchao", "float8": "torchao", "nf4": "bitsandbytes"}


def quantize_linears(part: nn.Module, kind: Quantization) -> None:
    """Quantise every linear layer inside a part, and freeze it. Deterministic.

    Raises ConfigError for a part without linear layers, and what `check_quantization` raises.
    """
    check_quantization(kind)
    linears = {name: layer for name, layer in part.named_modules() if type(layer) is nn.Linear}
    if not linears:
        raise ConfigError(
            f"{type(part).__name__} holds no linear layers to be quantised to {kind}; leave quantize out"
        )
    if kind == "nf4":
        for name, layer in linears.items():
            part.set_submodule(name, _nf4(layer))
    else:
        _quantize_by_row(part, kind)


def check_quantization(kind: Quantization) -> None:
    """Find out whether weights can be quantised so.

    Raises:
        ConfigError: an unknown kind.
        MissingExtraError: the package that quantises is not installed.
    """
    if kind not in PACKAGES:
        raise ConfigError(f"quantize is {kind!r}; choose one of {', '.join(PACKAGES)}")
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        raise MissingExtraError(
            f"quantize={kind!r} needs {PACKAGES[kind]}, which is not installed; "
            "run `pip install 'dreamllm[quantize]'`"
        )


def is_packed(tensor: Tensor) -> bool:
    """Whether a tensor holds quantised weights."""
    return _is_nf4(tensor) or _is_by_row(tensor)


def is_quantized(layer: nn.Module) -> bool:
    """Whether this is a linear layer whose weight is quantised."""
    return isinstance(layer, nn.Linear) and is_packed(layer.weight)


def plain_weight(layer: nn.Linear) -> Float[Tensor, "out in"]:
    """The values that a linear layer computes with, in the type it had before it was quantised."""
    weight: Any = layer.weight
    if _is_nf4(weight):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    return weight.dequantize() if _is_by_row(weight) else weight.detach()


def num_weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for; packed ones count as what they are packed from."""
    packed: Any = parameter
    return packed.quant_state.shape.numel() if _is_nf4(parameter) else parameter.numel()


def _quantize_by_row(part: nn.Module, kind: Quantization) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(part, config, filter_fn=lambda layer, _: type(layer) is nn.Linear)


def _nf4(layer: nn.Linear) -> nn.Linear:
    """The layer in NF4. It shares the bias."""
    from bitsandbytes.nn import LinearNF4, Params4bit

    packed = LinearNF4(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    packed.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=packed)
    packed.bias = layer.bias
    # On CPUs with bfloat16 instructions evaluation would repack the weight and round to bfloat16.
    packed.support_avx512bf16_for_cpu = False
    return packed.to(layer.weight.device).train(layer.training)


def _is_nf4(weight: Any) -> bool:
    return getattr(weight, "quant_state", None) is not None  # what bitsandbytes adds


def _is_by_row(weight: Any) -> bool:
    return hasattr(weight, "qdata")  # what torchao adds
