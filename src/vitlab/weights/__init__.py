"""Load weights, fit them into a model, and export models to timm and ONNX."""

from vitlab.weights.fitting import LoadReport, fit_weights
from vitlab.weights.loading import Weights, find_weights

__all__ = ["LoadReport", "Weights", "find_weights", "fit_weights"]
