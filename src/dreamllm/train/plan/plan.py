"""A plan: parameters, memory, time, and what to change where the memory does not suffice.

A pure function of a run's config, the shapes of its model, the hardware and the documents. What the trainer
cannot do yet, several GPUs, is modelled and said to be so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from dreamllm.config import load_config, to_dict
from dreamllm.errors import ConfigError
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.freezing import apply_trainable
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.plan.documents import DocumentShape
from dreamllm.train.plan.memory import GIB, LASTING, Hardware, memory_of, num_parameters, quantized_layers
from dreamllm.train.plan.shapes import Shapes, build_model
from dreamllm.train.plan.trace import Trace, trace_pass
from dreamllm.train.plan.workload import Workload, workload
from dreamllm.train.run_config import RunConfig
from dreamllm.train.step import AUTOCAST

CHECKPOINTING: Final = "objective.gradient_checkpointing"
BRACKET_ROWS: Final = range(4)
"""As many as train while the language model is frozen; which ones changes no size."""
MAX_GPUS: Final = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the model."""

    name: str
    class_name: str
    num_parameters: int
    num_trained: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Overrides of the recipe, and the memory that a GPU needs with them."""

    overrides: tuple[str, ...]
    total_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run needs. Memory, rows and passes are those of one GPU."""

    config: RunConfig
    hardware: Hardware
    document: DocumentShape
    parts: tuple[Part, ...]
    workload: Workload
    memory: Mapping[str, int]
    """Bytes by purpose at the worst moment of a step."""
    own_peaks: Mapping[str, int]
    """The most bytes a pass takes for each purpose, not all at one moment."""
    flops: Mapping[str, int]
    """Of one pass, by part, forward; and of the backward pass."""
    checkpointing: Change
    """Gradient checkpointing the other way round."""
    advice: tuple[Change, ...]
    """Where it does not fit: changes that lower the memory, each on top of those before, until it does."""
    gpus_if_sharded: int | None
    """Where it does not fit: how many GPUs would hold it unchanged with full sharding; None if none would."""

    @property
    def total_bytes(self) -> int:
        """Of one GPU, at the worst moment."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a GPU holds that."""
        return self.total_bytes <= self.hardware.gpu_memory_gib * GIB

    @property
    def flops_per_step(self) -> float:
        """Of all GPUs, as executed: what is computed twice counts twice."""
        return sum(self.flops.values()) * self.workload.passes * self.hardware.gpus

    @property
    def hours(self) -> float:
        """Of the whole run, at the utilisation the hardware states."""
        rate = self.hardware.gpus * self.hardware.peak_tflops * 1e12 * self.hardware.utilisation
        return self.config.steps * self.flops_per_step / rate / 3600


def plan(config: RunConfig, shapes: Shapes, *, hardware: Hardware, document: DocumentShape) -> Plan:
    """Plan a stage of DreamLLM.

    Raises:
        ConfigError: the run trains something else, its parts do not fit each other, or its documents do not
            fit into its rows.
    """
    objective = stage_of(config)
    asked = _attempt(config, shapes, hardware, document)
    switch = f"{CHECKPOINTING}={str(not objective.gradient_checkpointing).lower()}"
    other = _attempt(_changed(config, (switch,)), shapes, hardware, document)
    return Plan(
        config=config,
        hardware=hardware,
        document=document,
        parts=_parts(asked.model),
        workload=asked.workload,
        memory=asked.memory,
        own_peaks=asked.trace.own_peaks,
        flops=asked.trace.flops,
        checkpointing=Change(overrides=(switch,), total_bytes=other.total_bytes),
        advice=tuple(_advice(asked, shapes)),
        gpus_if_sharded=None if asked.fits else _gpus_if_sharded(asked),
    )


def stage_of(config: RunConfig) -> DreamLLMObjectiveConfig:
    """The objective of a stage of DreamLLM; raises ConfigError for a run that is none."""
    if not isinstance(config.objective, DreamLLMObjectiveConfig):
        raise ConfigError(
            f"{config.name} trains a {config.objective.kind}, which takes minutes on a laptop; a plan is "
            "made for a stage of DreamLLM, such as dreamllm-7b/stage1"
        )
    return config.objective


def trainable_model(objective: DreamLLMObjectiveConfig, shapes: Shapes) -> DreamLLM:
    """The model of a stage on the meta device, frozen, adapted and checkpointed as its run would."""
    model = build_model(shapes)
    apply_trainable(model, objective.train, special_token_ids=BRACKET_ROWS)
    if objective.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attempt:
    """One config, measured."""

    config: RunConfig
    hardware: Hardware
    document: DocumentShape
    model: DreamLLM
    workload: Workload
    trace: Trace
    memory: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def capacity_bytes(self) -> float:
        return self.hardware.gpu_memory_gib * GIB

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.capacity_bytes


