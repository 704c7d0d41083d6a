"""Fit an adapter of any variant to a given ΔW.

`start` solves each unit in closed form where there is one; `solve` continues by gradient descent through `delta`, so
that padding, truncation, scale and F are the same as in training.
"""
