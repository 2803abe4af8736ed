"""Where a run's first weights come from."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.models import timm_facts
from vitlab.weights.files import Weights, input_of, read_file
from vitlab.weights.hub import fetch


def find_weights(model: Mapping[str, Any]) -> Weights | None:
    """Reads or downloads what the `model` group asks for: `weights`, a file, else `pretrained`, timm's own of `name`.

    It comes before all that takes long: what is wrong with the weights is said within seconds.

    Returns:
        Of a network of timm's always the input that it was made for, with `pretrained: false` with an empty state.
        None where the group asks for no weights.

    Raises:
        UserError: the file can't be read, timm has no such network or weights, or the hub can't be reached.
    """
    known: dict[str, Any] = {}
    if "pretrained" in model:
        try:
            facts = timm_facts(model["name"])
        except ValueError as error:
            raise UserError(f"model.name: {error}") from error
        known = input_of(asdict(facts))
        if model["weights"] is None:
            name = ".".join(filter(None, [facts.architecture, facts.tag]))
            state = fetch(facts) if model["pretrained"] else {}
            return Weights(f"timm's {name}" if state else "nowhere: they are random", state, known)
    if model.get("weights") is None:
        return None
    weights = read_file(Path(str(model["weights"])).expanduser())
    return replace(weights, input={**known, **weights.input})
