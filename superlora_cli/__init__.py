"""superlora: parameter-efficient fine-tuning of vision models by SuperLoRA (arXiv 2403.11887).

From Python: `attach` an adapter to any `nn.Module`, train it by any loop, `save` and `load` it, `activate` one of
several, `detach` with the update merged or not. They are imported on first use: they need torch, and the command
line's start does not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superlora_cli.api import activate, attach, detach, load, save

__version__ = "0.1.0"
__all__ = ["__version__", "activate", "attach", "detach", "load", "save"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'superlora_cli' has no attribute '{name}'")
    from superlora_cli import api

    return getattr(api, name)
