"""Drawing the pictures that wait, in one denoising loop, with previews while it runs."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event

import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.generate.options import GenerationOptions
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.image_decoder import ImageDecoder, OnStep


@dataclass(frozen=True, slots=True)
class Drawing:
    """All pictures of one loop, as far as they have been drawn."""

    images: list[PILImage.Image]
    step: int
    num_steps: int

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""
        return self.step == self.num_steps


class _CancelledError(Exception):
    """Ends a loop whose caller has gone."""


def draw(
    decoder: ImageDecoder,
    conditions: Condition,
    unconditional: Condition | None,
    *,
    generators: Sequence[torch.Generator],
    options: GenerationOptions,
) -> Generator[Drawing, None, None]:
    """Previews, if the options ask for them, then the finished pictures.

    Each picture takes its noise from its own generator. Closing the iterator ends the loop at its next step.
    """
    num_steps, every = options.num_inference_steps, options.preview_every
    if every is None:
        pixels = _sample(decoder, conditions, unconditional, generators, options, None)
        yield Drawing(decoder.to_pil(pixels), num_steps, num_steps)
        return
    previews: SimpleQueue[Drawing | None] = SimpleQueue()
    is_cancelled = Event()

    def on_step(step: int, total: int, latents: Tensor) -> None:
        if is_cancelled.is_set():
            raise _CancelledError
        if step % every == 0 and step < total:
            previews.put(Drawing(decoder.to_pil(decoder.decode(latents)), step, total))

    def work() -> Float[Tensor, "M 3 H W"]:
        try:
            return _sample(decoder, conditions, unconditional, generators, options, on_step)
        finally:
            previews.put(None)

    # The loop runs beside its caller, so that a preview is out before the picture is finished.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw") as pool:
        result = pool.submit(work)
        try:
            while (preview := previews.get()) is not None:
                yield preview
        finally:
            is_cancelled.set()
        yield Drawing(decoder.to_pil(result.result()), num_steps, num_steps)


def _sample(
    decoder: ImageDecoder,
    conditions: Condition,
    unconditional: Condition | None,
    generators: Sequence[torch.Generator],
    options: GenerationOptions,
    on_step: OnStep | None,
) -> Float[Tensor, "M 3 H W"]:
    return decoder.sample(
        conditions,
        unconditional,
        noise=generators,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        scheduler=options.scheduler,
        on_step=on_step,
    )
