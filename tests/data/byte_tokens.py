"""A tokenizer file of which every byte is a token, but for one special token."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers


def save_byte_tokenizer(folder: Path) -> None:
    """Write tokenizer.json; `</s>` is a special token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["</s>"])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
