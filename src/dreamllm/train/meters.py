"""How fast a run is: time in a step and waiting for its data, rates of what was computed, FLOPs, memory.

The loop says when data have arrived and when a step is done; out come numbers by name, over all ranks, for
the steps since the last reading. Samples, gates and checkpoints between two steps are not counted.
"""

import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from dreamllm.runtime.distributed import ALONE, Ranks
from dreamllm.sequence.batch import Batch
from dreamllm.train.flops import Flops, document_lengths

PEAK_TFLOPS: Final[Mapping[str, float]] = {
    "A10": 125,
    "A100": 312,
    "A800": 312,
    "A40": 149.7,
    "A6000": 154.8,
    "B200": 2250,
    "B300": 2250,
    "H100": 989.4,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H200": 989.4,
    "H800": 989.4,
    "L4": 121,
    "L40": 181,
    "L40S": 362,
    "MI250X": 383,
    "MI300X": 1307.4,
}
"""Dense bfloat16 products by the makers' data sheets, in 10^12 FLOPs a second; without PCIe or NVL in the
name it is the card of a module socket (SXM, OAM)."""
PRODUCT_SIZE: Final = 1536
PRODUCT_ROUNDS: Final = 5
GIB: Final = 2**30
SECONDS: Final = "seconds"


@dataclass(slots=True)
class _Sums:
    """Of the steps since the last reading, of this rank."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    positions: int = 0
    padding: int = 0
    documents: int = 0
    images_read: int = 0
    images_drawn: int = 0
    flops: int = 0

    def add(self, batch: Batch) -> None:
        """What is in a micro-batch; it is on the CPU."""
        lengths = document_lengths(batch)
        self.positions += int(lengths.sum())
        self.padding += batch.input_ids.numel() - int(lengths.sum())
        # By name: a picture whose condition is dropped is a sequence of its own, named like its document.
        named = set(batch.document_ids) - {""}
        self.documents += len(named) + batch.document_ids.count("")
        self.images_read += batch.image_slots.shape[0]
        self.images_drawn += batch.num_targets


class StepMeter:
    """Reads the clock around the steps of a run."""

    def __init__(
        self,
        device: torch.device,
        *,
        flops: Flops | None = None,
        peak_flops: float | None = None,
        ranks: Ranks = ALONE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`flops` counts those of a micro-batch, `peak_flops` is what one device does in a second at best;
        without them their readings are left out."""
        self._device, self._flops, self._peak, self._ranks = device, flops, peak_flops, ranks
        self._clock = clock
        self._sums = _Sums()
        self._began = self._ready = clock()

    def begin(self) -> None:
        """From now on the run waits for the data of a step."""
        self._began = self._clock()

    def data_ready(self) -> None:
        """They are there."""
        self._ready = self._clock()

    def step_done(self, micro_batches: Sequence[Any]) -> float:
        """The step is done, and was computed from these; seconds since `begin`."""
        sums, now = self._sums, self._clock()
        sums.steps += 1
        sums.seconds += now - self._began
        sums.waited += self._ready - self._began
        for micro_batch in micro_batches:
            if isinstance(micro_batch, Batch):
                sums.add(micro_batch)
                sums.flops += 0 if self._flops is None else self._flops(micro_batch)
        return now - self._began

    def so_far(self) -> dict[str, float]:
        """What is known to this rank since the last reading, the other ranks taken to be like it."""
        return self._rates(self._sums, self._ranks.size, peak_memory(self._device))

    def reading(self) -> dict[str, float]:
        """The same over all ranks, which must ask together; the next reading begins here.

        `seconds` of a step; `data_wait`, the share of it that the rank which waited longest did; `padding`, a
        share of all positions computed, the other positions being those of documents; rates a second of all
        ranks together; `mfu` of all devices; `memory_gib` of the fullest. What no micro-batch tells is left
        out.
        """
        own, self._sums = self._sums, _Sums()
        counts = ("positions", "padding", "documents", "images_read", "images_drawn", "flops")
        summed = self._ranks.sum([getattr(own, name) for name in counts])
        seconds, waited, memory = self._ranks.max([own.seconds, own.waited, peak_memory(self._device)])
        whole = _Sums(own.steps, seconds, waited, *map(int, summed))
        return self._rates(whole, 1, memory)

    def _rates(self, sums: _Sums, scale: int, memory: float) -> dict[str, float]:
        if not sums.steps:
            return {}
        seconds = max(sums.seconds, 1e-9)
        rates = {SECONDS: sums.seconds / sums.steps, "data_wait": sums.waited / seconds}
        if sums.positions:
            rates["padding"] = sums.padding / (sums.positions + sums.padding)
            for name in ("positions", "documents", "images_read", "images_drawn"):
                rates[f"{name}_per_s"] = scale * getattr(sums, name) / seconds
        if sums.flops:
            rates["tflops_per_s"] = scale * sums.flops / seconds / 1e12
            if self._peak is not None:
                rates["mfu"] = scale * sums.flops / seconds / (self._peak * self._ranks.size)
        return rates | {"memory_gib": memory / GIB}


def peak_flops(device: torch.device, *, measure: bool = False) -> float | None:
    """FLOPs a second that a device does at best: of a known GPU the dense bfloat16 rate of its data sheet,
    whatever the precision of the run; of any other the best of some products timed now, or None unless told
    to `measure`."""
    known = known_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return measured_peak(device) if known is None and measure else known


def known_peak(device_name: str) -> float | None:
    """By the name that CUDA gives a device, such as `NVIDIA H100 80GB HBM3`; None if it is not known."""
    words = device_name.replace("-", " ").split()
    names = [name for name in PEAK_TFLOPS if set(name.split()) <= set(words)]
    return PEAK_TFLOPS[max(names, key=len)] * 1e12 if names else None


def measured_peak(device: torch.device, *, size: int = PRODUCT_SIZE) -> float:
    """FLOPs a second of the fastest of some float32 products of square matrices."""
    left = torch.ones(size, size, device=device)
    best = 0.0
    for _ in range(PRODUCT_ROUNDS):
        began = time.perf_counter()
        (left @ left)[0, 0].item()  # which waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def peak_memory(device: torch.device) -> int:
    """Bytes at the worst moment so far: allocated by torch on a CUDA device, else held by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
