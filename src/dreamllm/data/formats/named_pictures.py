"""Pictures that records name: by a file name, a URL they came from, or bytes in the record itself."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dreamllm.data.formats.tar_pictures import TarPictures
from dreamllm.data.picture_files import checked_picture, find_picture
from dreamllm.document.jsonl import FaultError, picture_path
from dreamllm.document.messages import shown
from dreamllm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPictures:
    """A folder of pictures, and how a file in it is named."""

    folder: Path
    """Folder of the pictures; none is taken from outside of it."""
    name: str
    """Relative path in the folder, keys of the record in braces; a URL adds those of `names_of_url`. What
    ends in `.tar/` is a tar file, and what follows it the name of a member."""
    tars: TarPictures = field(default_factory=TarPictures)
    """Reads what is in tar files."""

    def find(self, keys: Mapping[str, Any], *, where: str) -> Path | bytes:
        """The file of the picture with these keys, or its bytes if it is in a tar file.

        Raises:
            ConfigError: the name uses a key that the record does not have.
            FaultError: the file is missing, outside the folder, or does not start like a picture.
        """
        try:
            name = self.name.format_map(keys)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{where}: a picture cannot be named {self.name!r}: {type(error).__name__}: {error}; "
                f"expected keys out of {', '.join(sorted(keys))}; correct the option that names pictures"
            ) from error
        tar, in_tar, member = name.partition(".tar/")
        if in_tar:
            return self.tars.read(self.folder / picture_path(f"{tar}.tar"), member, where=where)
        return find_picture(self.folder, name, where=where)

    def find_value(self, value: Any, *, where: str) -> Path | bytes:
        """The picture that a value is or names: bytes, `{"bytes": .., "path": ..}`, a path or a URL.

        Raises:
            FaultError: there is no such picture, or it does not start like one.
        """
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return checked_picture(value, where=where)
        if isinstance(value, str) and value:
            return self.find({"path": value, **names_of_url(value)}, where=where)
        raise FaultError(
            "missing_image",
            f"{where}: a picture is {shown(value)}; expected bytes, a path or a URL; leave the document out",
        )


def names_of_url(url: str) -> dict[str, str]:
    """What a file may be named for: the last part of a URL, and two digests of it."""
    data = url.encode("utf-8", "surrogatepass")
    return {
        "url_name": unquote(urlsplit(url).path).rpartition("/")[2],
        "url_sha256": hashlib.sha256(data).hexdigest(),
        "url_md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
    }
