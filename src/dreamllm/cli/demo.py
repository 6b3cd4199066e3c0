"""`dreamllm demo`: what the shipped models can do, made before your eyes and put on one page.

Documents, answers and pictures come from prompts of a fixed seed, about scenes kept out of training; nothing
is picked by how well it turns out. The judge, which is no network, marks all of it in the same run.
"""

import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from PIL import Image as PILImage

from dreamllm.cli.demo_page import Answered, Drawn, Marks, answers_html, sheet_html, summary_html, total
from dreamllm.document.atomic import write_bytes
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.export import documents_to_html, save_document
from dreamllm.errors import CheckpointError
from dreamllm.eval.written import answer_of, claims, picture_of, written
from dreamllm.generate.options import GenerationOptions
from dreamllm.world.agreement import agreement
from dreamllm.world.documents import DocumentKind, ask, draw_prompt, make_document
from dreamllm.world.judge import Judge
from dreamllm.world.language import caption
from dreamllm.world.reading import Facts
from dreamllm.world.render import render_image
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

if TYPE_CHECKING:
    from dreamllm.eval.baseline import Baseline
    from dreamllm.generate.handle import Handle

Family = Literal["dreamllm", "jam"]

SEED = 2309
QUESTIONS_PER_PICTURE = 3
NUM_VQA_PICTURES = 6
NUM_CAPTIONS = 12
BASELINE_FOLDER = "baseline"
"""Inside a model folder: the text tower and tokenizer of the Stable Diffusion whose U-Net the model uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """What a family is asked in its demo: what its models have learned to answer."""

    model: str
    """The model that ships."""
    result: str
    """Where training it leaves a model of one's own, in the folder of its runs."""
    documents: tuple[tuple[DocumentKind, str], ...]
    """Kinds of documents and their titles."""
    asks_questions: bool
    options: GenerationOptions


PROGRAMMES: dict[Family, Programme] = {
    "dreamllm": Programme(
        model="tiny",
        result="stage3",
        documents=(
            ("ask_story", "A story"),
            ("ask_guide", "A guide"),
            ("ask_album", "An album"),
            ("edit", "Your picture, changed"),
        ),
        asks_questions=True,
        options=GenerationOptions(
            seed=SEED, max_batch_size=32, draw_batch_size=16, guidance_scale=2.0, num_inference_steps=20
        ),
    ),
    "jam": Programme(
        model="jam-tiny",
        result="instruct",
        documents=(
            ("ask_howto", "How to make it"),
            ("ask_guide", "A guide"),
            ("ask_story", "A story"),
            ("draw_noun", "A word that no picture taught"),
        ),
        asks_questions=False,
        options=GenerationOptions(
            seed=SEED, max_batch_size=32, draw_batch_size=16, guidance_scale=1.0, image_temperature=0.0
        ),
    ),
}


