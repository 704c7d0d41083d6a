"""Recipes: YAML files that describe a run completely, checked key by key, with file and line for every error.

`load` is the entry point: names and paths in, a `schema.Recipe` out. Nothing here imports torch, and `load` imports
pydantic and PyYAML only when a recipe is read.
"""
