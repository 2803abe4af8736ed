"""Parameter groups and learning-rate schedules."""

from vitlab.optim.finetuning import Finetuning
from vitlab.optim.schedules import cosine_with_warmup

__all__ = ["Finetuning", "cosine_with_warmup"]
