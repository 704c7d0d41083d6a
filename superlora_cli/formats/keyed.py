"""A file with a key for every module: for ComfyUI, A1111, Forge and kohya's scripts, or for LyCORIS itself.

Without limits, every update is in its own form, exact: LoRA, LoHa, LoKr or ΔW. With limits it is LoRA.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from superlora_cli.adapter.layers import by_module
from superlora_cli.adapter.updates import Form, LowRank
from superlora_cli.errors import UsageError
from superlora_cli.formats.about import about
from superlora_cli.formats.format import Options
from superlora_cli.formats.lora import as_loras, noted
from superlora_cli.formats.lycoris import DIFF, LORA, Written, written
from superlora_cli.formats.whole import weight_shape, whole_form, why_not_plain
from superlora_cli.models.families.naming import spelt
from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.opening.shapes_only import Stored
from superlora_cli.weights.small import safetensors_bytes

PREFIX = "lycoris_"  # of LyCORIS's own keys


def write_kohya(adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
    """Write a file with the keys of the base's family; see `format.Format.write`.

    Raises:
        UsageError: the base is not a text-to-image pipeline.
    """
    base = adapter.base
    if not isinstance(base, PipelineBase):
        message = f"{adapter.recipe.model.name} is not a text-to-image pipeline"
        raise UsageError(message, where="--to", hint="--to lycoris or peft-lora works for any torch module")
    naming = base.family.naming
    keys = naming.keys(base.model)
    for module in by_module(adapter.targets):
        part, name = base.place(module)
        if part in base.encoders:
            keys[module] = spelt(naming.prefixes(part)[0], name)
    done = _write(adapter, out, options, keys)
    load = "copy it to the folder models/loras"
    if _is_for_diffusers(adapter, base, done["weights"]):
        load += f", or pipeline.load_lora_weights({str(out)!r})"
    return {**done, "load": load}


def _is_for_diffusers(adapter: Stored, base: PipelineBase, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether diffusers reads a file as it is meant: LoRA of plain layers of the parts that its pipeline has LoRA for.

    Of kohya's keys for a text encoder, it misreads those of one without `out_proj`, or with several ranks.
    """
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["form"] != LORA or why_not_plain(adapter.modules[row["name"]]):
            return False
        parts.setdefault(base.place(row["name"])[0], []).append(row)
    return parts.keys() <= {*base.loras} and all(
        any(row["name"].endswith("out_proj") for row in own) and len({row["rank"] for row in own}) == 1
        for part, own in parts.items()
        if part in base.encoders and not base.family.naming.prefixes(part)[0].endswith(".")
    )


def write_lycoris(adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
    """Write a file with LyCORIS's own keys, for any model; see `format.Format.write`."""
    keys = {name: PREFIX + name.replace(".", "_") for name in adapter.modules}
    done = _write(adapter, out, options, keys)
    return {**done, "load": f"lycoris.create_lycoris_from_weights(1.0, {str(out)!r}, model)[0].merge_to()"}


def _write(adapter: Stored, out: Path, options: Options, keys: Mapping[str, str]) -> dict[str, Any]:
    errors: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    if options.rank is None and options.energy is None:
        forms, error = _own(adapter), 0.0
    else:
        found = as_loras(adapter, options)
        errors, error, notes = found.errors, found.error, found.notes
        forms = {name: LowRank(lora.b.flatten(1), lora.a.flatten(1)) for name, lora in found.made.items()}
    shapes = {name: weight_shape(adapter.modules[name]) for name in forms}
    parts = {name: written(form, shapes[name], keys[name]) for name, form in forms.items()}
    tensors = {f"{keys[name]}.{own}": t for name, part in parts.items() for own, t in part.tensors.items()}
    metadata = {"format": "pt", **about(adapter, out.stem, _network(list(parts.values())))}
    if errors:
        metadata["superlora.errors"] = json.dumps(errors, sort_keys=True)
    content = safetensors_bytes(tensors, metadata)
    options.put(out, content)
    rows = []
    for name, part in parts.items():
        rank = {} if part.rank is None else {"rank": part.rank}
        rows.append({"name": name, "form": part.kind, **rank, "error": errors.get(name, 0.0)})
    sizes = {"bytes": len(content), "adapter_bytes": adapter.path.stat().st_size}
    return {**sizes, "weights": rows, "error": error, **noted(notes)}


def _own(adapter: Stored) -> dict[str, Form]:
    """Module → the update of its whole weight, in its own form."""
    forms, found = adapter.forms(), {}
    for name, indices in by_module(adapter.targets).items():
        own = [adapter.targets[index] for index in indices]
        found[name] = whole_form(own, [forms[index] for index in indices], weight_shape(adapter.modules[name]))
    return found


def _network(parts: Sequence[Written]) -> dict[str, str]:
    """What trainers write about the kind of adapter: alpha is the rank everywhere."""
    kinds = {part.kind for part in parts}
    ranks = Counter(part.rank for part in parts if part.rank is not None)
    rank = str(ranks.most_common(1)[0][0]) if ranks else "1"
    said = {"ss_network_dim": rank, "ss_network_alpha": f"{rank}.0"}
    if kinds == {LORA}:
        return {**said, "ss_network_module": "networks.lora"}
    algo = {DIFF: "full"}.get(kind := min(kinds - {LORA}), kind)
    return {**said, "ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": algo})}
