"""Turn the runs of `dreamllm train jam-tiny` into the JAM that ships with the package.

    python scripts/ship_jam.py runs/jam

Writes float16 tensors to src/dreamllm/weights/jam-tiny: the result of instruction tuning, with the image
tokenizer inside. The parents do not fit beside it; training the family makes them.
"""

import argparse
from pathlib import Path

import torch

from dreamllm.checkpoint.jam import load_jam, load_jam_encoder, save_jam
from dreamllm.checkpoint.self_test import write_self_test

WEIGHTS = Path(__file__).parents[1] / "src" / "dreamllm" / "weights" / "jam-tiny"


def main() -> None:
    """Write the folder, replacing the one that is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that `dreamllm train jam-tiny --out` wrote")
    parser.add_argument("--run", default="instruct", help="run whose model is shipped")
    arguments = parser.parse_args()
    folder = arguments.runs / arguments.run / "model"
    model = load_jam(folder)
    encoder = load_jam_encoder(folder, model)
    save_jam(
        model,
        WEIGHTS,
        tokenizer=encoder.tokenizer,
        target_transform=encoder.target_transform,
        dtype=torch.float16,
    )
    shipped = load_jam(WEIGHTS)
    write_self_test(WEIGHTS, shipped, load_jam_encoder(WEIGHTS, shipped))


if __name__ == "__main__":
    main()
