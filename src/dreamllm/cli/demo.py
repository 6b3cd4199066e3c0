"""`dreamllm demo`: what the shipped model can do, made before your eyes and put on one page.

Documents, answers and pictures come from prompts of a fixed seed, about scenes kept out of training; nothing
is picked by how well it turns out. The judge, which is no network, marks all of it in the same run.
"""

import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from PIL import Image as PILImage

from dreamllm.document.atomic import write_bytes
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.export import documents_to_html, save_document
from dreamllm.document.images import png_data_url
from dreamllm.errors import CheckpointError
from dreamllm.eval.written import answer_of, claims, picture_of, written
from dreamllm.generate.options import GenerationOptions
from dreamllm.world.agreement import agreement
from dreamllm.world.documents import DocumentKind, ask, draw_prompt, make_document
from dreamllm.world.judge import Judge
from dreamllm.world.language import QA, caption
from dreamllm.world.reading import Facts
from dreamllm.world.render import render_image
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

if TYPE_CHECKING:
    from dreamllm.eval.baseline import Baseline
    from dreamllm.generate.pipeline import DreamLLM

SEED = 2309
DOCUMENTS: tuple[tuple[DocumentKind, str], ...] = (
    ("ask_story", "A story"),
    ("ask_guide", "A guide"),
    ("ask_album", "An album"),
    ("edit", "Your picture, changed"),
)
QUESTIONS_PER_PICTURE = 3
NUM_VQA_PICTURES = 6
NUM_CAPTIONS = 12
GUIDANCE_SCALE, NUM_INFERENCE_STEPS = 2.0, 20
BASELINE_FOLDER = "baseline"
"""Inside a model folder: the text tower and tokenizer of the Stable Diffusion whose U-Net the model uses."""


@dataclass(frozen=True, slots=True)
class Marks:
    """How many of the things that were asserted the judge found to be so."""

    right: int
    asserted: int

    def __str__(self) -> str:
        return f"{self.right} of {self.asserted}" if self.asserted else "nothing to judge"


@dataclass(frozen=True, slots=True)
class Answered:
    """A question about a picture and what the model said."""

    scene: Scene
    question: QA
    answer: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is exactly the true one."""
        return self.answer == self.question.answer


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture of a caption and what the judge read off it."""

    caption: str
    picture: PILImage.Image
    marks: Marks


