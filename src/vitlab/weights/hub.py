"""timm's pretrained weights from its cache or the Hugging Face hub."""

from typing import Any

import timm
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from timm.models import PretrainedCfg
from torch import Tensor

from vitlab.errors import UserError

FILE = "model.safetensors"
PATIENCE = 5.0  # seconds


def fetch(facts: PretrainedCfg) -> dict[str, Tensor]:
    """The weights that timm's facts describe, from its cache (without asking the hub) or from the hub.

    Raises:
        UserError: there are none, the cached file is broken, or there is none and the hub can't be reached.
    """
    name = ".".join(filter(None, [facts.architecture, facts.tag]))
    if not facts.has_weights:
        raise UserError(
            f"timm has no weights of {name}: choose another model.name, name a file with model.weights=..., "
            "or draw random ones with model.pretrained=false"
        )
    file = facts.hf_hub_filename or FILE
    cached = try_to_load_from_cache(facts.hf_hub_id, file) if facts.hf_hub_id else None
    if not isinstance(cached, str) or str(facts.custom_load) == "hf":
        try:
            if facts.hf_hub_id and not isinstance(cached, str):
                # Asked once: the hub's own client tries again and again for most of a minute before it gives up.
                get_session().head(hf_hub_url(facts.hf_hub_id, file), timeout=PATIENCE)
            return _create(name, {})
        except Exception as error:  # of the hub's client, of either HTTP library, of the readers of files
            raise _failed(name, facts, error) from error
    try:
        # With custom_load timm would take the file for one of the formats that its authors published it in.
        return _create(name, {"file": cached, "custom_load": False})
    except Exception as error:
        raise UserError(f"{cached}, the cached weights of {name}, can't be read: delete it ({error})") from error


def _create(name: str, overlay: dict[str, Any]) -> dict[str, Tensor]:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()


def _failed(name: str, facts: PretrainedCfg, error: Exception) -> UserError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    where = hf_hub_url(facts.hf_hub_id, facts.hf_hub_filename or FILE) if facts.hf_hub_id else facts.url
    return UserError(
        f"the weights of {name} could not be had ({reason}). "
        f"Where there is a connection, get {where}, copy the file here, and name it: model.weights=<file>"
    )
