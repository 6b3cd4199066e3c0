"""How many tokens a text has, by the fast tokenizer of any folder. Names of special tokens in a text are
letters, as everywhere here; the folder need not hold the special tokens of a model.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from dreamllm.document.jsonl import read_json
from dreamllm.errors import ConfigError


def num_tokens(folder: Path, texts: Iterable[str]) -> int:
    """Tokens of texts, each by itself, without bos and eos.

    Raises:
        ConfigError: the folder holds no tokenizer that can be read.
    """
    count = load_counter(folder)
    return sum(count(text.encode("utf-8", "replace").decode("utf-8")) for text in texts)


@lru_cache(maxsize=1)
def load_counter(folder: Path) -> Callable[[str], int]:
    """What counts the tokens of a text, from `folder` or its `tokenizer` folder; loaded once a process.

    Raises:
        ConfigError: the folder holds no tokenizer that can be read.
    """
    from tokenizers import Tokenizer as Backend  # late: most passes count words alone

    found = [path for path in (folder, folder / "tokenizer") if (path / "tokenizer.json").is_file()]
    if not found:
        raise ConfigError(
            f"{folder} holds no tokenizer.json; expected a folder with a fast tokenizer of transformers, or "
            "a model folder of this package; check the path"
        )
    file = found[0] / "tokenizer.json"
    try:
        value = read_json(file.read_bytes(), name=str(file))
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror or error}; expected the file of a fast tokenizer; check "
            "its permissions"
        ) from error
    if not (isinstance(value, dict) and isinstance(value.get("model"), dict)):
        raise ConfigError(f"{file} holds no model; expected the file of a fast tokenizer; save it again")
    backend = Backend.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return lambda text: len(backend.encode(text, add_special_tokens=False).ids)
