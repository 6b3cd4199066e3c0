"""Writing vectors into slots of a sequence and reading them out again, by index.

Picture features and dream queries go in before the language model; the states at dream queries come out
after it. Positions are data (see `sequence/layout.py`): nothing here looks for a token, loops over samples or
waits for the device.
"""

from jaxtyping import Float, Int
from torch import Tensor


def write_slots(
    embeds: Float[Tensor, "B T D"],
    features: Float[Tensor, "N P D"],
    slots: Int[Tensor, "N P"],  # positions in the flattened (B*T) sequence, each at most once
) -> Float[Tensor, "B T D"]:
    """A copy of the embeddings with the features at the slots; differentiable in both."""
    flat = embeds.flatten(0, 1)
    return flat.index_copy(0, slots.flatten(), features.flatten(0, 1).to(embeds.dtype)).view_as(embeds)


def read_slots(
    hidden: Float[Tensor, "B T D"],
    slots: Int[Tensor, "M Q"],  # positions in the flattened (B*T) sequence
) -> Float[Tensor, "M Q D"]:
    """The states at the slots."""
    return hidden.flatten(0, 1).index_select(0, slots.flatten()).unflatten(0, slots.shape)
