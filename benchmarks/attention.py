"""A training step of packed rows whose attention knows segments, against one with a mask of every pair.

    python benchmarks/attention.py
    python benchmarks/attention.py --positions 512 --documents 8

Forward and backward of the blocks of a random Llama on one row. Fails if the states differ.
"""

import argparse
from statistics import median

import torch
from rounds import parse_arguments, positive, print_table, report, spread, take_turns, use_one_thread
from transformers import LlamaConfig, LlamaForCausalLM

from dreamllm.models.language_model import run_decoder
from dreamllm.models.packed_attention import use_packed_attention
from dreamllm.sequence.batch import Segments

MASK, SEGMENTS = "mask", "segments"
MAX_GAP = 1e-3
"""By how much states may differ, of a spread of about 1."""


def main() -> int:
    """Measure; 1 if the two ways do not give the same states."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=3)
    use_one_thread()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=arguments.width,
            intermediate_size=arguments.width * 8 // 3,
            num_hidden_layers=arguments.layers,
            num_attention_heads=max(1, arguments.width // 64),
            max_position_embeddings=arguments.positions,
        )
    )
    use_packed_attention(model)
    length, rest = divmod(arguments.positions, arguments.documents)
    lengths = [length + (number < rest) for number in range(arguments.documents)]
    ways = {MASK: _mask(lengths), SEGMENTS: _segments(lengths)}
    positions = torch.cat([torch.arange(size) for size in lengths])[None]
    embeds = torch.randn(1, arguments.positions, arguments.width)
    found: dict[str, torch.Tensor] = {}

    def step(name: str) -> None:
        states = run_decoder(model, embeds, ways[name], positions)
        states.square().mean().backward()
        model.zero_grad()
        found[name] = states.detach()

    step(SEGMENTS)  # warm-up
    seconds = take_turns({name: lambda _, name=name: step(name) for name in ways}, rounds=arguments.rounds)
    ratios = [mask / segments for mask, segments in zip(seconds[MASK], seconds[SEGMENTS], strict=True)]
    gap = float((found[MASK] - found[SEGMENTS]).abs().max())
    is_same = gap <= MAX_GAP
    print_table(
        f"{arguments.documents} documents in a row of {arguments.positions}, width {arguments.width}",
        (MASK, SEGMENTS),
        {"time of a training step": [f"{median(ratios):.2f}", "1.00"]},
    )
    print(
        f"  By round: {spread(ratios)}. States {'agree' if is_same else 'DO NOT AGREE'}: {gap:.1e} apart.\n"
    )
    report("attention", arguments, {"ratios": ratios, "gap": gap})
    return 0 if is_same else 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default in (("positions", 2048), ("documents", 4), ("width", 1024), ("layers", 2)):
        parser.add_argument(f"--{name}", type=positive, default=default, help="(default: %(default)s)")


def _mask(lengths: list[int]) -> torch.Tensor:
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    size = sum(lengths)
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    return ((number[:, None] == number) & causal)[None, None]


def _segments(lengths: list[int]) -> Segments:
    ends = torch.tensor(lengths).cumsum(0)
    return Segments(torch.cat([ends.new_zeros(1), ends]).to(torch.int32), max(lengths))


if __name__ == "__main__":
    raise SystemExit(main())
