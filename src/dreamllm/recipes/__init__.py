"""The recipes that come with the package, found by name.

`tiny/vae` is `recipes/tiny/vae.yaml`. A folder's `family.yaml` lists runs that build on each other, and the
folder's name, `tiny`, stands for it. A name that ends in `.yaml` or `.yml` is a path to a file of your own.
"""

import difflib
from pathlib import Path

from dreamllm.errors import ConfigError

FOLDER = Path(__file__).parent
FAMILY_FILE = "family.yaml"


def recipe_names() -> tuple[str, ...]:
    """Every shipped name, sorted: families (`tiny`) and recipes (`tiny/vae`)."""
    return tuple(sorted(_name(path) for path in FOLDER.glob("*/*.yaml")))


def find_recipe(name: str | Path) -> Path:
    """The file behind a shipped name or a path.

    Raises:
        ConfigError: there is no such name, or no such file.
    """
    text = Path(name).as_posix()
    if Path(text).suffix in (".yaml", ".yml"):
        if Path(text).is_file():
            return Path(text)
        raise ConfigError(
            f"there is no recipe {text}; expected a YAML file there, or a shipped name out of "
            f"{', '.join(recipe_names())}; check the path"
        )
    by_name = {_name(path): path for path in FOLDER.glob("*/*.yaml")}
    if text in by_name:
        return by_name[text]
    near = difflib.get_close_matches(text, by_name, n=1, cutoff=0.5)
    offer = f"did you mean {near[0]!r}?" if near else "give one of these, or a path that ends in .yaml"
    raise ConfigError(f"unknown recipe {text!r}; expected one of {', '.join(sorted(by_name))}; {offer}")


def is_family(path: Path) -> bool:
    """Whether a recipe file lists runs instead of describing one."""
    return path.name == FAMILY_FILE


def _name(path: Path) -> str:
    folder = path.parent.name
    return folder if is_family(path) else f"{folder}/{path.stem}"
