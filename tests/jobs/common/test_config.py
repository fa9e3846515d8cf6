"""Strict options from defaults, presets, files and the command line; and the recipes that are shipped."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import Namespace

from jobs.common import config
from jobs.common.config import ConfigError
from jobs.training.config import TrainConfig, presets

RECIPES = sorted(config.CONFIGS.glob("*.yaml"))


@dataclass(frozen=True)
class OvenOptions:
    """Oven.

    Args:
        oven_heat: Heat in degrees.
        kind: Kind of the oven, which a loaf does not have.
    """

    oven_heat: float = 220
    kind: str = "gas"

    def __post_init__(self) -> None:
        if self.oven_heat > 300:
            raise ValueError(f"oven_heat must be at most 300, is {self.oven_heat}")


@dataclass(frozen=True, kw_only=True)
class BakeConfig(OvenOptions):
    """Bake a loaf.

    Args:
        flour: Flour in grams.
        kind: Kind of the flour.
        name: Name of the loaf.
        rests: Hours of the two rests.
        sliced: Whether to slice it.
    """

    flour: int = 500
    kind: Literal["rye", "wheat"] = "rye"
    name: str | None = None
    rests: tuple[float, float] = (12, 1)
    sliced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flour < 0:
            raise ValueError(f"--flour must be 0 or more, is {self.flour}")


@dataclass(frozen=True)
class MoveConfig:
    """Move a loaf.

    Args:
        name: Name of the loaf.
        to_place: New place of the loaf.
    """

    name: str
    to_place: str


KEYS = [field.name for field in fields(BakeConfig)]
OPTIONS = ["--" + name.replace("_", "-") for name in ["config", *KEYS]]


def parse(*argv: str) -> BakeConfig:
    return config.parse(BakeConfig, argv)


def write(path: Path, **options: Any) -> str:
    path.write_text(yaml.safe_dump(options))
    return str(path)


def test_options_have_the_types_of_fields() -> None:
    argv = ["--flour", "300", "--oven_heat", "1e2", "--kind=wheat", "--name", "12", "--rests", "[8, 0.5]"]
    assert parse(*argv) == BakeConfig(flour=300, oven_heat=100.0, kind="wheat", name="12", rests=(8.0, 0.5))


def test_names_take_dashes_or_underscores() -> None:
    for spelling in (["--oven-heat", "200"], ["--oven_heat", "200"], ["--oven-heat=200"], ["--oven_heat=200"]):
        assert parse(*spelling, "--name", "my-own-loaf") == BakeConfig(oven_heat=200, name="my-own-loaf")
    assert parse("--name=--a-b").name == "--a-b"


def test_a_switch_needs_no_value() -> None:
    for argv in (["--sliced"], ["--sliced", "true"], ["--sliced=true"], ["--name", "a", "--sliced", "--flour", "1"]):
        assert parse(*argv).sliced
    for argv in ([], ["--sliced", "false"], ["--sliced=false"]):
        assert not parse(*argv).sliced


def test_later_sources_win(tmp_path: Path) -> None:
    preset = Path(write(tmp_path / "preset.yaml", oven_heat=1, kind="wheat", name="preset"))
    file = write(tmp_path / "file.yaml", kind="rye", name="file")
    command_line = ["--name", "given"]
    for argv in (
        [*command_line, "--config", file],
        ["--config", file, *command_line],
        [*command_line, f"--config={file}"],
    ):
        found = config.parse(BakeConfig, argv, lambda _: ["--config", str(preset)])
        assert found == BakeConfig(flour=500, oven_heat=1, kind="rye", name="given")


def test_the_later_of_two_files_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", flour=1, oven_heat=1)
    second = write(tmp_path / "second.yaml", oven_heat=2)
    assert parse("--config", first, "--config", second) == BakeConfig(flour=1, oven_heat=2)


def test_given_options_choose_the_presets(tmp_path: Path) -> None:
    for kind in ("rye", "wheat"):
        write(tmp_path / f"{kind}.yaml", name=f"of {kind}")

    def by_kind(given: Namespace) -> list[str]:
        return ["--config", str(tmp_path / f"{given.kind}.yaml")]

    assert config.parse(BakeConfig, [], by_kind).name == "of rye"
    assert config.parse(BakeConfig, ["--kind", "wheat"], by_kind).name == "of wheat"
    file = write(tmp_path / "file.yaml", kind="wheat")
    assert config.parse(BakeConfig, ["--config", file], by_kind).name == "of wheat"


def test_help_has_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.partition("Bake a loaf:")[2].split())
    own, inherited = text.split(" Oven: ")
    for option in ("--flour FLOUR Flour in grams.", "--kind {rye,wheat} Kind of the flour.", "--sliced"):
        assert own.count(option) == 1
    assert inherited.startswith("--oven-heat OVEN_HEAT Heat in degrees. (type: float, default: 220)")
    assert "--kind" not in inherited


@pytest.mark.parametrize("name", ["oven_heet", "oven-heet"])
def test_an_unknown_option_has_suggestions(name: str) -> None:
    expected = f"Unknown option --oven-heet. Did you mean --oven-heat? Valid options: {', '.join(OPTIONS)}."
    for argv in ([f"--{name}", "200"], [f"--{name}=200"]):
        with pytest.raises(ConfigError) as caught:
            parse(*argv)
        assert str(caught.value) == expected


@pytest.mark.parametrize("name", ["oven_heet", "oven-heat"])
def test_an_unknown_key_has_suggestions(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("--config", write(tmp_path / "file.yaml", **{name: 200}))
    assert str(caught.value) == f"Unknown key {name}. Did you mean oven_heat? Valid keys: {', '.join(KEYS)}."


def test_unlike_options_are_not_suggested(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Unknown option --xyz\. Valid options: --config, "):
        parse("--xyz", "1")
    with pytest.raises(ConfigError, match=r"^Unknown key xyz\. Valid keys: oven_heat, "):
        parse("--config", write(tmp_path / "file.yaml", xyz=1))


def test_abbreviated_options_are_unknown() -> None:
    with pytest.raises(ConfigError, match="Unknown option --oven"):
        parse("--oven", "200")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--flour", "much"], "--flour"),
        (["--flour", "1.5"], "--flour"),
        (["--kind", "oat"], "--kind"),
        (["--rests", "[1]"], "--rests"),
        (["--oven-heat"], "--oven-heat: expected one argument"),
        (["--oven_heat", "hot"], "--oven-heat: "),
        (["loaf"], "loaf"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--flour", "-1"], "--flour must be 0 or more, is -1"),
        (["--oven-heat", "301"], "--oven-heat must be at most 300, is 301"),
    ],
)
def test_an_impossible_value_names_its_option(argv: Sequence[str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_required_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"required: --name, --to-place$"):
        config.parse(MoveConfig, [])


@pytest.mark.parametrize("content", ["- 1\n", "flour: [\n", "flour: much\n", "oven:\n  heat: 3\n", ""])
def test_files_must_hold_options(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.yaml").write_text(content)
    with pytest.raises(ConfigError):
        parse("--config", str(tmp_path / "file.yaml"))


# Recipes --------------------------------------------------------------------------------------------------------------


def opening_comment(path: Path) -> str:
    return re.match(r"(#.*\n)+", path.read_text())[0]


def test_four_recipes_are_shipped() -> None:
    assert {"baseline", "matting", "night", "quickstart"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_facts(path: Path) -> None:
    comment = opening_comment(path)
    assert re.search(r"^#   python jobs/\w+\.py", comment, re.MULTILINE)
    for heading in ("Hardware", "Hours", "Expect"):
        fact = re.search(rf"^# {heading} +(\S.*)$", comment, re.MULTILINE)
        assert fact, f"{path.name} does not say {heading}"
        assert "TBD" not in fact[1], f"{path.name} leaves {heading} open"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_command_selects_it(path: Path) -> None:
    command = re.search(r"^#   (python .*)$", opening_comment(path), re.MULTILINE)[1]
    program, *argv = shlex.split(re.sub(r"\[.*?\]", "", command))[1:]
    assert program == "jobs/train.py"
    found = asdict(config.parse(TrainConfig, argv, presets))
    alone = asdict(config.parse(TrainConfig, ["--config", str(path)]))
    for name in yaml.safe_load(path.read_text()):
        assert found[name] == alone[name], name
