"""`dreamllm doctor`: is this installation sound, and is this model folder whole?

Every check yields findings: `ok`, `note` (works, but worth knowing) or `broken` (with the cure).
"""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from dreamllm.errors import DreamLLMError

if TYPE_CHECKING:
    from dreamllm.models.dreamllm import DreamLLM
    from dreamllm.models.jam import JAM
    from dreamllm.sequence.encode import SequenceEncoder
    from dreamllm.sequence.encode_codes import CodeSequenceEncoder

IMPORT_TIMEOUT_S = 120
MODEL_PARTS = (
    "language_model",
    "tokenizer",
    "vision_encoder",
    "image_processor",
    "connectors",
    "image_decoder/vae",
    "image_decoder/scheduler",
)
"""The folders of a DreamLLM, as `checkpoint/pretrained.py` writes them; named again to do without torch."""
DENOISERS = ("image_decoder/unet", "image_decoder/transformer")
"""Of which a DreamLLM has one."""
JAM_PARTS = ("language_model", "tokenizer")
"""The folders of a JAM, as `checkpoint/jam.py` writes them."""
JAM_PICTURE_PARTS = ("image_tokenizer", "image_processor")
"""Of which a JAM has both, or none if it knows words alone."""
SHIPPED = Path(__file__).parents[1] / "weights"
"""Models that ship with the package, a folder each."""
_STYLES = {"ok": "green", "note": "yellow", "broken": "red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check saw."""

    state: Literal["ok", "note", "broken"]
    subject: str
    seen: str
    cure: str = ""


def run(
    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = None, /
) -> int:
    """Check this installation, and a model if one is named. Exits with 1 if something is broken.

    Args:
        model: Folder of a saved model, or the name of one that ships with the package.
    """
    console = Console(highlight=False)
    findings = []
    for finding in _examine(None if model is None else _folder_of(model)):
        findings.append(finding)
        line = Text(f"{finding.state:8}", style=_STYLES[finding.state])
        line.append(f"{finding.subject:16}{finding.seen}", style="default")
        console.print(line, soft_wrap=True)
        if finding.cure:
            console.print(Text(f"{'':24}-> {finding.cure}"), soft_wrap=True)
    num_broken = sum(finding.state == "broken" for finding in findings)
    console.print("everything works" if num_broken == 0 else f"{num_broken} broken", style="bold")
    return int(num_broken > 0)


def _folder_of(model: str) -> Path:
    """As for `dreamllm generate`, a shipped model's name before a folder's; `./name` is the folder."""
    is_shipped = "/" not in model and (SHIPPED / model / "model_index.json").is_file()
    return SHIPPED / model if is_shipped else Path(model)


def _examine(model: Path | None) -> Iterator[Finding]:
    yield Finding(state="ok", subject="python", seen=f"{platform.python_version()} on {platform.platform()}")
    yield from check_torch()
    yield from check_torchvision()
    yield from check_requirements()
    yield from check_shipped_weights(SHIPPED)
    if model is not None:
        whole = list(check_model_folder(model))
        yield from whole
        if all(finding.state == "ok" for finding in whole):
            yield from check_model(model)


def check_torch() -> Iterator[Finding]:
    """The build of torch, its threads, and the accelerators it can use."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        cure = "install it again: pip install --force-reinstall torch"
        yield Finding(state="broken", subject="torch", seen=f"does not load: {_first_line(error)}", cure=cure)
        return
    yield Finding(
        state="ok", subject="torch", seen=f"{torch.__version__}, {torch.get_num_threads()} CPU threads"
    )
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding(state="ok", subject="cuda", seen=f"{torch.version.cuda}: {', '.join(names)}")
    elif torch.version.cuda is not None:
        seen = f"torch is built for CUDA {torch.version.cuda}, but no GPU can be used"
        cure = "on a machine with a GPU, compare the driver's CUDA version (nvidia-smi) with the build"
        yield Finding(state="note", subject="cuda", seen=seen, cure=cure)
    else:
        yield Finding(state="ok", subject="cuda", seen="not in this build of torch")
    if torch.backends.mps.is_available():
        yield Finding(state="ok", subject="mps", seen="available")


def check_torchvision() -> Iterator[Finding]:
    """Whether a torchvision is installed that cannot load: transformers then loses its CLIP models.

    It happens when a torchvision built for CUDA meets a torch for CPUs. Importing it can leave torch half
    changed, so another process tries.
    """
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(state="ok", subject="torchvision", seen="not installed, and not needed")
        return
    command = [sys.executable, "-c", "import torchvision"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        seen = f"{version} does not load beside this torch: {last_line}"
        cure = "dreamllm does not need it: pip uninstall torchvision"
        yield Finding(state="broken", subject="torchvision", seen=seen, cure=cure)
    except subprocess.TimeoutExpired:
        seen = f"{version} did not load within {IMPORT_TIMEOUT_S} s"
        yield Finding(state="note", subject="torchvision", seen=seen)
    else:
        yield Finding(state="ok", subject="torchvision", seen=version)


def check_requirements() -> Iterator[Finding]:
    """The installed versions against the ranges this package asks for, then its optional extras."""
    try:
        metadata = importlib.metadata.metadata("dreamllm")
    except importlib.metadata.PackageNotFoundError:
        seen = "runs from its sources and is not installed: required versions are not known"
        yield Finding(state="note", subject="dreamllm", seen=seen, cure="pip install -e .")
        return
    yield Finding(state="ok", subject="dreamllm", seen=metadata["Version"])
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    for requirement in requirements:
        if _applies(requirement, ""):
            yield check_requirement(requirement)
    for extra in metadata.get_all("Provides-Extra") or []:
        if extra == "dev":  # tools of contributors, not a feature anybody could miss
            continue
        wanted = [each for each in requirements if _applies(each, extra) and not _applies(each, "")]
        unmet = [each.name for each in wanted if check_requirement(each).state != "ok"]
        if unmet:
            seen = f"needs {', '.join(unmet)}"
            cure = f"if you want it: pip install 'dreamllm[{extra}]'"
            yield Finding(state="note", subject=f"extra [{extra}]", seen=seen, cure=cure)
        else:
            yield Finding(state="ok", subject=f"extra [{extra}]", seen="installed")


def check_requirement(requirement: Requirement) -> Finding:
    """Whether a distribution is installed in a version that fits."""
    name, wanted = requirement.name, str(requirement.specifier)
    cure = f"pip install '{name}{wanted}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(state="broken", subject=name, seen="not installed", cure=cure)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(state="broken", subject=name, seen=f"{version}, but needs {wanted}", cure=cure)
    return Finding(state="ok", subject=name, seen=version)


def check_shipped_weights(folder: Path) -> Iterator[Finding]:
    """Whether the models that come with the package are there and whole."""
    models = sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    if not models:
        seen = f"no model in {folder}; the demo cannot run"
        cure = "install the package again, from a wheel or from a whole checkout"
        yield Finding(state="broken", subject="weights", seen=seen, cure=cure)
    for model in models:
        yield from check_model_folder(model)


def check_model_folder(folder: Path) -> Iterator[Finding]:
    """Whether a saved model has every part, and its files are whole: JSON parses, no tensor is cut off.

    The tensors are not loaded: a safetensors header says how long its file must be.
    """
    if not folder.is_dir():
        cure = "name the folder that holds the model's parts"
        yield Finding(state="broken", subject="model", seen=f"{folder} is not a folder", cure=cure)
        return
    json_files = sorted(folder.rglob("*.json"))
    tensor_files = sorted(folder.rglob("*.safetensors"))
    faults = _missing_parts(folder)
    faults += [fault for file in json_files if (fault := _json_fault(file))]
    faults += [fault for file in tensor_files if (fault := _safetensors_fault(file))]
    for config in folder.rglob("config.json"):
        if not any(config.parent.rglob("*.safetensors")):
            faults.append(f"{config.parent} has a config.json but no weights")
    for fault in dict.fromkeys(faults):
        yield Finding(state="broken", subject="model", seen=fault, cure="copy or save the model again")
    if not faults:
        size_mb = sum(file.stat().st_size for file in tensor_files) / 1e6
        seen = f"{folder} is whole: {len(tensor_files)} weight files, {size_mb:.1f} MB"
        yield Finding(state="ok", subject="model", seen=seen)


def _missing_parts(folder: Path) -> list[str]:
    """What a model of the folder's family has, and this one has not."""
    index = folder / "model_index.json"
    if not index.is_file():
        return [f"{folder} has no model_index.json, so it is no model folder"]
    content = {} if _json_fault(index) else json.loads(index.read_text(encoding="utf-8"))
    if isinstance(content, dict) and content.get("model_class") == "JAM":
        has_pictures = any((folder / part).is_dir() for part in JAM_PICTURE_PARTS)
        needed: tuple[str, ...] = JAM_PARTS + (JAM_PICTURE_PARTS if has_pictures else ())
        return [f"{folder / part} is missing" for part in needed if not (folder / part).is_dir()]
    faults = [f"{folder / part} is missing" for part in MODEL_PARTS if not (folder / part).is_dir()]
    if not any((folder / part).is_dir() for part in DENOISERS):
        faults.append(f"{folder / DENOISERS[0]} is missing, and so is transformer")
    return faults


def check_model(folder: Path) -> Iterator[Finding]:
    """Whether a whole model folder is a model: it loads, its parts fit, and it computes what it did."""
    # late, so that a broken torch is a finding and no crash
    from dreamllm.checkpoint.self_test import check_self_test

    try:
        model, encoder = _load(folder)
        unfit = list(_misfits(model, encoder))
        yield from unfit
        faults = None if unfit else check_self_test(folder, model, encoder)
    except DreamLLMError as error:
        yield Finding(state="broken", subject="model", seen=str(error))
        return
    if unfit:
        return
    if faults is None:
        seen = "this folder has none, so that it computes what it did cannot be checked"
        yield Finding(state="note", subject="self-test", seen=seen, cure="save the model again")
    elif not faults:
        yield Finding(state="ok", subject="self-test", seen="every number is what it was")
    for fault in faults or ():
        cure = "compare the versions in model_index.json with the installed ones, or copy the model again"
        yield Finding(state="broken", subject="self-test", seen=fault, cure=cure)


def _load(folder: Path) -> "tuple[DreamLLM, SequenceEncoder] | tuple[JAM, CodeSequenceEncoder]":
    """The model of a folder and its encoder; raises DreamLLMError where it cannot be."""
    from dreamllm.checkpoint.encoder import load_encoder
    from dreamllm.checkpoint.jam import load_jam, load_jam_encoder
    from dreamllm.checkpoint.model_folder import family_of
    from dreamllm.checkpoint.pretrained import load_model

    if family_of(folder) == "JAM":
        jam = load_jam(folder)
        return jam, load_jam_encoder(folder, jam)
    model = load_model(folder)
    return model, load_encoder(folder, model)


def _misfits(model: "DreamLLM | JAM", encoder: "SequenceEncoder | CodeSequenceEncoder") -> Iterator[Finding]:
    """Where tokenizer and picture transforms do not fit the model; a JAM that loads has none."""
    from dreamllm.models.dreamllm import DreamLLM
    from dreamllm.sequence.encode import SequenceEncoder

    if not (isinstance(model, DreamLLM) and isinstance(encoder, SequenceEncoder)):
        return
    rows = model.language_model.get_input_embeddings().num_embeddings
    if encoder.tokenizer.vocab_size > rows:
        seen = f"the tokenizer has {encoder.tokenizer.vocab_size} ids, the language model {rows} rows"
        yield Finding(state="broken", subject="tokenizer", seen=seen, cure="restore the tokenizer folder")
    if encoder.vision_transform.image_px != model.vision_encoder.image_px:
        seen = f"made for {encoder.vision_transform.image_px} px, read at {model.vision_encoder.image_px} px"
        yield Finding(
            state="broken", subject="pictures", seen=seen, cure="restore image_processor/vision.json"
        )


def _json_fault(file: Path) -> str:
    """What is wrong with a JSON file, or an index of shards; nothing if it is sound."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{file} is not JSON: {_first_line(error)}"
    if not file.name.endswith(".safetensors.index.json"):
        return ""
    shards = sorted(set(content.get("weight_map", {}).values()))
    missing = [shard for shard in shards if not (file.parent / shard).is_file()]
    return f"{file} names {', '.join(missing)}, which is not there" if missing else ""


def _safetensors_fault(file: Path) -> str:
    """What is wrong with a weight file; nothing if it is as long as its header says.

    The format: eight bytes with the length of the header, little-endian; the header, JSON with the place of
    each tensor, counted from the end of the header; the tensors.
    """
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 + header_bytes:
            return f"{file} is cut short: {size_bytes} bytes do not hold its header"
        try:
            header = json.loads(stream.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"{file} is not a safetensors file: its header does not list tensors"
    expected_bytes = 8 + header_bytes + max(ends, default=0)
    if size_bytes == expected_bytes:
        return ""
    return f"{file} has {size_bytes} bytes, but its header speaks of {expected_bytes}"


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
