"""The metrics are what the literature and torch-fidelity say they are, and say what they depend on."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import piq
import pytest
import torch
import torch_fidelity
from scipy import linalg

from superlora_cli.commands.measure import measure as measure_images
from superlora_cli.errors import MismatchError
from superlora_cli.generation import msid
from superlora_cli.generation.extractors import OURS
from superlora_cli.generation.features import Features
from superlora_cli.generation.metrics import Knobs, check_comparable, class_accuracy, fid, measure, notes
from superlora_cli.recipe.schema import DataSection
from superlora_cli.sweeping.schema import FEWEST
from tests.conftest import Cli
from tests.generation.conftest import Folder, random_features

QUICK = Knobs(msid_seeds=2)


def test_fid_is_the_distance_of_two_gaussians() -> None:
    one, other = random_features(200, 1).pooled, random_features(300, 2, shift=0.5).pooled
    x, y = one.double().numpy(), other.double().numpy()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(linalg.eigvals(first @ second).real)  # of Σ₁Σ₂, whose root has them as its eigenvalues
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(first + second) - 2 * roots.sum()
    assert fid(one, other) == pytest.approx(expected, rel=1e-9)


def test_a_set_has_distance_zero_from_itself() -> None:
    one = random_features(64, 1)
    found, _ = measure(one, one, QUICK)
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert (found["precision"], found["recall"]) == (1.0, 1.0)
    assert found["is_l1"] == found["is_l1_pooled"] == 0


def test_precision_is_of_the_generated_and_recall_of_the_real() -> None:
    real = random_features(100, 1)
    narrow = Features(
        real.logits[:30], real.pooled[:30], "narrow"
    )  # all of them are real, most of the real are missing
    found, _ = measure(narrow, real, QUICK)
    assert found["precision"] == 1.0
    assert found["recall"] is not None
    assert found["recall"] < 0.95


def test_inception_score_differences_are_absolute() -> None:
    one, other = random_features(100, 1), random_features(100, 2)
    there, _ = measure(one, other, QUICK)
    back, _ = measure(other, one, QUICK)
    assert there["is_l1"] == back["is_l1"] == abs(there["is"] - there["is_reference"])  # type: ignore[operator]
    assert there["is"] == back["is_reference"]


def test_msid_is_that_of_piq() -> None:
    one, other = random_features(80, 1).pooled, random_features(80, 2, shift=1.0).pooled
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    found = [msid.msid(one, other, [seed], 5000)[0] for seed in (3, 4)]
    mean, deviation = msid.msid(one, other, [3, 4], 5000)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
    expected = []
    for seed in (3, 4):
        np.random.seed(seed)
        expected.append(piq.MSID()(one, other).item())
    assert found == pytest.approx(expected, rel=1e-5)
    assert (mean, deviation) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-5)


def test_msid_of_more_images_is_no_greater_distance_and_its_floor_is_that_of_halves() -> None:
    many, few = random_features(600, 1).pooled, random_features(150, 2).pooled
    seeds = range(4)
    floor, spread = msid.noise_floor(many, seeds, 150)
    cut, _ = msid.msid(few, many, seeds, 5000)
    assert floor > 0
    assert spread > 0
    assert cut < floor + 6 * spread
    shifted = many[:, :1].repeat(1, 12)  # on a line: another shape altogether
    assert msid.msid(few, shifted, seeds, 5000)[0] > floor + 6 * spread


def test_equal_images_have_no_msid_and_finite_other_metrics() -> None:
    real = random_features(60, 1)
    collapsed = Features(real.logits[:1].repeat(40, 1), real.pooled[:1].repeat(40, 1), "collapsed")
    found, _ = measure(collapsed, real, QUICK)
    assert found["is"] == pytest.approx(1.0)
    assert all(value is None or math.isfinite(value) for value in found.values())
    assert None not in [value for name, value in found.items() if not name.startswith("msid")]


def test_the_knobs_used_are_reported() -> None:
    one, other = random_features(50, 1), random_features(70, 2)
    found, used = measure(one, other, QUICK)
    assert {"seed": 2020, "k": 3, "kid_subset_size": 50, "kid_subsets": 100, "msid_images": 50}.items() <= used.items()
    said = notes(one, other, used, QUICK)
    assert any("all 50 images" in line for line in said)
    assert any("IS compares 50 with 70 images" in line for line in said)
    few = measure(random_features(30, 1), other, Knobs(msid_seeds=1, kid_subset_size=20))[1]
    assert few["kid_subset_size"] == 20
    assert found.keys() == {
        *("fid", "is", "is_std", "is_reference", "is_l1", "is_l1_pooled", "kid", "kid_std", "precision", "recall"),
        *("msid", "msid_std", "msid_floor", "msid_floor_std"),
    }


@pytest.mark.parametrize(
    ("count", "missing"), [(23, "MSID"), (9, "MSID IS"), (3, "MSID IS precision"), (1, "MSID IS precision FID KID")]
)
def test_metrics_that_need_more_images_are_left_out_with_a_note(count: int, missing: str) -> None:
    few, real = random_features(count, 1), random_features(60, 2)
    for one, other in ((few, real), (real, few)):
        found, used = measure(one, other, QUICK)
        unknown = {name for name, value in found.items() if value is None}
        assert unknown == {name for name in found for metric in missing.lower().split()
                           if name.startswith(metric) or (name, metric) == ("recall", "precision")}  # fmt: skip
        said = " ".join(notes(one, other, used, QUICK))
        assert all(f"{metric}{' and recall' * (metric == 'precision')}: needs" in said for metric in missing.split())
        assert said.count("needs at least") == len(missing.split())


def test_a_sweep_takes_the_least_number_that_can_be_measured() -> None:
    least = (random_features(FEWEST, 1), random_features(60, 2))
    assert math.isfinite(measure(*least, Knobs(msid_seeds=1))[0]["msid"])
    assert measure(random_features(FEWEST - 1, 1), least[1], QUICK)[0]["msid"] is None


def test_few_images_for_the_features_are_noted() -> None:
    one = Features(torch.randn(30, 10), torch.randn(30, 96), "")
    assert any(
        "30 images with 96 features is biased" in line for line in notes(one, one, {"kid_subset_size": 30}, QUICK)
    )


def test_without_piq_all_but_msid_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "piq.msid", None)
    one, other = (Features(torch.randn(30, 10), torch.randn(30, 8), "") for _ in range(2))
    found, used = measure(one, other, Knobs())
    assert found["msid"] is found["msid_floor"] is None
    assert found["fid"] is not None
    assert any("superlora-cli[msid]" in note for note in notes(one, other, used, Knobs()))


def test_class_accuracy_is_that_of_the_classes_asked_for() -> None:
    logits = torch.eye(3)
    assert class_accuracy(logits, ["0", "1", "1"], ["0", "1", "2"]) == pytest.approx(2 / 3)
    assert class_accuracy(logits, ["0", "1", "cat"], ["0", "1", "2"]) is None


def test_results_of_two_extractors_are_never_compared() -> None:
    one = {"extractor": "digits", "weights": "a" * 64, "layers": ["logits", "pooled"], "reference_sha256": "r", "k": 3}
    check_comparable(one, dict(one))
    for key, value in {"extractor": "inception", "weights": "b" * 64, "reference_sha256": "s", "k": 5}.items():
        with pytest.raises(MismatchError) as caught:
            check_comparable(one, {**one, key: value})
        assert caught.value.code == 3
        assert str(value)[:8] in str(caught.value)


def test_the_numbers_are_those_of_torch_fidelity(made: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superlora_cli.commands.measure.STANDARD", Knobs(msid_seeds=1, kid_subset_size=30))
    ours = measure_images(made, other, extractor="digits")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(made), input2=str(other), feature_extractor=OURS, cuda=False, save_cpu_ram=True, cache=False,
        verbose=False, isc=True, fid=True, kid=True, prc=True, kid_subset_size=30,
    )  # fmt: skip
    names = {
        "fid": "frechet_inception_distance",
        "is": "inception_score_mean",
        "is_std": "inception_score_std",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
    }
    for our_name, their_name in names.items():  # ours takes the means in float64
        assert ours["metrics"][our_name] == pytest.approx(theirs[their_name], rel=1e-4, abs=1e-6), our_name


def test_the_command_measures_a_folder(cli: Cli, made: Path) -> None:
    found = cli("eval", made, "--against", "digits:test", "--extractor", "digits", "--json").json()
    assert (found["task"], found["n"]) == ("diffusion", 60)
    assert found["reference"] == {"name": "digits:test", "n": 500}
    assert found["metrics"]["class_accuracy"] > 0.9
    assert found["metrics"]["class_accuracy_reference"] > 0.97
    assert found["settings"]["extractor"] == "digits"
    shown = cli("eval", made, "--against", "digits", "--extractor", "digits")
    assert shown.code == 0
    assert "noise floor" in shown.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--against", "digit:test"), "did you mean 'digits'?"),
        (("--against", "digits:tset"), "did you mean 'test'?"),
        (("--against", "digits", "--extractor", "digit"), "did you mean 'digits'?"),
        (("--against", "digits", "--extractor", "digits", "--weights", "w.pth"), "--weights"),
        (("--against", "digits", "--plot", "a.svg"), "--plot"),
        (("--against", "digits", "train.steps=3"), "train.steps=3"),
        (("--against", "digits", "data.nam=x"), "data.nam"),
        (("--against", "empty"), "holds no images"),
        (("--against", "missing"), "unknown data set 'missing'"),
        (("--extractor", "digits"), "--against digits:test"),
        ((), "--against digits:test"),
    ],
)
def test_bad_arguments_are_one_line_errors(cli: Cli, made: Path, words: tuple[str, ...], expected: str) -> None:
    Path("empty").mkdir()
    result = cli("eval", made, *words)
    assert result.code == 2
    assert expected in result.message


def test_bad_folders_are_one_line_errors(cli: Cli, made: Path, folder: Folder) -> None:
    against = ("--against", "digits", "--extractor", "digits")
    Path("empty").mkdir()
    assert "holds no images" in cli("eval", "empty", *against).message
    assert "no such run, adapter or base" in cli("eval", "missing", *against).message
    broken = folder("broken", 30)
    name = next(broken.glob("00007_*"))
    name.write_bytes(name.read_bytes()[:200])
    assert name.name in cli("eval", broken, *against).message
    large = folder("large", 30, size=24)
    message = cli("eval", made, "--against", large, "--extractor", "digits").message
    assert "24×24" in message
    assert "16×16" in message
    mixed = folder("mixed", 30)
    next(large.glob("00003_*")).rename(mixed / "00099_1.png")
    message = cli("eval", mixed, *against).message
    assert "00099_1.png: 24×24" in message


def test_a_missing_device_is_refused(cli: Cli, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = cli("eval", made, "--against", made, "--extractor", "digits", "train.device=cuda")
    assert "train.device: there is no GPU" in result.message


def test_a_data_section_and_a_split_can_be_the_reference(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superlora_cli.commands.measure.STANDARD", QUICK)
    section = DataSection(name="glyphs", eval_images=40)
    found = measure_images(made, (section, "validation"), extractor="digits")
    assert found["reference"] == {"name": "glyphs:validation", "n": 40}
