"""Train one model with several processes: ranks, launching, strategies, SLURM."""
