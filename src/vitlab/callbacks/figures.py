"""What is drawn of a run."""

import pytorch_lightning as pl


class Figures(pl.Callback):
    """Draws into `figures/` of the run and its dashboard.

    Args:
        level: "off" (or False, as YAML reads it), "light" or "full".
    """

    def __init__(self, level: str | bool) -> None:
        if level not in (False, "off", "light", "full"):
            raise ValueError(f"level={level} of Figures is unknown; choose off, light or full")
        self.level = level or "off"
