"""Checks of the built objects and one real batch before training."""

from vitlab.preflight.check_result import CheckResult, Preflight, Status
from vitlab.preflight.checklist import run_preflight
from vitlab.preflight.context import CheckContext

__all__ = ["CheckContext", "CheckResult", "Preflight", "Status", "run_preflight"]
