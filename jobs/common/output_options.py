"""Options of jobs that lease the folder that they write to."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LeaseOptions:
    """Use of the output folder by one job at a time.

    Args:
        take_over: Write to the output folder although another job is using it, which then stops. For a job that is dead
            and whose lease has not ended yet.
    """

    take_over: bool = False
