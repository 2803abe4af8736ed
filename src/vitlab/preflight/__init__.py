"""Checks of the built objects and one real batch before training."""

from vitlab.preflight.checklist import Preflight, run_preflight
from vitlab.preflight.context import CheckContext, CheckResult, Status
from vitlab.preflight.cost_checks import TimeEstimate

__all__ = ["CheckContext", "CheckResult", "Preflight", "Status", "TimeEstimate", "run_preflight"]
