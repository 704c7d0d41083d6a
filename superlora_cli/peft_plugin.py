"""SuperLoRA as a method of Hugging Face's PEFT: importing this module registers it.

    from superlora_cli.peft_plugin import SuperLoraConfig
    model = get_peft_model(model, SuperLoraConfig(target_modules=["q_proj", "v_proj"], method="lorta", rank=2))

PEFT's own methods wrap each target layer in a tuner layer with its own parameters. A Tucker unit may span layers, so
here a single tuner layer holds the factors of all targets, and `adapter.attach` adapts the target layers in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import register_peft_method, set_additional_trainable_modules
from torch import Tensor, nn

from superlora_cli.adapter.attach import activate, attach, detach
from superlora_cli.adapter.config import NEWEST, AdapterConfig
from superlora_cli.adapter.kinds import plain
from superlora_cli.errors import UsageError
from superlora_cli.models.patterns import SHORT_NAMES
from superlora_cli.models.targets import expand, weights_of

NAME = "superlora"
DEFAULT = "default"  # the scaling of a recipe that sets none
LAYER = f"peft_{NAME}"  # name of the child module; PEFT ignores names that begin with the method's


def _add_type(name: str) -> None:
    """Add a member to PEFT's enumeration of methods: `register_peft_method` needs one but offers no way to add it."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)


_add_type(NAME.upper())


@dataclass
class SuperLoraConfig(PeftConfig):
    """What PEFT saves as adapter_config.json; a knob that is None is not set, as in a recipe's `adapter` section.

    Attributes:
        target_modules: as in PEFT, suffixes of module names or, as a single string, a regular expression or
            `all-linear`; or as in recipes: q k v o mlp, globs, slices such as `blocks.*.attn.qkv[q]`.
        modules_to_save: modules, such as a new head, that are trained fully and saved with the factors.
        method: a preset: lora, lokr, lorta, dense, vera, …; see `superlora ls methods`.

    Raises:
        UsageError: the knobs contradict each other.
    """

    target_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    method: str | None = None
    groups: int | str | None = None
    order: int | None = None
    rank: int | list[int | str] | None = None
    core: str | None = None
    splits: int | None = None
    split_dim: int | None = None
    combine: str | None = None
    left: str | None = None
    terms: int | str | None = None
    fold: str | None = None
    align: int | None = None
    projection: str | None = None
    ratio: float | None = None
    rescale: bool | None = None
    alpha: float | None = None
    scaling: str | None = DEFAULT  # None, as saved by earlier versions, means alpha_over_rank
    init: str | None = None
    execution: str | None = None
    seed: int | None = None
    inner: dict[str, Any] | None = None
    freeze: list[str] | None = None
    frozen: str | None = None
    diagonals: list[int] | None = None
    also: list[str] | None = None
    multiply: str | None = None
    block: int | None = None
    activation: str | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(NAME.upper())
        if isinstance(self.target_modules, set | tuple):
            self.target_modules = sorted(self.target_modules)
        for knob in AdapterConfig.knobs():
            setattr(self, knob, plain(getattr(self, knob)))
        self.adapter_config()

    def adapter_config(self) -> AdapterConfig:
        """The knobs of Eq. 2.

        Raises:
            UsageError: they contradict each other, or PEFT would not save what they train.
        """
        knobs = {knob: getattr(self, knob) for knob in AdapterConfig.knobs()}
        unset = self.scaling == DEFAULT
        knobs |= {"scaling": None} if unset else {}
        config = AdapterConfig.from_knobs(self.method, defaults=NEWEST if unset else 1, **knobs)
        if config.also or not config.adapts:
            where = "also" if config.also else "method"
            raise UsageError("PEFT only saves factors and whole modules", where=where,
                             hint="name modules in modules_to_save")  # fmt: skip
        return config


