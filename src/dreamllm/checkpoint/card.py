"""The model card, README.md of a model folder: what a model is made of, how it was trained, how well it does.

Parts are read off the folder. Stages and reports are told by whoever knows them: a stage is what the
`config.yaml` of a run says, a report what an evaluation wrote as `results.json`. What nobody stated the card
calls "not stated"; it guesses nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import jinja2
import yaml
from huggingface_hub import ModelCardData, metadata_load
from safetensors import SafetensorError, safe_open

from dreamllm.checkpoint.hub import split_hub_id
from dreamllm.checkpoint.model_folder import (
    Family,
    PartSource,
    family_of,
    read_model_index,
    read_sources,
    read_transforms,
)
from dreamllm.checkpoint.parts import damaged, read_json
from dreamllm.document.atomic import write_bytes
from dreamllm.errors import CheckpointError
from dreamllm.models.dreamllm import DreamLLMConfig
from dreamllm.models.jam import JAMConfig

_TEMPLATE: Final = Path(__file__).with_name("model_card.md.jinja")
_CONNECTORS: Final = "connectors"
_IMAGE_TOKENIZER: Final = "image_tokenizer"
PARENTS: Final = ("text_model", "image_model")
"""The sources of a language model that was fused."""


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
    family: Family = "DreamLLM"
    num_dream_queries: int = 0
    num_codes: int = 0
    """Picture codes of a JAM."""
    codes_per_picture: int = 0
    read_px: int | None = None
    """None for a model that knows words alone."""
    drawn_px: int | None = None
    parents: tuple[PartSource, ...] = ()
    """Of a fused language model."""
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
        sources = [each.source for each in self.parents]
        sources += [part.source.source for part in self.parts if part.source is not None]
        return [source for source in dict.fromkeys(sources) if split_hub_id(source)]


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with its metadata as YAML in front."""
    task = "any-to-any" if facts.drawn_px else "text-generation"
    metadata = ModelCardData(
        library_name="dreamllm",
        pipeline_tag=task,
        tags=[task, facts.family.lower(), *(["interleaved-generation"] if facts.drawn_px else [])],
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
    read = _jam_facts if family_of(folder) == "JAM" else _dreamllm_facts
    facts = read(folder, stages)
    location = location or f"./{folder.resolve().name}"
    return replace(facts, location=location, stages=tuple(stages), reports=tuple(reports))


def _dreamllm_facts(folder: Path, stages: Sequence[Stage]) -> CardFacts:
    config = read_model_index(folder, DreamLLMConfig).config
    transforms, sources = read_transforms(folder), read_sources(folder)
    denoiser = "unet" if (folder / "image_decoder" / "unet").is_dir() else "transformer"
    names = ("language_model", "vision_encoder", f"image_decoder/{denoiser}", "image_decoder/vae")
    language_model, vision_encoder, *decoder = (_stock_part(folder, n, sources, stages) for n in names)
    connectors = Part(
        name=_CONNECTORS,
        class_name=f"{config.num_dream_queries} dream queries, {config.visual_projector} visual projector, "
        f"{config.condition_projector} condition projector",
        num_parameters=_size(folder / _CONNECTORS),
        source=sources.get(_CONNECTORS),
        training=_training(_CONNECTORS, stages),
    )
    return CardFacts(
        location="",
        parts=(language_model, vision_encoder, connectors, *decoder),
        num_dream_queries=config.num_dream_queries,
        read_px=transforms["vision"]["image_px"],
        drawn_px=transforms["target"]["image_px"],
    )


def _jam_facts(folder: Path, stages: Sequence[Stage]) -> CardFacts:
    config, sources = read_model_index(folder, JAMConfig).config, read_sources(folder)
    parents = tuple(sources[name] for name in PARENTS if name in sources)
    if parents:
        licenses = {parent.license for parent in parents}
        sources["language_model"] = PartSource(
            source=" and ".join(parent.source for parent in parents),
            license=licenses.pop() if len(licenses) == 1 else None,
        )
    has_pictures = (folder / _IMAGE_TOKENIZER).is_dir()
    names = ("language_model", *((_IMAGE_TOKENIZER,) if has_pictures else ()))
    picture_px = read_transforms(folder)["target"]["image_px"] if has_pictures else None
    return CardFacts(
        location="",
        family="JAM",
        parts=tuple(_stock_part(folder, name, sources, stages) for name in names),
        num_codes=config.num_codes,
        codes_per_picture=config.codes_per_picture,
        read_px=picture_px,
        drawn_px=picture_px,
        parents=parents,
    )


def stage_of(config: Mapping[str, Any]) -> Stage:
    """The stage that a run was, from what its `config.yaml` holds.

    Raises:
        CheckpointError: the run is none of DreamLLM or JAM.
    """
    objective = config["objective"]
    if objective["kind"] == "dreamllm":
        trained = tuple(group for group, trains in objective["train"].items() if trains)
    elif objective["kind"] == "jam":
        towers = [name for name in ("text_tower", "image_tower") if objective[f"{name}_lr_scale"] == 0]
        trained = ("language_model", *(f"{name} frozen" for name in towers))
    else:
        raise CheckpointError(
            f"{config['name']} is a run of kind {objective['kind']!r}, which is no stage of DreamLLM or JAM; "
            "give the config of a run of kind 'dreamllm' or 'jam'"
        )
    return Stage(
        name=config["name"],
        steps=config["steps"],
        trained=trained,
        documents=tuple(_phase(phase) for phase in objective["phases"]),
    )


def report_of(results: Mapping[str, Any]) -> Report:
    """The report that an evaluation wrote as `results.json`."""
    judge = results["judge"]
    drawn_by = {"DreamLLM": "image_temperature"}.get(results.get("kind", "DreamLLM"), "num_inference_steps")
    flags = {
        **{key: value for key, value in results["options"].items() if key != drawn_by},
        "judge": f"{judge['accuracy']:.1%} of {judge['n']} true renders",
        **results["versions"],
    }
    return Report(
        flags=f"With {', '.join(f'{key} {value}' for key, value in flags.items())}. "
        "Scores are in percent but for perplexities, with 95 % intervals in brackets.",
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


def _stock_part(folder: Path, name: str, sources: Mapping[str, PartSource], stages: Sequence[Stage]) -> Part:
    config = read_json(folder / name / "config.json")
    return Part(
        name=name,
        class_name=config["_class_name"] if "_class_name" in config else config["architectures"][0],
        num_parameters=_size(folder / name),
        source=sources.get(name.partition("/")[0]),
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


def _size(folder: Path) -> int:
    """Numbers stored in a folder."""
    return sum(map(_num_parameters, folder.glob("*.safetensors")))


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
    unit = table.get("unit", "share")
    return ReportTable(
        title=table["title"],
        columns=columns,
        rows=tuple(
            ReportRow(label=label, cells=tuple(_cell(row.get(column), unit) for column in columns))
            for label, row in rows.items()
        ),
        note=table["note"],
    )


def _cell(score: Mapping[str, Any] | float | None, unit: str) -> str:
    """A score with its interval, or the bare share that chance would reach."""
    if score is None:
        return ""
    if not isinstance(score, Mapping):
        return f"{100 * score:.1f}"
    if score["value"] is None:
        return "nothing to score"
    if unit == "number":
        return f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}] n={score['n']}"
    interval = f"[{100 * score['low']:.0f}, {100 * score['high']:.0f}]"
    return f"{100 * score['value']:.1f} {interval} n={score['n']}"
