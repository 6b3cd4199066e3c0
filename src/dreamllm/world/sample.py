"""A folder that shows the world: documents of every kind, a sheet of pictures, what can be asked of it."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from dreamllm.document.document import Document
from dreamllm.document.export import documents_to_html
from dreamllm.document.jsonl import write_documents
from dreamllm.world.documents import ALL_DOCUMENT_KINDS, DocumentKind, make_document
from dreamllm.world.judge import judge_accuracy
from dreamllm.world.language import ANSWERS, QUESTION_KINDS, caption, question
from dreamllm.world.render import render_image
from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene
from dreamllm.world.sheet import SheetRow, draw_sheet
from dreamllm.world.splits import HELD_OUT_PAIRS, Split, sample_scene

NUM_JUDGED = 500
NUM_ASKED = 400
KIND_NOTES: dict[DocumentKind, str] = {
    "read_pair": "a picture, then its caption",
    "draw_pair": "a caption, then its picture",
    "story": "a scene changes step by step; every new state is drawn",
    "guide": "how to draw a scene, one object a step",
    "album": "several unrelated pictures with captions",
    "facts": "one scene told twice, text only",
    "notes": "a caption, then questions about it in a few words, each with its answer; text only",
    "read_notes": "a picture, then questions about it in a few words, each with its answer",
    "vqa": "questions about a picture",
    "describe": "a caption on request: brief, plain or detailed",
    "draw": "a picture on request",
    "text_vqa": "the same questions about a caption, text only",
    "ask_story": "a story on request",
    "ask_guide": "a guide on request",
    "ask_album": "an album on request",
    "edit": "a picture drawn again with one change",
    "encyclopaedia": "entries about invented nouns, whose meaning only text tells",
    "noun_notes": "questions about them in as few words as will do",
    "count_facts": "sentences about the numbers from zero to ten",
    "ask_noun": "what is a zorp?",
    "draw_noun": "an invented noun on request: what it is in words, then its picture",
    "draw_noun_directly": "the same request, answered with the picture alone",
    "ask_howto": "a how-to on request, in varied words, a picture a step",
}


def write_sample(folder: str | Path, *, num: int = 24, split: Split = "train", seed: int = 0) -> list[Path]:
    """Write index.html, pictures.png, documents.jsonl (with its pictures) and README.txt.

    The kinds take turns, so 16 documents show every kind once. The same seed gives the same folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    documents = [_document(rng, index, split) for index in range(num)]
    paths = [folder / name for name in ("index.html", "pictures.png", "documents.jsonl", "README.txt")]
    paths[0].write_text(
        documents_to_html(documents, title=f"Documents of the world, split {split}"), encoding="utf-8"
    )
    draw_sheet(picture_rows()).save(paths[1])
    write_documents(documents, paths[2])
    paths[3].write_text(describe_world(seed), encoding="utf-8")
    return paths


def _document(rng: np.random.Generator, index: int, split: Split) -> Document:
    kind = ALL_DOCUMENT_KINDS[index % len(ALL_DOCUMENT_KINDS)]
    return make_document(kind, rng, split=split, id=f"{kind} {index // len(ALL_DOCUMENT_KINDS) + 1}")


def picture_rows() -> list[SheetRow]:
    """Every shape in every colour, then both sizes in every place, and every background."""
    colors, places, grounds = list(COLORS), list(PLACES), list(BACKGROUNDS)
    rows = [
        SheetRow(
            f"{shape}, every color",
            [_picture(Object("top left", shape, c, "large"), "white") for c in colors],
        )
        for shape in SHAPES
    ]
    rows += [
        SheetRow(
            f"{size}, every place", [_picture(Object(p, "star", "orange", size), "gray") for p in places]
        )
        for size in SIZES
    ]
    rows.append(
        SheetRow(
            "every background",
            [_picture(Object("bottom right", "circle", "cyan", "large"), g) for g in grounds],
        )
    )
    rng = np.random.default_rng(0)
    rows += [
        SheetRow(f"{n} objects", [render_image(sample_scene(rng, num_objects=n)) for _ in range(len(COLORS))])
        for n in (2, 3)
    ]
    return rows


def _picture(thing: Object, background: str) -> PILImage.Image:
    return render_image(Scene((thing,), background))


def describe_world(seed: int = 0) -> str:
    """What the world holds, what can be asked of it, how far guessing gets, and how well it is judged."""
    accuracy = judge_accuracy(NUM_JUDGED, seed=seed)
    scene = sample_scene(np.random.default_rng(seed), num_objects=2)
    chances = majority_shares(seed)
    sections = [
        (
            "The world",
            [
                f"shapes: {', '.join(SHAPES)}",
                f"colors: {', '.join(COLORS)}",
                f"sizes: {', '.join(SIZES)}",
                f"places: {', '.join(PLACES)}",
                f"backgrounds: {', '.join(BACKGROUNDS)}",
                "A picture is 64 x 64 pixels and shows one to three objects, each in a place of its own.",
            ],
        ),
        ("Kinds of documents", [f"{kind}: {KIND_NOTES[kind]}" for kind in ALL_DOCUMENT_KINDS]),
        (
            "Styles of captions",
            [
                f"short: {caption(scene, 'short')}",
                f"full: {caption(scene, 'full')}",
                f"long: {caption(scene, 'long')}",
            ],
        ),
        (
            "Kinds of questions (possible answers; share of the most frequent, which a blind guess reaches)",
            [f"{kind}: {', '.join(ANSWERS[kind])}; {100 * chances[kind]:.0f} %" for kind in QUESTION_KINDS],
        ),
        (
            "Splits",
            [
                "train: nine in ten of the scenes without a held-out pair",
                "test: the tenth, chosen by a hash of the scene",
                "held_out: scenes with a pair of shape and color that is in no training picture: "
                + ", ".join(f"{color} {shape}" for shape, color in sorted(HELD_OUT_PAIRS)),
            ],
        ),
        (
            "Judge",
            [f"reads {100 * accuracy:.1f} % of {NUM_JUDGED} true pictures of all splits without any error"],
        ),
    ]
    return (
        "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections) + "\n"
    )


def majority_shares(seed: int = 0) -> dict[str, float]:
    """Share of the most frequent answer of each kind of question, over random test scenes."""
    rng = np.random.default_rng(seed)
    shares: dict[str, float] = {}
    for kind in QUESTION_KINDS:
        asked = (question(sample_scene(rng, "test"), kind, rng) for _ in range(NUM_ASKED))
        answers = [qa.answer for qa in asked if qa is not None]
        shares[kind] = max(Counter(answers).values()) / len(answers)
    return shares
