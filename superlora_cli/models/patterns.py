"""Expand target patterns to rows of weights, in model order, from the weights' names and shapes only: no torch.

A pattern is a glob over module names or, after `re:`, a regular expression that matches the whole name. It may end in
a slice of a fused weight: `blocks.*.attn.qkv[q]`, `[v]`, `[0:768]`. The short names `q k v o mlp all-linear` stand for
the corresponding weights of the architecture.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from superlora_cli.adapter.targets import Target
from superlora_cli.errors import UsageError, did_you_mean

SHORT_NAMES = ("q", "k", "v", "o", "mlp", "all-linear")
CONVOLUTIONS = "*conv*"  # as most models name them

FUSED = {"qkv": "qkv", "kv": "kv", "qk": "qk",  # last part of the module's name → what its rows hold, in equal parts
         "c_attn": "qkv", "query_key_value": "qkv", "qkv_proj": "qkv", "Wqkv": "qkv"}  # fmt: skip
WITH_MLP = "to_qkv_mlp_proj"  # of FLUX.2: q, k and v, each as many rows as there are columns, and then the MLP's
SEPARATE = {  # names of the separate projections in timm, transformers and diffusers
    "q": ("q", "q_proj", "query", "query_proj", "q_lin", "to_q", "add_q_proj"),  # `add_…`: of the text, beside images
    "k": ("k", "k_proj", "key", "key_proj", "k_lin", "to_k", "add_k_proj"),
    "v": ("v", "v_proj", "value", "value_proj", "v_lin", "to_v", "add_v_proj"),
    "o": ("o", "proj", "o_proj", "out_proj", "out_lin", "to_out.0", "to_out", "output.dense", "to_add_out", "dense",
          "c_proj"),
}  # fmt: skip
AROUND = re.compile(r"(\.(proj|linear|conv|c))+$")  # own names in a layer of several, with a norm or bounds: `q.conv`
ATTENTION = re.compile(r"(^|[._])(attn|attention|self_attn|self_attention|attn\d|cross_attn|\w+Attention)([._]|$)")
MLP = re.compile(
    r"(^|(?<!t_embedder)\.)(mlp|ffn|ff|ff_context|proj_mlp|img_mlp|txt_mlp|feed_forward|intermediate|DenseReluDense)(\.|$)"
)
BESIDE_ATTENTION = (  # both layers of an MLP that are in the block itself: OPT, BERT, ALBERT
    ("fc1", "fc2"),
    ("intermediate.dense", "output.dense"),
    ("ffn", "ffn_output"),
)
CLASSIFIERS = ("head", "fc", "classifier", "score", "lm_head", "head.fc", "head_dist")
IN_CLASSIFIER = re.compile(r"^(classifier|classification_head|score)\.")  # transformers' heads of several layers
SLICE = re.compile(r"^(?P<name>.*)\[(?P<slice>[qkv]|\d+:\d+)\]$")


Rows = tuple[tuple[str, int, int], ...]  # which of q, k and v, its first row, and the row after its last


class Weight(NamedTuple):
    """A linear or convolutional weight: its shape (out, in) or (out, in, kh, kw), and whether its rows are mixed.

    `mixed` is the class of an attention layer in which q, k and v are not equal blocks of rows; `classifies` says that
    it is the model's classifier, if more than its name is known; `rows` says where q, k and v are, if they are not
    three equal blocks.
    """

    shape: tuple[int, ...]
    mixed: str = ""
    classifies: bool = False
    rows: Rows = ()


def expand(
    weights: Mapping[str, Weight], patterns: Iterable[str], *, without: Collection[str] = (), earlier: bool = False
) -> list[Target]:
    """The rows that `patterns` match, without repetition, in the order of `weights` and by row within a weight.

    Args:
        without: parameters, such as a head's, that short names leave out.
        earlier: short names as earlier versions meant them, for their files, even if they match nothing: `mlp` without
            what is beside attention, `all-linear` with what is in a head of several layers.

    Raises:
        UsageError: a pattern matches nothing (the message names it and the most similar names), or its slice is not a
            contiguous block of rows.
    """
    found: set[Target] = set()
    others = {name: weight for name, weight in weights.items() if f"{name}.weight" not in without}
    for pattern in patterns:
        matched = _short(pattern, others, earlier=earlier) if pattern in SHORT_NAMES else _pattern(pattern, weights)
        if not (matched or earlier):
            raise UsageError(
                f"target '{pattern}' matches no weight of the model",
                where="adapter.targets",
                hint=_fitting(pattern, weights) or _nearest(pattern, list(weights)),
            )
        found.update(matched)
    order = {name: index for index, name in enumerate(weights)}
    return sorted(found, key=lambda rows: (order[rows.module], rows.start))


def _slice(name: str, weight: Weight, start: int = 0, stop: int | None = None) -> Target:
    total = weight.shape[0]
    stop = total if stop is None else stop
    return Target(name, start, stop, (stop - start, *weight.shape[1:]), (start, stop) == (0, total))


def _short(word: str, weights: Mapping[str, Weight], *, earlier: bool) -> list[Target]:
    if word == "all-linear":
        linear = {name: weight for name, weight in weights.items() if len(weight.shape) == 2 and not weight.classifies}
        heads = {name for name in linear if name in CLASSIFIERS or (IN_CLASSIFIER.match(name) and not earlier)}
        return [_slice(name, weight) for name, weight in linear.items() if name not in heads]
    if word == "mlp":
        beside = set() if earlier else _beside_attention(weights)
        own = [_slice(name, weight) for name, weight in weights.items() if MLP.search(name) or name in beside]
        return own + [_slice(name, of, 3 * of.shape[1]) for name, of in weights.items() if _has_mlp(name)]
    matched = []
    for name, weight in weights.items():
        if word in _fused(name):
            matched += _part(name, weight, word)
        elif _role(name) == word:
            matched.append(_slice(name, weight))
    return matched


def _beside_attention(names: Collection[str]) -> set[str]:
    """The layers of MLPs that stand in their blocks without a name of their own.

    >>> sorted(_beside_attention(["0.self_attn.q_proj", "0.fc1", "0.fc2", "se.fc1", "se.fc2"]))
    ['0.fc1', '0.fc2']
    """
    blocks = {name[: found.start()] for name in names if (found := ATTENTION.search(name))}
    pairs = [{f"{block}.{layer}" for layer in pair} for block in blocks for pair in BESIDE_ATTENTION]
    return {name for pair in pairs if pair.issubset(names) for name in pair}


def _role(name: str) -> str | None:
    """Which of q, k, v, o a separate projection is: `attn.query.proj` is q although it also ends in `proj`."""
    for role, endings in SEPARATE.items():
        for own in (name, AROUND.sub("", name)):
            if any(own == ending or own.endswith(f".{ending}") for ending in endings):
                return role if role != "o" or ATTENTION.search(name) else None
    return None


def _fused(name: str) -> str:
    """Which of q, k and v the rows of a weight begin with, in equal parts; empty if its name says nothing of them."""
    return "qkv" if _has_mlp(name) else FUSED.get(AROUND.sub("", name).rpartition(".")[2], "")


def _has_mlp(name: str) -> bool:
    """Whether the rows of a weight are q, k, v and the first layer of an MLP."""
    return name.rpartition(".")[2] == WITH_MLP


def _pattern(pattern: str, weights: Mapping[str, Weight]) -> list[Target]:
    sliced = SLICE.match(pattern)
    name_pattern = (sliced["name"] if sliced else pattern).removesuffix(".weight")
    if name_pattern.startswith("re:"):
        try:
            expression = re.compile(name_pattern[3:])
        except re.error as error:
            message = f"'{name_pattern}' is not a regular expression: {error}"
            raise UsageError(message, where="adapter.targets") from None
        names = [name for name in weights if expression.fullmatch(name)]
    else:
        names = [name for name in weights if fnmatchcase(name, name_pattern)]
    if not sliced:
        return [_slice(name, weights[name]) for name in names]
    return [target for name in names for target in _part(name, weights[name], sliced["slice"])]


def _part(name: str, weight: Weight, part: str) -> list[Target]:
    """The rows of a fused weight: `q` is rows 0..767 of a (2304, 768) `qkv`, `v` rows 1536..2303; or some of every
    head."""
    total = weight.shape[0]
    if ":" in part:
        start, stop = map(int, part.split(":"))
        if not start < stop <= total:
            raise UsageError(f"[{part}] is not a range of its {total} rows", where=f"adapter.targets: {name}")
        return [_slice(name, weight, start, stop)]
    if weight.rows:
        return [_slice(name, weight, start, stop) for own, start, stop in weight.rows if own == part]
    if weight.mixed:
        whole = re.sub(r"\.\d+(?=\.)", ".*", name)
        problem = f"{weight.mixed} does not keep q, k and v as equal blocks"
        raise UsageError(
            f"the rows of '{part}' in {name} are not contiguous: {problem}",
            where="adapter.targets",
            hint=f"adapt the whole weight: '{whole}'",
        )
    parts = _fused(name) or "qkv"
    if _has_mlp(name):
        total = len(parts) * weight.shape[1]
    if part not in parts or total % len(parts):
        hint = f"give rows as [start:stop] out of {total}"
        raise UsageError(f"cannot find the rows of '{part}' in {name}", where="adapter.targets", hint=hint)
    size = total // len(parts)
    start = parts.index(part) * size
    return [_slice(name, weight, start, start + size)]


def _fitting(pattern: str, weights: Mapping[str, Weight]) -> str | None:
    """Patterns that do match, in place of a short name; None if it is none, or nothing does."""
    if pattern not in SHORT_NAMES:
        return None
    found = [word for word in ("o", "mlp", "all-linear") if _short(word, weights, earlier=False)]
    found += [CONVOLUTIONS] if _pattern(CONVOLUTIONS, weights) else []
    return f"try {', '.join(found)}" if found else None


def _nearest(pattern: str, names: Sequence[str]) -> str:
    if pattern in SHORT_NAMES:
        return f"name the weights; the first are {', '.join(names[:2])}" if names else "it has no linear layers"
    if pattern.isalpha() and len(pattern) <= 3:
        return "short names are " + ", ".join(SHORT_NAMES)
    sliced = SLICE.match(pattern)
    wanted = (sliced["name"] if sliced else pattern).removesuffix(".weight")
    near = difflib.get_close_matches(wanted, names, n=2, cutoff=0.3) or list(names[:2])
    return did_you_mean(pattern, SHORT_NAMES) or "the nearest names are " + ", ".join(near)
