"""The paper's mathematics, pure: from a few factors to the weight updates of many layers.

Notation, the same in every file of this room (Eq. 2 of the paper):

    ΔW_g = F( Σ_t ⊗_{k=1..K} ( C_gtk ×_1 A_gtk1 ... ×_M A_gtkM ) ),   {C, A} = F_in(θ)

    N        elements of all targets together     T    targets (weights that are adapted)
    G, g     groups that the N elements are cut into, n = ceil(N / G) elements each
    M, m     order of a unit (its tensor modes)   K, k splits of a group (its units)
    d, d_m   side of a unit along mode m          r    rank: columns of a plane factor A (d, r)
    C        core tensor (r, ..., r)              F    the fixed projection, N_in → N_out elements
    ρ        N_in / N_out                         f    side of the left Kronecker factor
    θ        trained numbers, where not the       F_in fixed projection, θ → all trained entries of {C, A}
             factors themselves are trained       D_m  trained diagonal before the plane factor A_m

One example is followed through the room: the query and value weights of a ViT-base, 24 weights of
768 × 768, cut into G = 4 groups of order M = 3 and rank r = 4:

    targets     24 × (768, 768)                        N  = 14,155,776
    grouping    4 × n                                  n  =  3,538,944
    folding     4 × (153, 153, 153)                    153³ = 3,581,577 ≥ n
    factors     core (4, 1, 4, 4, 4), A_m (4, 1, 153, 4)   4 · (64 + 3 · 153 · 4) = 7,600 parameters
    ΔW          (4, 153³) → first n of each → (N,) → 24 × (768, 768)

`config` and `layout` and `counting` are integers only and import neither torch nor numpy.
"""
