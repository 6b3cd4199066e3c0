"""Sizes of the paper (spec 2.1, 3.2, 3.3), at its own width and depth.

Its parents have 12 d^2 parameters a layer (feed-forward networks of 4d without a gate), learned positions
and no norm weights, so their sizes are recomputed here by closed formulas. Ours have gated networks: three
matrices of 8d/3 units are as large as two of 4d. Models of this shape, made without memory, must agree with
the formulas but for learned positions, which are subtracted, and for norms and the rounding of 8d/3, which
are below 0.1 %.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dreamllm.fusion.cross import CrossOptions, cross_config
from dreamllm.fusion.fuse import FusionConfig
from dreamllm.fusion.sizes import num_cross, num_fused, num_stock
from dreamllm.fusion.width import wide_config
from dreamllm.sequence.code_tokens import CodeTokens

D, L, T = 4096, 32, 4096
WORDS, CODES = 56_320, 8_192
V = WORDS + CODES
TOKENS = CodeTokens(break_=1, mask=2, infill=3, first_code=WORDS, num_codes=CODES, codes_per_picture=1024)
LAYERS, TABLE, POSITIONS = 12 * D * D * L, V * D, T * D
PARENT = LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=round(8 * D / 3),
    num_hidden_layers=L,
    num_attention_heads=32,
    max_position_embeddings=T,
    tie_word_embeddings=True,
)


def paper_cross(*, meetings, with_ffn):
    """Two towers, one table, two tables of positions, W_p, and blocks of both directions."""
    block = (12 if with_ffn else 4) * D * D
    return 2 * LAYERS + TABLE + 2 * POSITIONS + 2 * D * D + meetings * 2 * block


def num_parameters(model):
    return sum(tensor.numel() for tensor in model.parameters())


def test_a_parent_has_seven_billion_parameters():
    with torch.device("meta"):
        parent = LlamaForCausalLM(PARENT)

    assert f"{(LAYERS + TABLE + POSITIONS) / 1e9:.2f}" == "6.72"  # spec 2.1, tied
    assert f"{(LAYERS + 2 * TABLE + POSITIONS) / 1e9:.2f}" == "6.99"  # untied
    assert num_parameters(parent) == num_stock(PARENT, is_tied=True)
    assert num_parameters(parent) == pytest.approx(LAYERS + TABLE, rel=1e-3)


def test_width_has_26_billion_parameters():
    with torch.device("meta"):
        fused = LlamaForCausalLM(wide_config(PARENT, is_tied=True))

    paper = 4 * LAYERS + 2 * TABLE + 2 * POSITIONS
    assert f"{paper / 1e9:.2f}" == "26.33"  # spec 3.2
    assert num_parameters(fused) == num_fused(FusionConfig(method="width"), PARENT, PARENT, tokens=TOKENS)
    assert num_parameters(fused) == pytest.approx(paper - 2 * POSITIONS, rel=1e-3)


def test_cross_after_every_second_layer_has_19_billion_parameters():
    options = CrossOptions(every=2, embeddings="shared", head="half")
    config = cross_config(options, PARENT, PARENT, tokens=TOKENS)
    with torch.device("meta"):
        fused = AutoModelForCausalLM.from_config(config)

    paper = paper_cross(meetings=15, with_ffn=True)
    assert len(config.cross_layers) == 15  # none after the last layer
    assert f"{paper / 1e9:.2f}" == "19.26"  # spec 3.3
    assert num_parameters(fused) == num_cross(config)
    assert num_parameters(fused) == pytest.approx(paper - 2 * POSITIONS, rel=1e-3)


@pytest.mark.parametrize(
    ("every", "with_ffn", "billions"),
    [  # the table of spec 3.3, in which the towers meet after the last layer too
        (1, False, "17.51"),
        (2, False, "15.36"),
        (4, False, "14.29"),
        (8, False, "13.75"),
        (1, True, "26.10"),
        (2, True, "19.66"),
        (4, True, "16.44"),
        (8, True, "14.83"),
    ],
)
def test_other_meetings_have_the_sizes_of_the_table(every, with_ffn, billions):
    options = CrossOptions(
        every=every,
        after_last=True,
        content="attention+ffn" if with_ffn else "attention",
        embeddings="shared",
        head="half",
    )

    size = num_cross(cross_config(options, PARENT, PARENT, tokens=TOKENS))

    paper = paper_cross(meetings=L // every, with_ffn=with_ffn)
    assert f"{paper / 1e9:.2f}" == billions
    assert size == pytest.approx(paper - 2 * POSITIONS, rel=1e-3)


def test_half_as_wide_meetings_after_every_layer_are_as_large_as_full_ones_after_every_second():
    """With none after the last layer there are 31 instead of 15, so one half-wide meeting more."""
    half = CrossOptions(every=1, heads=16, ffn_size=PARENT.intermediate_size // 2)

    sizes = [
        num_cross(cross_config(options, PARENT, PARENT, tokens=TOKENS)) for options in (half, CrossOptions())
    ]

    assert sizes[0] - sizes[1] == pytest.approx(12 * D * D, rel=5e-3)  # half of 2 x 12 d^2
