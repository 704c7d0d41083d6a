"""What `torch.compile` is told of an adapted model, while it traces. Importing this imports its compiler."""

from __future__ import annotations

import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.symbolic_convert import InstructionTranslator

from superlora_cli.errors import RunError


class NotOneGraphError(RunError, Unsupported):
    """One graph was asked for. Of torch's own kind, too: it puts any other error on a page of its own."""

    def __init__(self, message: str, *, hint: str) -> None:
        Unsupported.__init__(self, message)
        RunError.__init__(self, message, where="torch.compile", hint=hint)


@torch.compiler.assume_constant_result
def refuse_fullgraph() -> None:
    """Run once, in the place of tracing it.

    Raises:
        RunError: `fullgraph=True`, or a strict export.
    """
    tracer = InstructionTranslator.current_tx()
    if tracer.one_graph or tracer.error_on_graph_break:
        hint = "leave fullgraph out; for torch.export, strict=False"
        raise NotOneGraphError("fullgraph=True: ΔW is made outside of the compiled graph", hint=hint)
