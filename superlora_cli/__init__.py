"""superlora: parameter-efficient fine-tuning of vision, text-to-image and language models, by SuperLoRA (2403.11887).

From Python: `attach` an adapter to any `nn.Module`, train it in any loop, `save` and `load` it, `activate` one of
several, `detach` it with or without merging the update. These functions are imported on first use, because they need
torch and the command line should start without it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superlora_cli.api import activate, attach, detach, inform, load, mixed, save

__version__ = "0.2.0"
__all__ = ["__version__", "activate", "attach", "detach", "inform", "load", "mixed", "save"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'superlora_cli' has no attribute '{name}'")
    from superlora_cli import api

    return getattr(api, name)
