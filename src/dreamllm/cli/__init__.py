"""The command line: `dreamllm VERB ...`.

A verb is one module of this folder, and its function `run` is the verb: the signature gives the options,
the docstring the help, the returned number the exit status (None is 0). Only the chosen verb is imported.
"""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from dreamllm.errors import ConfigError, DreamLLMError
from dreamllm.version import __version__

VERBS = {
    "train": "train a recipe, or a family of recipes that build on each other",
    "generate": "write an illustrated document that answers a prompt",
    "demo": "show what the shipped model can do, on one page, in under a minute",
    "eval": "measure what a model can do: answers, captions, pictures, illustrated documents",
    "compose": "make a new model of a language model, a vision encoder and an image decoder",
    "fuse": "make one JAM of a text parent and an image parent",
    "data": "check, look at, shard and filter documents; `dreamllm data --help` lists how",
    "plan": "what a recipe needs: parameters, memory per GPU, tokens and steps, before anything is trained",
    "import": "turn an official DreamLLM checkpoint into a model folder",
    "export": "turn a model folder into an official DreamLLM checkpoint",
    "world": "write a sample of the world the tiny models live in, as a folder to open",
    "doctor": "check this installation, and a model folder if one is named",
    "show-config": "print a recipe with its defaults filled in and its overrides applied",
}
"""Every verb and its line in `dreamllm --help`. The module of `show-config` is `dreamllm.cli.show_config`."""
MODULES = {"import": "import_model", "export": "export_model"}
"""Modules that are not named like their verb, because a keyword names no module."""
GROUPS = ("data",)
"""Verbs with verbs of their own: `run` of their module takes the arguments as they are."""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""
EXIT_READER_GONE = 141
"""128 + SIGPIPE, as a shell reports it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: what the verb says, or 2, 130 or 141 when it was cut short.

    A DreamLLMError becomes one line on stderr; `--traceback`, anywhere among the arguments, shows its origin.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    try:
        status = _dispatch([argument for argument in arguments if argument != "--traceback"])
        sys.stdout.flush()  # a reader that went away is noticed here, not while the interpreter shuts down
        return status
    except DreamLLMError as error:
        if show_traceback:
            traceback.print_exc()
        else:
            _print_error(error)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_GONE


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"dreamllm {__version__}")
        return 0
    return dispatch(arguments, VERBS, program="dreamllm", show_help=_help, module_of=_module_of)


def dispatch(
    arguments: Sequence[str],
    verbs: Mapping[str, str],
    *,
    program: str,
    show_help: Callable[[], str],
    module_of: Callable[[str], str],
) -> int:
    """Run the verb that the arguments begin with, and return its exit status.

    Raises:
        ConfigError: there is no such verb.
    """
    if not arguments:
        print(show_help(), file=sys.stderr)
        return EXIT_USER_ERROR
    verb, *rest = arguments
    if verb in ("-h", "--help"):
        print(show_help())
        return 0
    if verb not in verbs:
        nearest = difflib.get_close_matches(verb, verbs, n=1, cutoff=0.5)
        offer = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(verbs)}."
        raise ConfigError(f"unknown verb {verb!r}; {offer} `{program} --help` describes every verb")
    module = importlib.import_module(module_of(verb))
    status: int | None
    if verbs is VERBS and verb in GROUPS:
        status = module.run(rest)
    else:
        import tyro  # a quarter of a second that `dreamllm --help` need not wait for

        status = tyro.cli(module.run, prog=f"{program} {verb}", args=rest)
    return status or 0


def _module_of(verb: str) -> str:
    return f"dreamllm.cli.{MODULES.get(verb, verb.replace('-', '_'))}"


def list_verbs(verbs: Mapping[str, str]) -> str:
    """A line a verb, for a help text."""
    width = max(map(len, verbs)) + 2
    return "\n".join(f"  {verb:{width}}{summary}" for verb, summary in verbs.items())


def _help() -> str:
    return (
        "usage: dreamllm [--version] [--traceback] VERB ...\n\n"
        "Train and run models that read and write illustrated documents.\n\n"
        f"verbs:\n{list_verbs(VERBS)}\n\n"
        "options:\n"
        "  --version    print the version\n"
        "  --traceback  show where an error was raised\n\n"
        "`dreamllm VERB --help` lists the options of a verb."
    )


def _print_error(error: DreamLLMError) -> None:
    from rich.console import Console  # knows terminals, pipes and NO_COLOR

    console = Console(stderr=True, highlight=False, markup=False)
    console.print(f"error: {error}", style="red", soft_wrap=True)
