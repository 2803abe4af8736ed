"""What watches a run while it trains."""

from vitlab.callbacks.epoch_metrics import EpochMetricsCSV
from vitlab.callbacks.images_per_second import ImagesPerSecond
from vitlab.callbacks.predictions import CollectLogits
from vitlab.callbacks.progress import RunProgress

__all__ = ["CollectLogits", "EpochMetricsCSV", "ImagesPerSecond", "RunProgress"]
