"""Every exception this package raises on purpose.

    DreamLLMError
    |-- ConfigError        a recipe, an override or an argument that cannot be meant
    |-- DocumentError      a document that contradicts itself, or cannot be read
    |   `-- ImageError     a picture that cannot be used: corrupt, too large, empty
    |-- LayoutError        a sequence whose slots and pictures do not match
    |-- CheckpointError    a checkpoint that is missing, damaged, or does not fit the model
    |-- TrainingError      a run that must stop: NaN, a gate not passed
    |-- DiskError          what cannot be written: the disk is full, a quota is used up, no permission
    `-- MissingExtraError  an optional dependency is not installed

A message says what is wrong, the values seen, what was expected, and what to do.
"""


class DreamLLMError(Exception):
    """Base of all errors a user can cause and can mend; the command line prints them as one line."""


class ConfigError(DreamLLMError):
    """A recipe, an override or an argument that cannot be meant."""


class DocumentError(DreamLLMError):
    """A document that contradicts itself, or cannot be read."""


class ImageError(DocumentError):
    """A picture that cannot be used: corrupt, truncated, too large, empty."""


class LayoutError(DreamLLMError):
    """A sequence whose slots and pictures do not match, or that does not fit its context."""


class CheckpointError(DreamLLMError):
    """A checkpoint that is missing, damaged, or does not fit the model."""


class TrainingError(DreamLLMError):
    """A run that must stop: a loss that is not a number, a gate that was not passed."""


class DiskError(DreamLLMError):
    """A file or a folder that cannot be written: the disk is full, a quota is used up, no permission."""


class MissingExtraError(DreamLLMError):
    """An optional dependency is not installed; the message holds the pip line."""
