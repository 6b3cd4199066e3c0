"""What an imported model computes equals the paper, restated from the official files and stock classes alone.

Arithmetic of arXiv:2309.11499, sections 3.1 and 3.2, one row and one picture at a time, without any code of
this package; see the legend of letters in `sequence/batch.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image as PILImage
from tests.checkpoint.official.miniature import (
    NUM_PATCHES,
    NUM_QUERIES,
    PICTURE_PX,
    Miniature,
    write_miniature,
)
from tests.models.tiny import clip, decoder
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from dreamllm.checkpoint.encoder import load_encoder
from dreamllm.checkpoint.official.importer import read_official
from dreamllm.checkpoint.pretrained import load_model, save_model
from dreamllm.document.document import Document, Image, Text
from dreamllm.generate.guidance import Unconditional
from dreamllm.losses.total import DREAMLLM_WEIGHTS, total
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.packing import collate

BOS, EOS = 1, 2
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (PICTURE_PX, PICTURE_PX, 3), dtype=np.uint8)


@dataclass
class Row:
    """One document, spelled out by hand."""

    ids: list[int]
    is_label: list[bool]
    read: list[np.ndarray] = field(default_factory=list)
    drawn: list[np.ndarray] = field(default_factory=list)


class Paper:
    """DreamLLM from the tensors of the files."""

    def __init__(self, made: Miniature) -> None:
        self.words = made.sentencepiece()
        self.token = made.json("added_tokens.json")
        described = made.json("config.json")
        known = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        self.language_model = LlamaForCausalLM(
            LlamaConfig(**{name: described[name] for name in known}, rms_norm_eps=described["rms_norm_eps"])
        )
        language = made.tensors("pytorch_model.bin")
        fill(self.language_model, {name: each for name, each in language.items() if "inv_freq" not in name})
        vision = made.tensors("clip_vision_embedding.bin")
        self.vision = fill(clip(), without("clip_vision_model.vision_model.", vision))
        self.visual_weight = vision["projector.projector.weight"].requires_grad_()
        self.visual_bias = vision["projector.projector.bias"].requires_grad_()
        self.queries = made.tensors("dream_embedding.bin")["dream_queries"].requires_grad_()
        head = made.tensors("stable_diffusion_head.bin")
        self.unet, self.vae = (
            fill(decoder().unet, without("unet.", head)),
            fill(decoder().vae, without("vae.", head)),
        )
        self.condition_weight = head["projector.projector.weight"].requires_grad_()

    @property
    def learned(self) -> dict[str, Tensor]:
        """By the names of our model."""
        language = self.language_model.named_parameters(prefix="language_model")
        return {
            **dict(language),
            "visual_projector.weight": self.visual_weight,
            "visual_projector.bias": self.visual_bias,
            "dream_queries.queries": self.queries,
            "condition_projector.weight": self.condition_weight,
        }

    def text(self, words: str) -> list[int]:
        return self.words.encode(words)

    def image_slot(self) -> list[int]:
        return [self.token["<im_start>"], *[self.token["<im_patch>"]] * NUM_PATCHES, self.token["<im_end>"]]

    def dream_slot(self) -> list[int]:
        return [
            self.token["<dream_start>"],
            *[self.token["<im_patch>"]] * NUM_QUERIES,
            self.token["<dream_end>"],
        ]

    def rows(self) -> list[Row]:
        """An interleaved document, a comprehension pair and a creation pair."""
        story, labels = [BOS], [False]
        for words in ("a red cat", "sits on"):
            slots = [*self.dream_slot(), *self.image_slot()]
            story += [*self.text(words), *slots]
            labels += [True] * len(self.text(words)) + [True] + [False] * (len(slots) - 1)
        end = [*self.text("the blue mat"), EOS]
        answer = [*self.text("draw a small green star"), EOS]
        caption = [BOS, *self.image_slot(), *answer]
        creation = [BOS, *self.text("here it is"), *self.dream_slot(), EOS]
        return [
            Row(
                [*story, *end], labels + [True] * len(end), [picture(0), picture(1)], [picture(0), picture(1)]
            ),
            Row(caption, [False] * (len(caption) - len(answer)) + [True] * len(answer), [picture(2)]),
            Row(creation, [False] * len(creation), [], [picture(3)]),
        ]

    def output(self, ids: list[int], read: list[np.ndarray], *, layer: int = -2) -> tuple[Tensor, Tensor]:
        """Logits (T, V) and states (T, D) of one row."""
        embeds = list(self.language_model.model.embed_tokens(torch.tensor(ids)))
        pictures = iter(read)
        for position, token in enumerate(ids):
            if token == self.token["<im_start>"]:
                mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
                std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
                pixels = (torch.from_numpy(next(pictures)) / 255 - mean) / std
                seen = self.vision(pixels.permute(2, 0, 1)[None], output_hidden_states=True)
                patches = seen.hidden_states[layer][0, 1:].detach()
                for offset, patch in enumerate(patches, start=1):
                    embeds[position + offset] = self.visual_weight @ patch + self.visual_bias
            if token == self.token["<dream_start>"]:
                for offset, query in enumerate(self.queries[0], start=1):
                    embeds[position + offset] = query
        output = self.language_model(
            inputs_embeds=torch.stack(embeds)[None], output_hidden_states=True, use_cache=False
        )
        return output.logits[0], output.hidden_states[-1][0]

    def conditions(self, ids: list[int], states: Tensor) -> list[Tensor]:
        """(Q, C) of every picture drawn in a row: h[p+1 : p+1+Q], projected."""
        starts = [position for position, token in enumerate(ids) if token == self.token["<dream_start>"]]
        return [states[p + 1 : p + 1 + NUM_QUERIES] @ self.condition_weight.T for p in starts]

    def losses(self, rows: list[Row], seed: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy over all labels, and squared error of the noise over all pictures, both means."""
        token_losses, conditions, drawn = [], [], []
        for row in rows:
            logits, states = self.output(row.ids, row.read)
            for position in range(1, len(row.ids)):
                if row.is_label[position]:
                    token_losses.append(-F.log_softmax(logits[position - 1], dim=-1)[row.ids[position]])
            conditions += self.conditions(row.ids, states)
            drawn += [torch.from_numpy(each).permute(2, 0, 1) / 127.5 - 1 for each in row.drawn]
        draw = torch.Generator().manual_seed(seed)
        posterior = self.vae.encode(torch.stack(drawn)).latent_dist
        sampled = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draw)
        latents = 0.18215 * sampled.detach()
        noise = torch.randn(latents.shape, generator=draw)
        steps = torch.randint(0, 1000, (len(drawn),), generator=draw)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        signal = torch.cumprod(1 - betas, dim=0)[steps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        errors = [
            (self.unet(noisy[i : i + 1], steps[i], conditions[i][None]).sample[0] - noise[i]).square().mean()
            for i in range(len(drawn))
        ]
        return torch.stack(token_losses).mean(), torch.stack(errors).mean()

    @torch.no_grad()
    def draw(self, words: str, *, seed: int, num_steps: int, scale: float) -> list[Tensor]:
        """Latents after each step of ancestral sampling, guided away from BOS alone."""
        both = []
        for prompt in ([], self.text(words)):
            ids = [BOS, *prompt, *self.dream_slot()]
            both += self.conditions(ids, self.output(ids, [])[1])
        scheduler = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            timestep_spacing="leading",
            steps_offset=1,
        )
        scheduler.set_timesteps(num_steps)
        draw = torch.Generator().manual_seed(seed)
        latents, seen = torch.randn(1, 4, 8, 8, generator=draw), []
        for step in scheduler.timesteps:
            blank, told = self.unet(torch.cat([latents] * 2), step, torch.stack(both)).sample
            guided = blank + scale * (told - blank)
            latents = scheduler.step(guided[None], step, latents, generator=draw).prev_sample
            seen.append(latents)
        return seen


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict(tensors)
    return module.eval()


