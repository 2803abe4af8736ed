"""Models in plain torch: float images `[B, 3, H, W]` -> logits `[B, classes]`."""

from vitlab.models.attention import fused_is_faster
from vitlab.models.timm_models import (
    fuse_timm_attention,
    head_modules,
    head_names,
    share_drop_path,
    timm_facts,
    timm_model,
)
from vitlab.models.vision_transformer import VisionTransformer

__all__ = [
    "VisionTransformer",
    "fuse_timm_attention",
    "fused_is_faster",
    "head_modules",
    "head_names",
    "share_drop_path",
    "timm_facts",
    "timm_model",
]
