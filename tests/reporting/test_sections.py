"""Runs become rows over seeds, in sections that can be compared; what is found in them is what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from superlora_cli.commands.report import report
from superlora_cli.reporting.findings import best_within, in_words, smallest_ratios
from superlora_cli.reporting.metrics import METRICS, Spread
from superlora_cli.reporting.runs import collect
from superlora_cli.reporting.sections import Section, sections
from tests.reporting.folders import make_run

IMAGES = {"fid": 12.0, "kid": 0.1, "recall": 0.5}


def only(tmp_path: Path) -> Section:
    (section,), notes = sections(collect([tmp_path])[0])
    assert notes == []
    return section


def test_seeds_of_a_setting_are_a_row(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.8, 0.9)):
        make_run(tmp_path / f"lora-{seed}", "digits_lora", f"seed={seed}", accuracy=accuracy)
    make_run(tmp_path / "threads", "digits_lora", "seed=2", "train.threads=1", accuracy=0.7)  # no other setting
    explicit = ("adapter.method=null", "adapter.groups=weight", "adapter.order=2", "adapter.fold=none")
    make_run(tmp_path / "explicit", "digits_lora", "seed=3", *explicit, accuracy=0.6)
    make_run(tmp_path / "other", "digits_lora", "adapter.rank=2", params=50)
    section = only(tmp_path)
    assert [(row.name, len(row.runs)) for row in section.rows] == [("LoRA, rank 2", 1), ("LoRA, rank 4", 4)]
    spread = section.measures[0].values[1]
    assert (spread.low, spread.high, spread.count) == (0.6, 0.9, 4)
    assert spread.mean == pytest.approx(0.75)
    assert section.measures[0].before == 0.5


def test_rates_that_were_found_are_told_and_make_no_other_setting(tmp_path: Path) -> None:
    for seed, rate in enumerate((0.02, 0.014, 0.016)):
        make_run(tmp_path / f"found-{seed}", "digits_lora", f"seed={seed}", found_rate=rate)
    make_run(tmp_path / "given", "digits_lora", "train.optimizer.lr=0.02")
    found, given = sorted(only(tmp_path).rows, key=lambda row: -len(row.runs))
    assert (found.found_rates, given.found_rates) == ((0.02, 0.014, 0.016), ())
    assert found.knobs.endswith("train.optimizer.lr find")
    assert given.knobs.endswith("train.optimizer.lr 0.02")
    report([tmp_path])
    page = (tmp_path / "report.html").read_text()
    assert "0.014–0.02<" in page


def test_rows_of_the_same_name_are_distinguished_by_their_differences(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "digits_lora", "train.steps=100")
    make_run(tmp_path / "b", "digits_lora", "train.steps=200", "adapter.alpha=3")
    names = {row.name for row in only(tmp_path).rows}
    assert len(names) == 2
    assert any("train.steps 100" in name for name in names)
    assert any("alpha 3" in name and "train.steps 200" in name for name in names)


def test_a_repetition_is_noted_and_counted_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracy=0.5)
    make_run(tmp_path / "b", accuracy=0.9)
    (section,), notes = sections(collect([tmp_path])[0])
    assert section.measures[0].values[0] == Spread(0.5, 0.0, 0.5, 0.5, 1)
    assert notes == [f"{tmp_path / 'b'} repeats {tmp_path / 'a'}, seed included: left out"]


def test_notes_on_the_data_are_told_once_and_of_how_many_runs(tmp_path: Path) -> None:
    subject = "classification: glyphs_vit on digits"
    for name, own in {"a": ("all",), "b": ("all", "one"), "c": ("all",)}.items():
        make_run(tmp_path / name, "digits_lora", f"seed={ord(name)}", notes=own)
    assert sections(collect([tmp_path])[0])[1] == [f"{subject}: all", f"{subject}: one (1 of 3 runs)"]


def test_a_run_is_found_once_by_any_path(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "abc" / "run")
    found, skipped = collect([tmp_path, tmp_path / "runs", tmp_path / "runs" / "abc" / "run"])
    assert len(found) == 1
    assert skipped == []


def test_tasks_bases_and_data_are_sections_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "digits_unet_lora", samples=IMAGES)
    make_run(tmp_path / "c", "digits_lora", "data.name=glyphs")
    found, _ = sections(collect([tmp_path])[0])
    assert [section.title for section in found] == [
        "classification: glyphs_vit on digits",
        "classification: glyphs_vit on glyphs",
        "diffusion: glyphs_unet on digits",
    ]
    assert [measure.metric.name for measure in found[2].measures] == ["loss", "fid", "kid", "recall"]


def test_metrics_of_different_extractors_never_share_a_plot(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "digits_unet_lora", samples={"fid": 1.0})
    make_run(tmp_path / "b", "digits_unet_lora", "adapter.rank=3", samples={"fid": 2.0})
    other = {"extractor": "inception", "weights": "xyz"}
    make_run(tmp_path / "c", "digits_unet_lora", "adapter.rank=1", samples={"fid": 300.0}, settings=other)
    section = only(tmp_path)
    fids = [measure for measure in section.measures if measure.metric.name == "fid"]
    assert [measure.label for measure in fids] == ["FID (digits, digits:test)", "FID (inception, digits:test)"]
    means = [sorted(spread.mean for spread in measure.values.values()) for measure in fids]
    assert means == [[1.0, 2.0], [300.0]]


def test_differing_sampling_settings_are_noted(tmp_path: Path) -> None:
    for number, made in enumerate(({"num": 100, "sampler": "ddim"}, {"num": 1000, "sampler": "ddim"})):
        run = make_run(tmp_path / str(number), "digits_unet_lora", f"seed={number}", samples=IMAGES)
        file = run / "samples" / "metrics.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "generated": made}))
    _, notes = sections(collect([tmp_path])[0])
    assert notes == ["the images of diffusion: glyphs_unet on digits differ in num: 100 and 1000"]


def test_a_metric_that_is_not_a_number_is_noted_and_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracy=math.nan)
    make_run(tmp_path / "b", "digits_lora", "seed=1", accuracy=0.9)
    make_run(tmp_path / "c", "digits_unet_lora", samples={"fid": None, "recall": 0.5})  # type: ignore[dict-item]
    found, notes = sections(collect([tmp_path])[0])
    assert found[0].measures[0].values[0].count == 1
    assert [measure.metric.name for measure in found[1].measures] == ["loss", "recall"]
    assert [note for note in notes if "test accuracy is not a number" in note]
    assert [note for note in notes if "FID is not a number" in note]


def test_the_smallest_ratio_that_holds(tmp_path: Path) -> None:
    for ratio, accuracy in ((0.5, 0.95), (0.25, 0.945), (0.1, 0.94), (0.05, 0.90)):
        params = round(1000 * ratio)
        make_run(tmp_path / f"{ratio}", "digits_linear_v2", f"adapter.ratio={ratio}", accuracy=accuracy, params=params)
    make_run(tmp_path / "rank", "digits_linear_v2", "adapter.ratio=0.01", "adapter.rank=1", accuracy=0.95)
    section = only(tmp_path)

    def smallest(tolerance: float) -> dict[str, float]:
        found = smallest_ratios(section, tolerance)
        return {one.measure.metric.name: one.row.config.ratio for one in found if one.row.config}

    assert smallest(0.01) == {"accuracy": 0.1, "loss": 0.5}  # a loss of 0.05 may be 0.0505
    assert smallest(0.1)["accuracy"] == 0.05
    assert smallest(0.2)["loss"] == 0.1
    assert smallest(0)["accuracy"] == 0.5


def test_the_best_order_and_rank_of_a_budget(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "digits_lorta5d", accuracy=0.7, params=46)
    make_run(tmp_path / "b", "digits_lorta3d", accuracy=0.9, params=500)
    make_run(tmp_path / "c", "digits_lora", accuracy=0.8, params=6000)
    make_run(tmp_path / "d", "digits_dense", accuracy=0.9, params=50_000)
    section = only(tmp_path)
    found = [one for one in best_within(section) if one.measure.metric.name == "accuracy"]
    assert [(one.budget, one.row.params) for one in found] == [(100, 46), (1000, 500), (10_000, 500), (100_000, 500)]
    (line, _) = in_words([], best_within(section, [100, 1000]))
    assert line == (
        "best test accuracy: within 100 parameters M 5, r 1 (LoRTA 5D, 0.700 with 46); "
        "within 1,000 parameters M 3, r 4 (LoRTA 3D, 0.900 with 500)"
    )
    given = [one for one in best_within(section, [10, 46]) if one.measure.metric.name == "accuracy"]
    assert [(one.budget, one.row.params) for one in given] == [(46, 46)]


def test_findings_choose_by_validation_and_report_the_test_split(tmp_path: Path) -> None:
    for ratio, accuracy, validation in ((0.5, 0.95, 0.93), (0.1, 0.90, 0.94), (0.05, 0.96, 0.80)):
        run = tmp_path / f"{ratio}"
        make_run(run, "digits_linear_v2", f"adapter.ratio={ratio}", accuracy=accuracy, validation=validation,
                 params=round(1000 * ratio))  # fmt: skip
    section = only(tmp_path)
    (ratio, _), (budget, _) = smallest_ratios(section, 0.01), best_within(section, [1000])
    assert in_words([ratio], [budget]) == [
        "2D reshaped, linear_v2, G 1 · rank 2 · ρ 0.5: ρ 0.1 is the smallest of 3 that keeps validation accuracy "
        "within 0.01, test accuracy 0.900 with 100 parameters, compared with 0.950 with 500 parameters",
        "best by validation accuracy, test accuracy: within 1,000 parameters M 2, r 2 (2D reshaped, linear_v2, "
        "0.900 with 100)",
    ]
    assert section.measures[1].validation[0].mean == pytest.approx(0.2)  # the loss, at the best step
    make_run(tmp_path / "else", "digits_linear_v2", "adapter.ratio=0.02", "eval.select=test", accuracy=0.97, params=20)
    assert [measure.validation for measure in only(tmp_path).measures] == [{}, {}]
    assert best_within(only(tmp_path), [1000])[0].row.params == 20


def test_the_metrics_of_generation_are_known_by_their_names() -> None:
    names = {"accuracy", "fid", "is_l1", "kid", "msid", "precision", "recall", "class_accuracy", "loss"}
    assert names <= METRICS.keys()
    assert {name for name in METRICS if METRICS[name].higher} == {
        "accuracy", "map", "exact_match", "precision", "recall", "class_accuracy"
    }  # fmt: skip
