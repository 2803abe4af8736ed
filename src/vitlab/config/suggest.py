"""The word that was meant."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(word: str, known: Iterable[Any]) -> str:
    """ ". Did you mean 'x'?" for the nearest of the known words, else a list of them, else nothing."""
    known = sorted(str(k) for k in known)
    return nearest(word, known) or (f"; it has {', '.join(known)}" if known else "")


def nearest(word: str, known: Iterable[Any]) -> str:
    """ ". Did you mean 'x'?", or nothing where no known word is near."""
    near = get_close_matches(word, sorted(str(k) for k in known), n=1)
    return f". Did you mean '{near[0]}'?" if near else ""
