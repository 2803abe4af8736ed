"""Parameter groups and learning-rate schedules."""

from vitlab.optim.finetuning import Finetuning
from vitlab.optim.muon import Muon, left_to_adamw
from vitlab.optim.schedules import cosine_over_time, cosine_with_warmup

__all__ = ["Finetuning", "Muon", "cosine_over_time", "cosine_with_warmup", "left_to_adamw"]
