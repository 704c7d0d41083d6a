"""A section as plain data, for `--json`; rows are referred to by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from superlora_cli.reporting.findings import BestWithin, SmallestRatio
from superlora_cli.reporting.nearness import Nearness
from superlora_cli.reporting.sections import Section


def facts(
    section: Section, ratios: Sequence[SmallestRatio], budgeted: Sequence[BestWithin], nearness: Nearness | None
) -> dict[str, Any]:
    """Title, rows, measures with their front, ratios, budgets, and geometry where there is one."""
    found: dict[str, Any] = {
        "title": section.title,
        "task": section.task,
        "model": section.model,
        "data": section.data,
        "rows": [
            {
                "row": row.number,
                "method": row.method,
                "configuration": row.knobs,
                "params": row.params,
                "head": row.runs[0].head,
                "bytes": [run.bytes for run in row.runs],
                "seeds": [run.seeds[0] for run in row.runs],
                **({"found_rates": row.found_rates} if row.found_rates else {}),
                "runs": [str(run.path) for run in row.runs],
            }
            for row in section.rows
        ],
        "measures": [
            {
                "metric": measure.metric.name,
                "by": measure.by,
                "higher_is_better": measure.metric.higher,
                "before": measure.before,
                "chosen_by": measure.chosen_by,
                "values": [{"row": number, **asdict(spread)} for number, spread in measure.values.items()],
                "front": [row.number for row in measure.front(section.rows)],
            }
            for measure in section.measures
        ],
        "ratios": [
            {
                "metric": one.measure.metric.name,
                "by": one.measure.by,
                "row": one.row.number,
                "ratio": one.row.config.ratio if one.row.config else None,
                "reference": one.reference.number,
            }
            for one in ratios
        ],
        "budgets": [
            {
                "metric": one.measure.metric.name,
                "by": one.measure.by,
                "budget": one.budget,
                "row": one.row.number,
                "order": one.row.config.order if one.row.config and one.row.config.adapts else None,
                "rank": one.row.config.scale_rank if one.row.config and one.row.config.adapts else None,
            }
            for one in budgeted
        ],
    }
    if nearness:
        weights = [
            {"row": number, "weights": {name: one._asdict() for name, one in run.items()}}
            for number, runs in nearness.found.items()
            for run in runs
        ]
        found["geometry"] = {"against": nearness.against, "runs": weights}
    return found
