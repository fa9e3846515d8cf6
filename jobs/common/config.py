"""Strict options for programs: a frozen dataclass gives the command line, the keys of YAML files, and `--help`.

A value comes from the last of these sources that sets it:

    1. defaults of the dataclass
    2. presets, options that the job chooses by those that it was given
    3. files given as --config FILE.yaml, in their order on the command line
    4. other options on the command line

Options are written with dashes on the command line (`--split-seed`; `--split_seed` is accepted too), and with
underscores in YAML files and in Python. An unknown option or key is an error that lists the valid ones.

Options that several jobs share, or that the library defines, are inherited: each field is declared and described once,
in the `Args:` section of the class that declares it. `--help` has a section for each of these classes.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

Options = TypeVar("Options")

CONFIGS = Path(__file__).parents[1] / "configs"  # folder of the recipes


class ConfigError(Exception):
    """Unknown option, or option with an impossible value. The message names it and says what is valid."""


class DashedHelpFormatter(DefaultHelpFormatter):
    """Help formatter that writes option names with dashes, in usage, lists and descriptions."""

    def format_help(self) -> str:
        """Return the help text."""
        return re.sub(r"--\w+", lambda name: name[0].replace("_", "-"), super().format_help())


def parse(
    config_type: type[Options], argv: Sequence[str], presets: Callable[[Namespace], list[str]] | None = None
) -> Options:
    """Return the job's options; the module's docstring says which source wins.

    Args:
        config_type: Dataclass whose fields, inherited ones included, are the options.
        argv: Command line without the program's name.
        presets: Function that returns preset command-line options for those given, their defaults included.

    Raises:
        ConfigError: An option is unknown, misses its value, or has an impossible one; or a file cannot be read.
    """
    names = [field.name for field in fields(config_type)]  # type: ignore[arg-type]  # the type variable has no bound
    parser = ArgumentParser(
        prog=f"python jobs/{job_name(config_type)}.py",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=DashedHelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    for owner, inherited in declaring_classes(config_type):
        parser.add_class_arguments(owner, skip=inherited)
    switches = {f"--{field.name}" for field in fields(config_type) if field.type is bool}  # type: ignore[arg-type]  # as above
    arguments = move_files_first(complete_switches([underscore_name(argument) for argument in argv], switches))
    try:
        given = parser.parse_args(arguments)
        if presets:
            given = parser.parse_args([*presets(given), *arguments])
        for field in fields(config_type):  # type: ignore[arg-type]  # as above
            if given[field.name] is None and type(None) not in get_args(field.type):
                # jsonargparse admits a null for every text, and in YAML an unquoted # begins a comment.
                raise ValueError(f"--{field.name} is null; give it a value, in YAML with quotes if it begins with #")
        return config_type(**{name: given[name] for name in names})
    except (ArgumentError, ValueError) as error:
        raise ConfigError(explain(str(error), names)) from error


def declaring_classes(config_type: type[Any]) -> list[tuple[type[Any], set[str]]]:
    """Return the classes that declare options, the job's own first, each with names of its fields to leave out.

    A field that two classes declare belongs to the first of them in the method resolution order, as in Python.
    """
    found = []
    taken: set[str] = set()
    for owner in config_type.__mro__[:-1]:
        own = set(vars(owner).get("__annotations__", ())) - taken
        if own:
            found.append((owner, {field.name for field in fields(owner)} - own))
        taken |= own
    return found


def job_name(config_type: type[Any]) -> str:
    """Return the name of the job that an options class belongs to: TrainConfig -> train."""
    return config_type.__name__.removesuffix("Config").lower()


def underscore_name(argument: str) -> str:
    """Return the argument with underscores in the option's name; its value stays as it is."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def dash_name(name: str) -> str:
    """Return a field's name as an option on the command line: split_seed -> --split-seed."""
    return "--" + name.replace("_", "-")


def complete_switches(arguments: Sequence[str], switches: set[str]) -> list[str]:
    """Return the arguments with "=true" after each switch that has no value, since the parser wants one."""
    return [
        f"{argument}=true" if argument in switches and following.lower() not in ("true", "false") else argument
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=False)
    ]


def move_files_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with --config files before all others.

    The parser lets the later argument win, and a file must not override an option that is given beside it.
    """
    belongs_to_file = [
        argument.startswith("--config=") or "--config" in (before, argument)
        for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    ordered = sorted(zip(belongs_to_file, arguments, strict=True), key=lambda pair: not pair[0])
    return [argument for _, argument in ordered]


def explain(message: str, valid: Sequence[str]) -> str:
    """Return the parser's message on one line; for an unknown option or key, name the nearest and all valid ones.

    Args:
        message: Message of the parser's error.
        valid: Names of all options, with underscores.
    """
    message = " ".join(message.split())
    unknown = re.search(r"unrecognized arguments: --(\w+)|Option '(.+?)' is not accepted", message)
    if not unknown:
        message = re.sub(r'^argument --(\w+):|^Parser key "(\w+)":', r"--\1\2:", message)
        message = re.sub(
            r"(?<=arguments are required: ).+", lambda names: re.sub(r"\w+", r"--\g<0>", names[0]), message
        )
        # The library's checks name fields as Python does.
        return re.sub(
            r"(?<![-\w/])(?:--)?(\w+_\w+)", lambda name: dash_name(name[1]) if name[1] in valid else name[0], message
        )
    if unknown[1]:
        kind, name, choices = "option", dash_name(unknown[1]), [dash_name(option) for option in ("config", *valid)]
    else:
        kind, name, choices = "key", unknown[2], list(valid)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"Unknown {kind} {name}.{hint} Valid {kind}s: {', '.join(choices)}."
