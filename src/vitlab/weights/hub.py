"""timm's pretrained weights from its cache or the Hugging Face hub."""

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
        UserError: there are none, or they are not in the cache and the hub can't be reached.
    """
    name = f"{facts.architecture}.{facts.tag}" if facts.tag else str(facts.architecture)
    if not facts.has_weights:
        raise UserError(
            f"timm has no weights of {name}: choose another model.name, name a file with model.weights=..., "
            "or draw random ones with model.pretrained=false"
        )
    overlay = {}
    if facts.hf_hub_id and not facts.custom_load:
        cached = try_to_load_from_cache(facts.hf_hub_id, facts.hf_hub_filename or FILE)
        if isinstance(cached, str):
            overlay = {"file": cached}
        else:
            _check_hub(name, facts, facts.hf_hub_id)
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except Exception as error:
        raise _unreachable(name, facts, error) from error


def _check_hub(name: str, facts: PretrainedCfg, repository: str) -> None:
    # Asked once: the hub's own client tries again and again for most of a minute before it gives up.
    try:
        get_session().head(hf_hub_url(repository, FILE), timeout=PATIENCE)
    except Exception as error:  # of either HTTP library that the client may use
        raise _unreachable(name, facts, error) from error


def _unreachable(name: str, facts: PretrainedCfg, error: Exception) -> UserError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    where = hf_hub_url(facts.hf_hub_id, facts.hf_hub_filename or FILE) if facts.hf_hub_id else facts.url
    return UserError(
        f"the weights of {name} are not on this machine and can't be downloaded ({reason}). "
        f"Where there is a connection, get {where}, copy the file here, and name it: model.weights=<file>"
    )
