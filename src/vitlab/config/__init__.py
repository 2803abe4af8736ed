"""Compose, check and resolve a config, and build what it names."""

from pathlib import Path

CONF = Path(__file__).parents[3] / "conf"  # the YAML files of the checkout that vitlab is installed from
