"""What each objective can be told. Free of torch, so that a recipe is read and checked before anything heavy.

Paths in an objective are relative to the folder of the run: `../vae/model` is the result of the neighbour run
`vae`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.data.retrieval_config import RetrievalConfig
from dreamllm.data.sources import PhaseConfig
from dreamllm.errors import ConfigError
from dreamllm.fusion.config import FusionConfig
from dreamllm.models.trainable import Trainable
from dreamllm.sequence.cm3 import Cm3Config


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenePhase:
    """A part of a run and the scenes it sees."""

    until: float
    """Where the phase ends, as a share of the run."""
    num_objects: tuple[int, ...]
    """Object counts of a scene, equally likely."""


def _check_phases(phases: tuple[ScenePhase, ...]) -> None:
    ends = [phase.until for phase in phases]
    if not ends or ends != sorted(ends) or ends[-1] != 1.0:
        raise ConfigError(
            f"phases end at {ends} of the run; expected one or more in rising order, the last until 1.0; "
            "correct `until`"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelObjectiveConfig:
    """A byte-level BPE tokenizer, then a Llama that reads and answers in words alone."""

    kind: Literal["language_model"] = "language_model"
    vocab_size: int = 512
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    intermediate_size: int = 512
    initializer_range: float = 0.02
    """Standard deviation of the first weights. At small widths the stock 0.02 leaves attention nearly flat,
    and what has to match two words forms late; 1 / sqrt(hidden_size) does not."""
    max_length: int = 512
    """Longest sequence the model is built for."""
    row_length: int = 256
    """Positions of a packed training row."""
    documents_per_step: int = 16
    rows_per_micro_batch: int = 16
    phases: tuple[PhaseConfig, ...] = field(default=())
    """What is read when."""
    gate_accuracy: float = 0.9
    """Share of questions about a caption, answered exactly, that the gate asks for."""
    gate_num_objects: tuple[int, ...] = (1, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipObjectiveConfig:
    """A CLIP pair: contrastive loss with hard negatives, and dense heads on the patches for training only."""

    kind: Literal["clip"] = "clip"
    vocab_size: int = 512
    """Most ids of the text tower's own tokenizer, which learns from captions."""
    hidden_size: int = 128
    num_layers: int = 4
    num_text_layers: int = 2
    num_heads: int = 4
    patch_px: int = 16
    max_text_length: int = 40
    """Positions of a caption; longer ones are cut, as with any CLIP."""
    scenes_per_step: int = 32
    phases: tuple[ScenePhase, ...] = field(default=())
    dense_weight: float = 1.0
    """Weight of the auxiliary heads that read objects and places off patches, and off captions."""
    gate_accuracy: float = 0.97
    """What the gate asks for on the worst attribute: linear probes, and right captions over wrong ones."""

    def __post_init__(self) -> None:
        _check_phases(self.phases)


@dataclass(frozen=True, kw_only=True, slots=True)
class VaeObjectiveConfig:
    """A stock AutoencoderKL on pictures of the world."""

    kind: Literal["vae"] = "vae"
    block_out_channels: tuple[int, ...] = (16, 16, 32, 64)
    latent_channels: int = 4
    norm_groups: int = 8
    scenes_per_step: int = 16
    phases: tuple[ScenePhase, ...] = field(default=())
    kl_weight: float = 2e-4
    """Weight of the divergence from a standard normal, per latent element."""
    foreground_weight: float = 5.0
    """How much more a pixel on an object counts."""
    chroma_weight: float = 2.0
    """How much more an error of hue counts than one of brightness."""
    gate_accuracy: float = 0.97
    """Share of objects the judge reads back wholly right from reconstructions."""

    def __post_init__(self) -> None:
        _check_phases(self.phases)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerObjectiveConfig:
    """A stock VQModel on pictures of the world: the codes that JAM reads and writes."""

    kind: Literal["image_tokenizer"] = "image_tokenizer"
    picture_px: int = 48
    """H and W of the pictures."""
    block_out_channels: tuple[int, ...] = (16, 16, 32, 64)
    """Channels by level; every level but the first halves the picture."""
    latent_channels: int = 64
    norm_groups: int = 4
    quantizer: Literal["ema", "fsq"] = "ema"
    """`ema`: a codebook of moving averages (arXiv:1711.00937, appendix A.1), codes that died started again.
    `fsq`: a fixed grid (arXiv:2309.15505), stored as a codebook."""
    num_codes: int = 512
    """Codes of an `ema` codebook."""
    code_width: int = 16
    """Numbers of a code in an `ema` codebook."""
    fsq_levels: tuple[int, ...] = (8, 8, 8)
    """Values of each number of an `fsq` code; their product is the number of codes."""
    codebook_decay: float = 0.99
    """Of the moving averages."""
    restart_below: float = 0.02
    """A code whose moving count of uses a step falls below this is put where a picture of the step is."""
    commitment_weight: float = 0.25
    """Holds the encoder to the codes it chose."""
    anchor_weight: float = 0.0
    """Holds latents to the principal components of their own patch. A code that changes with what is
    elsewhere in the picture is noise to a language model."""
    scenes_per_step: int = 16
    phases: tuple[ScenePhase, ...] = field(default=())
    foreground_weight: float = 5.0
    """How much more a pixel on an object counts."""
    chroma_weight: float = 2.0
    """How much more an error of hue counts than one of brightness."""
    gate_accuracy: float = 0.97
    """Share of attributes the judge reads back right from reconstructions."""

    def __post_init__(self) -> None:
        _check_phases(self.phases)
        factor = 2 ** (len(self.block_out_channels) - 1)
        if self.picture_px % factor:
            raise ConfigError(
                f"picture_px is {self.picture_px}, which {factor}, the factor of "
                f"{len(self.block_out_channels)} levels, does not divide; choose a multiple of it"
            )
        if self.quantizer == "fsq" and (not self.fsq_levels or min(self.fsq_levels) < 2):
            raise ConfigError(f"fsq_levels is {self.fsq_levels}; expected two or more values for each number")


