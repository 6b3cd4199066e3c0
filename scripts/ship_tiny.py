"""Turn the runs of `dreamllm train tiny` into the model that ships with the package.

    python scripts/ship_tiny.py runs/tiny

Writes float16 tensors to src/dreamllm/weights/tiny: the result of stage III, and under `baseline/` the text
tower and tokenizer that make its own U-Net and VAE a tiny Stable Diffusion to compare with.
"""

import argparse
from pathlib import Path

import torch
from transformers import CLIPTextModel

from dreamllm.checkpoint.encoder import load_encoder, transforms_of
from dreamllm.checkpoint.pretrained import load_model, save_model
from dreamllm.sequence.tokenizer import Tokenizer

WEIGHTS = Path(__file__).parents[1] / "src" / "dreamllm" / "weights" / "tiny"


def main() -> None:
    """Write the folder, replacing the one that is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that `dreamllm train tiny --out` wrote")
    parser.add_argument("--stage", default="stage3", help="run whose model is shipped")
    arguments = parser.parse_args()
    folder = arguments.runs / arguments.stage / "model"
    model = load_model(folder)
    encoder = load_encoder(folder, model)
    save_model(
        model, WEIGHTS, tokenizer=encoder.tokenizer, transforms=transforms_of(encoder), dtype=torch.float16
    )
    drawing = arguments.runs / "stable_diffusion" / "model"
    tower = CLIPTextModel.from_pretrained(drawing / "text_encoder")
    tower.half().save_pretrained(WEIGHTS / "baseline" / "text_encoder")
    Tokenizer.from_pretrained(drawing / "tokenizer").save_pretrained(WEIGHTS / "baseline" / "tokenizer")


if __name__ == "__main__":
    main()
