"""Parameter groups, the Muon optimizer and learning-rate schedules."""

from vitlab.optim.finetuning import Finetuning
from vitlab.optim.muon import Muon, adamw_param_names
from vitlab.optim.schedules import cosine_over_time, cosine_with_warmup, linear_over_time, linear_with_warmup

__all__ = [
    "Finetuning",
    "Muon",
    "adamw_param_names",
    "cosine_over_time",
    "cosine_with_warmup",
    "linear_over_time",
    "linear_with_warmup",
]
