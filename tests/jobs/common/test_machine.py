"""Cores that a process may use: affinity and cgroup quotas count, not only the machine's cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.common.machine import usable_cores

COUNT = "from jobs.common.machine import usable_cores; print(usable_cores())"


def write_cgroup(folder: Path, membership: str, files: dict[str, str]) -> Path:
    """Write cgroups' files as the kernel shows them, below the folder cgroup. Returns the file of memberships."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "membership").write_text(membership)
    return folder / "membership"


def test_affinity_counts() -> None:
    core = min(os.sched_getaffinity(0))
    assert subprocess.check_output(["taskset", "-c", str(core), sys.executable, "-c", COUNT]) == b"1\n"


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}),
        ("0::/pods/pod\n", {"pods/cpu.max": "200000 100000\n", "pods/pod/cpu.max": "max 100000\n"}),
        ("0::/path/of/the/host\n", {"cpu.max": "120000 100000\n"}),
        ("2:cpu,cpuacct:/a\n", {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}),
    ],
)
def test_quotas_count_rounded_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert usable_cores(tmp_path / "cgroup", write_cgroup(tmp_path, membership, files)) == 2


def test_quota_below_one_core_is_one_core(tmp_path: Path) -> None:
    membership = write_cgroup(tmp_path, "0::/\n", {"cpu.max": "20000 100000\n"})
    assert usable_cores(tmp_path / "cgroup", membership) == 1


@pytest.mark.parametrize("quota", ["max 100000\n", "-1 100000\n", "nonsense"])
def test_no_quota_limits_nothing(tmp_path: Path, quota: str) -> None:
    membership = write_cgroup(tmp_path, "0::/\n", {"cpu.max": quota})
    assert usable_cores(tmp_path / "cgroup", membership) == usable_cores(tmp_path / "none", tmp_path / "none")
