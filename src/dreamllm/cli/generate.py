"""`dreamllm generate`: a prompt in, an illustrated document out, shown as it is written."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import tyro

from dreamllm.data.retrieval_config import RetrievalConfig
from dreamllm.data.sources import JsonlSourceConfig
from dreamllm.document.atomic import write_bytes
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.events import Event, Finished, ImageReady, ImageStarted, TextDelta, fold
from dreamllm.document.export import documents_to_html
from dreamllm.document.jsonl import write_documents
from dreamllm.errors import ConfigError
from dreamllm.generate.options import GenerationOptions

if TYPE_CHECKING:
    from dreamllm.generate.handle import Handle

DEFAULTS = GenerationOptions()
ONE, MANY = (".html", ".md", ".json"), (".html", ".jsonl")
"""What one document, and what several, can be written to."""


def run(
    prompt: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT]")] = None,
    /,
    *,
    model: str = "tiny",
    image: tuple[Path, ...] = (),
    prompts_file: Path | None = None,
    retrieve: Path | None = None,
    out: Path = Path("document.html"),
    options: Annotated[GenerationOptions, tyro.conf.arg(name="")] = DEFAULTS,
    quantize: Literal["int8", "float8", "nf4"] | None = None,
    offload: Literal["model", "layer"] | None = None,
) -> None:
    """Write an illustrated document that answers a prompt, and show it while it is written.

    Options of denoising are for a DreamLLM and options of picture codes for a JAM; the other family refuses
    them.

    Args:
        prompt: What the user says.
        model: A model folder, a model that ships with the package, or a hub id.
        image: Pictures the user shows, before the words.
        prompts_file: A text file with one prompt a line instead of PROMPT; they are answered as one batch.
        retrieve: Of a JAM: plain documents (JSONL), or the folder of a saved index of them; those most like a
            prompt are laid before it. Needs `pip install 'dreamllm[retrieval]'`.
        out: Where it goes: .html, .md or .json; several documents go to .html or .jsonl.
        options: How documents are continued.
        quantize: Hold weights in 8 or 4 bits; needs `pip install 'dreamllm[quantize]'`.
        offload: Of a DreamLLM: let whole parts, or single layers, wait in the CPU's memory for their turn on
            the GPU.
    """
    prompts = _prompts(prompt, image, prompts_file, out)
    from dreamllm.generate.pipeline import load  # late, so that `--help` does not wait for torch

    handle: Handle = load(model, quantize=quantize, offload=offload)
    if retrieve is not None:
        handle = _retrieving(handle, retrieve)
    if prompts_file is None:
        written = write_one(handle, prompts[0], options, sys.stdout).save(out)
    else:
        written = _write_many(handle.generator.generate(prompts, options), prompts, out)
    print(f"written to {written}")


def write_one(model: "Handle", prompt: Document, options: GenerationOptions, stream: TextIO) -> Document:
    """Continue a conversation and show every event on a stream as it comes."""
    events: list[Event] = []
    for _, event in model.generator.stream([prompt], options):
        events.append(event)
        stream.write(shown(event))
        stream.flush()
    stream.write("\n")
    return Document(parts=prompt.parts + fold(events, role="assistant"), id=prompt.id)


def shown(event: Event) -> str:
    """An event as a terminal shows it; control characters in the model's words are replaced."""
    match event:
        case TextDelta(text):
            return printable(text)
        case ImageStarted(index):
            return f"\n[picture {index + 1}: drawing"
        case ImageReady(image=image):
            return f", done, {image.width}x{image.height}]\n"
        case Finished("length"):
            return "\n[cut off: --max-new-tokens or the model's context was reached]"
    return ""


def printable(text: str) -> str:
    """The text without anything a terminal would obey."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _prompts(words: str | None, pictures: Sequence[Path], file: Path | None, out: Path) -> list[Document]:
    """What is asked, once it is certain that the answers can be written."""
    _check_suffix(out, ONE if file is None else MANY)
    if file is None:
        if words is None and not pictures:
            raise ConfigError("there is no prompt; expected PROMPT, --image or --prompts-file; say something")
        return [_turn(words, pictures)]
    if words is not None:
        raise ConfigError(f"there are both PROMPT {words!r} and --prompts-file {file}; expected one of them")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the prompts in {file} cannot be read: {error}; expected UTF-8 text, one prompt a line; "
            "check the path"
        ) from error
    prompts = [_turn(line.strip(), pictures, id=line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{file} holds no prompt; expected one a line; write some")
    return prompts


def _retrieving(handle: "Handle", path: Path) -> "Handle":
    """The handle, with documents retrieved from a file or an index."""
    from dreamllm.generate.pipeline import JAM

    if not isinstance(handle, JAM):
        raise ConfigError(
            f"--retrieve is {path}, but the model is a DreamLLM; expected a JAM, which alone reads retrieved "
            "documents; leave it out"
        )
    if path.is_dir():
        return handle.with_retrieval(RetrievalConfig(index=path))
    return handle.with_retrieval(RetrievalConfig(source=JsonlSourceConfig(path=path)))


def _turn(words: str | None, pictures: Iterable[Path], *, id: str = "") -> Document:
    shows = tuple(Image(source=path, role="user", learn=False) for path in pictures)
    says = () if words is None else (Text(text=words, role="user", learn=False),)
    return Document(parts=(*shows, *says), id=id)


def _check_suffix(out: Path, allowed: tuple[str, ...]) -> None:
    """Before anything is generated: a wrong name must not cost a minute."""
    if out.suffix.lower() not in allowed:
        raise ConfigError(
            f"cannot write to {out}: its suffix is {out.suffix!r}, expected one of {', '.join(allowed)}; "
            "rename it"
        )


def _write_many(documents: Sequence[Document], prompts: Sequence[Document], out: Path) -> Path:
    for prompt, document in zip(prompts, documents, strict=True):
        answer = Document(parts=document.parts[len(prompt) :])
        print(f"{prompt.id}\n  {len(answer.images)} pictures. {printable(answer.text)[:200]}")
    if out.suffix.lower() == ".html":
        write_bytes(out, documents_to_html(documents, title=out.stem).encode())
    else:
        write_documents(documents, out)
    return out
