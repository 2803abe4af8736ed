"""Results of the preflight checks, and the report of all of them."""

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Status(Enum):
    """`FAILED` stops a run with preflight=strict; `WARNING` never does; `SKIPPED` means the check could not run."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        status: The outcome.
        figure: The measurement, in words and with units.
        meaning: For warnings and failures: what is wrong, its usual causes, and what would work.
        check: Name of the check; filled in by the runner.
    """

    status: Status
    figure: str
    meaning: str = ""
    check: str = ""


def ok(figure: str, check: str = "") -> CheckResult:
    return CheckResult(Status.OK, figure, check=check)


def warning(figure: str, meaning: str) -> CheckResult:
    return CheckResult(Status.WARNING, figure, meaning)


def failed(figure: str, meaning: str) -> CheckResult:
    return CheckResult(Status.FAILED, figure, meaning)


def skipped(figure: str, check: str = "") -> CheckResult:
    return CheckResult(Status.SKIPPED, figure, check=check)


def list_some(names: list[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


@dataclass(frozen=True)
class Preflight:
    """Results of all checks, with the device and precision they ran in and how long they took."""

    findings: list[CheckResult]
    device: str
    precision: str
    seconds: float

    @property
    def warnings(self) -> list[CheckResult]:
        return [finding for finding in self.findings if finding.status is Status.WARNING]

    @property
    def failures(self) -> list[CheckResult]:
        return [finding for finding in self.findings if finding.status is Status.FAILED]

    @property
    def verdict(self) -> str:
        """The number of checks by status, in one line."""
        counts = {status: sum(f.status is status for f in self.findings) for status in Status}
        parts = [f"{count} {status.value}" for status, count in counts.items() if count]
        return f"{', '.join(parts)} in {self.seconds:.1f} s ({self.device}, {self.precision})"

    def as_markdown(self) -> str:
        """A table for TensorBoard and other loggers."""
        found = [f"{f.figure} {f.meaning}".replace("|", "\\|") for f in self.findings]
        rows = [f"| {f.status.value} | {f.check} | {text} |" for f, text in zip(self.findings, found, strict=True)]
        return "\n".join([f"{self.verdict}\n", "| | check | found |", "|---|---|---|", *rows])

    def as_data(self) -> dict[str, Any]:
        """The content of preflight.json."""
        return {
            "passed": not self.failures,
            "device": self.device,
            "precision": self.precision,
            "seconds": round(self.seconds, 2),
            "checks": [
                {"check": f.check, "status": f.status.value, "figure": f.figure, "meaning": f.meaning}
                for f in self.findings
            ],
        }
