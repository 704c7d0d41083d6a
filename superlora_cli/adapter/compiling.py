"""How an adapted model behaves while `torch.compile` traces it. Importing this module imports the compiler."""

from __future__ import annotations

import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.symbolic_convert import InstructionTranslator

from superlora_cli.errors import RunError


class NotOneGraphError(RunError, Unsupported):
    """A single graph was requested. Also of torch's own error type, since torch wraps any other in a long trace."""

    def __init__(self, message: str, *, hint: str) -> None:
        Unsupported.__init__(self, message)
        RunError.__init__(self, message, where="torch.compile", hint=hint)


@torch.compiler.assume_constant_result
def refuse_fullgraph() -> None:
    """Runs once at trace time instead of being traced.

    Raises:
        RunError: `fullgraph=True`, or a strict export.
    """
    tracer = InstructionTranslator.current_tx()
    if tracer.one_graph or tracer.error_on_graph_break:
        hint = "leave out fullgraph; use strict=False for torch.export"
        raise NotOneGraphError("fullgraph=True: ΔW is computed outside the compiled graph", hint=hint)
