"""The command line: `dreamllm VERB ...`.

A verb is one module of this folder, and its function `run` is the verb: the signature gives the options,
the docstring the help, the returned number the exit status (None is 0). Only the chosen verb is imported.
"""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from dreamllm.errors import ConfigError, DreamLLMError
from dreamllm.version import __version__

VERBS = {
    "train": "train a recipe, or a family of recipes that build on each other",
    "generate": "write an illustrated document that answers a prompt",
    "demo": "show what the shipped model can do, on one page, in under a minute",
    "eval": "measure what a model can do: answers, captions, pictures, illustrated documents",
    "compose": "make a new model of a language model, a vision encoder and an image decoder",
    "fuse": "make one JAM of a text parent and an image parent",
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
    if not arguments:
        print(_help(), file=sys.stderr)
        return EXIT_USER_ERROR
    verb, *rest = arguments
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"dreamllm {__version__}")
        return 0
    if verb not in VERBS:
        nearest = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        offer = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(VERBS)}."
        raise ConfigError(f"unknown verb {verb!r}; {offer} `dreamllm --help` describes every verb")
    import tyro  # a quarter of a second that `dreamllm --help` need not wait for

    module = importlib.import_module(f"dreamllm.cli.{MODULES.get(verb, verb.replace('-', '_'))}")
    status: int | None = tyro.cli(module.run, prog=f"dreamllm {verb}", args=rest)
    return status or 0


def _help() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:{width}}{summary}" for verb, summary in VERBS.items())
    return (
        "usage: dreamllm [--version] [--traceback] VERB ...\n\n"
        "Train and run models that read and write illustrated documents.\n\n"
        f"verbs:\n{verbs}\n\n"
        "options:\n"
        "  --version    print the version\n"
        "  --traceback  show where an error was raised\n\n"
        "`dreamllm VERB --help` lists the options of a verb."
    )


def _print_error(error: DreamLLMError) -> None:
    from rich.console import Console  # knows terminals, pipes and NO_COLOR

    console = Console(stderr=True, highlight=False, markup=False)
    console.print(f"error: {error}", style="red", soft_wrap=True)
