"""Pictures of a document on their way into a sequence: from a cache where it knows them, else as pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from dreamllm.data.feature_cache import FeatureCache
from dreamllm.data.picture_digest import picture_digest
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Image
from dreamllm.errors import ConfigError, DocumentError
from dreamllm.sequence.cached_pictures import CachedPictures
from dreamllm.sequence.pixels import Pixels

OnMiss = Literal["raise", "compute"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureCaches:
    """What has been computed of pictures beforehand."""

    vision: FeatureCache | None = None
    """Features of pictures read."""
    latents: FeatureCache | None = None
    """Moments of pictures drawn."""
    on_miss: OnMiss = "raise"
    """What happens to a picture that its cache does not know: an error, or computed as without a cache."""

    def __post_init__(self) -> None:
        if self.on_miss not in get_args(OnMiss):
            raise ConfigError(
                f"on_miss is {self.on_miss!r}; expected one of {', '.join(get_args(OnMiss))}; correct it"
            )


NO_CACHES = PictureCaches()


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureView:
    """Pictures of a document as one part of a model looks at them."""

    images: Sequence[Image]
    transform: VisionTransform | TargetTransform
    cache: FeatureCache | None


@dataclass(slots=True)
class PictureReader:
    """Reads the pictures of one document. One that is drawn and read is opened once."""

    document_id: str
    on_miss: OnMiss
    _digests: dict[int, bytes] = field(default_factory=dict)

    def read(self, views: Sequence[PictureView]) -> list[tuple[Pixels, CachedPictures | None]]:
        """Of each view, pixels of the pictures that its cache does not know, and records of the others.

        Nothing is decoded of a picture that all caches know, and one decoded picture is held at a time.

        Raises:
            DocumentError: a cache does not know a picture, and `on_miss` is `raise`.
            ImageError: a picture cannot be read.
        """
        records = [self._records(view) for view in views]
        levels: list[list[np.ndarray | None]] = [[None] * len(view.images) for view in views]
        wanted: dict[int, tuple[Image, list[tuple[int, int]]]] = {}
        for number, (view, known) in enumerate(zip(views, records, strict=True)):
            for place, image in enumerate(view.images):
                if place not in known:
                    wanted.setdefault(id(image), (image, []))[1].append((number, place))
        for image, places in wanted.values():
            opened = image.load()
            for number, place in places:
                levels[number][place] = views[number].transform.levels(opened)
        return [
            (
                Pixels.of(
                    [each for each in seen if each is not None],
                    image_px=view.transform.image_px,
                    scaling=view.transform.scaling,
                ),
                None
                if view.cache is None
                else CachedPictures.of(known, len(view.images), nothing=view.cache.empty()),
            )
            for view, known, seen in zip(views, records, levels, strict=True)
        ]

    def _records(self, view: PictureView) -> dict[int, Tensor]:
        """What the cache of a view knows, by the number of the picture; to be copied."""
        if view.cache is None:
            return {}
        records = {}
        for number, image in enumerate(view.images):
            digest = self._digest(image)
            record = view.cache.view(digest)
            if record is not None:
                records[number] = record
            elif self.on_miss == "raise":
                raise DocumentError(
                    f"picture {digest.hex()} of document {self.document_id!r} is not in the cache "
                    f"{view.cache.folder} of {len(view.cache)} entries; expected every picture of the run; "
                    "run `dreamllm data cache` again, which computes what is missing, or set on_cache_miss "
                    "to 'compute'"
                )
        return records

    def _digest(self, image: Image) -> bytes:
        if id(image) not in self._digests:  # the views hold the image: its id stays its own
            self._digests[id(image)] = picture_digest(image)
        return self._digests[id(image)]
