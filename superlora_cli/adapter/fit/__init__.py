"""An adapter of any variant that makes a wanted ΔW as nearly as it can.

`start` solves each unit in closed form where there is one, `solve` goes on from there by gradient through `delta`, the
one place where parameters become ΔW, so that padding, truncation, scale and F are what they are in training.
"""