def without(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return write_miniature(tmp_path_factory.mktemp("semantics") / "official")


@pytest.fixture(scope="module")
def paper(made: Miniature) -> Paper:
    return Paper(made)


@pytest.fixture(scope="module")
def imported(made: Miniature) -> tuple[DreamLLM, SequenceEncoder]:
    """Our folder, written and read again."""
    official = read_official(
        made.checkpoint, vision_encoder=made.vision_encoder, image_decoder=made.image_decoder
    )
    path: Path = made.checkpoint.parent / "ours"
    save_model(official.model, path, tokenizer=official.tokenizer, transforms=official.transforms)
    model = load_model(path)
    return model, load_encoder(path, model)


def batch_of(encoder: SequenceEncoder) -> Batch:
    """The three rows of `Paper.rows`, as documents."""

    def image(seed: int, *, learn: bool) -> Image:
        return Image(source=PILImage.fromarray(picture(seed)), learn=learn)

    documents = [
        Document(
            parts=(
                Text(text="a red cat"),
                image(0, learn=True),
                Text(text="sits on"),
                image(1, learn=True),
                Text(text="the blue mat"),
            )
        ),
        Document(parts=(image(2, learn=False), Text(text="draw a small green star"))),
        Document(parts=(Text(text="here it is", learn=False), image(3, learn=True))),
    ]
    return collate([encoder.encode(document) for document in documents], encoder.tokenizer.pad_id)


def test_documents_become_the_sequences_of_the_paper(
    paper: Paper, imported: tuple[DreamLLM, SequenceEncoder]
) -> None:
    batch = batch_of(imported[1])

    rows = paper.rows()

    for ids, row in zip(batch.input_ids, rows, strict=True):
        assert ids[: len(row.ids)].tolist() == row.ids
    length = batch.input_ids.shape[1]
    assert batch.label_positions.tolist() == [
        number * length + position - 1
        for number, row in enumerate(rows)
        for position, is_label in enumerate(row.is_label)
        if is_label
    ]


def test_logits_and_conditions_are_those_of_the_paper(
    paper: Paper, imported: tuple[DreamLLM, SequenceEncoder]
) -> None:
    model, batch = imported[0], batch_of(imported[1])
    expected = []

    hidden = model.hidden_states(batch)
    conditions = model.conditions(hidden, batch.dream_slots).tokens

    for states, row in zip(hidden, paper.rows(), strict=True):
        logits, paper_states = paper.output(row.ids, row.read)
        assert_close(model.logits(states[: len(row.ids)]), logits, **CLOSE)
        expected += paper.conditions(row.ids, paper_states)
    assert_close(conditions, torch.stack(expected), **CLOSE)
    story = paper.rows()[0]
    other_layer, _ = paper.output(story.ids, story.read, layer=-1)
    assert (model.logits(hidden[0, : len(story.ids)]) - other_layer).abs().max() > 1e-2


def test_losses_and_gradients_are_those_of_the_paper(
    paper: Paper, imported: tuple[DreamLLM, SequenceEncoder]
) -> None:
    model, batch = imported[0], batch_of(imported[1])
    next_token, denoising = paper.losses(paper.rows(), seed=3)
    expected = torch.autograd.grad(next_token + 10 * denoising, list(paper.learned.values()))

    terms = model(batch, torch.Generator().manual_seed(3))
    counts = {name: term.count for name, term in terms.items()}
    loss = total(terms, counts=counts, weights=DREAMLLM_WEIGHTS)
    learned = {name: each for name, each in model.named_parameters() if each.requires_grad}
    gradients = dict(zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True))

    assert counts["denoising"] == 3
    assert_close(terms["next_token"].sum / counts["next_token"], next_token, **CLOSE)
    assert_close(terms["denoising"].sum / counts["denoising"], denoising, **CLOSE)
    assert gradients.keys() == paper.learned.keys()
    for name, gradient in zip(paper.learned, expected, strict=True):
        largest = gradient.abs().max()
        assert largest > 0, name
        assert (gradients[name] - gradient).abs().max() < 1e-4 * largest, name


def test_every_step_of_drawing_is_that_of_the_paper(
    paper: Paper, imported: tuple[DreamLLM, SequenceEncoder]
) -> None:
    model, encoder = imported
    prompts, expected, latents = ["a red cat", "a small green star"], [], []
    for number, prompt in enumerate(prompts):
        expected.append(torch.cat(paper.draw(prompt, seed=number, num_steps=5, scale=3.5)))
    picture_of = Image(source=PILImage.fromarray(picture(0)))
    batch = collate(
        [encoder.encode(Document(parts=(Text(text=text, learn=False), picture_of))) for text in prompts],
        encoder.tokenizer.pad_id,
    )

    with torch.no_grad():
        model.image_decoder.sample(
            model.conditions(model.hidden_states(batch), batch.dream_slots),
            Unconditional(model, encoder)(),
            noise=[torch.Generator().manual_seed(number) for number in range(len(prompts))],
            scheduler="ddpm",
            num_inference_steps=5,
            guidance_scale=3.5,
            on_step=lambda step, num_steps, now: latents.append(now),
        )

    assert_close(torch.stack(latents, dim=1), torch.stack(expected), **CLOSE)
    assert (expected[0][-1] - expected[1][-1]).abs().max() > 1e-2
