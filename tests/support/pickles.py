"""An object whose unpickling can be noticed."""

from pathlib import Path
from typing import Any


class Payload:
    """Object that creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)
