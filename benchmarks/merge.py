"""Merging a large checkpoint in shards: time against a copy, memory against ΔW of one group, and PEFT for both.

    python benchmarks/merge.py                        # 1.4 GB in bfloat16, three rounds
    python benchmarks/merge.py --layers 4 --rounds 1  # quickly
    python benchmarks/merge.py --knobs '{"order": 3, "rank": 4, "groups": 24}'

The checkpoint is Llama-shaped, the adapter is on q, k, v and o of every layer. In every round each of these is a
process of its own, in a new order:

cp      `cp -r` of the shards, then `sync` of the copies
whole   `superlora merge --no-verify`, the whole process with Python's start and all imports
part    the same merge in a process that has imported everything, from the call to its return; and how far the resident
        memory rose above what it was before the call
peft    PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(...) of a LoRA of rank 8 on the same weights
        (where peft and transformers are installed), measured like `part`, loading the base included

Goals: part ≤ 2 × cp, and memory ≤ the largest group's ΔW in float32 + 300 MB. CPU seconds, user and system, depend less
on what else the machine does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timing import Criterion, Spread

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.initial import initial
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.store import BaseDigest, StoredAdapter, digest_targets
from superlora_cli.adapter.targets import Target

ROLES, WIDTH, INNER, WORDS, SHARDS = ("q", "k", "v", "o"), 2048, 5632, 32_000, 4
RANK = 8  # of PEFT's LoRA
MB = 1e6


def prepare(folder: Path, layers: int, dtype: torch.dtype, config: AdapterConfig) -> Plan:
    """base/ (shards and index), adapter.safetensors and peft/ in `folder`; the plan of the adapter."""
    targets = [
        Target(f"model.layers.{layer}.self_attn.{role}_proj", 0, WIDTH, (WIDTH, WIDTH), True)
        for layer in range(layers)
        for role in ROLES
    ]
    digest = _checkpoint(folder / "base", layers, dtype)
    layout = plan(config, [target.flat for target in targets])
    factors = {name: tensor.normal_(std=0.02) for name, tensor in initial(layout).items()}
    sha256, stored = digest
    about = {"name": "synthetic", "sha256": sha256, "dtype": stored}
    StoredAdapter(config, ROLES, digest_targets(targets), about, {}, {}, factors).save(
        folder / "adapter.safetensors", force=True
    )
    (folder / "peft").mkdir()
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK,
            "target_modules": [f"{role}_proj" for role in ROLES]}  # fmt: skip
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(lora))
    pairs = {
        f"base_model.model.{target.module}.lora_{which}.weight": torch.randn(shape) * 0.02
        for target in targets
        for which, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK)))
    }
    save_file(pairs, folder / "peft" / "adapter_model.safetensors")
    return layout


def _checkpoint(folder: Path, layers: int, dtype: torch.dtype) -> tuple[str, str]:
    """A Llama of random weights in shards; the digest of its attention weights."""
    folder.mkdir()
    shapes = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    digest, places, shards = BaseDigest(), {}, [[] for _ in range(SHARDS)]  # type: ignore[var-annotated]
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{kind}_layernorm.weight": (WIDTH,) for kind in ("input", "post_attention")}
        shapes |= {f"{block}.self_attn.{role}_proj.weight": (WIDTH, WIDTH) for role in ROLES}
        shapes |= {f"{block}.mlp.{kind}_proj.weight": (INNER, WIDTH) for kind in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (WIDTH, INNER)
    for index, name in enumerate(shapes):
        shards[index * SHARDS // len(shapes)].append(name)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        tensors = {name: torch.empty(shapes[name]).normal_(std=0.02).to(dtype) for name in names}
        for name in (name for name in names if "self_attn" in name):
            module = name.removesuffix(".weight")
            digest.add(Target(module, 0, WIDTH, (WIDTH, WIDTH), True), 0, tensors[name])
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    about = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "vocab_size": WORDS,
             "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16,
             "num_key_value_heads": 16, "tie_word_embeddings": True, "dtype": str(dtype)[6:]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about))
    return digest.found


def measured(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call, and the increase of resident memory in bytes, sampled every 2 ms."""
    idle, done, peak = resident(), threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, worked = time.perf_counter(), time.process_time()
    call()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    done.set()
    watcher.join()
    return {"seconds": seconds, "cpu": worked, "rise": max(peak, resident()) - idle, "idle": idle}


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def part(folder: Path, out: Path) -> dict[str, float]:
    """Our merge in this process."""
    from superlora_cli.commands.merge import merge

    return measured(lambda: merge(folder / "adapter.safetensors", out, base=folder / "base", verify=False))


