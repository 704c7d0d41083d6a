"""Recipes and overrides that hypothesis thinks up: read as they are meant, or refused with line and key."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.faults.material import Material
from tests.faults.trials import Trial, complaint, contents, outcome

FILE = "bad.yaml"
GOOD = """\
task: classification
seed: 0
model: {name: glyphs_vit, pretrained: true, head: frozen}
data: {name: digits, validation: 0.1}
adapter: {method: lorta, targets: [q, v], order: 3, rank: 2, groups: 1}
train:
  steps: 5
  batch_size: 16
  optimizer: {name: AdamW, lr: 0.1}
  scheduler: {name: OneCycleLR, pct_start: 0.1}
eval: {every: 5}
output: {dir: out, trackers: [jsonl]}
"""
LINES = GOOD.splitlines()
KEYS = [
    *("task", "seed", "model", "model.name", "model.head", "model.kwargs", "model.checkpoint", "data", "data.name"),
    *("data.validation", "data.image_size", "data.workers", "adapter", "adapter.method", "adapter.targets"),
    *("adapter.order", "adapter.rank", "adapter.groups", "adapter.splits", "adapter.split_dim", "adapter.align"),
    *("adapter.terms", "adapter.ratio", "adapter.projection", "adapter.alpha", "adapter.inner", "adapter.seed"),
    *("train", "train.steps", "train.batch_size", "train.optimizer", "train.optimizer.lr", "train.scheduler"),
    *("train.scheduler.pct_start", "train.checkpoint_at", "train.threads", "eval", "output", "output.dir"),
]

ODD = (
    *(0, -1, 1, 2, 5, 40, 10**6, 10**9, 10**18, 10**40, 0.5, 1e308, 1e-320, "", "full", "weight", "layer"),
    *("../../etc/passwd", "/dev/zero", "\x1b[2J", "re:(a+)+$", "q[0:99999999999]", "local-dir:/etc"),
)
TAGS = (
    *("!!python/object/apply:os.system ['touch hacked']", "!!python/object/new:os.system ['touch hacked']"),
    *("!!python/name:os.system ''", "!!python/module:os ''", "!include /etc/passwd", "!!binary aGFja2Vk", "!!set {a}"),
    *("!!int x", "!<tag:yaml.org,2002:float> 1", "!!timestamp 2001-01-01", "!!omap [a: 1]", "! x"),
)

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(ODD))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _set(key: str, value: Any) -> str:
    data = yaml.safe_load(GOOD)
    here = data
    *above, last = key.split(".")
    for part in above:
        here = here[part]
    here[last] = value
    return str(yaml.safe_dump(data, allow_unicode=True))


def _insert(at: int, text: str) -> str:
    return GOOD[:at] + text + GOOD[at:]


def _bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels))]
    return "\n".join(lines) + "\n" + GOOD


lengths = st.sampled_from([1, 10, 63, 64, 65, 1000, 50_000])
texts = {
    "values": st.builds(_set, st.sampled_from(KEYS), values),
    "text in between": st.builds(_insert, st.integers(0, len(GOOD)), st.text(min_size=1, max_size=12)),
    "nested lists": st.builds(lambda n, key: f"{GOOD}{key}: {'[' * n}{']' * n}\n", lengths, st.sampled_from("xy")),
    "nested mappings": st.builds(lambda n: GOOD + "x: " + "{a: " * n + "}" * n + "\n", lengths),
    "aliases": st.builds(_bomb, st.integers(1, 40), st.integers(1, 12)),
    "aliases of themselves": st.sampled_from(["x: &a [*a]\n" + GOOD, "x: &a {b: *a}\n" + GOOD, "<<: *a\n" + GOOD]),
    "huge numbers": st.builds(
        lambda n, key: _set(key, 7).replace(": 7", f": {'9' * n}"), lengths, st.sampled_from(KEYS[1:2] + KEYS[15:21])
    ),
    "no numbers": st.builds(
        lambda text, key: _set(key, 7777).replace("7777", text),
        st.sampled_from([".nan", ".inf", "-.inf", "1e999", "0x10", "0o7", "1_000", "1:30", "+", "~", "off", "NaN"]),
        st.sampled_from(KEYS),
    ),
    "keys twice": st.builds(lambda n, m: "\n".join([*LINES[:n], LINES[m], *LINES[n:], ""]),
                            st.integers(0, len(LINES)), st.integers(0, len(LINES) - 1)),
    "tags": st.builds(
        lambda tag, key: _set(key, 7777).replace("7777", tag),
        st.sampled_from(TAGS),
        st.sampled_from(KEYS),
    ),
    "bytes": st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")) | st.text(max_size=200),
}  # fmt: skip
cases = st.one_of(*(st.tuples(st.just(kind), strategy) for kind, strategy in texts.items()))
overrides = st.builds(
    lambda key, value: f"{key}={value}",
    st.sampled_from(KEYS) | st.text(max_size=12),
    values.map(lambda value: yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip())
    | st.text(max_size=20),
).map(lambda text: text.replace("\0", "").lstrip("-"))


def recipes(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """Files of YAML, validated, and every fourth counted as well."""
    yield from _each(material, cases, draw, rounds)


def on_the_command_line(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """KEY=VALUE on a good recipe."""
    yield from _each(material, st.tuples(st.just("overrides"), overrides), draw, rounds)


def _each(material: Material, strategy: st.SearchStrategy[Any], draw: random.Random, rounds: int) -> list[Trial]:
    found: list[Trial] = []

    @seed(draw.randrange(2**32))
    @settings(max_examples=rounds, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def attempt(case: tuple[str, str]) -> None:
        kind, text = case
        override = [text] if kind == "overrides" else []
        found.append(_tried(material, kind, GOOD if override else text, override, dry_run=len(found) % 4 == 3))

    attempt()
    return found


def _tried(material: Material, kind: str, text: str, override: list[str], *, dry_run: bool) -> Trial:
    with material.folder() as place:
        content = text.encode(errors="surrogatepass")
        (place / FILE).write_bytes(content)
        words = ("train", FILE, *override, "--dry-run") if dry_run or override else ("validate", FILE)
        done = material.commands.run(*words, cwd=place, limit=30)
        fault = complaint(done, lines=None)
        if fault is None and done.code not in (0, 2):
            fault = f"exit code {done.code}: {done.err[-300:]}"
        if fault is None and done.code == 2 and words[0] == "validate" and f"{FILE}:" not in done.err:
            fault = f"does not say where: {done.err[-300:]}"
        if fault is None and contents(place) != {FILE: content}:
            fault = f"writes {', '.join(contents(place))}"
    return Trial("recipes", kind, outcome(done), fault and f"{words} {text[:200]!r}: {fault}")
