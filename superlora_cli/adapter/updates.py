"""The forms of a layer's update: ΔW itself, or factors that are applied to the activations one after another.

`Dense` is the materialised path, `LowRank` and `Kronecker` are the factored path; all give the same outputs.
`Activated` is the only one that is no ΔW.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from superlora_cli.adapter.activations import activated, no_delta


@dataclass(frozen=True)
class Dense:
    """ΔW in the shape of the weight slice."""

    delta: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.delta,)

    def dense(self) -> Tensor:
        """ΔW."""
        return self.delta

    def to(self, dtype: torch.dtype) -> Dense:
        """The same in another dtype."""
        return Dense(self.delta.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """ΔW x, (n, columns) → (n, rows)."""
        return x @ self.delta.mT


@dataclass(frozen=True)
class LowRank:
    """ΔW = left @ right, (rows, r) @ (r, columns)."""

    left: Tensor
    right: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.left, self.right)

    def dense(self) -> Tensor:
        """ΔW."""
        return self.left @ self.right

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same in another dtype."""
        return LowRank(self.left.to(dtype), self.right.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """ΔW x, (n, columns) → (n, rows), without ΔW."""
        return x @ self.right.mT @ self.left.mT


@dataclass(frozen=True)
class Kronecker:
    """ΔW = Σ_t left_t ⊗ (out_t @ into_tᵀ), cropped to (rows, columns).

    left (t, g, f), out (t, d, r), into (t, e, r), with g·d ≥ rows and f·e ≥ columns. `into` is None
    (the identity) for a dense right factor. An adapter's own have g = f.
    """

    left: Tensor
    out: Tensor
    into: Tensor | None
    rows: int
    columns: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.left, self.out) if self.into is None else (self.left, self.out, self.into)

    def dense(self) -> Tensor:
        """ΔW."""
        right = self.out if self.into is None else self.out @ self.into.mT
        whole = torch.einsum("tgf,tde->gdfe", self.left, right)
        return whole.flatten(2).flatten(0, 1)[: self.rows, : self.columns]

    def to(self, dtype: torch.dtype) -> Kronecker:
        """The same in another dtype."""
        into = None if self.into is None else self.into.to(dtype)
        return Kronecker(self.left.to(dtype), self.out.to(dtype), into, self.rows, self.columns)

    def __call__(self, x: Tensor) -> Tensor:
        """ΔW x, (n, columns) → (n, rows), without ΔW: (L ⊗ R) vec(X) = vec(L X Rᵀ) for X (f, e)."""
        g, f = self.left.shape[-2:]
        e = self.out.shape[-1] if self.into is None else self.into.shape[-2]
        if f * e > self.columns:
            x = functional.pad(x, (0, f * e - self.columns))
        terms, rank = len(self.left), self.out.shape[-1]
        if self.into is None:
            mixed = torch.einsum("tgf,nfe->ngte", self.left, x.reshape(-1, f, e))
        else:
            inner = x.reshape(-1, e) @ self.into.permute(1, 0, 2).flatten(1)  # (n·f, e) @ (e, t·r)
            mixed = torch.einsum("tgf,nftr->ngtr", self.left, inner.view(-1, f, terms, rank))
        made = mixed.reshape(-1, terms * rank) @ self.out.mT.flatten(0, 1)  # (n·f, t·r) @ (t·r, d)
        return made.view(len(x), g * self.out.shape[-2])[:, : self.rows]


@dataclass(frozen=True)
class Activated:
    """x ↦ left σ(right x), (rows, r) and (r, columns), with a nonlinear σ: there is no ΔW."""

    left: Tensor
    right: Tensor
    activation: str

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.left, self.right)

    @property
    def rows(self) -> int:
        return len(self.left)

    def dense(self) -> Tensor:
        """Never: there is none.

        Raises:
            UsageError: always.
        """
        raise no_delta(self.activation)

    def to(self, dtype: torch.dtype) -> Activated:
        """The same in another dtype."""
        return Activated(self.left.to(dtype), self.right.to(dtype), self.activation)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., columns) → (..., rows)."""
        return functional.linear(activated(self.activation, functional.linear(x, self.right)), self.left)


@dataclass(frozen=True)
class Hadamard:
    """ΔW = left ⊙ right, the elementwise product of two matrices (rows, columns). No layer is run with it."""

    left: LowRank
    right: LowRank

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.left.tensors, *self.right.tensors)

    def dense(self) -> Tensor:
        """ΔW."""
        return self.left.dense() * self.right.dense()


Linear = Dense | LowRank | Kronecker
Update = Linear | Activated
Form = Linear | Hadamard  # what files hold
AnyForm = TypeVar("AnyForm", bound=Update | Form)


def scaled(form: AnyForm, factor: float) -> AnyForm:
    """The update times a number."""
    if isinstance(form, Dense):
        return cast(AnyForm, Dense(form.delta * factor))
    if isinstance(form, Hadamard):
        return cast(AnyForm, Hadamard(scaled(form.left, factor), form.right))
    return replace(form, left=form.left * factor)


def on_other_tensors(update: Update, other: Callable[[Tensor], Tensor]) -> Update:
    """The same update with every tensor replaced."""
    own = {name: other(value) for name, value in vars(update).items() if isinstance(value, Tensor)}
    return cast(Update, replace(cast(Any, update), **own))


def without_graph(update: Update) -> Update:
    """The same update, whose tensors get no gradients."""
    return on_other_tensors(update, Tensor.detach)


def smaller(form: Kronecker) -> LowRank | Dense:
    """A Kronecker product as a product of two matrices if that has fewer numbers, else as ΔW.

    L ⊗ (A Bᵀ) = (L ⊗ A) (I ⊗ Bᵀ), cropped like ΔW.
    """
    rows, columns, wide = form.rows, form.columns, form.left.shape[-1]
    if form.into is not None and len(form.left) * wide * form.into.shape[-1] * (rows + columns) < rows * columns:
        eye = torch.eye(wide)
        pairs = zip(form.left.contiguous(), form.out.contiguous(), strict=True)
        left = torch.cat([torch.kron(one, two) for one, two in pairs], 1)
        right = torch.cat([torch.kron(eye, two) for two in form.into.mT.contiguous()])
        return LowRank(left[:rows], right[:, :columns])
    return Dense(form.dense())
