"""Sweeps: many runs from one YAML file, on one machine, on a Ray cluster, or one by one.

`schema` and `plan` turn the file into runs, `folder` keeps what they left, `local` and `cluster` carry them out.
"""
