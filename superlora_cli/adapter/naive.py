"""The paper's formulas written literally, slow and readable: references that the fast paths are tested against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from string import ascii_lowercase, ascii_uppercase

import torch
from numpy.random import RandomState
from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.from_base import FromBase
from superlora_cli.adapter.initial import initial, relative, start, start_scale
from superlora_cli.adapter.inner_config import MAPS, Inner
from superlora_cli.adapter.prng import random_state
from superlora_cli.adapter.projections import Size
from superlora_cli.adapter.quantized import scales
from superlora_cli.adapter.shapes import GroupShape, Plan, UnitShape


def unit_tensor(unit: UnitShape, tensors: Mapping[str, Tensor]) -> Tensor:
    """C ×_1 A_1 ... ×_M A_M by one einsum over an explicit core (Eq. 3): (d_1, ..., d_M)."""
    sides, ranks = ascii_lowercase[: len(unit.sides)], ascii_uppercase[: len(unit.sides)]
    planes = [tensors.get(f"A{m}", torch.eye(side, dtype=_dtype(tensors))) for m, side in enumerate(unit.sides, 1)]
    terms = [f"{side}{rank}" for side, rank in zip(sides, ranks, strict=True)]
    return torch.einsum(f"{ranks},{','.join(terms)}->{sides}", CORES[unit.core].explicit(unit, tensors), *planes)


def kronecker(left: Tensor, right: Tensor) -> Tensor:
    """⊗ of two tensors of equal order: out[i·d + j] = left[i] · right[j] along every axis."""
    out = torch.zeros([f * d for f, d in zip(left.shape, right.shape, strict=True)], dtype=left.dtype)
    for index in torch.cartesian_prod(*(torch.arange(f) for f in left.shape)).reshape(-1, left.dim()).tolist():
        block = tuple(slice(i * d, (i + 1) * d) for i, d in zip(index, right.shape, strict=True))
        out[block] = left[tuple(index)] * right
    return out


def group_vector(plan: Plan, index: int, group: int, params: Mapping[str, Tensor]) -> Tensor:
    """One group of bucket `index`: Σ over terms of ⊗ over splits, cropped, flattened: (n_in,)."""
    shape: GroupShape = plan.buckets[index].shape
    total = torch.zeros(shape.extent, dtype=_dtype(params))
    for term in range(shape.terms):
        product: Tensor | None = None
        for unit in plan.buckets[index].units:
            tensors = {part: tensor[group, term] for part, tensor in unit.of(params).items()}
            tensor = unit_tensor(unit.shape, tensors)
            if product is None:
                product = tensor
            else:
                product = product * tensor if plan.config.combine == "hadamard" else kronecker(product, tensor)
        assert product is not None
        total += product[tuple(slice(side) for side in shape.extent)]
    return total.flatten()[: shape.n_in]


def hadamard(bits: int) -> Tensor:
    """H₂^{⊗bits} by definition: (2^bits, 2^bits) float64."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(bits):
        matrix = torch.kron(matrix, two)
    return matrix


def butterfly(x: Tensor) -> Tensor:
    """The textbook fast transform along the last axis: log2 passes of sums and differences, orthonormal."""
    length, half = x.shape[-1], 1
    while half < length:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((a + b, a - b), dim=-2).flatten(-3)
        half *= 2
    return x / length**0.5


