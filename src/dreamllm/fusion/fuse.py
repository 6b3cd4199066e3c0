"""Two language models of one vocabulary of words and codes -> one model, by one of the paper's three ways.

Models go in and a model comes out, in memory and in the text parent's type of weights; the parents are left
as they are. What cannot be fused is refused before anything is computed.
"""

from transformers import PreTrainedModel

from dreamllm.fusion.compatibility import compatibility
from dreamllm.fusion.config import FusionConfig
from dreamllm.fusion.cross import fuse_cross
from dreamllm.fusion.uniform import fuse_uniform
from dreamllm.fusion.width import fuse_width
from dreamllm.sequence.code_tokens import CodeTokens


def fuse(
    config: FusionConfig,
    text_model: PreTrainedModel,
    image_model: PreTrainedModel,
    *,
    tokens: CodeTokens,
) -> PreTrainedModel:
    """The fused model, in evaluation mode; new weights are drawn from torch's global generator.

    Uniform and width with a joint norm give a stock model of the parents' class; width with a grouped norm
    gives a JamWidthForCausalLM, cross a JamCrossForCausalLM.

    Raises:
        ConfigError: the parents cannot be fused in this way; the message names every reason.
    """
    compatibility(text_model, image_model, tokens=tokens).check(config.method)
    match config.method:
        case "uniform":
            return fuse_uniform(config.uniform, text_model, image_model, tokens=tokens)
        case "width":
            return fuse_width(config.width, text_model, image_model, tokens=tokens)
        case "cross":
            return fuse_cross(config.cross, text_model, image_model, tokens=tokens)
