"""Bytes of one GPU at the worst moment of a step: what stays, what a pass takes, what the device keeps."""

from dataclasses import dataclass
from typing import Final, Literal

from torch import nn

from dreamllm.errors import ConfigError
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.quantization import Quantization
from dreamllm.train.plan.trace import GRADIENTS, Trace

GIB: Final = 2**30
Sharding = Literal["none", "full"]
WEIGHTS_TRAINED: Final = "weights that train"
WEIGHTS_FROZEN: Final = "frozen weights"
MOMENTS: Final = "moments of AdamW"
AVERAGE: Final = "moving average"
LASTING: Final = (WEIGHTS_TRAINED, WEIGHTS_FROZEN, MOMENTS, AVERAGE, GRADIENTS)
"""What is there in every pass, however small it is."""
GATHERED: Final = "one gathered block"
RESERVE: Final = "device and allocator"

CONTEXT_BYTES: Final = 1 * GIB
"""What a device takes for itself: driver context, kernels, and the workspaces of its matrix and convolution
libraries."""
FRAGMENTATION: Final = 0.05
"""Share of what a pass takes that the allocator loses between blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What a run is to be trained on."""

    gpus: int = 1
    gpu_memory_gib: float = 80.0
    """Of each."""
    sharding: Sharding = "none"
    """`none`: every GPU holds everything. `full`: language model, gradients and moments are divided."""
    peak_tflops: float = 312.0
    """Dense rate of matrix products of one GPU, in 10^12 operations a second; 312 is an A100's in 16 bits."""
    utilisation: float = 0.35
    """Share of that rate which training reaches."""

    def __post_init__(self) -> None:
        if self.gpus < 1 or min(self.gpu_memory_gib, self.peak_tflops) <= 0 or not 0 < self.utilisation <= 1:
            raise ConfigError(
                f"{self.gpus} GPUs of {self.gpu_memory_gib} GiB and {self.peak_tflops} TFLOPS, used at "
                f"{self.utilisation}, cannot be meant; expected 1 or more, sizes above 0 and a share in "
                "(0, 1]; correct them"
            )


def weight_bytes(
    model: DreamLLM, *, quantize: Quantization | None = None, has_average: bool = False
) -> dict[str, int]:
    """What stays from step to step on one unsharded GPU, float32 where it is not quantised."""
    trained = 4 * num_parameters(model, trained=True)
    return {
        WEIGHTS_TRAINED: trained,
        WEIGHTS_FROZEN: 4 * num_parameters(model, trained=False) - _spared_bytes(model, quantize),
        MOMENTS: 2 * trained,
        AVERAGE: trained if has_average else 0,
    }


def memory_of(
    model: DreamLLM,
    trace: Trace,
    hardware: Hardware,
    *,
    quantize: Quantization | None = None,
    has_average: bool = False,
) -> dict[str, int]:
    """Bytes by purpose at the worst moment, what stays first; purposes without any are left out."""
    weights = weight_bytes(model, quantize=quantize, has_average=has_average)
    rows = {**weights, GRADIENTS: 0, **trace.at_peak}
    if hardware.sharding == "full":
        frozen = 4 * num_parameters(model.language_model, trained=False) - _spared_bytes(model, quantize)
        rows[WEIGHTS_FROZEN] -= frozen - frozen // hardware.gpus
        for name in (WEIGHTS_TRAINED, MOMENTS, AVERAGE, GRADIENTS):
            rows[name] //= hardware.gpus
        rows[GATHERED] = 2 * 4 * _largest_block(model.language_model)  # its weights and their gradients
    rows[RESERVE] = CONTEXT_BYTES + round(FRAGMENTATION * trace.peak_bytes)
    return {name: size for name, size in rows.items() if size > 0}


def num_parameters(module: nn.Module, *, trained: bool | None = None) -> int:
    """Of a module, each counted once; those that train, those that do not, or all."""
    return sum(p.numel() for p in module.parameters() if trained is None or p.requires_grad == trained)


def quantized_layers(model: DreamLLM) -> list[nn.Linear]:
    """Those that a run with quantised weights quantises: the linear layers of the language model's blocks."""
    linears = [each for each in model.language_model.get_decoder().modules() if isinstance(each, nn.Linear)]
    return [layer for layer in linears if not layer.weight.requires_grad]  # adapters train


def _spared_bytes(model: DreamLLM, quantize: Quantization | None) -> int:
    """What quantised weights, their scales included, take less than float32."""
    if quantize is None:
        return 0
    spared = 0
    for layer in quantized_layers(model):
        size = layer.weight.numel()
        packed = size // 2 + 4 * size // 64 if quantize == "nf4" else size + 4 * layer.out_features
        spared += 4 * size - packed
    return spared


def _largest_block(language_model: nn.Module) -> int:
    """Parameters of the largest layer of a list of layers."""
    lists = [module for module in language_model.modules() if isinstance(module, nn.ModuleList)]
    return max((num_parameters(block) for blocks in lists for block in blocks), default=0)
