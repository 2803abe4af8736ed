"""`report.html`: a run told to somebody who was not there."""

from vitlab.run_report.report import write_report

__all__ = ["write_report"]
