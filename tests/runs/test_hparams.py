from typing import Any

from vitlab.runs.hparams import KEY_SETTINGS, all_settings, hparams_of


def config(**groups: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": "vitlab.models.timm_model", "name": "vit_tiny_patch16_224", "weights": "a/b.pth"},
        "data": {"_target_": "vitlab.data.ImageFolderDataModule", "root": "photos/pets/", "batch_size": 64},
        "augment": {"crop": {"_target_": "vitlab.data.RandomCrop", "padding": 4}, "flip": None},
        "loss": {"_target_": "vitlab.losses.CrossEntropy", "label_smoothing": 0.1, "class_weights": None},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3, "betas": [0.9, 0.999]},
        "finetune": {"_target_": "vitlab.optim.Finetuning", "layer_decay": 0.75},
        "scheduler": {"schedule": {"_target_": "vitlab.optim.cosine_with_warmup", "warmup": 0.05}, "interval": "step"},
        "trainer": {"max_epochs": -1, "max_steps": -1, "max_time": "00:00:20:00", "enable_progress_bar": True},
        "callbacks": {"nan": {"action": "stop"}},
        "seed": 0,
        **groups,
    }


def test_the_key_settings_are_named_as_people_name_them() -> None:
    assert hparams_of(config()) == {
        "optimizer.lr": 1e-3,
        "augment": "RandomCrop",
        "model": "vit_tiny_patch16_224",
        "data.batch_size": 64,
        "trainer.max_time": "00:00:20:00",  # no limit of epochs or steps
        "data": "pets",
        "optimizer": "AdamW",
        "scheduler": "cosine_with_warmup",
        "scheduler.schedule.warmup": 0.05,
        "loss": "CrossEntropy",
        "loss.label_smoothing": 0.1,
        "seed": 0,
    }
    assert hparams_of(config(augment={}))["augment"] == "none"
    assert list(hparams_of(config())) == [path for path in KEY_SETTINGS if path in hparams_of(config())]


def test_what_else_differs_between_runs_is_there_without_plumbing() -> None:
    more = {path: value for path, value in all_settings(config()).items() if path not in KEY_SETTINGS}
    assert more == {
        "augment.crop.padding": 4,
        "finetune.layer_decay": 0.75,
        "scheduler.interval": "step",
    }
