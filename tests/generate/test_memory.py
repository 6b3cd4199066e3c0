"""A model made to fit still says and draws nearly the same, and what cannot be done is refused."""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from tests.models.tiny import dreamllm
from torch import Tensor, nn

from dreamllm.cli import generate as command
from dreamllm.document.document import Document
from dreamllm.errors import ConfigError
from dreamllm.generate.memory import Offload, fit
from dreamllm.generate.options import GenerationOptions
from dreamllm.generate.pipeline import DreamLLM
from dreamllm.models.quantization import Quantization, is_quantized
from dreamllm.sequence.packing import collate
from dreamllm.world.documents import make_document

OPTIONS = GenerationOptions(max_new_tokens=120, max_images=3, num_inference_steps=4)
KINDS = pytest.mark.parametrize("kind", ["int8", "float8", "nf4"])
OFFLOADS = pytest.mark.parametrize("offload", ["model", "layer"])
TOLERANCES = {"int8": (0.02, 1e-5), "float8": (0.05, 1e-3), "nf4": (0.2, 1e-2)}
"""Of the shipped model: root mean square of the change over the spread of the logits, and the mean divergence
(nats) of the distributions over the next token."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def need_packages(kind: str) -> None:
    pytest.importorskip("bitsandbytes" if kind == "nf4" else "torchao")


def documents() -> list[Document]:
    rng = np.random.default_rng(0)
    return [make_document(kind, rng, split="test") for kind in ("story", "vqa", "album", "guide")]


def logits(handle: DreamLLM) -> Tensor:
    """Of every supervised position of some documents."""
    sequences = [each for document in documents() for each in handle.encoder.encode(document)]
    batch = collate([[sequence] for sequence in sequences], handle.encoder.tokenizer.pad_id)
    with torch.no_grad():
        return handle.model.logits(handle.model.hidden_states(batch).flatten(0, 1)[batch.label_positions])


@KINDS
def test_the_shipped_model_says_nearly_the_same_with_fewer_bits(kind: str) -> None:
    need_packages(kind)
    handle = DreamLLM.from_pretrained("tiny", device="cpu")
    before = logits(handle)

    fit(handle.model, "cpu", quantize=kind)

    after = logits(handle)
    spread, divergence = TOLERANCES[kind]
    assert 0 < (after - before).square().mean().sqrt() < spread * before.std()
    change = nn.functional.kl_div(
        after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert 0 < change < divergence
    for part in (handle.model.language_model.get_decoder(), handle.model.image_decoder.denoiser):
        assert all(is_quantized(layer) for layer in part.modules() if isinstance(layer, nn.Linear))
    for part in (handle.model.vision_encoder, handle.model.image_decoder.vae, handle.model.visual_projector):
        assert not any(is_quantized(layer) for layer in part.modules())


@KINDS
def test_documents_written_with_fewer_bits_are_well_formed(kind: str) -> None:
    need_packages(kind)
    handle = DreamLLM.from_pretrained("tiny", device="cpu")
    prompts = [replace(each, parts=each.parts[:1]) for each in (documents()[0], documents()[2])]
    expected = handle.generator.generate(prompts, OPTIONS)
    fit(handle.model, "cpu", quantize=kind)

    written = DreamLLM(handle.model, handle.encoder).generator.generate(prompts, OPTIONS)

    for document, original in zip(written, expected, strict=True):
        assert len(document.images) == len(original.images) > 0
        assert {image.load().size for image in document.images} == {(64, 64)}
        assert handle.encoder.encode(document)  # every picture has its slots
        assert document.text.strip()


@OFFLOADS
def test_offload_without_a_gpu_is_refused_in_one_line(offload: str) -> None:
    with pytest.raises(ConfigError, match=f"offload='{offload}' lets parts wait on the CPU") as caught:
        fit(dreamllm(), "cpu", offload=offload)

    assert "\n" not in str(caught.value)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ConfigError, match="offload is 'disk'; choose one of model, layer"):
        fit(dreamllm(), "cpu", offload="disk")
    with pytest.raises(ConfigError, match="quantize is 'int2'; choose one of int8, float8, nf4"):
        fit(dreamllm(), "cpu", quantize="int2")


def test_the_command_line_offers_what_there_is() -> None:
    hints = get_type_hints(command.run)

    assert [get_args(get_args(hints[name])[0]) for name in ("quantize", "offload")] == [
        get_args(Quantization),
        get_args(Offload),
    ]


class Residents:
    """Watches moves to a GPU that is not there: tensors stay on the CPU, and what would be where is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modules: set[nn.Module] = set()
        self.most_modules, self.most_weights = 0, 0
        self.have_come: set[int] = set()
        self.have_settled: set[int] = set()
        move = Tensor.to

        def move_module(module: nn.Module, device: torch.device | str) -> nn.Module:
            if torch.device(device) == GPU:
                self.modules.add(module)
                self.have_come |= {id(each) for each in module.parameters()}
            else:
                self.modules.discard(module)
            weights = sum(each.numel() for module in self.modules for each in module.parameters())
            self.most_weights = max(self.most_weights, weights)
            self.most_modules = max(self.most_modules, len(self.modules))
            return module

        def move_tensor(tensor: Tensor, *args: object, **options: object) -> Tensor:
            if args != (GPU,):
                return move(tensor, *args, **options)
            self.have_settled.add(id(tensor))
            return tensor

        monkeypatch.setattr(nn.Module, "to", move_module)
        monkeypatch.setattr(Tensor, "to", move_tensor)


