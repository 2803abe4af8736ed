"""A sweep over listed values: every job once."""

from collections.abc import Iterator, Sequence

from vitlab.sweeps.job import Job


class Grid:
    """Those of the jobs that are not finished, in their order."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.left: Iterator[Job] = iter([job for job in jobs if job.status != "done"])

    def next(self) -> Job | None:
        return next(self.left, None)

    def is_hopeless(self, job: Job) -> bool:
        return False

    def ended(self, job: Job) -> None:
        pass
