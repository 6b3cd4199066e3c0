"""Captions: the model describes a picture, and its words are read back as facts.

What the true caption of the same style asserts is looked for in the model's, so an omission is as wrong as a
mistake, and a text outside the grammar has nothing right. A caption is all correct when it also says nothing
false.
"""

from collections import defaultdict

import numpy as np

from dreamllm.eval.scores import Row, Table, TaskResult, attribute_rows, proportion
from dreamllm.eval.subject import CELLS, HELD_OUT, EvalOptions, Subject
from dreamllm.eval.tasks.vqa import prompt
from dreamllm.eval.written import answer_of
from dreamllm.world.agreement import Agreement, agreement
from dreamllm.world.documents import DESCRIBE_PROMPTS
from dreamllm.world.language import CAPTION_STYLES, CaptionStyle, caption
from dreamllm.world.reading import Facts, GrammarError, read_text
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

MAX_CAPTION_TOKENS = 160


def run(subject: Subject, options: EvalOptions) -> TaskResult:
    """Describe `options.num` pictures of every cell in every style (in one, the full one, if quick)."""
    rng = np.random.default_rng([options.seed, 2])
    styles: tuple[CaptionStyle, ...] = ("full",) if options.is_quick else CAPTION_STYLES
    items = [
        (style, cell, sample_scene(rng, split, num_objects=counts))
        for style in styles
        for cell, split, counts in options.cells
        if style == "full" or cell != HELD_OUT
        for _ in range(options.num)
    ]
    prompts = [prompt(scene, DESCRIBE_PROMPTS[style]) for style, _, scene in items]
    described = subject.generate(prompts, options, "text", max_new_tokens=MAX_CAPTION_TOKENS)
    results: dict[tuple[str, str], list[CaptionResult]] = defaultdict(list)
    for (style, cell, scene), asked, document in zip(items, prompts, described, strict=True):
        results[style, cell].append(compare(answer_of(asked, document), scene, style))
    return TaskResult(tables=tuple(_table(style, results) for style in styles))


CaptionResult = tuple[bool, bool, Agreement]
"""Whether the text is readable, whether it is all correct, and the agreement."""


def compare(text: str, scene: Scene, style: CaptionStyle) -> CaptionResult:
    """A generated caption against the truth; one that says nothing counts as unreadable."""
    expected = read_text(caption(scene, style))
    try:
        said = read_text(text)
    except GrammarError:
        said = Facts()
    if said == Facts():
        return False, False, agreement(expected, said)
    found = agreement(expected, said)
    says_nothing_false = agreement(said, Facts.of(scene)).all_correct
    return True, found.all_correct and says_nothing_false, found


def _table(style: CaptionStyle, results: dict[tuple[str, str], list[CaptionResult]]) -> Table:
    cells = [cell for cell, _, _ in CELLS if (style, cell) in results]
    rows = [
        Row(label="all correct", scores=tuple(proportion([r[1] for r in results[style, c]]) for c in cells)),
        Row(label="readable", scores=tuple(proportion([r[0] for r in results[style, c]]) for c in cells)),
    ]
    rows += attribute_rows([[[r[2]] for r in results[style, cell]] for cell in cells])
    return Table(
        title=f"Captions, {style}: “{DESCRIBE_PROMPTS[style]}”",
        columns=tuple(cells),
        rows=tuple(rows),
        note="Share of what the true caption asserts that the model's caption says.",
    )
