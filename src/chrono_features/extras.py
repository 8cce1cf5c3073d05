"""One way to ask for an optional dependency."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from typing import Any

PACKAGE = "chrono-features"


class MissingExtra(ImportError):
    """An optional dependency that cannot be imported. The message says how to install it."""


def require(module: str, extra: str) -> Any:
    """Import a module of an optional dependency when it is needed.

    Args:
        module: Name of the module, as in `import module`.
        extra: The extra of this package that it belongs to.

    Raises:
        MissingExtra: It is not installed, or its own import fails.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name
        what = f"{name} is missing" if missing else f"{name} is installed but cannot be imported ({error})"
        raise MissingExtra(f"{what}; expected {how_to_install(extra)}") from error


def how_to_install(extra: str) -> str:
    """The command that installs the packages of an extra. It never names this package: on PyPI that is another one."""
    in_clone = f"pip install '.[{extra}]' in a clone of the {PACKAGE} repository"
    packages = " ".join(f'"{package}"' for package in packages_of(extra))
    return f"the packages of the extra {extra}: pip install {packages} (or {in_clone})" if packages else in_clone


def packages_of(extra: str) -> list[str]:
    """The requirements of an extra by this package's metadata; none where it runs without being installed."""
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    found = (re.fullmatch(rf"(\S.*?)\s*;\s*extra\s*==\s*['\"]{extra}['\"]", r) for r in requirements)
    return [match[1] for match in found if match]
