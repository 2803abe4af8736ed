"""Networks in plain torch: float images `[B, C, H, W]` in, logits `[B, num_classes]` out."""

from vitlab.models.vision_transformer import VisionTransformer

__all__ = ["VisionTransformer"]
