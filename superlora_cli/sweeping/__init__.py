"""Sweeps: many runs from one YAML file, on one machine, on a Ray cluster, or one by one.

`schema` and `plan` turn the file into runs, `folder` holds their results, `job` does one of them, `local` and `cluster`
many.
"""
