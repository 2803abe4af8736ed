"""Metrics: the one table of them, and how they are counted.

`evaluation` imports torch, so it is not imported here: the config is checked without it.
"""

from vitlab.metrics.kinds import (
    ALWAYS,
    CHOICES,
    METRICS,
    VIEWS,
    MetricKind,
    format_metric,
    further_metrics,
    logged_metrics,
    metric_kind,
    metric_name,
    metric_title,
    mode_of,
)

__all__ = [
    "ALWAYS",
    "CHOICES",
    "METRICS",
    "VIEWS",
    "MetricKind",
    "format_metric",
    "further_metrics",
    "logged_metrics",
    "metric_kind",
    "metric_name",
    "metric_title",
    "mode_of",
]
