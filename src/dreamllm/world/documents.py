"""Scene -> documents: every kind the models are trained and tested on, with the truth in the metadata.

    plain          read_pair, draw_pair, story, guide, album, read_notes;
                   text only: facts, notes, encyclopaedia, noun_notes, count_facts
    conversation   vqa, describe, draw, ask_story, ask_guide, ask_album, edit, draw_noun, draw_noun_directly,
                   ask_howto; text only: text_vqa, ask_noun

`metadata["scenes"]` holds the scene of every picture in reading order; `metadata["answers"]` the QA kinds.
"""

from dataclasses import replace as change
from typing import Any, Literal

import numpy as np

from dreamllm.document.document import Document, Part, Text
from dreamllm.world.document_parts import (
    DocumentOptions,
    Made,
    Maker,
    asked,
    assistant,
    illustrated,
    lower,
    picture,
    user,
)
from dreamllm.world.guides import ask_guide, ask_howto, guide
from dreamllm.world.knowledge import (
    ask_noun,
    count_facts,
    draw_noun,
    draw_noun_directly,
    encyclopaedia,
    noun_notes,
)
from dreamllm.world.language import (
    CAPTION_STYLES,
    NUMBERS,
    QA,
    QUESTION_KINDS,
    CaptionStyle,
    QuestionKind,
    caption,
    phrase,
    question,
)
from dreamllm.world.nouns import NounGroup
from dreamllm.world.scene import BACKGROUNDS, COLORS, PLACES, SIZES, Object, Scene
from dreamllm.world.splits import Split, choice, may_appear, random_object, sample_scene

DocumentKind = Literal[
    "read_pair",
    "draw_pair",
    "story",
    "guide",
    "album",
    "facts",
    "notes",
    "read_notes",
    "vqa",
    "describe",
    "draw",
    "text_vqa",
    "ask_story",
    "ask_guide",
    "ask_album",
    "edit",
    "encyclopaedia",
    "noun_notes",
    "count_facts",
    "ask_noun",
    "draw_noun",
    "draw_noun_directly",
    "ask_howto",
]

ORDINALS = ("First", "Second", "Third")
DESCRIBE_PROMPTS: dict[CaptionStyle, str] = {
    "short": "Describe the picture briefly.",
    "full": "Describe the picture.",
    "long": "Describe the picture in detail.",
}
STYLE_SHARES: dict[CaptionStyle, float] = {"short": 0.15, "full": 0.5, "long": 0.35}
"""How often a caption has each style: full ones most often, since they alone say everything in few words."""
_MAX_TRIES = 100


def make_document(
    kind: DocumentKind,
    rng: np.random.Generator,
    *,
    split: Split = "train",
    num_objects: tuple[int, ...] = (1, 2, 3),
    questions_per_image: int = 6,
    question_kinds: tuple[QuestionKind, ...] = QUESTION_KINDS,
    nouns: NounGroup | None = None,
    caption_styles: tuple[CaptionStyle, ...] | None = None,
    id: str = "",
) -> Document:
    """A random document of a kind whose scenes belong to the split.

    Raises:
        ConfigError: it is to draw untaught nouns in split train.
    """
    scene = sample_scene(rng, split, num_objects=num_objects)
    options = DocumentOptions(questions_per_image, question_kinds, nouns, caption_styles)
    parts, scenes, metadata = _MAKERS[kind](rng, scene, split, options)
    metadata = {"kind": kind, "scenes": [s.to_json() for s in scenes], **metadata}
    return Document(parts=tuple(parts), id=id, metadata=metadata)


def _style(rng: np.random.Generator, options: DocumentOptions) -> CaptionStyle:
    styles = options.caption_styles
    if styles is not None:
        return styles[int(rng.integers(len(styles)))]
    return CAPTION_STYLES[int(rng.choice(3, p=list(STYLE_SHARES.values())))]