def peft(folder: Path, out: Path) -> dict[str, float]:
    """PEFT's merge in this process."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def run() -> None:
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
        merged = PeftModel.from_pretrained(base, folder / "peft").merge_and_unload()
        merged.save_pretrained(out, max_shard_size="400MB")
        subprocess.run(["sync", *map(str, out.iterdir())], check=True)

    return measured(run)


PARTS = {"part": part, "peft": peft}


def once(name: str, folder: Path) -> dict[str, float]:
    """One process of a kind: its total seconds, and its own measurements."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    merge = ["merge", str(folder / "adapter.safetensors"), "--base", str(folder / "base"), "--out", str(out)]
    command = {
        "cp": ["sh", "-c", f"cp -r '{folder}/base' '{out}' && sync '{out}'/*"],
        "whole": [sys.executable, "-m", "superlora_cli", *merge, "--no-verify", "--json"],
    }.get(name, [sys.executable, __file__, "--child", name, "--folder", str(folder)])
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    own = json.loads(done.stdout.splitlines()[-1]) if name in PARTS else {"seconds": seconds, "cpu": worked}
    return {**own, "process": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="blocks of the model (default 12: 1.4 GB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--knobs", default='{"order": 3, "rank": 4}', help="the adapter's, as JSON")
    parser.add_argument("--folder", type=Path, help="where the files go; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="everything measured, as JSON")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(PARTS[given.child](given.folder, given.folder / "out")))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        config = AdapterConfig.from_knobs(None, **json.loads(given.knobs))
        layout = prepare(folder, given.layers, getattr(torch, given.dtype), config)
        size = sum(file.stat().st_size for file in (folder / "base").iterdir())
        kinds = ["cp", "whole", "part"]
        if importlib.util.find_spec("peft") and importlib.util.find_spec("transformers"):
            kinds.append("peft")
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        shuffled = random.Random(0)
        for round_ in range(given.rounds + 1):  # the first warms the caches and does not count
            for kind in shuffled.sample(kinds, len(kinds)):
                found = once(kind, folder)
                if round_:
                    runs[kind].append(found)
    report(given, layout, size, runs)


def report(given: argparse.Namespace, layout: Plan, size: int, runs: dict[str, list[dict[str, float]]]) -> None:
    """The table and the goals."""
    largest = max(bucket.shape.n_out for bucket in layout.buckets) * 4
    copy = [run["seconds"] for run in runs["cp"]]
    ratios = {
        kind: Spread.of([run["seconds"] / base for run, base in zip(runs[kind], copy, strict=True)]) for kind in runs
    }
    rise = {kind: Spread.of([run["rise"] / MB for run in runs[kind]]) for kind in runs if "rise" in runs[kind][0]}
    goals = [
        Criterion("part ÷ cp and sync", 2.0, ratios["part"]),
        Criterion(f"MB above idle, of the largest ΔW {largest / MB:,.0f} + 300", largest / MB + 300, rise["part"]),
    ]
    if given.json:
        figures: dict[str, Any] = {"bytes": size, "elements": layout.elements, "params": layout.params}
        print(json.dumps({**figures, "runs": runs, "goals": [goal.figures() for goal in goals]}))
        return
    adapted = f"{layout.elements / 1e6:.0f} M elements adapted by {layout.params:,} parameters"
    print(f"{size / 1e9:.2f} GB, {given.dtype}, {adapted}, {torch.get_num_threads()} thread(s)")
    print(
        "| | seconds | whole process, s | ÷ cp and sync | CPU seconds | MB above idle |\n|---|---:|---:|---:|---:|---:|"
    )
    for kind, own in runs.items():
        seconds, process, cpu = (Spread.of([run[key] for run in own]) for key in ("seconds", "process", "cpu"))
        memory = f"{rise[kind].median:,.0f}" if kind in rise else ""
        over = f"{ratios[kind].median:.2f} ({ratios[kind].low:.2f}–{ratios[kind].high:.2f})"
        print(f"| {kind} | {seconds.median:.2f} | {process.median:.2f} | {over} | {cpu.median:.2f} | {memory} |")
    for goal in goals:
        print(goal)


if __name__ == "__main__":
    main()