def _attempt(config: RunConfig, shapes: Shapes, hardware: Hardware, document: DocumentShape) -> _Attempt:
    objective = stage_of(config)
    model = trainable_model(objective, shapes)
    if objective.quantize is not None and config.precision != "float32":
        # Unpacked as they are used and not kept, they need no copy in the type of the pass.
        for layer in quantized_layers(model):
            layer.to(AUTOCAST[config.precision])
    work = workload(objective, document, model.slot_sizes, gpus=hardware.gpus)
    trace = trace_pass(
        model,
        work,
        precision=config.precision,
        noises_per_image=objective.noises_per_image,
        weights={"next_token": objective.next_token_weight, "denoising": objective.denoising_weight},
        has_gradients=work.passes > 1,
    )
    attempt = _Attempt(
        config=config,
        hardware=hardware,
        document=document,
        model=model,
        workload=work,
        trace=trace,
        memory={},
    )
    return replace(attempt, memory=_memory(attempt, hardware))


def _memory(attempt: _Attempt, hardware: Hardware) -> dict[str, int]:
    config = attempt.config
    has_average, quantize = config.ema_decay is not None, stage_of(config).quantize
    return memory_of(attempt.model, attempt.trace, hardware, quantize=quantize, has_average=has_average)


def _parts(model: DreamLLM) -> tuple[Part, ...]:
    named = {**dict(model.named_children()), **dict(model.image_decoder.named_children())}
    named["vision_encoder"] = model.vision_encoder.model
    del named["image_decoder"]
    return tuple(
        Part(
            name=name,
            class_name=type(module).__name__,
            num_parameters=num_parameters(module),
            num_trained=num_parameters(module, trained=True),
        )
        for name, module in named.items()
    )


def _advice(attempt: _Attempt, shapes: Shapes) -> Iterator[Change]:
    """Changes that lower the memory, each on top of those before, until it fits."""
    chosen: dict[str, str] = {}
    for overrides in _candidates(attempt):
        if attempt.fits:
            return
        config = _changed(attempt.config, overrides)
        tried = _attempt(config, shapes, attempt.hardware, attempt.document)
        if tried.total_bytes < attempt.total_bytes:
            attempt = tried
            chosen |= {override.partition("=")[0]: override for override in overrides}
            yield Change(overrides=tuple(chosen.values()), total_bytes=tried.total_bytes)


def _candidates(attempt: _Attempt) -> Iterator[tuple[str, ...]]:
    """What the trainer can do: first what changes results little; where that cannot suffice, the rest."""
    of_a_pass, of_weights = list(_smaller_passes(attempt)), list(_smaller_weights(attempt))
    if sum(attempt.memory.get(name, 0) for name in LASTING) > attempt.capacity_bytes:
        of_a_pass, of_weights = of_weights, of_a_pass
    yield from of_a_pass
    yield from of_weights


def _smaller_passes(attempt: _Attempt) -> Iterator[tuple[str, ...]]:
    objective = stage_of(attempt.config)
    if not objective.gradient_checkpointing:
        yield (f"{CHECKPOINTING}=true",)
    if attempt.config.precision == "float32":
        yield ("precision=bfloat16",)
    if objective.noises_per_image > 1:
        yield ("objective.noises_per_image=1",)
    rows = attempt.workload.rows
    while rows > 1:
        rows //= 2
        yield (f"objective.rows_per_micro_batch={rows}",)


def _smaller_weights(attempt: _Attempt) -> Iterator[tuple[str, ...]]:
    objective = stage_of(attempt.config)
    if objective.train.language_model:
        yield ("objective.train.language_model=false", "objective.train.language_model_lora={}")
    if objective.quantize is None:
        yield ("objective.quantize=nf4",)


def _changed(config: RunConfig, overrides: tuple[str, ...]) -> RunConfig:
    return load_config(RunConfig, to_dict(config), overrides)


def _gpus_if_sharded(attempt: _Attempt) -> int | None:
    """The smallest power of two that holds it, the pass of one GPU as it is."""
    for gpus in (2**exponent for exponent in range(1, MAX_GPUS.bit_length())):
        memory = _memory(attempt, replace(attempt.hardware, gpus=gpus, sharding="full"))
        if sum(memory.values()) <= attempt.capacity_bytes:
            return gpus
    return None
