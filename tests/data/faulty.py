"""Documents by index, some of which cannot be used; they can be sent to worker processes."""

from collections.abc import Sequence

from dreamllm.document.document import Document
from dreamllm.document.jsonl import FaultError


class SomeFaulty:
    """A document at every index, or the fault that is raised there."""

    def __init__(self, entries: Sequence[Document | tuple[str, str]]) -> None:
        self.entries = list(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Document:
        entry = self.entries[index]
        if isinstance(entry, Document):
            return entry
        raise FaultError(*entry)  # type: ignore[arg-type]