def _read_pair(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    style = _style(rng, options)
    return [picture(scene, learn=False), Text(text=caption(scene, style))], [scene], {"style": style}


def _draw_pair(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    style = _style(rng, options)
    text = Text(text=caption(scene, style, rng), learn=False)
    return [text, picture(scene, learn=True)], [scene], {"style": style}


# ---- conversations -----------------------------------------------------------------------------------


def ask(
    rng: np.random.Generator, scene: Scene, num: int, kinds: tuple[QuestionKind, ...] = QUESTION_KINDS
) -> list[QA]:
    """Distinct questions, kinds in random order."""
    asked: list[QA] = []
    for _ in range(_MAX_TRIES):
        if len(asked) == num:
            break
        qa = question(scene, kinds[int(rng.integers(len(kinds)))], rng)
        if qa is not None and qa.question not in {a.question for a in asked}:
            asked.append(qa)
    return asked


def _vqa(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    qas = ask(rng, scene, options.num_questions, options.question_kinds)
    parts: list[Part] = [picture(scene, learn=False, role="user")]
    for qa in qas:
        parts += [user(qa.question), assistant(qa.answer)]
    return parts, [scene], _answers(qas)


def _text_vqa(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """The same questions about a caption: what a language model must do before it can do it with pictures."""
    qas = ask(rng, scene, options.num_questions, options.question_kinds)
    style: CaptionStyle = "full" if rng.random() < 0.6 else "long"
    text = caption(scene, style, rng)
    parts: list[Part] = [user(f"{text} {qas[0].question}"), assistant(qas[0].answer)]
    for qa in qas[1:]:
        parts += [user(qa.question), assistant(qa.answer)]
    return parts, [scene], _answers(qas)


def _facts(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """A caption, then the same scene told place by place: the plainest look-up there is, since what is asked
    for ("at the top left there is a") stands right before the answer."""
    text = f"{caption(scene, 'full', rng)} {caption(scene, 'long')}"
    return [Text(text=text)], [scene], {}


def _notes(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """Questions about a caption in note form: each answer follows right upon what is asked about. Every word
    between them is one more step for a circuit that has yet to form."""
    qas = ask(rng, scene, options.num_questions, options.question_kinds)
    return _noted(caption(scene, "full", rng), qas), [scene], _answers(qas)


def _read_notes(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    """The same about a picture."""
    qas = ask(rng, scene, options.num_questions, options.question_kinds)
    return [picture(scene, learn=False), *_noted("", qas)], [scene], _answers(qas)


def _noted(text: str, qas: list[QA]) -> list[Part]:
    parts: list[Part] = []
    for qa in qas:
        parts += [Text(text=f"{text} {qa.note}", learn=False), Text(text=f" {qa.answer}")]
        text = "."
    return parts


def _answers(qas: list[QA]) -> dict[str, Any]:
    return {"answers": [[qa.kind, qa.answer] for qa in qas]}


def _describe(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    style = _style(rng, options)
    parts: list[Part] = [
        picture(scene, learn=False, role="user"),
        user(DESCRIBE_PROMPTS[style]),
        assistant(caption(scene, style)),
    ]
    return parts, [scene], {"style": style}


def _draw(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    style = _style(rng, options)
    text = user(draw_prompt(caption(scene, style, rng)))
    return [text, picture(scene, learn=True, role="assistant")], [scene], {"style": style}


def draw_prompt(caption_text: str) -> str:
    """The instruction that asks for one picture."""
    return f"Draw this. {caption_text}"


# ---- illustrated documents ---------------------------------------------------------------------------


def _story(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    scenes, sentences = [scene], [caption(scene, "full")]
    for _ in range(1 + int(rng.integers(2))):
        scene, words = _next_scene(rng, scene, split)
        scenes.append(scene)
        sentences.append(f"{choice(rng, ['Then', 'Next', 'After that'])}, {words}")
    if rng.random() < 0.4:  # a paragraph that shows nothing new: no picture belongs after it
        at = 1 + int(rng.integers(len(sentences) - 1))
        sentences[at] = f"Nothing changes for a while. {sentences[at]}"
    title = f"This is the story of {NUMBERS[len(scenes)]} pictures."
    return illustrated(title, sentences, scenes, "The end."), scenes, {}


def _next_scene(rng: np.random.Generator, scene: Scene, split: Split) -> tuple[Scene, str]:
    for _ in range(_MAX_TRIES):
        new, words = _edit_scene(rng, scene)
        if new is not None and new != scene and may_appear(new, split):
            return new, words
    raise RuntimeError(f"no change of {scene} stays in split {split}")  # every scene has allowed changes


def _edit_scene(rng: np.random.Generator, scene: Scene) -> tuple[Scene | None, str]:
    """One random change and the sentence that says it; None where it cannot be made."""
    kind = choice(rng, ["add", "recolor", "recolor", "resize", "move", "remove", "background"])
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    free = [p for p in PLACES if p not in {o.place for o in scene.objects}]
    others = (*scene.objects[:index], *scene.objects[index + 1 :])
    name = f"the {thing.shape} at the {thing.place}"
    if kind == "background":
        background = choice(rng, list(BACKGROUNDS))
        return Scene(scene.objects, background), f"the background turns {background}."
    if kind == "add":
        if len(scene.objects) == 3:
            return None, ""
        added = random_object(rng, choice(rng, free))
        return Scene((*scene.objects, added), scene.background), f"{phrase(added)} appears."
    if kind == "remove":
        if not others:
            return None, ""
        return Scene(others, scene.background), f"{name} disappears."
    changed, words = _change_object(rng, kind, thing, free)
    return Scene((*others, changed), scene.background), f"{name} {words}."


def _change_object(rng: np.random.Generator, kind: str, thing: Object, free: list[str]) -> tuple[Object, str]:
    if kind == "recolor":
        color = choice(rng, list(COLORS))
        return change(thing, color=color), f"turns {color}"
    if kind == "resize":
        size = SIZES[1 - SIZES.index(thing.size)]
        return change(thing, size=size), f"becomes {size}"
    place = choice(rng, free)
    return change(thing, place=place), f"moves to the {place}"


def _album(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    scenes = [scene]
    while len(scenes) < 2 or (len(scenes) < 3 and rng.random() < 0.4):
        scenes.append(sample_scene(rng, split, num_objects=len(scene.objects)))
    sentences = [f"{ORDINALS[i]}, {lower(caption(s, 'full', rng))}" for i, s in enumerate(scenes)]
    title = f"Here are {NUMBERS[len(scenes)]} pictures."
    return illustrated(title, sentences, scenes, "These are all the pictures."), scenes, {}


def _ask_story(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    parts, scenes, metadata = _story(rng, scene, split, options)
    request = (
        f"Tell a story in {NUMBERS[len(scenes)]} pictures. Begin with this. {caption(scenes[0], 'full', rng)}"
    )
    return asked(parts, request), scenes, metadata


def _ask_album(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    parts, scenes, metadata = _album(rng, scene, split, options)
    return asked(parts, f"Show {NUMBERS[len(scenes)]} different pictures."), scenes, metadata


def _edit(rng: np.random.Generator, scene: Scene, split: Split, options: DocumentOptions) -> Made:
    new, words = _next_scene(rng, scene, split)
    parts: list[Part] = [
        picture(scene, learn=False, role="user"),
        user(f"Draw this picture again, but {words}"),
        assistant("Here it is."),
        picture(new, learn=True, role="assistant"),
    ]
    return parts, [scene, new], {}


_MAKERS: dict[DocumentKind, Maker] = {
    "read_pair": _read_pair,
    "draw_pair": _draw_pair,
    "story": _story,
    "guide": guide,
    "album": _album,
    "facts": _facts,
    "notes": _notes,
    "read_notes": _read_notes,
    "vqa": _vqa,
    "describe": _describe,
    "draw": _draw,
    "text_vqa": _text_vqa,
    "ask_story": _ask_story,
    "ask_guide": ask_guide,
    "ask_album": _ask_album,
    "edit": _edit,
    "encyclopaedia": encyclopaedia,
    "noun_notes": noun_notes,
    "count_facts": count_facts,
    "ask_noun": ask_noun,
    "draw_noun": draw_noun,
    "draw_noun_directly": draw_noun_directly,
    "ask_howto": ask_howto,
}
ALL_DOCUMENT_KINDS: tuple[DocumentKind, ...] = tuple(_MAKERS)
DOCUMENT_KINDS: tuple[DocumentKind, ...] = ALL_DOCUMENT_KINDS[:16]
"""The kinds that DreamLLM's own tokenizer learns from: fixed, so that its models stay what they are."""
