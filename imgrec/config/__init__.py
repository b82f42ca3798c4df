"""From the command line and conf/ to a checked RunConfig. Imports no torch."""

from imgrec.config.load import load_config as load
from imgrec.config.schema import RunConfig

__all__ = ["RunConfig", "load"]
