"""Where the stock configuration of a part is: in a local folder, beside the shipped recipes, or on the hub.

Of a repository only `config.json` files and the scheduler's are fetched, never a tensor. Those of well-known
parts come with the package, so that a plan of the shipped recipes needs no network.
"""

from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from dreamllm.checkpoint.hub import split_hub_id
from dreamllm.errors import CheckpointError
from dreamllm.recipes import FOLDER

SHIPPED = FOLDER / "parts"
CONFIG_FILES = ("config.json", "*/config.json", "scheduler/scheduler_config.json")


def known_parts() -> tuple[str, ...]:
    """Hub ids of the parts whose configuration comes with the package."""
    return tuple(sorted(folder.name.replace("--", "/", 1) for folder in SHIPPED.iterdir() if folder.is_dir()))


def config_folder(source: str, base: Path) -> Path:
    """The folder that holds the configuration of a part.

    `source` is a folder (it starts with `.`, `/` or `~`; relative to `base`) or a hub id `owner/name`, with
    `@revision` or without.

    Raises:
        CheckpointError: there is no such folder or repository, or the hub cannot be reached.
    """
    if source.startswith((".", "/", "~")):
        folder = (base / Path(source).expanduser()).resolve()
        if not folder.is_dir():
            raise CheckpointError(
                f"the part {source} is not there: {folder} is no folder; train or download it first, or give "
                f"a hub id whose configuration is known, such as {known_parts()[0]}"
            )
        return folder
    hub_id = split_hub_id(source)
    if hub_id is None:
        raise CheckpointError(
            f"the part {source!r} is neither a folder nor a hub id; expected ./FOLDER or "
            "owner/name[@revision]; correct the recipe"
        )
    shipped = SHIPPED / hub_id[0].replace("/", "--", 1)
    return shipped if shipped.is_dir() else _fetch(*hub_id)


def _fetch(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(CONFIG_FILES)))
    except (HTTPError, OSError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"the configuration of {name} is not known here and cannot be fetched ({type(error).__name__}: "
            f"{reason}); connect, or give a local folder or one of {', '.join(known_parts())}"
        ) from error
