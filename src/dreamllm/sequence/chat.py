"""How a conversation is spelled out: who speaks, which separators stand between turns, where a turn ends.

A template turns the parts of a conversation into pieces; `encode.py` turns pieces into ids one by one.
Because each piece is tokenised alone, what stands before an answer has the same ids in training and in
generation: the prompt form (`prompt=True`) is an exact prefix of the training form.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, takewhile

from dreamllm.document.document import Document, Image, Part, Role, Text
from dreamllm.errors import ConfigError, DocumentError


@dataclass(frozen=True, slots=True)
class Markup:
    """Text of the template itself; the only text in which names of special tokens are tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class EndOfTurn:
    """The end of an assistant turn, or of a plain document: EOS."""


Piece = Markup | Text | Image | EndOfTurn


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """The fixed text around what is said. An assistant turn ends with the tokenizer's EOS in every
    template."""

    name: str
    system: str
    """Opens a conversation that has no system part of its own; may be empty."""
    system_prefix: str
    system_end: str
    """Between a system text and whatever follows."""
    user_prefix: str
    user_end: str
    """Between what a user said and whatever follows."""
    assistant_prefix: str
    assistant_end: str
    """Between the EOS of an answer and whatever follows."""
    content_prefix: str
    """Before every run of text of a user or an assistant, which is stripped first: with a space here a word
    has one spelling in ids, wherever it stands in a turn."""
    opening: str = ""
    """Opens a conversation that has neither a system part nor `system`: Llama 3.1 writes dates there."""
    system_in_user_turn: bool = False
    """Whether the user says the system text (Gemma): what the user says first then begins with
    `system_prefix`, the text and `system_end`."""
    refuses_system: str = ""
    """Why no system part can be written; empty where one can."""

    def render(self, document: Document, *, prompt: bool = False) -> list[Piece]:
        """Pieces of a conversation in order; a separator is written only when something follows it.

        With `prompt` the last answer is left open: an unfinished assistant turn gets no EOS, and after any
        other turn the assistant prefix is written. Spaces before what a user or the system says are written
        as part of their text: tokenizers join a space to the word after it.

        Raises:
            DocumentError: there is a system part, and the template refuses it.
        """
        self._check_system(document)
        pieces: list[Piece] = []
        has_system = any(part.role == "system" for part in document.parts[:1])
        pending = "" if has_system else self.without_system
        role: Role | None = None
        for role, turn in groupby(self._with_system_joined(document.parts), key=lambda part: part.role):
            prefix, content_prefix, end = self._around(role)
            markup = pending + prefix
            if role != "assistant":
                words = markup.rstrip(" ")
                content_prefix = markup[len(words) :] + content_prefix
                markup = words
            if markup:
                pieces.append(Markup(markup))
            pieces += _contents(turn, content_prefix)
            if role == "assistant":
                pieces.append(EndOfTurn())
            pending = end
        if not prompt:
            return pieces
        if role == "assistant":
            return pieces[:-1]
        return [*pieces, Markup(pending + self.assistant_prefix)]

    @property
    def without_system(self) -> str:
        """What opens a conversation that has no system part."""
        return self.system_prefix + self.system + self.system_end if self.system else self.opening

    def _check_system(self, document: Document) -> None:
        if self.refuses_system and any(part.role == "system" for part in document):
            raise DocumentError(
                f"document {document.id!r} has a system part, but the chat template {self.name!r} takes "
                f"none: {self.refuses_system}; say it in the first user part, or choose one of the chat "
                f"templates {', '.join(CHAT_TEMPLATES)}"
            )

    def _with_system_joined(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """The parts, where a system text at their front is one with the user's text, if the user says it."""
        if not self.system_in_user_turn or not parts or parts[0].role != "system":
            return parts
        system = list(takewhile(lambda part: part.role == "system", parts))
        text = "".join(part.text for part in system if isinstance(part, Text)).strip()
        text = self.system_prefix + text + self.system_end
        pictures = [replace(part, role="user") for part in system if isinstance(part, Image)]
        rest = [*pictures, *parts[len(system) :]]
        if rest and isinstance(first := rest[0], Text) and first.role == "user":
            text += first.text.lstrip()
            rest = rest[1:]
        return (Text(text=text, role="user"), *rest)

    def _around(self, role: Role | None) -> tuple[str, str, str]:
        if role == "system" and not self.system_in_user_turn:
            return self.system_prefix, "", self.system_end
        if role in ("system", "user"):
            return self.user_prefix, self.content_prefix, self.user_end
        return self.assistant_prefix, self.content_prefix, self.assistant_end


def _contents(turn: Iterator[Part], prefix: str) -> Iterator[Part]:
    """The parts of a turn, where each run of neighbouring texts is stripped at its ends and given the
    prefix."""
    for is_text, run in groupby(turn, key=lambda part: isinstance(part, Text)):
        if not is_text:
            yield from run
            continue
        texts = [part for part in run if isinstance(part, Text)]
        while texts and not texts[0].text.strip():
            texts.pop(0)
        while texts and not texts[-1].text.strip():
            texts.pop()
        if texts:
            texts[-1] = replace(texts[-1], text=texts[-1].text.rstrip())
            texts[0] = replace(texts[0], text=prefix + texts[0].text.lstrip())
        yield from texts


VICUNA_V1_1 = ChatTemplate(
    name="vicuna_v1_1",
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    system_prefix="",
    system_end=" ",
    user_prefix="USER:",
    user_end=" ",
    assistant_prefix="ASSISTANT:",
    assistant_end="",
    content_prefix=" ",
)
PLAIN_CHAT = replace(VICUNA_V1_1, name="plain_chat", system="")
CHATML = ChatTemplate(
    name="chatml",
    system="You are a helpful assistant.",
    system_prefix="<|im_start|>system\n",
    system_end="<|im_end|>\n",
    user_prefix="<|im_start|>user\n",
    user_end="<|im_end|>\n",
    assistant_prefix="<|im_start|>assistant\n",
    assistant_end="\n",
    content_prefix="",
)
CHAT_TEMPLATES = {template.name: template for template in (VICUNA_V1_1, PLAIN_CHAT, CHATML)}
TOKENIZER_CHAT = "tokenizer"
"""Names the chat template that a tokenizer brings along; see `stock_chat.py`."""


def chat_template(name: str) -> ChatTemplate:
    """The template of a name, where no tokenizer is needed to know it.

    Raises:
        ConfigError: there is none; the message offers the nearest name.
    """
    if name not in CHAT_TEMPLATES:
        names = [*CHAT_TEMPLATES, TOKENIZER_CHAT]
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"there is no chat template {name!r}; expected one of {', '.join(names)}; "
            f"did you mean {nearest!r}?"
        )
    return CHAT_TEMPLATES[name]
