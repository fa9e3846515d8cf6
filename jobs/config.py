"""Typed configuration: a frozen dataclass -> command line and YAML, strictly.

Later wins: the dataclass's defaults, presets, --config FILE.yaml, the command line. An unknown option or key is an
error that names the valid ones. Knows no particular job.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

T = TypeVar("T")

CONFIGS = Path(__file__).parent / "configs"


class ConfigError(Exception):
    """An option that is unknown or has an impossible value. The message names it and says what is valid."""


def parse(config_type: type[T], argv: Sequence[str], presets: Callable[[Namespace], list[Path]] | None = None) -> T:
    """The job's configuration.

    Args:
        config_type: a dataclass; its fields are the options. ``--split-seed`` and ``--split_seed`` are the same.
        argv: the command line without the program's name.
        presets: from the options as given, YAML files to read before them.

    Raises:
        ConfigError: see there.
    """
    parser = ArgumentParser(prog=f"python jobs/{job_name(config_type)}.py", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below")
    parser.add_class_arguments(config_type)
    switches = {f"--{field.name}" for field in fields(config_type) if field.type is bool}  # type: ignore[arg-type]
    arguments = config_files_first(switched_on([dashes_to_underscores(argument) for argument in argv], switches))
    try:
        given = parser.parse_args(arguments)
        if presets:
            preset_arguments = [part for path in presets(given) for part in ("--config", str(path))]
            given = parser.parse_args(preset_arguments + arguments)
        return config_type(**{field.name: given[field.name] for field in fields(config_type)})  # type: ignore[arg-type]
    except (ArgumentError, ValueError) as error:
        raise ConfigError(explain(str(error), ["config", *(field.name for field in fields(config_type))])) from error  # type: ignore[arg-type]


def job_name(config_type: type[Any]) -> str:
    """TrainConfig -> train."""
    return config_type.__name__.removesuffix("Config").lower()


def dashes_to_underscores(argument: str) -> str:
    """Option names in Python's spelling; values stay as they are."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def switched_on(arguments: Sequence[str], switches: set[str]) -> list[str]:
    """A switch without a value is on; the parser wants one."""
    return [
        f"{argument}=true" if argument in switches and following.lower() not in ("true", "false") else argument
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=False)
    ]


def config_files_first(arguments: Sequence[str]) -> list[str]:
    """The parser lets later ones win, and a file must not override an option beside it."""
    of_files = [
        argument.startswith("--config=") or "--config" in (before, argument)
        for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    return [argument for _, argument in sorted(zip(of_files, arguments, strict=True), key=lambda pair: not pair[0])]


def explain(message: str, valid: Sequence[str]) -> str:
    """The parser's message on one line; for an unknown option, the nearest and all valid ones."""
    message = " ".join(message.split())
    unknown = re.search(r"unrecognized arguments: --(\w+)|Option '(.+?)' is not accepted", message)
    if not unknown:
        return message
    name = unknown[1] or unknown[2]
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Unknown option '{name}'.{hint} Valid options: {', '.join(valid)}."
