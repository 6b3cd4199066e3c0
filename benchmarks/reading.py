"""From documents on disk to packed batches, on one core: with pictures as pixels, and with what caches know.

    python benchmarks/reading.py
    python benchmarks/reading.py --documents 64 --entries 1000 100000

A document has three JPEG pictures of 256 px between sentences; each is read (224 px, 256 vectors of 1024, as
CLIP ViT-L/14 gives) and drawn (256 px, 8 x 32 x 32 moments). Reading, decoding, encoding and packing count;
no model runs. Then what it costs to open a cache, and to find and read an entry, by its number of entries.
"""

import argparse
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image as PILImage
from rounds import (
    cpu_seconds,
    parse_arguments,
    positive,
    print_table,
    report,
    spread,
    take_turns,
    use_one_thread,
)
from safetensors.torch import save_file

from dreamllm.data.feature_cache import CacheSpec, FeatureCache
from dreamllm.data.feature_cache_writer import FeatureCacheWriter, write_index
from dreamllm.data.picture_digest import picture_digest
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Image
from dreamllm.document.jsonl import JsonlDocuments, read_documents
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.layout import SlotSizes
from dreamllm.sequence.packing import collate, pack
from dreamllm.sequence.picture_caches import PictureCaches
from dreamllm.sequence.tokenizer import train_tokenizer

PIXELS, FEATURES, BOTH = "pixels", "cached features", "cached features and latents"
SENTENCE = "A small boat lies at the shore of a lake, and behind it stand the first houses of a village. "
PICTURES = 3
ROW_LENGTH = 4096
LOOK_UPS = 2000


def main() -> int:
    """Measure; 1 if an entry is found in one size of cache and not in another."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=3)
    use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        seconds = read(Path(folder), arguments)
        costs = {
            entries: open_and_find(Path(folder) / str(entries), entries) for entries in arguments.entries
        }
    speed = {way: [arguments.documents / each for each in values] for way, values in seconds.items()}
    print_table(
        f"{arguments.documents} documents of {PICTURES} pictures, one core",
        ["documents/s", "of pixels"],
        {
            way: [f"{median(values):.1f}", f"{median(values) / median(speed[PIXELS]):.2f}"]
            for way, values in speed.items()
        },
    )
    print(f"  Documents/s by round: {', '.join(f'{way} {spread(v)}' for way, v in speed.items())}.\n")
    first = costs[arguments.entries[0]]
    print_table(
        "Cost by the number of entries, the first as 1",
        ["open", "find and read", "microseconds an entry"],
        {
            f"{entries:,} entries": [
                f"{opening / first[0]:.2f}",
                f"{finding / first[1]:.2f}",
                f"{finding / LOOK_UPS * 1e6:.1f}",
            ]
            for entries, (opening, finding) in costs.items()
        },
    )
    report("reading", arguments, {"documents_per_s": speed, "seconds": costs})
    return 0


def read(folder: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds for all documents, by way and round."""
    documents = read_documents(write(folder, arguments.documents))
    encoder = SequenceEncoder(
        train_tokenizer([SENTENCE], vocab_size=320),
        SlotSizes(num_visual_tokens=256, num_dream_queries=64),
        PLAIN_CHAT,
        VisionTransform(224),
        TargetTransform(256),
        EncodeOptions(max_length=ROW_LENGTH),
    )
    images = [image for document in documents for image in document.images]
    vision = fill(folder / "vision", CacheSpec(key={}, shape=(256, 1024)), images)
    latents = fill(folder / "latents", CacheSpec(key={}, shape=(8, 32, 32)), images)
    ways = {
        PIXELS: encoder,
        FEATURES: replace(encoder, caches=PictureCaches(vision=vision)),
        BOTH: replace(encoder, caches=PictureCaches(vision=vision, latents=latents)),
    }
    return take_turns(
        {name: lambda _, each=each: pass_over(documents, each) for name, each in ways.items()},
        rounds=arguments.rounds,
    )


def pass_over(documents: JsonlDocuments, encoder: SequenceEncoder) -> None:
    """Batches of 8 documents."""
    for start in range(0, len(documents), 8):
        chosen = [documents[i] for i in range(start, min(start + 8, len(documents)))]
        sequences = [sequence for document in chosen for sequence in encoder.encode(document)]
        collate(pack(sequences, ROW_LENGTH), encoder.tokenizer.pad_id)


def write(folder: Path, num_documents: int) -> Path:
    """Documents whose pictures are smooth and a little noisy, as photographs are."""
    draw = np.random.default_rng(0)
    lines = []
    for number in range(num_documents):
        parts = []
        for place in range(PICTURES):
            coarse = PILImage.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((256, 256), PILImage.Resampling.BICUBIC)).astype(np.float64)
            pixels = np.clip(smooth + draw.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
            name = f"{number}-{place}.jpg"
            PILImage.fromarray(pixels).save(folder / name, quality=90)
            parts += [
                f'{{"type": "text", "text": "{SENTENCE * 4}"}}',
                f'{{"type": "image", "path": "{name}"}}',
            ]
        lines.append(f'{{"id": "{number}", "parts": [{", ".join(parts)}]}}\n')
    path = folder / "documents.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def fill(folder: Path, spec: CacheSpec, images: list[Image]) -> FeatureCache:
    """A cache of random records of these pictures."""
    with FeatureCacheWriter(folder, spec) as writer:
        for image in images:
            writer.add(picture_digest(image), torch.randn(spec.shape))
    return FeatureCache(folder)


def open_and_find(folder: Path, entries: int) -> tuple[float, float]:
    """CPU seconds to open a cache of so many entries, and to read LOOK_UPS of them at random."""
    spec = CacheSpec(key={}, shape=(8,), dtype="float32")
    FeatureCacheWriter(folder, spec)
    draw = np.random.default_rng(entries)
    words = np.sort(draw.integers(0, 2**63, size=(2, entries), dtype=np.uint64), axis=1)
    tensors = {
        "records": torch.zeros(entries, 8),
        "digests": torch.from_numpy(words),
        "checksums": torch.full((entries,), zlib.crc32(bytes(32))).to(torch.uint32),
    }
    save_file(tensors, folder / "0.safetensors")
    write_index(folder)
    digests = [words[:, i].astype(">u8").tobytes() for i in draw.integers(0, entries, LOOK_UPS)]
    openings = [cpu_seconds(lambda: FeatureCache(folder)) for _ in range(20)]
    cache = FeatureCache(folder)

    def find() -> None:
        if any(cache.get(digest) is None for digest in digests):
            raise SystemExit(f"an entry of {entries} is not found")

    find()
    return median(openings), median(cpu_seconds(find) for _ in range(5))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=positive, default=48, help="how many (default: %(default)s)")
    parser.add_argument(
        "--entries", type=positive, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="sizes of caches"
    )


if __name__ == "__main__":
    raise SystemExit(main())
