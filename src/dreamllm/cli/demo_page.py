"""The page of `dreamllm demo`: what was asked, what came of it, and the judge's marks beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image as PILImage

from dreamllm.document.images import png_data_url
from dreamllm.world.language import QA, caption
from dreamllm.world.render import render_image
from dreamllm.world.scene import Scene


@dataclass(frozen=True, slots=True)
class Marks:
    """How many of the things that were asserted the judge found to be so."""

    right: int
    asserted: int

    def __str__(self) -> str:
        return f"{self.right} of {self.asserted}" if self.asserted else "nothing to judge"


def total(marks: Sequence[Marks]) -> Marks:
    """The marks of many things as one."""
    return Marks(sum(each.right for each in marks), sum(each.asserted for each in marks))


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
    if answers:
        rows.append(("Questions answered exactly", f"{sum(a.is_right for a in answers)} of {len(answers)}"))
    for who, pictures in (("Captions", drawn), ("The same, by the tiny Stable Diffusion", beside)):
        if pictures:
            whole = sum(each.marks.right == each.marks.asserted for each in pictures)
            rows.append((f"{who}: attributes drawn", str(total([each.marks for each in pictures]))))
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
