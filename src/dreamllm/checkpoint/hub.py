"""Where a model or a part comes from and goes to: a local folder, or a repository of the Hugging Face Hub.

A hub id is `owner/name`, or `owner/name@revision` with a branch, a tag or a commit. Only data travels, both
ways: tensors, JSON, tokenizer files and the card. Code never does, and pickled tensors are fetched only where
a repository has no others.
"""

import logging
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dreamllm.errors import CheckpointError

logger = logging.getLogger(__name__)

_HUB_ID: Final = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)
_CARD: Final = "README.md"
_DATA: Final = ("*.json", "*.txt", "*.model", "*.jinja")
_SAFETENSORS: Final = ("*model.safetensors", "*model-?????-of-?????.safetensors")
"""What the stock libraries load untold: no half-precision twins, no single-file checkpoints."""
_PICKLED: Final = tuple(pattern.replace(".safetensors", ".bin") for pattern in _SAFETENSORS)
_ANSWER_TIMEOUT_S: Final = 5.0


def split_hub_id(text: str) -> tuple[str, str | None] | None:
    """The repository and the revision of a hub id; None for a text that is no hub id."""
    match = _HUB_ID.fullmatch(text)
    return None if match is None else (match[1], match[2])


def resolve_source(
    source: str | Path,
    *,
    folders: Sequence[str] = (),
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder of a source: a folder as it is, a hub id as its snapshot in the cache of the Hub.

    Of a repository `folders` are fetched, such as `("unet", "vae", "scheduler")`, and its card; the whole of
    it if none is named. What the cache holds is used without network; with `HF_HUB_OFFLINE` nothing else is.

    Raises:
        CheckpointError: the source is neither, or the hub refuses it, or cannot be reached while the cache
            holds no whole snapshot.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{source} is a local folder, which has no revision {revision!r}; leave the revision out, "
                "or give a hub id"
            )
        return folder
    hub_id = split_hub_id(source) if isinstance(source, str) else None
    if hub_id is None:
        raise CheckpointError(
            f"{str(source)!r} is neither a local folder nor a hub id; check the path, or give owner/name or "
            "owner/name@revision"
        )
    name, pinned = hub_id
    if None not in (pinned, revision) and pinned != revision:
        raise CheckpointError(
            f"{source!r} is pinned to {pinned!r}, but revision {revision!r} is asked for; give one of them"
        )
    return _fetch(name, pinned or revision, folders, local_files_only)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload the data of a model folder and return the address of the commit.

    The repository is made if it is missing, and so is the branch `revision`. Data files of it that the folder
    does not have are deleted, so that no shard of an earlier model is left beside the new ones. Without
    `token` the one of `hf auth login` is used.

    Raises:
        CheckpointError: the id is no hub id, or the hub refuses or cannot be reached.
    """
    if split_hub_id(repo_id) != (repo_id, None):
        raise CheckpointError(
            f"{repo_id!r} is not the id of a repository; expected owner/name, with a branch as `revision`"
        )
    api = HfApi(token=token)
    patterns = [_CARD, *_DATA, "*.safetensors"]
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            allow_patterns=patterns,
            delete_patterns=patterns,
        )
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"the hub refuses {repo_id!r}: {_reason(error)}; log in with `hf auth login`, or give a token "
            "that may write there"
        ) from error
    except (HTTPError, OSError, ValueError) as error:  # ValueError: what the hub says of the card's metadata
        raise CheckpointError(
            f"cannot push {repo_id!r} to the hub: {_reason(error)}; save to a folder, and push it when the "
            "hub can be reached"
        ) from error
    return str(commit)


def _fetch(name: str, revision: str | None, folders: Sequence[str], local_files_only: bool) -> Path:
    """The snapshot of a repository, with pickled tensors only if it has no safetensors."""
    obstacle = "local_files_only is set" if local_files_only else _obstacle(name, revision)
    for tensors in (_SAFETENSORS, _PICKLED):
        try:
            snapshot = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=[_CARD, *_inside(folders, (*_DATA, *tensors))],
                    local_files_only=obstacle is not None,
                )
            )
        except LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"cannot reach the hub for {_pinned(name, revision)}: {obstacle or _reason(error)}; the "
                "cache holds no whole snapshot of it, and there is no such folder; connect, or give a local "
                "folder"
            ) from error
        except (HTTPError, OSError, HFValidationError) as error:
            raise _refused(name, revision, error) from error
        files = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*")]
        if any(fnmatchcase(file, pattern) for file in files for pattern in _inside(folders, tensors)):
            break
    if obstacle is not None:
        logger.info("%s is taken from the cache as it is: %s", _pinned(name, revision), obstacle)
    return snapshot


def _obstacle(name: str, revision: str | None) -> str | None:
    """Why the hub cannot serve a repository now, which the cache may still hold; None if it can.

    One request that is never repeated: `snapshot_download` alone would try for half a minute to list the
    files of a pinned commit.
    """
    try:
        HfApi().model_info(name, revision=revision, timeout=_ANSWER_TIMEOUT_S)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _refused(name, revision, error) from error
    except HTTPError as error:
        return _reason(error)
    return None


def _refused(name: str, revision: str | None, error: Exception) -> CheckpointError:
    """One line for what the hub, or the way to it, answered."""
    cures = {
        GatedRepoError: "accept its terms on the hub and log in with `hf auth login`",
        RepositoryNotFoundError: "check the name; for a private repository log in with `hf auth login`",
        RevisionNotFoundError: "check the branch, tag or commit",
        HFValidationError: "give owner/name or owner/name@revision",
    }
    cure = next(
        (cures[kind] for kind in cures if isinstance(error, kind)), "run it again, it goes on from there"
    )
    return CheckpointError(
        f"{_pinned(name, revision)} cannot be fetched from the hub: {_reason(error)}; {cure}"
    )


def _inside(folders: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The patterns within each of the folders; as they are if there is none."""
    return [f"{start}{each}" for start in [f"{folder}/" for folder in folders] or [""] for each in patterns]


def _pinned(name: str, revision: str | None) -> str:
    return repr(name if revision is None else f"{name}@{revision}")


def _reason(error: Exception) -> str:
    """The kind and the text of an error, on one line."""
    message = getattr(error, "server_message", None) or str(error)
    return f"{type(error).__name__}: {' '.join(message.split())[:300]}"
