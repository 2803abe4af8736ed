"""`best.ckpt`, also of a run whose directory was moved."""

from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint

from vitlab.runs.relocation import moved


class BestCheckpoint(ModelCheckpoint):
    """Lightning's forgets the best score where the directory has another name than before, and writes a worse one over
    the file."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = str(state_dict["dirpath"]), str(self.dirpath)
        kept = {moved(path, before, now): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**moved(state_dict, before, now), "best_k_models": kept})
