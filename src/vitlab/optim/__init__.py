"""Learning-rate schedules. The parameter groups are timm's (`timm.optim.param_groups_weight_decay`)."""

from vitlab.optim.schedules import cosine_with_warmup

__all__ = ["cosine_with_warmup"]
