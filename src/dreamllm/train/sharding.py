"""An objective spread over many ranks by FSDP2: every rank keeps a part of each parameter, its gradient and
its optimizer state, and sees a part of the documents.

Gradients are summed over ranks and never averaged: losses are divided by the counts of the whole step
already. What is frozen as a whole (vision encoder, autoencoder, denoiser, image tokenizer) is kept whole on
every rank, because a rank without pictures does not run it, and sharded layers must be run by all.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from dreamllm.errors import ConfigError
from dreamllm.losses.total import Term
from dreamllm.models.quantization import is_packed
from dreamllm.runtime.distributed import Ranks
from dreamllm.train.objectives.objective import Objective, ShardableObjective
from dreamllm.train.run_config import ParallelConfig, RunConfig


class Losses(nn.Module):
    """From a micro-batch to loss terms, as a module: the root of what is sharded.

    FSDP looks for the tensors that a module returns; it would not find them inside a `Term`.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.module = objective.module
        self._objective = objective

    def forward(
        self, micro_batch: Any, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, int, Tensor | None]]:
        """What the terms consist of."""
        terms = self._objective.losses(micro_batch, generator)
        return {name: (term.sum, term.count, term.by_document) for name, term in terms.items()}

    def terms(self, micro_batch: Any, generator: torch.Generator) -> Mapping[str, Term]:
        """What the objective's own `losses` gives, with the parameters gathered where they are needed."""
        return {name: Term(*parts) for name, parts in self(micro_batch, generator).items()}


def shardable(objective: Objective, config: RunConfig, ranks: Ranks) -> ShardableObjective:
    """The objective, if it can train on many ranks in this way.

    Raises:
        ConfigError: it cannot; the message says why.
    """
    kind = getattr(config.objective, "kind", type(objective).__name__)
    if not isinstance(objective, ShardableObjective):
        raise ConfigError(
            f"the objective {kind!r} is started on {ranks.size} ranks, expected one: only dreamllm, jam and "
            "language_model train on many; start this run without torchrun"
        )
    if config.precision == "float16":
        raise ConfigError(
            f"precision is 'float16' on {ranks.size} ranks, expected bfloat16 or float32: the loss scale is "
            "that of one process; set precision"
        )
    parallel = config.parallel
    if parallel.shard == "hybrid" and ranks.size % parallel.replicas:
        raise ConfigError(
            f"parallel.replicas is {parallel.replicas} on {ranks.size} ranks, expected a divisor of their "
            "number; mend it, or the number of processes"
        )
    return objective


def shard(objective: ShardableObjective, config: RunConfig, *, device: torch.device, ranks: Ranks) -> Losses:
    """Spread the objective's module over the ranks, in place, and give it its part of the documents.

    Every rank must hold the same weights. The parameters become DTensors: take parameter groups afterwards.
    """
    parallel, precision = config.parallel, config.precision
    mesh = _mesh(parallel, device, ranks)
    dtype = torch.bfloat16 if (parallel.param_dtype or precision) == "bfloat16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    if parallel.cast_frozen:
        for part in objective.frozen_parts():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.to(dtype)
    ignored = {p for part in objective.frozen_parts() for p in part.parameters() if not p.requires_grad}
    ignored |= {parameter for parameter in objective.module.parameters() if is_packed(parameter)}
    for layer in decoder_layers(objective.module):
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=parallel.reshard_after_forward,
            mp_policy=policy,
            ignored_params=ignored,
        )
    root = Losses(objective)
    fully_shard(root, mesh=mesh, reshard_after_forward=False, mp_policy=policy, ignored_params=ignored)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other way to divide by 1
    objective.take_part(ranks.rank, num_ranks=ranks.size)
    return root


def compile_layers(objective: Objective) -> None:
    """Compile every layer of the language model, each on its own, when it first runs."""
    for layer in decoder_layers(objective.module):
        layer.compile()


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of the language model, or of both its towers, in the order of the module.

    In transformers these are the modules that can be checkpointed; so are the layers of vision encoders,
    which are no language model and are left out.
    """
    language_model = getattr(module, "language_model", module)
    return [m for m in language_model.modules() if isinstance(m, GradientCheckpointingLayer)]


def whole(tensor: Tensor) -> Tensor:
    """The tensor that is spread over the ranks, in one piece on each; all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_into(module: nn.Module | None, values: Mapping[str, Tensor]) -> None:
    """Copy sharded values, one after the other, into the module's parameters and buffers of those names.

    All ranks must call it; those without a module only lend their part.
    """
    targets = {} if module is None else dict(_named_tensors(module))
    with torch.no_grad():
        for name, value in values.items():
            full = whole(value)
            if module is not None:
                targets[name].copy_(full)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _mesh(parallel: ParallelConfig, device: torch.device, ranks: Ranks) -> DeviceMesh:
    """Copies by shards: without sharding every rank has a copy."""
    if parallel.shard == "full":
        return init_device_mesh(device.type, (ranks.size,), mesh_dim_names=("shard",))
    copies = ranks.size if parallel.shard == "none" else parallel.replicas
    return init_device_mesh(
        device.type, (copies, ranks.size // copies), mesh_dim_names=("replicate", "shard")
    )