GPU = torch.device("cuda", 0)


@OFFLOADS
def test_one_part_at_a_time_is_on_the_device_and_every_part_comes(
    offload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = DreamLLM.from_pretrained("tiny", device="cpu")
    prompts = [replace(documents()[0], parts=documents()[0].parts[:1])]
    expected = handle.generator.generate(prompts, OPTIONS)
    model = handle.model
    decoder, denoiser = model.language_model.get_decoder(), model.image_decoder.denoiser
    whole = {"model": decoder.layers, "layer": denoiser.mid_block}[offload]
    residents = Residents(monkeypatch)

    fit(model, GPU, offload=offload)
    written = DreamLLM(model, handle.encoder).generator.generate(prompts, OPTIONS)

    assert residents.most_modules == 1
    assert sum(each.numel() for each in whole.parameters()) <= residents.most_weights
    assert (
        residents.most_weights
        < sum(each.numel() for each in model.parameters()) * {"model": 0.7, "layer": 0.3}[offload]
    )
    everything = {id(each) for each in model.parameters()}
    encoder = {
        id(each) for each in model.image_decoder.vae.encoder.parameters()
    }  # no picture is encoded here
    assert residents.have_come | residents.have_settled | encoder >= everything
    assert not residents.have_come & residents.have_settled
    tables = (model.language_model.get_input_embeddings(), model.language_model.get_output_embeddings())
    assert {id(table.weight) for table in tables} <= residents.have_settled
    assert [image.load().tobytes() for image in written[0].images] == [
        image.load().tobytes() for image in expected[0].images
    ]
    assert written[0].text == expected[0].text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
@OFFLOADS
def test_on_a_gpu_an_offloaded_model_takes_less_of_it_and_writes_the_same(
    offload: str, kind: str | None
) -> None:
    if kind is not None:
        need_packages(kind)
    prompts = [replace(documents()[0], parts=documents()[0].parts[:1])]
    written, peaks = [], []
    for chosen in (None, offload):
        handle = DreamLLM.from_pretrained("tiny", device="cpu")
        torch.cuda.empty_cache()
        fit(handle.model, "cuda", quantize=kind, offload=chosen)
        peaks.append(torch.cuda.memory_allocated())
        written.append(DreamLLM(handle.model, handle.encoder).generator.generate(prompts, OPTIONS)[0])
        del handle

    assert peaks[1] < 0.5 * peaks[0]
    assert written[0].text == written[1].text
