"""The run directory: what a run leaves behind, and a model back from it."""
