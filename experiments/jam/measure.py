"""What every arm is measured by, on the same test documents: losses by document, and pictures drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dreamllm.document.document import Document, Image, Text
from dreamllm.eval.tasks.perplexity import token_losses
from dreamllm.generate.codes import CodeGenerator
from dreamllm.generate.options import GenerationOptions
from dreamllm.world.documents import make_document
from dreamllm.world.judge import Judge, Reading
from dreamllm.world.language import caption
from dreamllm.world.render import render_image
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

NUM_DOCUMENTS = 120
NUM_PICTURES = 96
TEXT, CODES, CAPTION = "text", "picture given caption", "caption given picture"
KINDS = (TEXT, CODES, CAPTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one model."""

    losses: dict[str, list[tuple[float, int]]]
    """By kind, for every document: summed nats and tokens."""
    drawn: list[tuple[int, int]]
    """For every picture drawn from a full caption of one object: attributes right out of 3, wholly right."""


def measure(generator: CodeGenerator) -> Measured:
    """Losses in nats in causal order, and what the judge reads off the likeliest codes."""
    scenes = _scenes(NUM_DOCUMENTS, (1, 2, 3), seed=101)
    has_pictures = generator.model.image_tokenizer is not None
    found = {TEXT: _summed(token_losses(generator, _text_documents(), of_codes=False))}
    if has_pictures:
        drawn_from = [_pair(scene, picture_first=False) for scene in scenes]
        told_of = [_pair(scene, picture_first=True) for scene in scenes]
        found[CODES] = _summed(token_losses(generator, drawn_from, of_codes=True))
        found[CAPTION] = _summed(token_losses(generator, told_of, of_codes=False))
    return Measured(losses=found, drawn=_draw(generator) if has_pictures else [])


def _text_documents() -> list[Document]:
    """Half about invented nouns, half about scenes."""
    rng = np.random.default_rng(103)
    kinds = ("encyclopaedia", "facts")
    return [make_document(kinds[i % 2], rng, split="test") for i in range(NUM_DOCUMENTS)]


def _pair(scene: Scene, *, picture_first: bool) -> Document:
    """A full caption, which leaves nothing of the picture open, and the picture."""
    words, picture = Text(text=caption(scene, "full")), Image(source=render_image(scene))
    return Document(parts=(picture, words) if picture_first else (words, picture))


def _scenes(num: int, counts: Sequence[int], *, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, "test", num_objects=counts[i % len(counts)]) for i in range(num)]


def _draw(generator: CodeGenerator) -> list[tuple[int, int]]:
    scenes = _scenes(NUM_PICTURES, (1,), seed=107)
    prompts = [
        Document(parts=(Text(text=caption(scene, "full")),), id=str(i)) for i, scene in enumerate(scenes)
    ]
    options = GenerationOptions(mode="image", guidance_scale=1.0, image_temperature=0.0, max_batch_size=32)
    pictures = [document.images[-1].load() for document in generator.generate(prompts, options)]
    return [
        (attributes_right(scene, reading), int(reading.scene == scene))
        for scene, reading in zip(scenes, Judge().read_many(pictures), strict=True)
    ]


def attributes_right(scene: Scene, reading: Reading) -> int:
    """Shape, colour and size of the one object, read in its place."""
    (thing,) = scene.objects
    cell = next(cell for cell in reading.cells if cell.place == thing.place)
    return sum(getattr(cell, name) == getattr(thing, name) for name in ("shape", "color", "size"))


def _summed(losses: Sequence[np.ndarray]) -> list[tuple[float, int]]:
    return [(float(each.sum()), len(each)) for each in losses]
