"""Where a run's first weights come from."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.models import timm_facts
from vitlab.weights.formats import Weights, input_of, read_file
from vitlab.weights.hub import fetch


def find_weights(choice: Mapping[str, Any], name: Any = None, which: str | None = None) -> Weights | None:
    """Reads or downloads the weights that a run starts from.

    It comes before all that takes long: what is wrong with the weights is said within seconds.

    Args:
        choice: `weights`, a file or None; of a network of timm's also `pretrained`, whether to take timm's own.
        name: timm's, of that network.
        which: Of the weights of a run, as `read_file` takes it.

    Returns:
        Of a network of timm's always the input that it was made for, with `pretrained: false` with an empty state.
        None where no weights are asked for.

    Raises:
        UserError: the file can't be read, timm has no such network or weights, or the hub can't be reached.
    """
    known: dict[str, Any] = {}
    known_by = ""
    if "pretrained" in choice:
        try:
            facts = timm_facts(name)
        except ValueError as error:
            raise UserError(f"model.name: {error}") from error
        known, known_by = input_of(asdict(facts)), "timm's " + ".".join(filter(None, [facts.architecture, facts.tag]))
        if choice["weights"] is None:
            state = fetch(facts) if choice["pretrained"] else {}
            return Weights(known_by, state, known, known_by)
    if choice.get("weights") is None:
        return None
    weights = read_file(Path(str(choice["weights"])).expanduser(), which)
    return weights if weights.input else replace(weights, input=known, input_origin=known_by)
