"""The batched engine against one document at a time, with and without its cache of keys and values.

    python benchmarks/engine.py
    python benchmarks/engine.py --documents 4 --num-inference-steps 20

Three ways write and illustrate the same documents of the world with the shipped tiny model: all as one batch;
one after the other; one after the other, reading the whole document again for every token. Fails if they
write different words.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from rounds import parse_arguments, positive, print_table, report, spread, take_turns, use_one_thread

from dreamllm.document.document import Document
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.options import GenerationOptions
from dreamllm.generate.pipeline import DreamLLM
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.world.documents import DocumentKind, make_document

KINDS: tuple[DocumentKind, ...] = ("story", "guide", "album", "ask_story", "ask_guide", "ask_album")
BATCHED, ALONE, REREAD = "one batch", "one at a time", "one at a time, no cache"
Writer = Callable[[], list[Document]]


class DrawingClock:
    """CPU seconds that an image decoder spends on pictures."""

    def __init__(self, decoder: StableDiffusionDecoder) -> None:
        self.seconds = 0.0
        self._sample = decoder.sample
        decoder.sample = self._timed  # this instance alone

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return self._sample(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - began


def main() -> int:
    """Measure; 1 if the three ways do not write the same."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=3)
    use_one_thread()
    generator = DreamLLM.from_pretrained("tiny", device="cpu").generator
    clock = DrawingClock(generator.model.image_decoder)
    options = GenerationOptions(
        num_inference_steps=arguments.num_inference_steps,
        max_batch_size=arguments.documents,
        max_new_tokens=160,
        max_images=4,
    )
    prompts = make_prompts(arguments.documents)
    writers = make_writers(generator, prompts, options)
    generator.generate(prompts[:1], options)  # warm-up
    written: dict[str, list[Document]] = {}
    drawing: dict[str, list[float]] = {name: [0.0] * arguments.rounds for name in writers}

    def write(name: str, number: int) -> None:
        before = clock.seconds
        written[name] = writers[name]()
        drawing[name][number] = clock.seconds - before

    seconds = take_turns(
        {name: lambda number, name=name: write(name, number) for name in writers}, rounds=arguments.rounds
    )
    fault = difference(written)
    times = {
        "all": seconds,
        "words": {name: np.subtract(seconds[name], drawing[name]).tolist() for name in writers},
        "pictures": drawing,
    }
    ratios = {part: {name: ratio_by_round(t, name) for name in writers} for part, t in times.items()}
    num_images = sum(len(document.images) for document in written[BATCHED])
    print_table(
        f"Time to write {len(prompts)} documents with {num_images} pictures, "
        f"{options.num_inference_steps} steps a picture",
        tuple(times),
        {name: [f"{median(ratios[part][name]):.2f}" for part in times] for name in writers},
    )
    for name in (ALONE, REREAD):
        print(f"  All, {name}: {spread(ratios['all'][name])} by round.")
    print(f"  {fault or same_words(written)}\n")
    report("engine", arguments, {"time_ratios": ratios, "num_images": num_images, "fault": fault})
    return 1 if fault else 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=positive, default=16, help="prompts (default: %(default)s)")
    parser.add_argument(
        "--num-inference-steps",
        type=positive,
        default=2,
        help="denoising steps a picture; the default of the package is 20, here it is %(default)s",
    )


def make_prompts(num_documents: int) -> list[Document]:
    """Openings of plain documents, and requests for documents, of scenes no model has trained on."""
    rng = np.random.default_rng(0)
    kinds = [KINDS[number % len(KINDS)] for number in range(num_documents)]
    whole = [
        make_document(kind, rng, split="test", num_objects=(1, 2), id=str(number))
        for number, kind in enumerate(kinds)
    ]
    return [replace(document, parts=document.parts[:1], metadata={}) for document in whole]


def make_writers(
    generator: InterleavedGenerator, prompts: Sequence[Document], options: GenerationOptions
) -> dict[str, Writer]:
    """The three ways, by name."""

    def one_at_a_time(chosen: GenerationOptions) -> list[Document]:
        return [generator.generate([prompt], chosen)[0] for prompt in prompts]

    return {
        BATCHED: lambda: generator.generate(prompts, options),
        ALONE: lambda: one_at_a_time(options),
        REREAD: lambda: one_at_a_time(replace(options, use_cache=False)),
    }


def ratio_by_round(seconds: dict[str, list[float]], name: str) -> list[float]:
    """Time of one way over the batch's, round by round."""
    return [own / batched for own, batched in zip(seconds[name], seconds[BATCHED], strict=True)]


def difference(written: dict[str, list[Document]]) -> str | None:
    """What the ways disagree about: words, or the number and place of pictures."""
    for name, documents in written.items():
        for ours, theirs in zip(written[BATCHED], documents, strict=True):
            if words(ours) != words(theirs):
                return f"NOT THE SAME: document {ours.id}, written {name}, differs from {BATCHED}."
    return None


def words(document: Document) -> list[str | None]:
    """The texts of a document, and None for each picture."""
    return [getattr(part, "text", None) for part in document.parts]


def same_words(written: dict[str, list[Document]]) -> str:
    """A sentence on how equal the documents are."""
    levels = 0
    for documents in written.values():
        for ours, theirs in zip(written[BATCHED], documents, strict=True):
            for left, right in zip(ours.images, theirs.images, strict=True):
                gaps = np.asarray(left.load(), dtype=int) - np.asarray(right.load(), dtype=int)
                levels = max(levels, int(np.abs(gaps).max()))
    return f"All ways write the same words; their pictures differ by at most {levels} of 255 levels."


if __name__ == "__main__":
    raise SystemExit(main())
