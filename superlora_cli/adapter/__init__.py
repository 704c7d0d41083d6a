"""The mathematics of the paper: from a few factors to the weight updates of many layers.

Notation, the same in every file of this folder (Eq. 2 of the paper):

    ΔW_g = F( Σ_t ⊗_{k=1..K} ( C_gtk ×_1 A_gtk1 ... ×_M A_gtkM ) ),   {C, A} = F_in(θ)

    N        elements of all targets in total     T    targets (the adapted weights)
    G, g     groups into which the N elements are cut, n = ceil(N / G) each
    M, m     order of a unit (its tensor modes)   K, k splits of a group (its units)
    d, d_m   side of a unit along mode m          r    rank: columns of a plane factor A (d, r)
    C        core tensor (r, ..., r)              F    the fixed projection, N_in → N_out elements
    ρ        N_in / N_out                         f    side of the left Kronecker factor
    θ        trained numbers, if not the factors  F_in fixed projection, θ → all trained entries of {C, A}
             themselves are trained               D_m  trained diagonal in front of the plane factor A_m

One example runs through this folder: the query and value weights of a ViT-base, 24 weights of
768 × 768, cut into G = 4 groups of order M = 3 and rank r = 4:

    targets     24 × (768, 768)                        N  = 14,155,776
    grouping    4 × n                                  n  =  3,538,944
    folding     4 × (153, 153, 153)                    153³ = 3,581,577 ≥ n
    factors     core (4, 1, 4, 4, 4), A_m (4, 1, 153, 4)   4 · (64 + 3 · 153 · 4) = 7,600 parameters
    ΔW          (4, 153³) → first n of each → (N,) → 24 × (768, 768)

`config`, `layout` and `counting` use integers only and import neither torch nor numpy.
"""
