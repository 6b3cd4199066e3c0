"""Pictures of codes: what the cache of keys and values, and the batch, gain the generator of JAM.

    python benchmarks/codes.py
    python benchmarks/codes.py --codes 36 --guidance-scale 1

Random models of the shape of the tiny JAM draw pictures of 36 and of 256 codes: four as one batch, with and
without the cache; sixteen as one batch, and one after the other. Fails if the ways draw different pictures.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from diffusers import VQModel
from rounds import parse_arguments, positive, print_table, report, spread, take_turns, use_one_thread
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dreamllm.data.transforms import TargetTransform
from dreamllm.document.document import Document, Text
from dreamllm.generate.codes import CodeGenerator
from dreamllm.generate.options import GenerationOptions
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.jam import JAM, JAMConfig
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.code_tokens import CodeTokens, add_code_tokens
from dreamllm.sequence.encode_codes import CodeEncodeOptions, CodeSequenceEncoder
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer

FIRST_CODE, NUM_CODES = 688, 512
CAPTION = "a large red circle on the left and a small blue star on the right, on a white background"
CACHED, REREAD, BATCHED, ALONE = "cached", "no cache", "one batch", "one at a time"
Ratios = dict[str, list[float]]


def main() -> int:
    """Measure; 1 if the ways do not draw the same."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=1)
    use_one_thread()
    ratios: dict[int, Ratios] = {}
    faults: list[str] = []
    for num_codes in arguments.codes:
        ratios[num_codes], fault = measure(num_codes, arguments)
        faults += [fault] if fault else []
    print_table(
        f"Time to draw {arguments.pictures} pictures without a cache, and {arguments.batch} one at a time",
        (REREAD, ALONE),
        {
            f"{num_codes} codes": [f"{median(row[name]):.2f}" for name in (REREAD, ALONE)]
            for num_codes, row in ratios.items()
        },
    )
    for num_codes, row in ratios.items():
        print(f"  {num_codes} codes: {spread(row[REREAD])} and {spread(row[ALONE])} by round.")
    print(f"  {' '.join(faults) or 'All ways draw the same pictures.'}\n")
    report("codes", arguments, {"time_ratios": ratios, "faults": faults})
    return 1 if faults else 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--codes", type=positive, nargs="+", default=[36, 256], help="a picture (default: 36 256)"
    )
    parser.add_argument(
        "--pictures", type=positive, default=4, help="with and without a cache (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=positive, default=16, help="together and one at a time (default: %(default)s)"
    )
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="1 is none (default: %(default)s)")


def measure(num_codes: int, arguments: argparse.Namespace) -> tuple[Ratios, str | None]:
    """Ratios of time by round for one size of picture, and what the ways disagree about."""
    generator = make_generator(num_codes)
    options = GenerationOptions(
        mode="image", guidance_scale=arguments.guidance_scale, max_batch_size=arguments.batch
    )
    prompts = [Document(parts=(Text(text=CAPTION),), id=str(number)) for number in range(arguments.batch)]
    few = prompts[: arguments.pictures]
    ways: dict[str, Callable[[], list[Document]]] = {
        CACHED: lambda: generator.generate(few, options),
        REREAD: lambda: generator.generate(few, replace(options, use_cache=False)),
        BATCHED: lambda: generator.generate(prompts, options),
        ALONE: lambda: [generator.generate([prompt], options)[0] for prompt in prompts],
    }
    generator.generate(few, options)  # warm-up
    drawn: dict[str, list[Document]] = {}

    def draw(name: str) -> None:
        drawn[name] = ways[name]()

    seconds = take_turns({name: lambda _, name=name: draw(name) for name in ways}, rounds=arguments.rounds)
    ratios = {
        slow: [one / other for one, other in zip(seconds[slow], seconds[fast], strict=True)]
        for slow, fast in ((REREAD, CACHED), (ALONE, BATCHED))
    }
    levels = max(largest_gap(drawn[CACHED], drawn[REREAD]), largest_gap(drawn[BATCHED], drawn[ALONE]))
    # Another code changes many levels; decoding in a batch of another size rounds otherwise.
    return (
        ratios,
        None if levels <= 1 else f"NOT THE SAME: pictures of {num_codes} codes, by {levels} levels.",
    )


def largest_gap(left: list[Document], right: list[Document]) -> int:
    """The largest difference of a channel between pictures."""
    gaps = [
        np.asarray(ours.images[-1].load(), dtype=int) - np.asarray(theirs.images[-1].load(), dtype=int)
        for ours, theirs in zip(left, right, strict=True)
    ]
    return max(int(np.abs(gap).max()) for gap in gaps)


def make_generator(codes_per_picture: int) -> CodeGenerator:
    """A random JAM over pictures of 4 px a code."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([CAPTION] * 8, vocab_size=640)
    add_code_tokens(tokenizer.hf)
    tokenizer = Tokenizer(tokenizer.hf)
    vq_model = VQModel(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        sample_size=4 * round(codes_per_picture**0.5),
        num_vq_embeddings=NUM_CODES,
        vq_embed_dim=4,
        norm_num_groups=8,
    )
    nn.init.normal_(vq_model.quantize.embedding.weight)
    image_tokenizer = ImageTokenizer(vq_model)
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=FIRST_CODE + NUM_CODES,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            max_position_embeddings=2048,
        )
    )
    tokens = CodeTokens.of(
        tokenizer.hf, first_code=FIRST_CODE, num_codes=NUM_CODES, codes_per_picture=codes_per_picture
    )
    config = JAMConfig(first_code=FIRST_CODE, num_codes=NUM_CODES, codes_per_picture=codes_per_picture)
    model = JAM(config, language_model=language_model, image_tokenizer=image_tokenizer).eval()
    encoder = CodeSequenceEncoder(
        tokenizer,
        tokens,
        PLAIN_CHAT,
        TargetTransform(image_tokenizer.picture_px),
        image_tokenizer.encode,
        CodeEncodeOptions(max_length=2048),
    )
    return CodeGenerator(model, encoder)


if __name__ == "__main__":
    raise SystemExit(main())
