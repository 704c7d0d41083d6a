"""superlora: parameter-efficient fine-tuning of vision models by SuperLoRA (arXiv 2403.11887)."""

__version__ = "0.1.0"
