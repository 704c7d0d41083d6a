"""Folders that are no pipeline, or a damaged one, and damaged caches of what a pipeline has computed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.faults.checkpoints import Malicious
from tests.faults.material import PIPELINE, TRAIN_TEXT, Material
from tests.faults.spoiling import BYTES
from tests.faults.trials import Trial, complaint, outcome

COMMANDS = (
    (*TRAIN_TEXT, f"model.name=diffusers:{PIPELINE}", "train.steps=1"),
    ("generate", "trained", "--prompt", "a cat", "--steps", "1", "--out", "out"),
    ("merge", "trained", "--out", "out"),
    ("eval", "trained"),
)
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
OTHERS = (None, 7, [], {}, "", "x", -1, 10**30, 0.5, True, [None, None], ["diffusers"], ["os", "system"],
          ["evil", "Evil"], ["diffusers", "NoSuchModel"], ["transformers", "CLIPTextModel"], "\x1b[2J")  # fmt: skip
CLASSES = (
    "KandinskyPipeline",
    "DiffusionPipeline",
    "StableDiffusionXLPipeline",
    "FluxPipeline",
    "StableDiffusion3Pipeline",
    "\x1b[2J",
)


def damaged(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """A pipeline is another one than it should be, each kind in turn, for each command in turn."""
    for turn in range(rounds):
        kind = list(KINDS)[turn % len(KINDS)]
        words = COMMANDS[turn // len(KINDS) % len(COMMANDS)]
        with material.folder() as place:
            material.pictures(place)
            shutil.copytree(material.on_a_pipeline / PIPELINE, place / PIPELINE)
            shutil.copytree(material.on_a_pipeline / "run", place / "trained")
            said = KINDS[kind](place / PIPELINE, draw)
            done = material.commands.run(*words, cwd=place)
            fault = complaint(done)
            if (place / "hacked").exists():
                fault = "code of the pipeline was run"
            elif fault is None and done.code not in (0, 1, 2, 3):
                fault = f"exit code {done.code}: {done.err[-300:]}"
            elif fault is None and done.code and [name for name in ("run", "out") if (place / name).exists()]:
                fault = "refused, and leaves a folder"
        yield Trial("pipelines", kind, outcome(done), fault and f"{words[0]}, {said}: {fault}")


def caches(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """What a pipeline computed is damaged on the disk: it is computed again, with the same result."""
    right = (material.on_a_pipeline / "run" / "adapter.safetensors").read_bytes()
    kinds: dict[str, Callable[[Path, random.Random], object]] = {
        **{kind: _spoiled(spoil) for kind, spoil in BYTES.items()},
        "another's content": _exchanged,
        "a folder": _folder,
        "all gone": lambda file, draw: shutil.rmtree(file.parent),
    }
    for turn in range(rounds):
        kind = list(kinds)[turn % len(kinds)]
        with material.folder() as place:
            shutil.copytree(material.on_a_pipeline, place, dirs_exist_ok=True)
            shutil.rmtree(place / "run")
            kinds[kind](draw.choice(sorted((place / "cache").rglob("*.safetensors"))), draw)
            env = {"XDG_CACHE_HOME": str(place / "cache")}
            done = material.commands.start(*material.on_a_pipeline_words, cwd=place, env=env).done
            fault, refused = complaint(done), kind == "a folder" and done.code == 2  # nothing is removed unasked
            if fault is None and done.code and not refused:
                fault = f"exit code {done.code}: {done.err[-300:]}"
            if fault is None and not refused and (place / "run" / "adapter.safetensors").read_bytes() != right:
                fault = "ends differently"
        yield Trial("caches", kind, outcome(done) if done.code else "computed again: the same result", fault)


def _spoiled(spoil: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], object]:
    return lambda file, draw: file.write_bytes(spoil(file.read_bytes(), draw))


def _exchanged(file: Path, draw: random.Random) -> None:
    file.write_bytes(draw.choice(sorted(file.parent.glob("*.safetensors"))).read_bytes())


def _folder(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _no_pipeline(folder: Path, draw: random.Random) -> str:
    shutil.rmtree(folder)
    make = draw.choice(("nothing", "a file", "an empty folder", "images", "a model"))
    if make == "a file":
        folder.write_text("a text")
    elif make != "nothing":
        folder.mkdir()
    if make == "images":
        (folder / "a.png").write_bytes(b"")
    elif make == "a model":
        (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    return make


def _another_class(folder: Path, draw: random.Random) -> str:
    name = draw.choice(CLASSES)
    _change(folder / "model_index.json", lambda index: index.update(_class_name=name))
    return name


def _index(folder: Path, draw: random.Random) -> str:
    """An entry of the index is of another type, or names another class; a module beside it is never imported."""
    (folder / "evil.py").write_text("import os\nos.system('touch hacked')\nclass Evil: pass\n")
    (folder / "unet" / "evil.py").write_text("import os\nos.system('touch hacked')\nclass Evil: pass\n")
    key, value = draw.choice(("_class_name", "_diffusers_version", *PARTS)), draw.choice(OTHERS)
    _change(folder / "model_index.json", lambda index: index.update({key: value}))
    return f"{key} = {value!r}"


def _part_gone(folder: Path, draw: random.Random) -> str:
    part = draw.choice(PARTS)
    shutil.rmtree(folder / part)
    if draw.random() < 0.5:
        _change(folder / "model_index.json", lambda index: index.pop(part))
        part += ", not in the index either"
    return part


def _file_gone(folder: Path, draw: random.Random) -> str:
    file = _file(folder, draw)
    file.unlink()
    return file.name


def _configured(folder: Path, draw: random.Random) -> str:
    """A part's configuration has an entry of another type."""
    file = draw.choice(sorted(folder.glob("*/*config.json")))
    found: list[str] = []

    def change(config: dict[str, Any]) -> None:
        key, value = draw.choice(sorted(config)), draw.choice(OTHERS)
        config[key] = value
        found.append(f"{file.parent.name}: {key} = {value!r}")

    _change(file, change)
    return found[0]


def _weights(folder: Path, draw: random.Random) -> str:
    file = draw.choice(sorted(folder.rglob("*.safetensors")))
    kind = draw.choice(list(BYTES))
    file.write_bytes(BYTES[kind](file.read_bytes(), draw))
    return f"{file.parent.name}: {kind}"


def _pickles(folder: Path, draw: random.Random) -> str:
    """Weights as a pickle, which may hold code."""
    file = draw.choice(sorted(folder.rglob("*.safetensors")))
    file.unlink()
    name = "pytorch_model.bin" if file.name == "model.safetensors" else "diffusion_pytorch_model.bin"
    torch.save({"a": Malicious()}, file.with_name(name))
    return file.parent.name


def _bytes(folder: Path, draw: random.Random) -> str:
    """Any file is cut, or has other bits."""
    file = _file(folder, draw)
    content = bytearray(file.read_bytes())
    for _ in range(draw.randrange(1, 10)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content[: draw.randrange(len(content))] if draw.random() < 0.5 else content)
    return f"{file.parent.name}/{file.name}"


def _file(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))


def _change(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


KINDS: dict[str, Callable[[Path, random.Random], str]] = {
    "no pipeline": _no_pipeline,
    "of another class": _another_class,
    "an odd index": _index,
    "a part is gone": _part_gone,
    "a file is gone": _file_gone,
    "an odd configuration": _configured,
    "damaged weights": _weights,
    "weights with code in a pickle": _pickles,
    "any file damaged": _bytes,
}
