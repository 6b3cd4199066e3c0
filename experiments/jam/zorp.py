"""C7: who draws a noun that only text explains?

    python experiments/jam/zorp.py runs/jam --out runs/jam-experiments/zorp.json

Sixteen invented nouns occur in no document with a picture. Each is asked for at every place on every
background, and the judge reads shape, colour and size off the picture. Guessing gives 1/5, 1/8 and 1/2,
together 0.275.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dreamllm.checkpoint.jam import load_jam, load_jam_encoder
from dreamllm.document.atomic import write_bytes
from dreamllm.document.document import Document, Text
from dreamllm.eval.intervals import bootstrap, share
from dreamllm.eval.written import answer_of
from dreamllm.generate.codes import CodeGenerator
from dreamllm.generate.options import GenerationOptions
from dreamllm.world.judge import Judge
from dreamllm.world.knowledge import draw_noun_prompt, scenes_of_noun
from dreamllm.world.language import an
from dreamllm.world.nouns import Noun, NounGroup, nouns_of
from dreamllm.world.scene import Scene

CHANCE = (1 / 5 + 1 / 8 + 1 / 2) / 3
DRAW = GenerationOptions(mode="image", guidance_scale=1.0, image_temperature=0.0, max_batch_size=32)
WRITE = GenerationOptions(
    mode="interleaved",
    guidance_scale=1.0,
    image_temperature=0.0,
    max_batch_size=32,
    max_images=1,
    max_new_tokens=60,
)
Asked = Sequence[tuple[Noun, Scene]]


def load(folder: Path) -> CodeGenerator:
    """A model of a run."""
    model = load_jam(folder / "model")
    return CodeGenerator(model, load_jam_encoder(folder / "model", model))


def asked_for(group: NounGroup) -> Asked:
    """Every noun of a group in every scene that shows it alone."""
    return [(noun, scene) for noun in nouns_of(group) for scene in scenes_of_noun(noun, "held_out")]


def directly(fused: CodeGenerator, asked: Asked) -> list[Document]:
    """The fused model, which must draw at once."""
    return fused.generate(_requests(asked), DRAW)


def by_its_own_words(fused: CodeGenerator, asked: Asked) -> list[Document]:
    """The fused model, which may say first what it is to draw."""
    return fused.generate(_requests(asked), WRITE)


def image_parent_alone(image: CodeGenerator, asked: Asked) -> list[Document]:
    """The image parent on a caption with a word that it never read."""
    return image.generate([_caption(an(noun.name), scene) for noun, scene in asked], DRAW)


def parents_in_turn(text: CodeGenerator, image: CodeGenerator, asked: Asked) -> list[Document]:
    """The text parent says what the noun is, the image parent draws that."""
    nouns = list(dict.fromkeys(noun for noun, _ in asked))
    questions = [Document(parts=(_user(f"What is {an(noun.name)}?"),), id=noun.name) for noun in nouns]
    answers = text.generate(questions, GenerationOptions(mode="text", max_new_tokens=40))
    said = {
        noun.name: answer_of(question, answer).partition(" is ")[2].rstrip(".")
        for noun, question, answer in zip(nouns, questions, answers, strict=True)
    }
    return image.generate([_caption(said[noun.name], scene) for noun, scene in asked], DRAW)


def score(asked: Asked, documents: Sequence[Document]) -> dict[str, object]:
    """Shares of attributes and of whole objects, intervals over nouns."""
    judge, counts = Judge(), {noun.name: np.zeros(4) for noun, _ in asked}
    for (noun, scene), document in zip(asked, documents, strict=True):
        right = 0
        if document.images:
            cells = {cell.place: cell for cell in judge.read(document.images[-1].load()).cells}
            cell = cells[scene.objects[0].place]
            right = sum(getattr(cell, name) == getattr(noun, name) for name in ("shape", "color", "size"))
        counts[noun.name] += (right, 3, right == 3, 1)
    table = np.stack(list(counts.values()))
    result: dict[str, object] = {"chance": CHANCE, "pictures": len(asked)}
    for name, columns in (("attributes", table[:, :2]), ("whole", table[:, 2:])):
        low, high = bootstrap(columns, share)
        result[name] = [float(columns[:, 0].sum() / columns[:, 1].sum()), low, high]
    return result


def _requests(asked: Asked) -> list[Document]:
    return [
        Document(parts=(_user(draw_noun_prompt(noun, scene)),), id=f"{noun.name} {number}")
        for number, (noun, scene) in enumerate(asked)
    ]


def _caption(words: str, scene: Scene) -> Document:
    text = f"{words} at the {scene.objects[0].place} on {an(scene.background)} background."
    return Document(parts=(Text(text=text[0].upper() + text[1:]),), id=text)


def _user(text: str) -> Text:
    return Text(text=text, role="user", learn=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", type=Path, help="folder of the family jam-tiny")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text, image, fused = (load(options.family / name) for name in ("text_parent", "image_parent", "instruct"))
    results: dict[str, dict[str, object]] = {}
    for group in ("untaught", "taught"):
        asked = asked_for(group)
        results[group] = {
            "fused, by its own words": score(asked, by_its_own_words(fused, asked)),
            "fused, directly": score(asked, directly(fused, asked)),
            "text parent, then image parent": score(asked, parents_in_turn(text, image, asked)),
            "image parent alone": score(asked, image_parent_alone(image, asked)),
        }
    write_bytes(options.out, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
