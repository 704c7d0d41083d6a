"""Methods by name, each just a setting of the knobs (Table 1, and later methods)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A method as a setting of the knobs (Table 1), with its equation and source."""

    knobs: Mapping[str, Any]
    formula: str
    source: str


PRESETS: dict[str, Preset] = {
    "dense": Preset({"groups": "weight", "order": 1}, "ΔW_i = A_i", "Table 1, dense FT"),
    "lora": Preset({"groups": "weight", "order": 2, "fold": "none"}, "ΔW_i = A_i1 A_i2ᵀ", "Table 1, LoRA"),
    "lokr": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "splits": 2, "split_dim": 8},
        "ΔW_i = C_i ⊗ (A_i1 A_i2ᵀ)",
        "Table 1, LoKr; Fig. 3b",
    ),
    "lonkr": Preset(
        {"groups": 1, "order": 2, "fold": "regular", "splits": 3, "split_dim": 6},
        "ΔW_g = C_g ⊗ (A_g21 A_g22ᵀ) ⊗ (A_g31 A_g32ᵀ)",
        "Table 1, LoNKr; Fig. 3c",
    ),
    "krona": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "splits": 2, "split_dim": 8, "rank": ("full", "full")},
        "ΔW_i = C_i1 ⊗ C_i2",
        "Section 2, KronA",
    ),
    "loha": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "splits": 2, "combine": "hadamard"},
        "ΔW_i = (A_i11 A_i12ᵀ) ⊙ (A_i21 A_i22ᵀ)",
        "Section 2, LoHA",
    ),
    "lotr": Preset(
        {"groups": 1, "order": 3, "fold": "stack", "rank": ("full", 4, 4)},
        "ΔW = C ×_2 A_2 ×_3 A_3, weights stacked along mode 1",
        "Table 1, LoTR",
    ),
    "lorta": Preset(
        {"groups": 1, "order": 3, "fold": "regular", "core": "dense"},
        "ΔW_g = C_g ×_1 A_g1 ... ×_M A_gM",
        "Table 1, LoRTA; Eq. 3",
    ),
    "fact_tk": Preset(
        {"groups": 1, "order": 3, "fold": "stack", "core": "dense"},
        "ΔW = C ×_1 A_1 ×_2 A_2 ×_3 A_3, weights stacked along mode 1",
        "FacT-TK, arXiv 2212.03145",
    ),
    "cara": Preset(
        {"groups": 1, "order": 3, "fold": "stack", "core": "diagonal"},
        "ΔW = Σ_r λ_r a_1r ∘ a_2r ∘ a_3r, weights stacked along mode 1",
        "CaRA, without its mode for attention heads",
    ),
    "unilora": Preset(
        {
            "groups": "weight",
            "order": 2,
            "fold": "none",
            "inner": {"projection": "onehot", "dim": 64},
            "rescale": False,
            "init": "lora",
        },
        "ΔW_i = A_i1 A_i2ᵀ, every entry one of d shared numbers",
        "Uni-LoRA, arXiv 2506.00799",
    ),
    "nola": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "inner": {"projection": "dense", "dim": 8, "per": "factor"}},
        "ΔW_i = A_i1 A_i2ᵀ, A_im = Σ_j θ_imj P_mj",
        "NOLA, arXiv 2310.02556",
    ),
    "vblora": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "inner": {"projection": "bank", "dim": 64}},
        "ΔW_i = A_i1 A_i2ᵀ, every d entries a mixture of two vectors of a shared bank",
        "VB-LoRA, arXiv 2405.15179",
    ),
    "vera": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "core": "diagonal", "freeze": ("planes",), "diagonals": (1,)},
        "ΔW_i = D_i A_1 C_i A_2ᵀ, A random and shared",
        "VeRA, arXiv 2310.11454",
    ),
    "randlora": Preset(
        {
            "groups": "weight",
            "order": 2,
            "fold": "none",
            "core": "diagonal",
            "freeze": ("planes",),
            "diagonals": (2,),
            "terms": "full",
        },
        "ΔW_i = Σ_t A_t1 C_it A_t2ᵀ D_it, A random and shared",
        "RandLoRA, arXiv 2502.00987",
    ),
    "lora_xs": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "core": "dense", "freeze": ("planes",), "frozen": "svd"},
        "ΔW_i = U_i Σ_i C_i V_iᵀ, of W_i = U_i Σ_i V_iᵀ",
        "LoRA-XS, arXiv 2405.17604",
    ),
    "tinylora": Preset(
        {
            "groups": "weight",
            "order": 2,
            "fold": "none",
            "core": "dense",
            "rank": 2,
            "freeze": ("planes",),
            "frozen": "svd",
            "inner": {"projection": "dense", "dim": 4, "per": "group"},
        },
        "ΔW_i = U_i Σ_i C_i V_iᵀ, C_i = Σ_j θ_ij P_j",
        "TinyLoRA, arXiv 2602.04118",
    ),
    "fourierft": Preset(
        {"groups": "weight", "order": 1, "fold": "none", "projection": "dft", "ratio": 0.01},
        "ΔW_i = Re DFT⁻¹(A_i), A_i at n random frequencies",
        "FourierFT, arXiv 2405.03003",
    ),
    "hira": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "multiply": "elementwise"},
        "ΔW_i = W_i ⊙ (A_i1 A_i2ᵀ)",
        "HiRA, ICLR 2025",
    ),
    "ia3": Preset(
        {"groups": "weight", "order": 1, "fold": "none", "multiply": "rows"},
        "ΔW_i = diag(A_i) W_i",
        "IA³, arXiv 2205.05638",
    ),
    "oft": Preset(
        {"groups": "weight", "order": 1, "fold": "none", "multiply": "rotation"},
        "ΔW_i = W_i (Q_i − 1), Q_i orthogonal: the Cayley transform of A_i − A_iᵀ, in blocks",
        "OFT, arXiv 2306.07280",
    ),
    "dora": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "multiply": "magnitude"},
        "W_i + ΔW_i = (1 + a_i) ‖W_i‖ V_i / ‖V_i‖, V_i = W_i + ‖W_i‖ A_i1 A_i2ᵀ / √columns",
        "DoRA, arXiv 2402.09353",
    ),
    "loda": Preset(
        {"groups": "weight", "order": 2, "fold": "none", "activation": "gelu"},
        "f_i(x) = W_i x + A_i1 σ(A_i2ᵀ x)",
        "LoDA, NeurIPS workshop 2023",
    ),
    "shira": Preset(
        {"groups": "weight", "order": 1, "fold": "none", "projection": "sparse", "ratio": 0.01},
        "ΔW_i has the numbers A_i at n elements, and zeros elsewhere",
        "SHiRA, arXiv 2406.13175",
    ),
    "atoms": Preset(
        {"groups": "weight", "order": 2, "fold": "kernel", "freeze": ("A1",), "frozen": "svd"},
        "ΔW_i = A_i1 A_i2ᵀ, kernels as rows: trained atoms A_i2, their coefficients A_i1 those of W_i",
        "filter atoms, arXiv 2403.00269",
    ),
    "none": Preset({"groups": "none"}, "ΔW = 0: the head alone", "the probe that adapters are compared with"),
    "bitfit": Preset(
        {"groups": "none", "also": ("bias",)}, "ΔW = 0, every bias is trained", "BitFit, arXiv 2106.10199"
    ),
}
