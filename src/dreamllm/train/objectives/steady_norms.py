"""First weights of a stock encoder whose group norms do not look at the picture.

A group norm divides by the spread of the whole picture, so what one object becomes depends on all others, and
no training can undo it. Here every norm is fed a constant besides: half of the channels of each group have
+c added and half -c, by the biases of the convolutions before it. With c far above the spread of the signals,
the norm divides by c whatever the picture shows, and its weight and bias are set to undo both. It computes an
affine map then, layers and files stay stock, and training may move away from it.
"""

from collections.abc import Callable

import torch
from diffusers.models.autoencoders.vae import Encoder
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def steady_norms(encoder: Encoder, pixels: Float[Tensor, "B 3 H W"], *, constant: float) -> None:
    """Set biases of convolutions, and weights and biases of norms, for norms that divide by a constant.

    `pixels` are a few pictures; signals have unit spread over them after every norm.
    """
    stream = _pattern(encoder.conv_in.out_channels, constant)
    encoder.conv_in.bias.copy_(stream)
    norms: list[tuple[nn.GroupNorm, Tensor]] = []
    for block in [*encoder.down_blocks, encoder.mid_block]:
        for resnet in block.resnets:
            inner = _pattern(resnet.conv1.out_channels, constant)
            resnet.conv1.bias.copy_(inner)
            norms += [(resnet.norm1, stream), (resnet.norm2, inner)]
            if resnet.conv_shortcut is not None:
                stream = _through(resnet.conv_shortcut, stream, constant)
        for downsampler in getattr(block, "downsamplers", None) or ():
            stream = _through(downsampler.conv, stream, constant)
    norms.append((encoder.conv_norm_out, stream))
    hooks = [norm.register_forward_pre_hook(_undo(added, constant)) for norm, added in norms]
    encoder(pixels)
    for hook in hooks:
        hook.remove()


def _pattern(num_channels: int, constant: float) -> Float[Tensor, " C"]:
    """+c and -c by turns, so that every group of an even size has the mean 0."""
    signs = torch.ones(num_channels)
    signs[1::2] = -1
    return signs * constant


def _through(conv: nn.Conv2d, stream: Float[Tensor, " C"], constant: float) -> Float[Tensor, " D"]:
    """Give a convolution on the stream the bias that turns the old constants into new ones."""
    new = _pattern(conv.out_channels, constant)
    conv.bias.copy_(new - conv.weight.sum((2, 3)) @ stream)
    return new


def _undo(
    added: Float[Tensor, " C"], constant: float
) -> Callable[[nn.Module, tuple[Float[Tensor, "B C H W"], ...]], None]:
    """Before a norm runs, set its weight and bias so that signals come out without constants, at unit spread."""

    def set_affine(norm: nn.Module, inputs: tuple[Float[Tensor, "B C H W"], ...]) -> None:
        assert isinstance(norm, nn.GroupNorm)
        signals = inputs[0] - added[None, :, None, None]
        spread = signals.std(dim=(0, 2, 3)).mean()
        norm.weight.copy_((constant / spread).expand_as(norm.weight))
        norm.bias.copy_(-added / spread)

    return set_affine
