"""One file a model family: a small random model of it with its real processor, and where everything is in it, found by
reading transformers and by trying, without the package's own map."""

from __future__ import annotations

import importlib
import pkgutil

from tests.families.kit import Known

_HELPERS = ("kit", "page")


def all_known() -> dict[str, Known]:
    """Name → what is known of a family, of every file in this folder that says so."""
    found: dict[str, Known] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name not in _HELPERS and not module.name.startswith("test_"):
            known = importlib.import_module(f"{__name__}.{module.name}").KNOWN
            found |= {one.name: one for one in (known if isinstance(known, tuple) else (known,))}
    return found
