"""The machine that a process runs on: how many of its cores the process may really use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the number of cores that this process may use, at least 1.

    It is the least of the machine's cores, the process's CPU affinity (``taskset``, cpusets) and the CPU quota of its
    cgroups (containers), rounded up.

    Args:
        cgroups: Folder at which the kernel's cgroup file systems are mounted.
        membership: File that names the cgroups of this process.
    """
    counts = [os.cpu_count() or 1, *(math.ceil(quota) for quota in cpu_quotas(cgroups, membership))]
    if hasattr(os, "sched_getaffinity"):  # Linux
        counts.append(len(os.sched_getaffinity(0)))
    return max(1, min(counts))


def cpu_quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Yield every CPU quota that applies to this process, in cores. Arguments are those of :func:`usable_cores`.

    A quota of a cgroup applies to all cgroups below it. In a container, the path in ``membership`` may be the host's,
    which does not exist there; then the root of the mounted file system is the container's own cgroup.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [cgroups / "cpu", cgroups / controllers]
        else:
            continue
        own = Path(path.lstrip("/"))
        for mount in mounts:
            for folder in (own, *own.parents) if own.parts else (own,):
                yield from read_quota(mount / folder)


def read_quota(folder: Path) -> Iterator[float]:
    """Yield the CPU quota of one cgroup in cores, of version 2 (cpu.max) or version 1, if it has one."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and float(quota) > 0:
            yield float(quota) / float(period)
    except (OSError, ValueError):  # a cgroup without the CPU controller
        return