@dataclass(frozen=True, kw_only=True, slots=True)
class StableDiffusionObjectiveConfig:
    """A text-conditioned U-Net over the VAE's latents: the frozen image decoder, and the baseline to beat."""

    kind: Literal["stable_diffusion"] = "stable_diffusion"
    vae: Path
    """Folder of the trained VAE."""
    clip: Path
    """Folder of the trained CLIP pair; its text tower reads the captions and goes on learning here."""
    tokenizer: Path
    block_out_channels: tuple[int, ...] = (64, 128)
    has_attention: tuple[bool, ...] = (False, True)
    """Whether each level of the U-Net attends to the caption; the finest is the costliest."""
    layers_per_block: int = 1
    attention_head_dim: int = 16
    """diffusers' name for the number of heads of the first level is `attention_head_dim`; kept."""
    norm_groups: int = 16
    scenes_per_step: int = 8
    noises_per_image: int = 4
    phases: tuple[ScenePhase, ...] = field(default=())
    empty_caption: float = 0.1
    """Share of empty captions, for classifier-free guidance."""
    text_lr_scale: float = 0.5
    """Learning rate of the text tower against the U-Net's."""
    whiten: bool = True
    """Whether the text features' whitening is folded into the cross-attention's first weights."""
    foreground_weight: float = 4.0
    """How much more a latent under an object counts."""
    gate_gap: float = 1.3
    """Loss with a wrong caption over loss with the right one, on the attribute that matters least."""

    def __post_init__(self) -> None:
        _check_phases(self.phases)
        if len(self.has_attention) != len(self.block_out_channels):
            raise ConfigError(
                f"has_attention has {len(self.has_attention)} entries, but block_out_channels has "
                f"{len(self.block_out_channels)} levels; give one entry for each level"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamLLMObjectiveConfig:
    """A stage of DreamLLM: next-token and denoising loss on documents."""

    kind: Literal["dreamllm"] = "dreamllm"
    model: Path | None = None
    """Result of the stage before; or `parts` for a new model."""
    parts: PartsConfig | None = None
    whiten: bool = False
    """Start both projectors of a new model from whitened features, at the scale of what they replace; for
    linear projectors and Stable Diffusion's U-Net."""
    train: Trainable = field(default_factory=Trainable)
    """What learns."""
    quantize: Literal["nf4", "int8"] | None = None
    """Hold the blocks of the language model, which must be frozen, in 4 or 8 bits. With `language_model_lora`
    `nf4` is QLoRA; `int8` saves memory with `gradient_checkpointing` only. What is exported is what was
    trained upon: the weights as they are after quantising."""
    phases: tuple[PhaseConfig, ...] = field(default=())
    documents_per_step: int = 16
    row_length: int = 512
    """Positions of a packed row; no document may be longer, nor longer than the language model's context. A
    row may be: positions start again in every document, and long rows leave less empty."""
    rows_per_micro_batch: int = 8
    gradient_checkpointing: bool = False
    """Keep only the inputs of each block of the language model and of the denoiser, and compute the rest
    again in the backward pass: less memory for about a third more time."""
    packing: bool = True
    """Without it every document has a row of its own (for comparison)."""
    next_token_weight: float = 1.0
    denoising_weight: float = 10.0
    noises_per_image: int = 1
    condition_dropout: float = 0.0
    """Share of drawn pictures learned without their document, for classifier-free guidance."""
    learn_dream_start_in_conversations: bool = False
    mode: Literal["joint", "comprehension", "creation"] = "joint"
    vision_cache: Path | None = None
    """Folder of features of the pictures that are read, written by `dreamllm data cache`."""
    latent_cache: Path | None = None
    """The same of moments of the pictures that are drawn."""
    on_cache_miss: Literal["raise", "compute"] = "raise"
    """What to do with a picture that a cache does not know."""
    connector_lr_scale: float = 1.0
    """Learning rate of projectors and queries against the run's."""
    gate_vqa: float = 0.0
    """Exact answers to questions about pictures that the gate asks for."""
    gate_draw: float = 0.0
    """Attributes of drawn pictures the judge must read back right."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.parts is None):
            raise ConfigError("an objective needs either `model` (a stage before) or `parts` (stock parts)")
        kinds = self.parts and (self.parts.visual_projector, self.parts.connector)
        if self.whiten and kinds != ("linear", "linear"):
            raise ConfigError(
                f"whiten is true but the projectors are {kinds}; a whitened start is for the linear "
                "projectors of a new model (`parts`); choose these, or set whiten to false"
            )
        if self.quantize is not None and self.train.language_model:
            raise ConfigError(
                f"quantize is {self.quantize!r} but train.language_model is true, and quantised weights "
                "cannot learn; train by language_model_lora instead, or set quantize to null"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class JamParentConfig:
    """A new parent of JAM: a stock Llama over words and picture codes."""

    tokenizer: Path | None = None
    """Folder of a tokenizer; none trains one on the world's text, the same one in every run."""
    image_tokenizer: Path | None = None
    """Folder of the VQModel; a parent that never sees a picture needs none."""
    num_codes: int = 512
    """Codes in the vocabulary; those of the image tokenizer."""
    codes_per_picture: int = 36
    """G."""
    vocab_size: int = 640
    """Most ids of a tokenizer trained here."""
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 6
    intermediate_size: int = 512
    initializer_range: float = 0.05
    """Standard deviation of the first weights."""
    qk_norm: bool = False
    """Queries and keys are normalised (Chameleon, arXiv:2405.09818): the stock Qwen3 instead of Llama."""
    max_length: int = 512
    """Positions the model is built for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FuseConfig:
    """Two parents that a run begins by fusing, as `dreamllm fuse` does."""

    text_model: Path
    """Folder of the text parent."""
    image_model: Path
    """Folder of the image parent, which brings the image tokenizer."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """How."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JamObjectiveConfig:
    """A run of JAM: next-token loss over words and picture codes, on documents."""

    kind: Literal["jam"] = "jam"
    model: Path | None = None
    """A JAM to go on from: a parent, a fused model, or a stage before."""
    parent: JamParentConfig | None = None
    """A new parent instead."""
    fuse: FuseConfig | None = None
    """Two parents to fuse instead."""
    phases: tuple[PhaseConfig, ...] = field(default=())
    documents_per_step: int = 16
    row_length: int = 256
    """Positions of a packed row; no document may be longer."""
    rows_per_micro_batch: int = 8
    gradient_checkpointing: bool = False
    learn: Literal["marked", "all"] = "all"
    """Which tokens are labels: those the documents mark, or every one, as in pre-training with CM3."""
    cm3: Cm3Config | None = None
    """Spans move to the end of their document (CM3, arXiv:2201.07520); none is plain causal."""
    mask_prompt: float = 0.0
    """Share of pictures drawn from a text that are learned with `<mask>` in its place, for guidance."""
    code_cache: Path | None = None
    """Folder of the pictures' codes, which `dreamllm data cache` wrote."""
    on_cache_miss: Literal["raise", "compute"] = "raise"
    """A picture that the cache does not know ends the run, or is computed."""
    retrieval: RetrievalConfig | None = None
    """Retrieved documents before each document (CM3Leon, arXiv:2309.02591); none lays nothing before."""
    text_weight: float = 1.0
    """Of the mean loss of a word."""
    codes_weight: float = 1.0
    """Of the mean loss of a picture code."""
    z_weight: float = 0.0
    """Of the mean square of the softmax's log partition; Chameleon takes 1e-5."""
    text_tower_lr_scale: float = 1.0
    """Two towers: learning rate of the text tower against the run's; 0 freezes it."""
    image_tower_lr_scale: float = 1.0
    """Two towers: of the image tower; 0 freezes it."""
    gate_text: float = 0.0
    """Exact answers to questions about a caption in the context that the gate asks for."""
    gate_draw: float = 0.0
    """Attributes of drawn pictures the judge must read back right."""
    gate_num_objects: tuple[int, ...] = (1, 2, 3)
    """Object counts of the gate's scenes."""
    gate_prompt: Literal["caption", "request"] = "caption"
    """How the gate asks for pictures: by a caption alone, or as a user does."""

    def __post_init__(self) -> None:
        given = [name for name in ("model", "parent", "fuse") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{' and '.join(given) or 'nothing'} is given; expected one of `model` (a JAM to go on "
                "from), `parent` (a new one) and `fuse` (two parents); keep one of them"
            )
        scales = (self.text_tower_lr_scale, self.image_tower_lr_scale)
        if min(scales) < 0:
            raise ConfigError(f"the learning rates of the towers are scaled by {scales}; expected 0 or more")


ObjectiveConfig = (
    LanguageModelObjectiveConfig
    | ClipObjectiveConfig
    | VaeObjectiveConfig
    | ImageTokenizerObjectiveConfig
    | StableDiffusionObjectiveConfig
    | DreamLLMObjectiveConfig
    | JamObjectiveConfig
)
