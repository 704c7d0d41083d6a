"""Faults and bad input, tried in number: how they are made, what is done with them, and what must come of it.

`trials` says what survives, `commands` and `server` carry commands out, `spoiling` makes bad files. One file per area
(`files`, `checkpoints`, `kills`, `disks`, `recipes`, `images`, `together`) has a function from a number of
rounds to trials. `pytest -m faults` tries a few of each, `benchmarks/faults.py` many.
"""
