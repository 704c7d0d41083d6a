"""`superlora tune`: the best adapter for a budget of parameters or bytes.

`schema` and `space` say which settings are possible, `study` chooses and judges trials with Optuna, `search` conducts
them with the workers of sweeps, and `folder` holds what was found.
"""