def run(
    *,
    out: Path = Path("demo-output"),
    family: Family = "dreamllm",
    model: str | None = None,
    open_page: Annotated[bool, tyro.conf.arg(name="open"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Write illustrated documents, answer questions and draw captions; puts everything on one page.

    Args:
        out: Folder to write to; index.html in it is the page.
        family: DreamLLM draws by diffusion; JAM, fused of a text and an image model, by picture codes.
        model: A model folder of that family; the model that ships if left out.
        open_page: Open the page in a browser at the end.
    """
    programme = PROGRAMMES[family]
    name = programme.model if model is None else model
    say = _clock()
    say(f"loading the model {name}")
    handle = _load(name, family)
    baseline = _load_baseline(handle, name)
    say(f"writing {len(programme.documents)} illustrated documents")
    documents, document_marks = write_documents(handle, programme)
    answers: list[Answered] = []
    if programme.asks_questions:
        say(f"answering {NUM_VQA_PICTURES * QUESTIONS_PER_PICTURE} questions about pictures")
        answers = answer_questions(handle, programme.options)
    say(f"drawing {NUM_CAPTIONS} captions")
    drawn = draw_captions(handle, programme.options)
    beside: list[Drawn] = []
    if baseline is not None:
        say("drawing the same captions with the tiny Stable Diffusion")
        beside = draw_with_baseline(baseline, programme.options)
    say(f"writing {out}")
    for (_, title), document in zip(programme.documents, documents, strict=True):
        stem = title.lower().replace(",", "").replace(" ", "-")
        for suffix in (".html", ".json"):
            save_document(document, out / f"{stem}{suffix}")
    sections = [("What the judge found", summary_html(document_marks, answers, drawn, beside))]
    if answers:
        sections.append(("Questions about pictures", answers_html(answers)))
    sections.append(("Pictures from captions", sheet_html(drawn, beside)))
    page = out / "index.html"
    title = f"dreamllm: what the model “{name}” writes and draws"
    write_bytes(page, documents_to_html(documents, title=title, extra_html_sections=sections).encode())
    say("done")
    print(f"open {page.resolve()}")
    if open_page:
        webbrowser.open(page.resolve().as_uri())


# ---- what the model does ---------------------------------------------------------------------------------


def write_documents(model: "Handle", programme: Programme) -> tuple[list[Document], list[tuple[str, Marks]]]:
    """The documents of the demo, and how much of what they say their pictures show."""
    true = [
        make_document(kind, _rng(index), split="test", num_objects=(2,), id=title)
        for index, (kind, title) in enumerate(programme.documents)
    ]
    prompts = [
        Document(parts=tuple(part for part in document if part.role == "user"), id=document.id)
        for document in true
    ]
    options = replace(programme.options, max_new_tokens=200, max_images=4)
    documents = model.generator.generate(prompts, options)
    marks = []
    for truth, prompt, document in zip(true, prompts, documents, strict=True):
        found = [(claim.picture, claim.facts) for claim in claims(written(prompt, document))]
        if truth.metadata["kind"] == "edit":  # the answer says nothing of the picture; the request does
            wanted = Facts.of(Scene.from_json(truth.metadata["scenes"][-1]))
            found = [(picture, wanted) for picture, _ in found]
        marks.append((document.id, total([_marks(facts, picture) for picture, facts in found])))
    return documents, marks


def answer_questions(model: "Handle", options: GenerationOptions) -> list[Answered]:
    """Answers to questions, each asked alone about its picture."""
    asked = []
    for index in range(NUM_VQA_PICTURES):
        rng = _rng(100 + index)
        scene = sample_scene(rng, "test", num_objects=1 + index % 3)
        asked += [(scene, question) for question in ask(rng, scene, QUESTIONS_PER_PICTURE)]
    prompts = [
        Document(
            parts=(
                Image(source=render_image(scene), role="user", learn=False),
                Text(text=question.question, role="user", learn=False),
            ),
            id=f"question {number}",
        )
        for number, (scene, question) in enumerate(asked)
    ]
    answered = model.generator.generate(prompts, replace(options, mode="text", max_new_tokens=16))
    return [
        Answered(scene, question, answer_of(prompt, document))
        for (scene, question), prompt, document in zip(asked, prompts, answered, strict=True)
    ]


def draw_captions(model: "Handle", options: GenerationOptions) -> list[Drawn]:
    """One picture for each caption, asked for as a user would."""
    prompts = [
        Document(parts=(Text(text=draw_prompt(text), role="user", learn=False),), id=f"caption {number}")
        for number, (_, text) in enumerate(_captions())
    ]
    documents = model.generator.generate(prompts, replace(options, mode="image"))
    return _drawn([picture_of(prompt, drawn) for prompt, drawn in zip(prompts, documents, strict=True)])


def draw_with_baseline(baseline: "Baseline", options: GenerationOptions) -> list[Drawn]:
    """The same captions, drawn by the Stable Diffusion that the model's U-Net comes from."""
    return _drawn(
        baseline.draw(
            [text for _, text in _captions()],
            seed=SEED,
            guidance_scale=options.guidance_scale,
            num_inference_steps=options.num_inference_steps,
            batch_size=NUM_CAPTIONS,
        )
    )


def _captions() -> list[tuple[Scene, str]]:
    """Scenes of one, two and three objects, and their captions."""
    scenes = [sample_scene(_rng(200 + i), "test", num_objects=1 + i % 3) for i in range(NUM_CAPTIONS)]
    return [(scene, caption(scene, "full")) for scene in scenes]


def _drawn(pictures: Sequence[PILImage.Image]) -> list[Drawn]:
    return [
        Drawn(text, picture, _marks(Facts.of(scene), picture))
        for (scene, text), picture in zip(_captions(), pictures, strict=True)
    ]


def _marks(facts: Facts | None, picture: PILImage.Image) -> Marks:
    """What the judge bears out; of words outside the world's grammar nothing is asserted, so one is wrong."""
    if facts is None:
        return Marks(0, 1)
    counts = agreement(facts, Judge().read(picture)).counts.values()
    return Marks(sum(count.right for count in counts), sum(count.asserted for count in counts))


def _rng(number: int) -> np.random.Generator:
    return np.random.default_rng([SEED, number])


# ---- loading ---------------------------------------------------------------------------------------------


def _load(name: str, family: Family) -> "Handle":
    import dreamllm  # late, so that `--help` does not wait for torch

    load: Callable[[str], Handle] = (
        dreamllm.DreamLLM.from_pretrained if family == "dreamllm" else dreamllm.JAM.from_pretrained
    )
    trained = PROGRAMMES[family].model
    try:
        return load(name)
    except CheckpointError as error:
        folder = f"runs/{trained}/{PROGRAMMES[family].result}/model"
        raise CheckpointError(
            f"{error}; to train a model of your own: `dreamllm train {trained}`, then "
            f"`dreamllm demo --family {family} --model {folder}`"
        ) from error


def _load_baseline(handle: "Handle", name: str) -> "Baseline | None":
    """The baseline that stands inside the model's folder, if there is one."""
    import dreamllm
    from dreamllm.eval.baseline import Baseline
    from dreamllm.generate.pipeline import WEIGHTS

    shipped = WEIGHTS / name
    folder = (shipped if shipped.is_dir() else Path(name)) / BASELINE_FOLDER
    if not isinstance(handle, dreamllm.DreamLLM) or not folder.is_dir():
        return None
    return Baseline.load(folder, handle.model.image_decoder)


def _clock() -> Callable[[str], None]:
    """Prints lines with the seconds since it was made."""
    began = time.monotonic()
    return lambda line: print(f"[{time.monotonic() - began:5.1f} s] {line}", flush=True)
