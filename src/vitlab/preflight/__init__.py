"""Checks on the built objects and one real batch, in the first seconds of a run."""

from vitlab.preflight.check_result import CheckResult, Status
from vitlab.preflight.checklist import Preflight, run_preflight
from vitlab.preflight.context import CheckContext

__all__ = ["CheckContext", "CheckResult", "Preflight", "Status", "run_preflight"]
