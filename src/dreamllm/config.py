"""Recipes: YAML and dotted overrides in, frozen dataclasses out, and back.

A key that no field has is an error that names its place and the nearest field; a value of the wrong type is
one line. A union of dataclasses is told apart by their `kind: Literal[...]` field. Keys left out keep their
default.
"""

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dreamllm.errors import ConfigError

T = TypeVar("T")

_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)", re.IGNORECASE)


def load_config(cls: type[T], source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> T:
    """A config from a YAML file or a mapping, after overrides such as `optim.lr=2e-5` or `stages.0.steps=10`.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value cannot be meant.
    """
    tree = _read_yaml(source) if isinstance(source, Path) else source
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"{source} holds {_say(tree)}, expected a mapping of keys to values; start with `name: ...`"
        )
    tree = _copy(tree)
    for override in overrides:
        _override(tree, override)
    built: T = _build(cls, tree, "")
    return built


def to_dict(config: Any) -> Any:
    """A config as plain mappings, lists and scalars, ready for YAML or JSON."""
    if is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in fields(config) if field.init}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def to_yaml(config: Any) -> str:
    """A config as YAML text that `load_config` reads back to an equal config."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    return text


# ---- YAML in ---------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence; a recipe says everything once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            if key not in (None, "<<"):
                seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_StrictLoader)


def _read_yaml(path: Path) -> Any:
    try:
        return _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"the recipe {path} cannot be read: {error.strerror}; expected a YAML file there; check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ConfigError(
            f"the recipe {path} is not YAML: {where}; expected keys and values; mend that line"
        ) from error


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"the override {override!r} has no value, expected key=value, as in optim.lr=2e-5")
    try:
        value = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"the value of the override {override!r} is not YAML, expected a number, text or [a, b]; quote it"
        ) from error
    place: Any = tree
    for index, key in enumerate(keys):
        is_last = index == len(keys) - 1
        if isinstance(place, list):
            if not key.isdigit() or int(key) >= len(place):
                raise ConfigError(
                    f"the override {override!r} asks for item {key!r} of {'.'.join(keys[:index])}, which has "
                    f"{len(place)} items, expected 0 to {len(place) - 1}; count from 0"
                )
            step: Any = int(key)
        elif isinstance(place, dict):
            step = key
        else:
            raise ConfigError(
                f"the override {override!r} goes below {'.'.join(keys[:index])}, which is {_say(place)}, "
                "expected a mapping or a list there; shorten the key"
            )
        if is_last:
            place[step] = value
        else:
            if isinstance(place, dict) and place.get(step) is None:
                place[step] = {}
            place = place[step]


# ---- building --------------------------------------------------------------------------------------------


def _build(kind: Any, value: Any, place: str) -> Any:
    """The value as the annotated type, or a ConfigError that names the place."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return value
    if is_dataclass(kind):
        return _build_dataclass(kind, value, place)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            options = ", ".join(str(option) for option in arguments)
            near = _nearest(str(value), [str(option) for option in arguments])
            raise _wrong(place, value, f"one of {options}", near or "choose one of them")
        return value
    if origin in (Union, types.UnionType):
        return _build_union(arguments, value, place)
    if origin in (list, tuple, Sequence) or kind in (list, tuple):
        return _build_items(origin or kind, arguments, value, place)
    if origin in (dict, Mapping) or kind in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(place, value, "a mapping of keys to values", "indent its keys below it")
        item = arguments[1] if arguments else Any
        return {str(key): _build(item, each, _below(place, key)) for key, each in value.items()}
    return _build_scalar(kind, value, place)


