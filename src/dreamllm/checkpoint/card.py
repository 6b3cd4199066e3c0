"""The model card, README.md of a model folder: what a model is made of, how it was trained, how well it does.

Parts are read off the folder. Stages and reports are told by whoever knows them: a stage is what the
`config.yaml` of a run says, a report what an evaluation wrote as `results.json`. What nobody stated the card
calls "not stated"; it guesses nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import yaml
from huggingface_hub import ModelCardData, metadata_load
from safetensors import SafetensorError, safe_open

from dreamllm.checkpoint.hub import split_hub_id
from dreamllm.checkpoint.parts import damaged, read_json
from dreamllm.checkpoint.pretrained import ModelIndex, PartSource, read_index, read_transforms
from dreamllm.document.atomic import write_bytes
from dreamllm.errors import CheckpointError

_TEMPLATE: Final = Path(__file__).with_name("model_card.md.jinja")
_CONNECTORS: Final = "connectors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a model, as its folder and its origin describe it."""

    name: str
    """Its folder."""
    class_name: str
    num_parameters: int
    """Numbers stored; tied weights count once."""
    source: PartSource | None = None
    training: str | None = None
    """`frozen`, or the stages in which it trained; None where no stages are known."""

    @property
    def license(self) -> str | None:
        """As the source states it."""
        return None if self.source is None else self.source.license


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage of the training."""

    name: str
    steps: int
    trained: tuple[str, ...]
    """Groups of parameters that learned; see `models/freezing.py`."""
    documents: tuple[str, ...]
    """What was read, a text for each phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRow:
    """One line of a table of scores."""

    label: str
    cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportTable:
    """Scores side by side, as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What an evaluation found, and under which flags."""

    flags: str
    """Options, judge and versions, as one line."""
    tables: tuple[ReportTable, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Everything a card says."""

    location: str
    """What `from_pretrained` takes: a hub id, or a path."""
    parts: tuple[Part, ...]
    num_dream_queries: int
    read_px: int
    drawn_px: int
    stages: tuple[Stage, ...] = ()
    reports: tuple[Report, ...] = ()

    @property
    def name(self) -> str:
        """The title of the card."""
        return self.location.rpartition("/")[2].partition("@")[0]

    @property
    def license(self) -> str | None:
        """The one licence that all stock parts state; None if one states none, or two differ."""
        stated = {part.license for part in self.parts if part.name != _CONNECTORS}
        return stated.pop() if len(stated) == 1 else None

    @property
    def base_models(self) -> list[str]:
        """The hub ids among the sources."""
        sources = [part.source.source for part in self.parts if part.source is not None]
        return [source for source in dict.fromkeys(sources) if split_hub_id(source)]


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with its metadata as YAML in front."""
    metadata = ModelCardData(
        library_name="dreamllm",
        pipeline_tag="any-to-any",
        tags=["any-to-any", "dreamllm", "interleaved-generation"],
        base_model=facts.base_models or None,
        license=facts.license,
    )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["origin"] = _origin
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(facts=facts, metadata=metadata.to_yaml())


def write_card(facts: CardFacts, folder: Path) -> Path:
    """Write the card of a model folder, and return its path; a card that is there is replaced."""
    path = folder / "README.md"
    write_bytes(path, model_card(facts).encode())
    return path


def facts_of(
    folder: Path, *, location: str | None = None, stages: Sequence[Stage] = (), reports: Sequence[Report] = ()
) -> CardFacts:
    """The facts of a model folder, with what is known of its training and its evaluations.

    `location` is where users will find it; by default the folder beside them, `./name`.

    Raises:
        CheckpointError: the folder is no model folder, or a file in it is damaged.
    """
    index = read_index(folder)
    transforms = read_transforms(folder)
    denoiser = "unet" if (folder / "image_decoder" / "unet").is_dir() else "transformer"
    names = (
        "language_model",
        "vision_encoder",
        _CONNECTORS,
        f"image_decoder/{denoiser}",
        "image_decoder/vae",
    )
    return CardFacts(
        location=location or f"./{folder.resolve().name}",
        parts=tuple(_part(folder, name, index, stages) for name in names),
        num_dream_queries=index.config.num_dream_queries,
        read_px=transforms["vision"]["image_px"],
        drawn_px=transforms["target"]["image_px"],
        stages=tuple(stages),
        reports=tuple(reports),
    )


def stage_of(config: Mapping[str, Any]) -> Stage:
    """The stage that a run was, from what its `config.yaml` holds.

    Raises:
        CheckpointError: the run is none of DreamLLM.
    """
    objective = config["objective"]
    if objective["kind"] != "dreamllm":
        raise CheckpointError(
            f"{config['name']} is a run of kind {objective['kind']!r}, which is no stage of DreamLLM; "
            "give the config of a run of kind 'dreamllm'"
        )
    return Stage(
        name=config["name"],
        steps=config["steps"],
        trained=tuple(group for group, trains in objective["train"].items() if trains),
        documents=tuple(_phase(phase) for phase in objective["phases"]),
    )


def report_of(results: Mapping[str, Any]) -> Report:
    """The report that an evaluation wrote as `results.json`."""
    judge = results["judge"]
    flags = {
        **results["options"],
        "judge": f"{judge['accuracy']:.1%} of {judge['n']} true renders",
        **results["versions"],
    }
    return Report(
        flags=f"With {', '.join(f'{key} {value}' for key, value in flags.items())}. "
        "Scores are in percent, with 95 % intervals in brackets.",
        tables=tuple(_table(table) for task in results["tasks"].values() for table in task["tables"]),
    )


def license_of(folder: Path) -> str | None:
    """The licence that a stock folder states, in the metadata of its README.md or in its configuration.

    Raises:
        CheckpointError: one of these files is damaged.
    """
    stated: list[Mapping[str, Any]] = []
    card = folder / "README.md"
    if card.is_file():
        try:
            stated.append(metadata_load(card) or {})
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise damaged(card, error) from error
    files = (folder / "model_index.json", folder / "config.json")
    stated += [read_json(file) for file in files if file.is_file()]
    for values in stated:
        license = values.get("license")
        if license == "other":
            license = values.get("license_name", license)
        if license:
            return ", ".join(license) if isinstance(license, list) else str(license)
    return None


def _part(folder: Path, name: str, index: ModelIndex, stages: Sequence[Stage]) -> Part:
    config = read_json(folder / name / "config.json")
    if name == _CONNECTORS:
        class_name = (
            f"{index.config.num_dream_queries} dream queries, {index.config.visual_projector} visual "
            f"projector, {index.config.condition_projector} condition projector"
        )
    else:
        class_name = config["_class_name"] if "_class_name" in config else config["architectures"][0]
    return Part(
        name=name,
        class_name=class_name,
        num_parameters=sum(map(_num_parameters, (folder / name).glob("*.safetensors"))),
        source=index.sources.get(name.partition("/")[0]),
        training=_training(name, stages),
    )


def _training(name: str, stages: Sequence[Stage]) -> str | None:
    if not stages:
        return None
    groups = {
        "language_model": {"language_model", "special_token_rows"},
        _CONNECTORS: {"visual_projector", "dream_queries", "condition_projector"},
    }.get(name, set())
    trained = [stage.name for stage in stages if groups & set(stage.trained)]
    return f"trained in {', '.join(trained)}" if trained else "frozen"


def _num_parameters(file: Path) -> int:
    """Read off the header; no tensor is loaded."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise damaged(file, error) from error


def _origin(part: Part) -> str:
    """Where a part came from: a link to the hub, or the name of a folder."""
    if part.name == _CONNECTORS:
        return "this model"
    if part.source is None:
        return "not stated"
    source, revision = part.source.source, part.source.revision
    shown = f"[{source}](https://huggingface.co/{source})" if split_hub_id(source) else source
    return shown if revision is None else f"{shown} at `{revision[:12]}`"


def _phase(phase: Mapping[str, Any]) -> str:
    sources = phase["sources"]
    whole = sum(source["weight"] for source in sources)
    described = [f"{source['weight'] / whole:.0%} {_documents(source)}" for source in sources]
    return f"until {phase['until']:.0%}: {', '.join(described)}"


def _documents(source: Mapping[str, Any]) -> str:
    """The kind of a source, with its kinds of documents or its file."""
    if "documents" in source:
        whole = sum(source["documents"].values())
        return (
            f"{source['kind']} ({', '.join(f'{k} {v / whole:.0%}' for k, v in source['documents'].items())})"
        )
    return f"{source['kind']} ({Path(source['path']).name})" if "path" in source else str(source["kind"])


def _table(table: Mapping[str, Any]) -> ReportTable:
    rows: Mapping[str, Mapping[str, Any]] = table["rows"]
    columns = tuple(dict.fromkeys(column for row in rows.values() for column in row))
    return ReportTable(
        title=table["title"],
        columns=columns,
        rows=tuple(
            ReportRow(label=label, cells=tuple(_cell(row.get(column)) for column in columns))
            for label, row in rows.items()
        ),
        note=table["note"],
    )


def _cell(score: Mapping[str, Any] | float | None) -> str:
    """A score with its interval, or the bare share that chance would reach."""
    if score is None:
        return ""
    if not isinstance(score, Mapping):
        return f"{100 * score:.1f}"
    if score["value"] is None:
        return "nothing to score"
    interval = f"[{100 * score['low']:.0f}, {100 * score['high']:.0f}]"
    return f"{100 * score['value']:.1f} {interval} n={score['n']}"
