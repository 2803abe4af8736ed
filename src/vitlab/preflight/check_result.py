"""What a check has found."""

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """`FAILED` refuses the run in strict mode; `WARNING` never does; `SKIPPED` could not be looked at."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CheckResult:
    """One check's result.

    Attributes:
        check: Its name.
        status: How it came out.
        figure: What was measured, in words, with units.
        meaning: Of anything but OK: what it means, and the usual causes.
    """

    check: str
    status: Status
    figure: str
    meaning: str = ""


def ok(check: str, figure: str) -> CheckResult:
    return CheckResult(check, Status.OK, figure)


def warning(check: str, figure: str, meaning: str) -> CheckResult:
    return CheckResult(check, Status.WARNING, figure, meaning)


def failed(check: str, figure: str, meaning: str) -> CheckResult:
    return CheckResult(check, Status.FAILED, figure, meaning)


def skipped(check: str, why: str) -> CheckResult:
    return CheckResult(check, Status.SKIPPED, why)


def some(names: list[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