def run(
    *,
    out: Path = Path("demo-output"),
    model: str = "tiny",
    open_page: Annotated[bool, tyro.conf.arg(name="open"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Write illustrated documents, answer questions and draw captions; puts everything on one page.

    Args:
        out: Folder to write to; index.html in it is the page.
        model: A model folder, or a model that ships with the package.
        open_page: Open the page in a browser at the end.
    """
    say = _clock()
    say(f"loading the model {model}")
    handle = _load(model)
    baseline = _load_baseline(handle, model)
    say(f"writing {len(DOCUMENTS)} illustrated documents")
    documents, document_marks = write_documents(handle)
    say(f"answering {NUM_VQA_PICTURES * QUESTIONS_PER_PICTURE} questions about pictures")
    answers = answer_questions(handle)
    say(f"drawing {NUM_CAPTIONS} captions")
    drawn = draw_captions(handle)
    beside: list[Drawn] = []
    if baseline is not None:
        say("drawing the same captions with the tiny Stable Diffusion")
        beside = draw_with_baseline(baseline)
    say(f"writing {out}")
    for (_, title), document in zip(DOCUMENTS, documents, strict=True):
        stem = title.lower().replace(",", "").replace(" ", "-")
        for suffix in (".html", ".json"):
            save_document(document, out / f"{stem}{suffix}")
    sections = [
        ("What the judge found", summary_html(document_marks, answers, drawn, beside)),
        ("Questions about pictures", answers_html(answers)),
        ("Pictures from captions", sheet_html(drawn, beside)),
    ]
    page = out / "index.html"
    title = f"dreamllm: what the model “{model}” writes and draws"
    write_bytes(page, documents_to_html(documents, title=title, extra_html_sections=sections).encode())
    say("done")
    print(f"open {page.resolve()}")
    if open_page:
        webbrowser.open(page.resolve().as_uri())


# ---- what the model does ---------------------------------------------------------------------------------


def write_documents(model: "DreamLLM") -> tuple[list[Document], list[tuple[str, Marks]]]:
    """The documents of the demo, and how much of what they say their pictures show."""
    true = [
        make_document(kind, _rng(index), split="test", num_objects=(2,), id=title)
        for index, (kind, title) in enumerate(DOCUMENTS)
    ]
    prompts = [
        Document(parts=tuple(part for part in document if part.role == "user"), id=document.id)
        for document in true
    ]
    options = _options(max_new_tokens=200, max_images=4)
    documents = model.generator.generate(prompts, options)
    marks = []
    for truth, prompt, document in zip(true, prompts, documents, strict=True):
        found = [(claim.picture, claim.facts) for claim in claims(written(prompt, document))]
        if truth.metadata["kind"] == "edit":  # the answer says nothing of the picture; the request does
            wanted = Facts.of(Scene.from_json(truth.metadata["scenes"][-1]))
            found = [(picture, wanted) for picture, _ in found]
        marks.append((document.id, _total([_marks(facts, picture) for picture, facts in found])))
    return documents, marks


def answer_questions(model: "DreamLLM") -> list[Answered]:
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
    answered = model.generator.generate(prompts, _options(mode="text", max_new_tokens=16))
    return [
        Answered(scene, question, answer_of(prompt, document))
        for (scene, question), prompt, document in zip(asked, prompts, answered, strict=True)
    ]


def draw_captions(model: "DreamLLM") -> list[Drawn]:
    """One picture for each caption, asked for as a user would."""
    prompts = [
        Document(parts=(Text(text=draw_prompt(text), role="user", learn=False),), id=f"caption {number}")
        for number, (_, text) in enumerate(_captions())
    ]
    documents = model.generator.generate(prompts, _options(mode="image"))
    return _drawn([picture_of(prompt, drawn) for prompt, drawn in zip(prompts, documents, strict=True)])


def draw_with_baseline(baseline: "Baseline") -> list[Drawn]:
    """The same captions, drawn by the Stable Diffusion that the model's U-Net comes from."""
    return _drawn(
        baseline.draw(
            [text for _, text in _captions()],
            seed=SEED,
            guidance_scale=GUIDANCE_SCALE,
            num_inference_steps=NUM_INFERENCE_STEPS,
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


def _total(marks: Sequence[Marks]) -> Marks:
    return Marks(sum(each.right for each in marks), sum(each.asserted for each in marks))


def _options(**chosen: object) -> GenerationOptions:
    settings = {
        "guidance_scale": GUIDANCE_SCALE,
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "draw_batch_size": 16,
        "max_batch_size": 32,
        "seed": SEED,
    }
    return GenerationOptions(**(settings | chosen))  # type: ignore[arg-type]


def _rng(number: int) -> np.random.Generator:
    return np.random.default_rng([SEED, number])


# ---- loading ---------------------------------------------------------------------------------------------


def _load(model: str) -> "DreamLLM":
    from dreamllm.generate.pipeline import DreamLLM  # late, so that `--help` does not wait for torch

    try:
        return DreamLLM.from_pretrained(model)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; to train a model of your own: `dreamllm train tiny`, then "
            "`dreamllm demo --model runs/tiny/stage3/model`"
        ) from error


def _load_baseline(model: "DreamLLM", name: str) -> "Baseline | None":
    """The baseline that stands inside the model's folder, if there is one."""
    from dreamllm.eval.baseline import Baseline
    from dreamllm.generate.pipeline import WEIGHTS

    shipped = WEIGHTS / name
    folder = (shipped if shipped.is_dir() else Path(name)) / BASELINE_FOLDER
    return Baseline.load(folder, model.model.image_decoder) if folder.is_dir() else None


def _clock() -> Callable[[str], None]:
    """Prints lines with the seconds since it was made."""
    began = time.monotonic()
    return lambda line: print(f"[{time.monotonic() - began:5.1f} s] {line}", flush=True)


# ---- the page --------------------------------------------------------------------------------------------

_CELL = "vertical-align: top"
_PICTURE = "image-rendering: pixelated; width: 128px; height: 128px; border-radius: 8px; display: block"


def summary_html(
    documents: Sequence[tuple[str, Marks]],
    answers: Sequence[Answered],
    drawn: Sequence[Drawn],
    beside: Sequence[Drawn],
) -> str:
    """A table of the numbers of this run."""
    rows = [(f"{title}: what its text says is in its pictures", str(marks)) for title, marks in documents]
    rows.append(("Questions answered exactly", f"{sum(a.is_right for a in answers)} of {len(answers)}"))
    for who, pictures in (("Captions", drawn), ("The same, by the tiny Stable Diffusion", beside)):
        if pictures:
            whole = sum(each.marks.right == each.marks.asserted for each in pictures)
            rows.append((f"{who}: attributes drawn", str(_total([each.marks for each in pictures]))))
            rows.append((f"{who}: pictures wholly right", f"{whole} of {len(pictures)}"))
    lines = "".join(f"<tr><td>{escape(what)}</td><td>{value}</td></tr>" for what, value in rows)
    return (
        "<p>Prompts come from a fixed seed and from scenes kept out of training; nothing was picked by hand. "
        "A program that is no network reads the pictures back. So few items only illustrate: "
        "<code>dreamllm eval</code> measures.</p>"
        f"<table>{lines}</table>"
    )


def answers_html(answers: Sequence[Answered]) -> str:
    """Every picture with its questions, the answers, and the truth where an answer is wrong."""
    rows = []
    for scene in dict.fromkeys(each.scene for each in answers):
        lines = [
            f"<p>{escape(each.question.question)}<br>"
            + f"{_mark(each.is_right)} <strong>{escape(each.answer)}</strong>"
            + ("" if each.is_right else f" (true: {escape(each.question.answer)})")
            + "</p>"
            for each in answers
            if each.scene == scene
        ]
        picture = _img(render_image(scene), caption(scene, "full"))
        rows.append(f'<tr><td style="{_CELL}">{picture}</td><td style="{_CELL}">{"".join(lines)}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def sheet_html(drawn: Sequence[Drawn], beside: Sequence[Drawn]) -> str:
    """Captions with what was drawn from them; the baseline's pictures in a column of their own."""
    heads = ["caption", "dreamllm", *(["tiny Stable Diffusion"] if beside else [])]
    rows = []
    for index, each in enumerate(drawn):
        cells = "".join(
            f'<td style="{_CELL}">{_img(picture.picture, picture.caption)}'
            f"{_mark(picture.marks.right == picture.marks.asserted)} {picture.marks}</td>"
            for picture in (each, *beside[index : index + 1])
        )
        rows.append(f'<tr><td style="{_CELL}">{escape(each.caption)}</td>{cells}</tr>')
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _mark(is_right: bool) -> str:
    color, sign, words = ("#2a8a3e", "✓", "right") if is_right else ("#c22f2f", "✗", "wrong")
    return f'<span style="color: {color}" title="{words}" aria-label="{words}">{sign}</span>'


def _img(picture: PILImage.Image, alt: str) -> str:
    return f'<img src="{png_data_url(picture)}" alt="{escape(alt)}" style="{_PICTURE}">'
