"""Pictures of a document on their way into a sequence: from a cache where it knows them, else as pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from dreamllm.data.feature_cache import FeatureCache
from dreamllm.data.picture_digest import picture_digest
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Image
from dreamllm.errors import ConfigError, DocumentError
from dreamllm.sequence.cached_pictures import CachedPictures

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


@dataclass(slots=True)
class PictureReader:
    """Reads the pictures of one document. One that is drawn and read is looked at once."""

    document_id: str
    on_miss: OnMiss
    _digests: dict[int, tuple[Image, bytes]] = field(default_factory=dict)

    def read(
        self,
        images: Sequence[Image],
        transform: VisionTransform | TargetTransform,
        *,
        cache: FeatureCache | None,
    ) -> tuple[np.ndarray, CachedPictures | None]:
        """Pixels (Np, 3, H, W) of the pictures that the cache does not know, and its records of the others.

        Nothing is decoded of a picture that it knows.

        Raises:
            DocumentError: the cache does not know a picture, and `on_miss` is `raise`.
            ImageError: a picture cannot be read.
        """
        if cache is None:
            return _pixels(images, transform), None
        records = {}
        for number, image in enumerate(images):
            digest = self._digest(image)
            record = cache.get(digest)
            if record is not None:
                records[number] = record
            elif self.on_miss == "raise":
                raise DocumentError(
                    f"picture {digest.hex()} of document {self.document_id!r} is not in the cache "
                    f"{cache.folder} of {len(cache)} entries; expected every picture of the run; run "
                    "`dreamllm data cache` again, which computes what is missing, or set on_cache_miss to "
                    "'compute'"
                )
        unknown = [image for number, image in enumerate(images) if number not in records]
        return _pixels(unknown, transform), CachedPictures.of(records, len(images), nothing=cache.empty())

    def _digest(self, image: Image) -> bytes:
        if id(image) not in self._digests:
            self._digests[id(image)] = image, picture_digest(image)  # holds the image: its id stays its own
        return self._digests[id(image)][1]


def _pixels(images: Sequence[Image], transform: VisionTransform | TargetTransform) -> np.ndarray:
    pixels = np.empty((len(images), 3, transform.image_px, transform.image_px), dtype=np.float32)
    for index, image in enumerate(images):
        pixels[index] = transform(image.load())
    return pixels
