"""Parameter groups and learning-rate schedules."""

from vitlab.optim.finetuning import Finetuning
from vitlab.optim.muon import left_to_adamw
from vitlab.optim.schedules import cosine_over_time, cosine_with_warmup

__all__ = ["Finetuning", "cosine_over_time", "cosine_with_warmup", "left_to_adamw"]
