"""A sequence of JAM while it is written: words, and room for the codes of pictures."""

from dataclasses import dataclass, field
from typing import Self

from dreamllm.document.document import Image
from dreamllm.sequence.code_tokens import CodeTokens


@dataclass(slots=True, kw_only=True)
class CodeDraft:
    """A sequence while it is written; codes are filled in when all of it is known to fit."""

    tokens: CodeTokens
    document_id: str
    ids: list[int] = field(default_factory=list)
    is_label: list[bool] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    picture_starts: list[int] = field(default_factory=list)
    """Position of the first code, one entry an image."""
    is_picture_open: bool = False
    """Whether a picture stands last, which a `<break>` closes once something follows."""
    closing_is_label: bool = False

    @property
    def next_follows(self) -> int:
        """The id that will stand before the next words."""
        return self.tokens.break_ if self.is_picture_open else self.ids[-1]

    def write(self, ids: list[int], *, is_label: bool = False) -> None:
        """Append ids that are all labels, or none of them."""
        if ids:
            self.close_picture()
            self._append(ids, is_label)

    def write_picture(self, image: Image, *, is_label: bool, closing_is_label: bool) -> None:
        """Append a `<break>` and room for codes."""
        self.write([self.tokens.break_], is_label=is_label)
        self.picture_starts.append(len(self.ids))
        self.images.append(image)
        self._append([self.tokens.first_code] * self.tokens.codes_per_picture, is_label)
        self.is_picture_open, self.closing_is_label = True, closing_is_label

    def close_picture(self) -> None:
        """Append the `<break>` after a picture, if one stands last."""
        if self.is_picture_open:
            self.is_picture_open = False
            self._append([self.tokens.break_], self.closing_is_label)

    def end(self, eos_id: int, *, is_label: bool) -> None:
        """Append EOS, which closes a picture as well."""
        self.is_picture_open = False
        self._append([eos_id], is_label)

    def extend(self, other: Self, *, first: int = 0) -> None:
        """Append another draft from a position on that no picture stands before."""
        offset = len(self.ids) - first
        self.picture_starts += [start + offset for start in other.picture_starts]
        self.images += other.images
        self.ids += other.ids[first:]
        self.is_label += other.is_label[first:]

    def _append(self, ids: list[int], is_label: bool) -> None:
        self.ids += ids
        self.is_label += [is_label] * len(ids)


def joined(draft: CodeDraft, before: list[CodeDraft]) -> CodeDraft:
    """A draft with other drafts between its BOS and what follows."""
    whole = CodeDraft(tokens=draft.tokens, document_id=draft.document_id)
    whole.write(draft.ids[:1])
    for retrieved in before:
        whole.extend(retrieved)
    whole.extend(draft, first=1)
    return whole
