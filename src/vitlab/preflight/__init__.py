"""Checks on the built objects and one real batch, in the first seconds of a run."""

from vitlab.preflight.findings import Finding, Status
from vitlab.preflight.runner import Preflight, run_preflight
from vitlab.preflight.subject import Subject

__all__ = ["Finding", "Preflight", "Status", "Subject", "run_preflight"]