class SharedFactors(nn.Module, BaseTunerLayer):
    """The factors of all adapters on a model, as the only tuner layer that PEFT finds in it."""

    adapter_layer_names = (f"{NAME}_factors",)
    adapted: nn.Module
    active_adapters: list[str]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.superlora_factors = nn.ModuleDict()  # name → the tensors of that adapter
        self.__dict__["adapted"] = model  # the parent, kept out of the module tree

    def forward(self, input: Tensor) -> Tensor:
        """The identity, in case the parent is an `nn.Sequential`."""
        return input

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one, trainable unless `inference_mode`.

        Raises:
            UsageError: several are given.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if len(names) > 1:
            raise UsageError(f"{len(names)} adapters at once", where="superlora in PEFT", hint="one at a time")
        activate(self.adapted, names[0] if names and not self._disable_adapters else None)
        super().set_adapter(names, inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Compute with the active adapter, or as the plain base."""
        super().enable_adapters(enabled)
        activate(self.adapted, self.active_adapters[0] if enabled and self.active_adapters else None)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; PEFT chooses the next active one."""
        detach(self.adapted, adapter_name)
        super().delete_adapter(adapter_name)

    def merge(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: merged weights could not be restored, because ΔW is not stored.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "cannot merge in place", where="superlora in PEFT", hint="merge_and_unload() merges permanently"
        )

    unmerge = merge


class SuperLoraModel(BaseTuner):
    """A model with named SuperLoRA adapters, of which at most one is active."""

    prefix = f"{NAME}_"
    tuner_layer_cls = SharedFactors
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012
    uses_shared_state = True
    targeted_module_names: list[str]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Attach a new adapter to `model`. If it is not the first, it is not made active.

        Raises:
            UsageError: a target matches nothing, the knobs do not fit the targets, or low_cpu_mem_usage is set.
        """
        if nn.ParameterList([nn.Parameter(torch.zeros(()))])[0].is_meta:  # PEFT creates parameters without values
            raise UsageError("not supported by superlora", where="low_cpu_mem_usage",
                             hint="leave it out: the factors are small")  # fmt: skip
        config: SuperLoraConfig = self.peft_config[adapter_name]
        _maybe_include_all_linear_layers(config, model)
        targets = expand(model, _patterns(config.target_modules, weights_of(model)))
        adapter = attach(model, targets, config.adapter_config(), name=adapter_name)
        config.alpha, config.scaling = adapter.config.alpha, adapter.config.scaling  # as resolved for this base
        if LAYER not in model._modules:
            model.add_module(LAYER, SharedFactors(model))
        cast(SharedFactors, model.get_submodule(LAYER)).superlora_factors[adapter_name] = adapter.factors
        self.targeted_module_names = sorted({*self.targeted_module_names, *(target.module for target in targets)})
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=BaseTuner.get_model_config(self),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        """Restore plain layers, merged only if all values are finite; PEFT then unwraps the modules_to_save."""
        names = list(adapter_names or self.active_adapters)
        if merge and len(names) != 1:
            raise UsageError(f"{len(names)} adapters to merge", where="superlora in PEFT", hint="adapter_names=[one]")
        detach(self.model, names[0] if merge else None, merge=merge)
        delattr(self.model, LAYER)
        plain: nn.Module = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, names)
        return plain

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> NoReturn:
        """PEFT's hook for single layers; `inject_adapter` replaces it."""
        raise NotImplementedError("superlora adapts all target layers at once")


def _patterns(wanted: Iterable[str] | str | None, known: Iterable[str]) -> list[str]:
    """Target patterns from PEFT's `target_modules`: a word is a suffix of module names, all else is as in a recipe.

    >>> _patterns(["q", "v_proj", "*.qkv[v]"], ["layers.0.v_proj"]), _patterns(r".*\\.v_proj", [])
    (['q', 're:(.*\\\\.)?v_proj', '*.qkv[v]'], ['re:.*\\\\.v_proj'])
    """
    if not wanted:
        raise UsageError("no target", where="target_modules", hint='e.g. ["q_proj", "v_proj"], or ["q", "v"]')
    if isinstance(wanted, str):
        return [wanted if wanted in SHORT_NAMES or wanted.startswith("re:") else f"re:{wanted}"]
    known = list(known)
    patterns: list[str] = []
    for name in wanted:
        ends = any(f".{one}".endswith(f".{name}") for one in known)
        verbatim = name.startswith("re:") or any(sign in name for sign in "*?[") or (name in SHORT_NAMES and not ends)
        patterns.append(name if verbatim else rf"re:(.*\.)?{re.escape(name)}")
    return patterns


register_peft_method(name=NAME, config_cls=SuperLoraConfig, model_cls=SuperLoraModel)