def _build_dataclass(cls: Any, value: Any, place: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(place, value, f"a mapping with the keys of {cls.__name__}", "indent its keys below it")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}
    for key in value:
        if key not in known:
            near = _nearest(str(key), list(known)) or f"its keys are {', '.join(known)}"
            raise ConfigError(f"unknown key {_below(place, key)!r}, expected a key of {cls.__name__}; {near}")
    arguments = {}
    for name, field in known.items():
        if name in value:
            given = _over_default(value[name], field)
            arguments[name] = _build(hints[name], given, _below(place, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(
                f"the key {_below(place, name)!r} is missing, expected {_name(hints[name])}; add it to the "
                f"recipe or give {_below(place, name)}=..."
            )
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"in {place}: {error}" if place else str(error)) from error


def _over_default(value: Any, field: Any) -> Any:
    """A partial mapping changes only its own keys of a default that is itself a config."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    if not (is_dataclass(default) and not isinstance(default, type) and isinstance(value, Mapping)):
        return value
    base = to_dict(default)
    return value if value.get("kind", base.get("kind")) != base.get("kind") else _merge(base, value)


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            is_same_kind = value.get("kind", old.get("kind")) == old.get("kind")
            merged[key] = _merge(old, value) if is_same_kind else value
    return merged


def _build_union(options: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    options = tuple(option for option in options if option is not types.NoneType)
    configs: list[Any] = [option for option in options if is_dataclass(option)]
    if configs and isinstance(value, Mapping):
        return _build_dataclass(_told_apart(configs, value, place), value, place)
    if type(value) in options:
        return value
    if len(options) == 1:
        return _build(options[0], value, place)
    for option in options:
        try:
            return _build(option, value, place)
        except ConfigError:
            continue  # the error below names every option
    raise _wrong(place, value, " or ".join(_name(option) for option in options), "give one of these")


def _told_apart(configs: list[Any], value: Mapping[str, Any], place: str) -> Any:
    if len(configs) == 1:
        return configs[0]
    kinds = {kind: config for config in configs for kind in get_args(get_type_hints(config).get("kind"))}
    where = _below(place, "kind")
    if "kind" not in value:
        raise ConfigError(f"the key {where!r} is missing, expected one of {', '.join(kinds)}; add it")
    if value["kind"] not in kinds:
        near = _nearest(str(value["kind"]), list(kinds)) or "choose one of them"
        raise _wrong(where, value["kind"], f"one of {', '.join(kinds)}", near)
    return kinds[value["kind"]]


def _build_items(container: Any, arguments: tuple[Any, ...], value: Any, place: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(place, value, "a list", "write it as [a, b] or one `- item` a line")
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _wrong(place, value, f"a list of {len(arguments)} items", "add or remove items")
        kinds = list(arguments)
    else:
        kinds = [arguments[0] if arguments else Any] * len(value)
    items = [
        _build(kind, item, _below(place, i)) for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return items if container is list else tuple(items)


def _build_scalar(kind: Any, value: Any, place: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (int, float):
        # YAML 1.1 reads 2e-5 (no dot, no sign) as text.
        is_text = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
        number = float(value) if is_text else value
        if is_text or is_number:
            if kind is float:
                return float(number)
            if isinstance(number, int) or number.is_integer():
                return int(number)
        expected = "a whole number" if kind is int else "a number"
        raise _wrong(place, value, expected, "write it without quotes" if kind is float else "round it")
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind in (bool, str, types.NoneType) and isinstance(value, kind):
        return value
    cure = {bool: "write true or false", str: "put it in quotes"}.get(kind, "see the field's docstring")
    raise _wrong(place, value, _name(kind), cure)


# ---- words for messages ----------------------------------------------------------------------------------


def _below(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _nearest(word: str, options: list[str]) -> str:
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def _say(value: Any) -> str:
    words = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list"}
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(str, value))}"
    return f"{value!r} ({words.get(type(value), type(value).__name__)})"


def _name(kind: Any) -> str:
    words = {bool: "true or false", str: "text", int: "a whole number", float: "a number", Path: "a path"}
    if kind in words:
        return words[kind]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(option) for option in get_args(kind))
    return getattr(kind, "__name__", str(kind)) if not get_args(kind) else str(kind)


def _wrong(place: str, value: Any, expected: str, cure: str) -> ConfigError:
    return ConfigError(f"{place or 'the config'} is {_say(value)}, expected {expected}; {cure}")
