"""config: strict options from defaults, presets, files and the command line; and the recipes that are shipped."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import Namespace

from jobs import config
from jobs.config import ConfigError
from jobs.recipe import TrainConfig, presets

RECIPES = sorted(config.CONFIGS.glob("*.yaml"))


@dataclass(frozen=True)
class BakeConfig:
    """Bake a loaf.

    Args:
        flour: grams.
        oven_heat: degrees.
        kind: of the flour.
        name: of the loaf.
        rests: hours.
        sliced: before it is sold.
    """

    flour: int = 500
    oven_heat: float = 220
    kind: Literal["rye", "wheat"] = "rye"
    name: str | None = None
    rests: tuple[float, float] = (12, 1)
    sliced: bool = False

    def __post_init__(self) -> None:
        if self.flour < 0:
            raise ValueError(f"--flour must be 0 or more, is {self.flour}")


VALID = ", ".join(["config", *(field.name for field in fields(BakeConfig))])


def parse(*argv: str) -> BakeConfig:
    return config.parse(BakeConfig, argv)


def write(path: Path, **options: Any) -> str:
    path.write_text(yaml.safe_dump(options))
    return str(path)


def test_options_have_the_types_of_the_fields() -> None:
    argv = ["--flour", "300", "--oven_heat", "1e2", "--kind=wheat", "--name", "12", "--rests", "[8, 0.5]"]
    assert parse(*argv) == BakeConfig(300, 100.0, "wheat", "12", (8.0, 0.5))


def test_dashes_and_underscores_are_the_same_in_names_only() -> None:
    for spelling in (["--oven-heat", "200"], ["--oven_heat", "200"], ["--oven-heat=200"], ["--oven_heat=200"]):
        assert parse(*spelling, "--name", "my-own-loaf") == BakeConfig(oven_heat=200, name="my-own-loaf")
    assert parse("--name=--a-b").name == "--a-b"


def test_a_switch_is_on_without_a_value() -> None:
    for argv in (["--sliced"], ["--sliced", "true"], ["--sliced=true"], ["--name", "a", "--sliced", "--flour", "1"]):
        assert parse(*argv).sliced
    for argv in ([], ["--sliced", "false"], ["--sliced=false"]):
        assert not parse(*argv).sliced


def test_later_wins_defaults_presets_file_command_line(tmp_path: Path) -> None:
    preset = Path(write(tmp_path / "preset.yaml", oven_heat=1, kind="wheat", name="preset"))
    file = write(tmp_path / "file.yaml", kind="rye", name="file")
    command_line = ["--name", "given"]
    for argv in (
        [*command_line, "--config", file],
        ["--config", file, *command_line],
        [*command_line, f"--config={file}"],
    ):
        found = config.parse(BakeConfig, argv, lambda _: [preset])
        assert found == BakeConfig(flour=500, oven_heat=1, kind="rye", name="given")


def test_of_two_files_the_later_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", flour=1, oven_heat=1)
    second = write(tmp_path / "second.yaml", oven_heat=2)
    assert parse("--config", first, "--config", second) == BakeConfig(flour=1, oven_heat=2)


def test_presets_are_chosen_by_what_is_given(tmp_path: Path) -> None:
    for kind in ("rye", "wheat"):
        write(tmp_path / f"{kind}.yaml", name=f"of {kind}")

    def by_kind(given: Namespace) -> list[Path]:
        return [tmp_path / f"{given.kind}.yaml"]

    assert config.parse(BakeConfig, [], by_kind).name == "of rye"
    assert config.parse(BakeConfig, ["--kind", "wheat"], by_kind).name == "of wheat"
    file = write(tmp_path / "file.yaml", kind="wheat")
    assert config.parse(BakeConfig, ["--config", file], by_kind).name == "of wheat"


@pytest.mark.parametrize("name", ["oven_heet", "oven-heet"])
def test_an_unknown_option_is_named_with_the_nearest_and_all_valid_ones(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "file.yaml", **{name: 200})
    for argv in ([f"--{name}", "200"], [f"--{name}=200"], ["--config", file]):
        with pytest.raises(ConfigError) as caught:
            parse(*argv)
        assert re.fullmatch(
            rf"Unknown option 'oven[_-]heet'\. Did you mean 'oven_heat'\? Valid options: {VALID}\.", str(caught.value)
        )


def test_an_option_like_no_other(tmp_path: Path) -> None:
    for argv in (["--xyz", "1"], ["--config", write(tmp_path / "file.yaml", xyz=1)]):
        with pytest.raises(ConfigError, match=rf"^Unknown option 'xyz'\. Valid options: {VALID}\.$"):
            parse(*argv)


def test_an_option_is_never_guessed_from_its_beginning() -> None:
    with pytest.raises(ConfigError, match="Unknown option 'oven'"):
        parse("--oven", "200")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--flour", "much"], "flour"),
        (["--flour", "1.5"], "flour"),
        (["--kind", "oat"], "kind"),
        (["--rests", "[1]"], "rests"),
        (["--oven-heat"], "oven_heat"),
        (["loaf"], "loaf"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--flour", "-1"], "--flour must be 0 or more, is -1"),
    ],
)
def test_an_impossible_value_is_named_on_one_line(argv: Sequence[str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- 1\n", "flour: [\n", "flour: much\n", "oven:\n  heat: 3\n", ""])
def test_a_file_that_is_not_of_options(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.yaml").write_text(content)
    with pytest.raises(ConfigError):
        parse("--config", str(tmp_path / "file.yaml"))


# The recipes ----------------------------------------------------------------------------------------------------------


def opening_comment(path: Path) -> str:
    return re.match(r"(#.*\n)+", path.read_text())[0]


def test_there_are_recipes() -> None:
    assert {"seed", "matting", "night", "quickstart"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_hardware_hours_and_what_to_expect(path: Path) -> None:
    comment = opening_comment(path)
    assert re.search(r"^#   python jobs/\w+\.py", comment, re.MULTILINE)
    for heading in ("Hardware", "Hours", "Expect"):
        told = re.search(rf"^# {heading} +(\S.*)$", comment, re.MULTILINE)
        assert told, f"{path.name} does not say {heading}"
        assert "TBD" not in told[1], f"{path.name} leaves {heading} open"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_command_gives_what_the_recipe_says(path: Path) -> None:
    command = re.search(r"^#   (python .*)$", opening_comment(path), re.MULTILINE)[1]
    program, *argv = shlex.split(re.sub(r"\[.*?\]", "", command))[1:]
    assert program == "jobs/train.py"
    found = asdict(config.parse(TrainConfig, argv, presets))
    alone = asdict(config.parse(TrainConfig, ["--config", str(path)]))
    for name in yaml.safe_load(path.read_text()):
        assert found[name] == alone[name], name
