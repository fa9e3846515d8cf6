"""A small checkpoint, and what a job has printed."""

from collections.abc import Callable

import pytest

from tests.support.predictions import new_checkpoint


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a small network's checkpoint, which no test may change."""
    return new_checkpoint(tmp_path_factory.mktemp("trained"), seed=0)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Function that returns what was printed since its last call, with single spaces."""
    return lambda: " ".join(capsys.readouterr().out.split())
