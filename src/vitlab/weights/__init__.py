"""Load weights, fit them into a model, and export models to timm and ONNX."""

from vitlab.weights.fitting import LoadReport, fit_weights
from vitlab.weights.loading import Weights, weights_to_start_from

__all__ = ["LoadReport", "Weights", "fit_weights", "weights_to_start_from"]
