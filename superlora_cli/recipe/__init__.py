"""Recipes: YAML files that say all about a run, checked key by key with the file and line of every error.

`load` is the door: names and paths in, a `schema.Recipe` out. Nothing here imports torch, and `load` itself imports
neither pydantic nor PyYAML before a recipe is read.
"""
