"""Launch many runs, resume them after an interruption, and search with Optuna."""
