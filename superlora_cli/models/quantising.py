"""Bases whose linear layers have weights of 8 or 4 bits: quantised by torchao or bitsandbytes, as transformers and
diffusers do it while they read the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter.packed import is_packed
from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import ModelSection

EXTRA = "pip install 'superlora-cli[quantize]'"
KEY = "model.quantize"


@dataclass(frozen=True)
class Scheme:
    """How weights are quantised.

    Attributes:
        library: that does it.
        bits: of a weight.
        beside: rows, columns → bytes of what is stored beside the bits, such as scales.
        rounds_inputs: whether layers round to 8 bits what they are given, too.
    """

    library: str
    bits: int
    beside: Callable[[int, int], int]
    rounds_inputs: bool = False


def _nested(rows: int, columns: int) -> int:
    """A byte for every 64 weights, a float32 for 256 of those and one for all, and tables of 16 and 256 levels."""
    blocks = -(-rows * columns // 64)
    return blocks + 4 * -(-blocks // 256) + 4 + 4 * (16 + 256)


SCHEMES = {
    "torchao-8bit": Scheme("torchao", 8, lambda rows, columns: 5 * rows),  # a float32 and a byte for every row
    "bitsandbytes-8bit": Scheme("bitsandbytes", 8, lambda rows, columns: 4 * rows, True),  # LLM.int8()
    "bitsandbytes-4bit": Scheme("bitsandbytes", 4, _nested),  # QLoRA's: NF4 with quantised scales
}


def check_section(section: ModelSection) -> None:
    """Refuse to quantise weights that no library reads.

    Raises:
        UsageError: the base's weights are drawn, or from a file of one's own.
    """
    if section.quantize and (section.checkpoint or not section.pretrained):
        key = "model.checkpoint" if section.checkpoint else "model.pretrained: false"
        raise UsageError("only the model's own weights can be quantised", where=KEY, hint=f"leave out {key}")


def settings(name: str, library: ModuleType, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` of transformers or diffusers (`library`) needs to quantise a model of some `dtype`.

    Raises:
        UsageError: the extra is missing.
    """
    scheme = SCHEMES[name]
    if find_spec(scheme.library) is None:
        raise UsageError(f"needs the library {scheme.library}", where=f"{KEY}={name}", hint=EXTRA)
    if scheme.library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return {"quantization_config": library.TorchAoConfig(Int8WeightOnlyConfig())}
    how: dict[str, Any] = {"load_in_8bit": True}
    if scheme.bits == 4:
        how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
               "bnb_4bit_compute_dtype": dtype}  # fmt: skip
    on_cpu = {"device_map": {"": "cpu"}} if library.__name__ == "transformers" else {}  # diffusers needs a GPU for it
    return {"quantization_config": library.BitsAndBytesConfig(**how), **on_cpu}


def settled(model: nn.Module, name: str) -> None:
    """Check that a model was quantised, and keep its weights as they are.

    Raises:
        UsageError: it has no layer that can be.
    """
    packed = [layer for layer in model.modules() if is_packed(layer)]
    if not packed:
        raise UsageError("the model has no layer that can be quantised", where=f"{KEY}={name}", hint="leave it out")
    for layer in packed:
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # bitsandbytes would round the scales on the first evaluation
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def as_shapes(model: nn.Module, name: str) -> None:
    """Exchange the layers of a model without values that would be quantised for ones of the right size.

    Raises:
        UsageError: there are none.
    """
    for layer in list(_chosen(model, SCHEMES[name])):
        model.set_submodule(layer, _Stored(cast(nn.Linear, model.get_submodule(layer)), SCHEMES[name]))
    settled(model, name)


def _chosen(model: Any, scheme: Scheme) -> Iterator[str]:
    """The names of the layers that the library of a model quantises."""
    kept = list(getattr(model, "_keep_in_fp32_modules", None) or [])
    if type(model).__module__.startswith("diffusers."):
        kept_here = lambda name: any(f"{key}." in f"{name}." for key in kept)  # noqa: E731
    else:
        from transformers.quantizers.base import get_keys_to_not_convert
        from transformers.quantizers.quantizers_utils import should_convert_module

        kept += get_keys_to_not_convert(model)
        whole = "{}.weight" if scheme.library == "torchao" else "{}"
        kept_here = lambda name: not should_convert_module(whole.format(name), kept)  # noqa: E731
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not kept_here(name):
            yield name


class _Stored(nn.Linear):
    """A quantised layer of which only the bytes count: its weight, what is beside it, and while it runs its weight in
    the precision of its input."""

    def __init__(self, linear: nn.Linear, scheme: Scheme) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        rows, columns = linear.weight.shape
        bytes_ = torch.empty(-(-rows * columns * scheme.bits // 8), dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(bytes_, requires_grad=False)
        self.register_buffer("beside", bytes_.new_empty(scheme.beside(rows, columns)))
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        shape = self.out_features, self.in_features
        return cast(Tensor, _Run.apply(input, self.weight, self.bias, shape))


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return functional.linear(input, input.new_empty(shape), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ grads[0].new_empty(ctx.shape), None, None, None


def precision(model: nn.Module) -> torch.dtype:
    """The dtype in which a model computes: that of its first floating-point tensor."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