def project(config: AdapterConfig, size: Size, x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """F by an explicit matrix, (N_in,) → (N_out,), and tanhshrink if nonlinear (A.6); or x at `chosen` positions."""
    if config.projection == "identity":
        return x
    if chosen is not None:
        places = torch.eye(size.n_out, dtype=x.dtype)[chosen]
        return x @ places * ((size.n_out / size.n_in) ** 0.5 if size.rescale else 1.0)
    y = x.double() @ projection_matrix(config.projection.replace("nonlinear", "linear"), size, config.seed)
    return (y - torch.tanh(y) if config.projection.startswith("nonlinear") else y).to(x.dtype)


def projection_matrix(name: str, size: Size, seed: int, key: str = "projection") -> Tensor:
    """A linear projection as its matrix, (N_in, N_out) float64: `linear` is H' diag(G) Π H diag(B)."""

    def draw(role: str) -> RandomState:
        return random_state(seed, key, role, size.n_in, size.n_out)

    if name == "shuffle":
        return permutation(torch.from_numpy(draw("permutation").permutation(size.n_out)))
    if name == "onehot":
        chosen = torch.from_numpy(draw("permutation").permutation(size.n_out)) % size.n_in
        uses = torch.eye(size.n_in, dtype=torch.float64)[:, chosen]  # (N_in, N_out) of zeros and ones
        return uses / uses.sum(1, keepdim=True) ** 0.5 * ((size.n_out / size.n_in) ** 0.5 if size.rescale else 1.0)
    if name == "dense":
        normal = torch.from_numpy(draw("matrix").standard_normal((size.n_in, size.n_out)))
        return normal / size.n_in**0.5 if size.rescale else normal
    if name == "sparse":
        places = permutation(torch.from_numpy(draw("positions").permutation(size.n_out))).T[: size.n_in]
        return places * ((size.n_out / size.n_in) ** 0.5 if size.rescale else 1.0)
    if name in ("dft", "dct"):
        return waves(name, size, draw("frequencies"))
    full = 2**size.bits
    walsh, last = hadamard(size.bits), draw("last")
    gauss = torch.from_numpy(draw("gauss").standard_normal(full))
    order = torch.from_numpy(draw("permutation").permutation(full))
    if name.endswith("_v2"):
        ending = torch.from_numpy(last.standard_normal(size.n_out))
    else:
        ending = torch.from_numpy(last.randint(0, 2, size.n_out) * 2.0 - 1.0)
    matrix = walsh[: size.n_in] @ torch.diag(gauss) @ permutation(order) @ walsh[:, : size.n_out]
    return matrix @ torch.diag(ending) * ((full / size.n_in) ** 0.5 if size.rescale else 1.0)


def waves(name: str, size: Size, draw: RandomState) -> Tensor:
    """The cosines that a spectral projection sums, one row a frequency: (N_in, N_out)."""
    rows, columns = size.matrix
    i, j = (axis.double() for axis in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    found = []
    for frequency in draw.permutation(rows * columns)[: size.n_in]:
        u, v = divmod(int(frequency), columns)
        if name == "dft":
            wave = torch.cos(2 * torch.pi * (u * i / rows + v * j / columns))
            wave = wave * (2 / size.n_in) ** 0.5 if size.rescale else wave / (rows * columns)
        else:
            wave = torch.cos(torch.pi * (2 * i + 1) * u / (2 * rows)) * torch.cos(
                torch.pi * (2 * j + 1) * v / (2 * columns)
            )
            wave = wave * ((2 if u else 1) * (2 if v else 1) / (rows * columns)) ** 0.5
            wave = wave * (rows * columns / size.n_in) ** 0.5 if size.rescale else wave
        found.append(wave.flatten()[: size.n_out])
    return torch.stack(found)


def permutation(order: Tensor) -> Tensor:
    """Π as a matrix: element j of xΠ is element order[j] of x."""
    matrix = torch.zeros(len(order), len(order), dtype=torch.float64)
    matrix[order, torch.arange(len(order))] = 1
    return matrix


def quantized(plan: Plan, params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Every number replaced by the nearest of its tensor's levels, of which there is a list; or by a bfloat16."""
    bits, nearest = plan.config.bits, {}
    if bits is None:
        return params
    for name, tensor in params.items():
        values = tensor.detach()
        if bits == 16:
            found = values.bfloat16().to(values.dtype)
        else:
            all_levels = (torch.arange(2**bits) - 2 ** (bits - 1) + 0.5).to(values.dtype) * scales(plan)[name]
            found = all_levels[(values[..., None] - all_levels).abs().argmin(-1)]
        nearest[name] = tensor + (found - tensor).detach()  # straight-through
    return nearest


def mixed(inner: Inner, entries: int, theta: Tensor) -> Tensor:
    """VB-LoRA: vector after vector, each the mixture of the bank's vectors with the largest weights."""
    assert inner.vectors is not None
    assert inner.topk is not None
    bank = theta[: inner.vectors * inner.dim].view(inner.vectors, inner.dim)
    found = []
    for weights in theta[bank.numel() :].split(inner.vectors):
        best = sorted(range(inner.vectors), key=lambda index: -float(weights[index].detach()))[: inner.topk]
        shares = weights[best].exp() / weights[best].exp().sum()
        found.append(shares @ bank[best])
    return torch.cat(found)[:entries]


def factors(plan: Plan, params: Mapping[str, Tensor], base: FromBase | None = None) -> dict[str, Tensor]:
    """{C, A} = F_in(θ), by an explicit matrix; frozen factors and diagonals as in the equation."""
    params = quantized(plan, params)
    made, config = dict(params), plan.config
    if config.inner is not None:
        made, name = {}, config.inner.projection
        for number, piece in enumerate(plan.pieces):
            size = Size(config.inner.dim, sum(piece.sizes), config.rescale)
            image = params["theta"][piece.start :][: piece.count].double()
            if name == "bank":
                image = mixed(config.inner, size.n_out, image[0])[None]
            else:
                image = image @ projection_matrix(MAPS[name], size, config.seed, f"inner/{number}")
            at = 0
            for tensor, shape in piece.tensors.items():
                entries = math.prod(shape) // piece.count
                made[tensor] = image[:, at : at + entries].reshape(shape).to(_dtype(params))
                at += entries
    for unit in plan.units:
        groups, terms = unit.batch
        if config.inner and config.rescale and "core" in unit.trained:
            made[unit.name("core")] = made[unit.name("core")] * start_scale(unit.shape, "core")
        for part in unit.shape.frozen:
            if base and unit.name(part) in base.planes:
                made[unit.name(part)] = base.planes[unit.name(part)].to(_dtype(params))
            else:
                shape = (terms, *unit.shape.tensors[part])
                draw = random_state(config.seed, "frozen", f"k{unit.k}_{part}", *shape)
                values = torch.from_numpy(start(config, unit.shape, part, shape, draw)).float().to(_dtype(params))
                made[unit.name(part)] = values.expand(groups, *shape)
        for m in unit.shape.diagonals:
            made[unit.name(f"A{m}")] = torch.diag_embed(made[unit.name(f"D{m}")]) @ made[unit.name(f"A{m}")]
    return made


def multiplied(kind: str, x: Tensor, weight: Tensor) -> Tensor:
    """ΔW = W' − W, for W' as the papers write it: HiRA, IA³, OFT, DoRA."""
    one = torch.eye(weight.shape[1], dtype=weight.dtype)
    if kind == "elementwise":
        return weight + weight * x - weight
    if kind in ("rows", "columns"):
        scale = torch.diag(1 + x.flatten())
        return (scale @ weight if kind == "rows" else weight @ scale) - weight
    if kind == "rotation":
        block = x.shape[1]
        whole = torch.block_diag(*(part - part.T for part in x.split(block)))[: len(one), : len(one)]
        return weight @ (one + whole) @ torch.linalg.inv(one - whole) - weight
    norm = weight.square().sum(1).sqrt()
    moved = weight + torch.diag(norm / weight.shape[1] ** 0.5) @ x[:, :-1]
    return torch.diag(norm * (1 + x[:, -1]) / moved.square().sum(1).sqrt()) @ moved - weight


def deltas(plan: Plan, params: Mapping[str, Tensor], base: FromBase | None = None) -> list[Tensor]:
    """Eq. 2 for every group, written into one vector of N elements, cut into the targets and multiplied."""
    vector = torch.zeros(plan.elements, dtype=_dtype(params))
    start_params = {name: tensor.to(_dtype(params)) for name, tensor in initial(plan).items()}
    begun = replace(plan, config=replace(plan.config, bits=None, scales=())) if plan.config.scales else plan
    params, start_params = factors(plan, params, base), factors(begun, start_params, base)
    for index, bucket in enumerate(plan.buckets):
        size = Size(bucket.shape.n_in, bucket.shape.n_out, plan.config.rescale, bucket.shape.grid)
        for row, group in enumerate(bucket.members):
            chosen = base.chosen.get(group) if base else None
            update = project(plan.config, size, group_vector(plan, index, row, params), chosen)
            if relative(plan):
                update = update - project(plan.config, size, group_vector(plan, index, row, start_params), chosen)
            at = plan.starts[group]
            room = vector[at : at + bucket.shape.n_out]
            room += update[: len(room)] * plan.config.scale
    updates, at = [], 0
    for index, x in enumerate(plan.made):
        update = vector[at : at + x.elements].reshape(x.rows, x.columns)
        if plan.config.multiplies:
            assert base is not None
            update = multiplied(plan.config.multiply, update, base.weights[index].to(update))
        updates.append(update)
        at += x.elements
    return updates


def outputs(plan: Plan, params: Mapping[str, Tensor], inputs: Sequence[Tensor], base: FromBase | None) -> list[Tensor]:
    """LoDA: B σ(Aᵀ x / c) c of every target, by rows of B, on inputs (n, columns); (n, rows) each.

    c is √columns for an A whose entries start at unit scale.
    """
    made, config = factors(plan, params, base), plan.config
    sigma, rows = getattr(torch.nn.functional, config.activation), {}
    for bucket in plan.buckets:
        ((unit,), last) = bucket.units, f"A{config.order}"
        for row, group in enumerate(bucket.members):
            own = {part: tensor[row, 0] for part, tensor in unit.of(made).items()}
            a = own.pop(last)  # (columns, r)
            c = 1.0 if config.init == "lora" or (last in unit.shape.frozen and base) else len(a) ** 0.5
            b = unit_tensor(replace(unit.shape, sides=(*unit.shape.sides[:-1], a.shape[1])), own) * config.scale
            rows[group] = [(one, a, c) for one in b.reshape(-1, a.shape[1])]
    in_order, found = (each for group in sorted(rows) for each in rows[group]), []
    for target, x in zip(plan.targets, inputs, strict=True):
        found.append(torch.stack([sigma(x @ a / c) @ b * c for b, a, c in islice(in_order, target.rows)], 1))
    return found


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return next(iter(tensors.values())).dtype
