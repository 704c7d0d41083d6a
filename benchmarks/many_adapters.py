"""Images per second when every image has one of many adapters: `python benchmarks/many_adapters.py`.

The base is glyphs_vit on one thread, the adapters LoRTA 3D of 508 parameters; their files are read before the clock
starts. The images of an adapter come together, in batches of 64 at most, as `superlora eval --assign` has them. For
comparison, each adapter is attached to the model anew (100 of them at most). Fills docs/many-adapters.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pages
import torch

import superlora_cli
from superlora_cli.adapter import store
from superlora_cli.models.build import build
from superlora_cli.opening.attached import attach_stored
from superlora_cli.opening.switching import Switching
from superlora_cli.recipe.schema import ModelSection

RECORDS, PAGE = Path(__file__).parent / "records" / "many_adapters.json", pages.DOCS / "many-adapters.md"
COUNTS, IMAGES, BATCH = (1, 10, 100, 1000), 4000, 64


def base() -> torch.nn.Module:
    """The base, as shipped."""
    return build(ModelSection(name="glyphs_vit"), classes=10).model.eval()


def adapters(folder: Path, count: int) -> list[store.StoredAdapter]:
    """Stored adapters with other numbers each."""
    model, found = base(), []
    adapter = superlora_cli.attach(model, ["q", "v"], "lorta", rank=4)
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for factor in adapter.factors.values():
                factor.copy_(torch.randn(factor.shape, generator=generator))
        superlora_cli.save(model, folder / "one.safetensors")
        found.append(store.load(folder / "one.safetensors"))
    size = (folder / "one.safetensors").stat().st_size
    assert size < 4096, size
    return found


@torch.no_grad()
def rate(stored: list[store.StoredAdapter], *, anew: bool) -> float:
    """Images per second; `anew` attaches each adapter to the model again in place of switching."""
    model = base()
    switching, images = Switching(model), torch.randn(IMAGES // len(stored), 3, 16, 16)
    switching.use(stored[0], "first")
    used = stored[: 100 if anew else None]
    start = time.perf_counter()
    for number, one in enumerate(used):
        if anew:
            superlora_cli.detach(model)
            adapter = attach_stored(model, one, where="one", name=f"n{number}")
        else:
            adapter = switching.use(one, "one")
        with adapter.kept():
            for batch in images.split(BATCH):
                model(batch)
    return len(used) * len(images) / (time.perf_counter() - start)


def recompiled(stored: list[store.StoredAdapter]) -> int:
    """How many graphs torch.compile makes after the first adapter, for the others."""
    made = 0

    def counted(graph: Any, inputs: Any) -> Any:
        nonlocal made
        made += 1
        return graph

    model = base()
    switching, images = Switching(model), torch.randn(BATCH, 3, 16, 16)
    compiled = torch.compile(model, backend=counted)
    with torch.no_grad():
        for one in stored:
            switching.use(one, "one")
            compiled(images)
            if one is stored[0]:
                compiled(images)
                made = 0
    return made


def measured(rounds: int) -> dict[str, Any]:
    """All of it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stored = adapters(Path(folder), max(COUNTS))
    found: dict[str, Any] = {"rows": [], "recompiled": recompiled(stored[:5])}
    for count in COUNTS:
        switched, attached = ([rate(stored[:count], anew=anew) for _ in range(rounds)] for anew in (False, True))
        found["rows"].append(
            {"adapters": count, "switched": statistics.median(switched), "attached": statistics.median(attached)}
        )
    return found


def places() -> pages.Places:
    """The table of docs/many-adapters.md."""
    found = json.loads(RECORDS.read_text(encoding="utf-8"))
    one = found["rows"][0]["switched"]
    lines = [
        "`python benchmarks/many_adapters.py`: images per second on one core, glyphs_vit, adapters of 508 parameters.",
        "",
        "| adapters | images of each | switching | as with one adapter | attaching each anew |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        count, switched, attached = row["adapters"], row["switched"], row["attached"]
        speeds = f"{switched:,.0f} | {switched / one:.2f} × | {attached:,.0f}"
        lines.append(f"| {count:,} | {IMAGES // count:,} | {speeds} |")
    lines += [
        "",
        f"`torch.compile` made {found['recompiled']} further graphs for four other adapters of the same kind.",
    ]
    return {(PAGE, "many adapters"): "\n".join(lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--fill", action="store_true", help="fill the page from what is on record")
    chosen = parser.parse_args()
    if not chosen.fill:
        RECORDS.write_text(json.dumps(measured(chosen.rounds), indent=1) + "\n", encoding="utf-8")
    pages.fill(places())
    print(*places().values(), sep="\n")


if __name__ == "__main__":
    main()
