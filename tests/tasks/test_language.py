"""Language from end to end, on tiny models of every family: train, resume, evaluate."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from superlora_cli.commands import merge_language
from superlora_cli.data.splits import SPLITS
from superlora_cli.data.stream import Share
from superlora_cli.errors import UsageError
from superlora_cli.models.embedded import ASSETS
from superlora_cli.models.language import build_language
from superlora_cli.opening.build import build_from_file
from superlora_cli.recipe.schema import DataSection, ModelSection
from superlora_cli.tasks.language.answering import found_in
from superlora_cli.tasks.language.batches import epoch, packed, stream
from superlora_cli.tasks.language.encoding import encode
from superlora_cli.tasks.language.logits import Logits
from superlora_cli.tasks.language.task import NUMBERS, keeps_apart, losses, read_texts
from superlora_cli.training.run import RunFolder
from tests import language_models
from tests.conftest import Cli, metrics, run_cli
from tests.forking.commands import Commands
from tests.training.launching import together

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(5)]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %};{% endif %}{% endfor %}" \
       "{% if add_generation_prompt %}<assistant>{% endif %}"  # fmt: skip


def recipe(model: Path | str, data: str, *more: str) -> str:
    """The text of a recipe."""
    return "\n".join([
        "task: language",
        f'model: {{name: "transformers:{model}"}}',
        f"data: {{name: {data}}}",
        "adapter: {method: lora, rank: 2, targets: [q, v, mlp]}",
        "train: {steps: 4, batch_size: 2, checkpoint_every: 2, threads: 1, log_every: 1}",
        *more,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny models; read only."""
    root = tmp_path_factory.mktemp("models")
    names = (*language_models.FAMILIES, *language_models.ENCODERS)
    return {name: language_models.saved(name, root / name) for name in names}


@pytest.fixture
def prepared(folders: dict[str, Path], cli: Cli, tmp_path: Path) -> Cli:
    """Runs commands in a folder with `r.yaml` and `sums.jsonl`."""
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "r.yaml").write_text(recipe(folders["Llama"], "sums.jsonl", "language: {length: 16}"))
    return cli


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "sums_llama")


@pytest.mark.slow
@pytest.mark.parametrize("family", language_models.FAMILIES)
def test_a_family_from_training_to_merged_texts(
    family: str, folders: dict[str, Path], prepared: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = (f"model.name=transformers:{folders[family]}", "train.optimizer.lr=0.2")
    done = prepared("train", "r.yaml", *change, "--out", "run", "--json")
    assert done.code == 0, done.err
    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    Path("half", "adapter.safetensors").unlink()
    assert prepared("train", "r.yaml", *change, "--resume", "half", "--json").code == 0
    assert Path("half", "adapter.safetensors").read_bytes() == Path("run", "adapter.safetensors").read_bytes()
    assert metrics(Path("half")) == metrics(Path("run"))
    judged = prepared("eval", "run", "--json").json()
    assert judged["metrics"] == pytest.approx({k: done.json()["metrics"][k] for k in ("loss", "bits_per_byte")})

    asked = ("generate", "run", "--prompt", "1+1=", "--max-tokens", "6", "--json")
    text = prepared(*asked).json()["completions"][0]["text"]
    monkeypatch.setattr(merge_language, "SHARD", "20KB")
    merged = prepared("merge", "run", "--out", "merged", "--json")
    assert merged.code == 0, merged.err
    assert merged.json()["max_abs_error"] < 1e-3
    assert len(list(Path("merged").glob("*.safetensors"))) > 1
    plain = AutoModelForCausalLM.from_pretrained("merged")
    assert {type(module) for module in plain.modules()} == {type(m) for m in language_models.made(family).modules()}
    ids = torch.tensor([list(b"1+1=")])
    made = plain.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=257)[0, 4:].tolist()
    assert bytes(made[: made.index(256)] if 256 in made else made).decode(errors="replace") == text


@pytest.mark.parametrize("family", language_models.FAMILIES)
def test_packed_texts_have_the_losses_that_they_have_alone(family: str, tokenizer: Any) -> None:
    model = language_models.made(family)
    assert keeps_apart(model)
    encoded = encode(ROWS[3:8], tokenizer, 64)
    logits = Logits(model)
    logits.try_out()
    assert logits._hook
    together = losses(logits, next(stream(encoded, 1, seed=0, start=0, stop=1, share=Share(), room=64, pad=257)))
    order = [int(number) for number in epoch(encoded, 1, 0, 0, 64)[0][0]]
    alone = []
    for number in order:
        row = ROWS[3 + number]
        prompt, whole = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
        ids = torch.tensor([[*whole, tokenizer.eos_token_id]])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(prompt), -100)
        alone.append(model(ids, labels=labels).loss * (ids.shape[1] - len(prompt)))
    torch.testing.assert_close(together.sum(), torch.stack(alone).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*language_models.FAMILIES, "Gemma2", "Granite", "Cohere"])
def test_logits_of_some_positions_are_those_of_the_model(family: str) -> None:
    """Soft-capped and scaled ones, too."""
    arguments = language_models.SMALL | language_models.GROUPED | language_models.ENDS
    own = {"Gemma2": {"final_logit_softcapping": 0.5}, "Granite": {"logits_scaling": 3.0}, "Cohere": {}}
    if family in own:
        config = getattr(transformers, f"{family}Config")(**arguments, **own[family])
        model = AutoModelForCausalLM.from_config(config).eval()
    else:
        model = language_models.made(family)
    ids, chosen = torch.arange(40).view(2, 20), torch.tensor([0, 3, 17, 22, 38])
    logits = Logits(model)
    logits.try_out()
    assert logits._hook
    made = []
    model.get_output_embeddings().register_forward_hook(lambda layer, given, out: made.append(out.shape[:-1]))
    found = logits.at(ids, torch.arange(20).expand(2, 20), chosen)
    assert made == [(1, 5)]
    torch.testing.assert_close(found, model(ids).logits.flatten(0, 1)[chosen], rtol=1e-6, atol=1e-6)


def test_logits_are_chosen_afterwards_where_a_model_needs_all() -> None:
    model = language_models.made("Llama")
    plain = model.forward

    def mixing(ids: Any, **given: Any) -> Any:
        found = plain(ids, **given)
        found.logits = found.logits + found.logits.mean(1, keepdim=True)
        return found

    model.forward = mixing
    logits = Logits(model)
    logits.try_out()
    ids, chosen = torch.arange(40).view(2, 20), torch.tensor([0, 3, 17, 22, 38])
    wanted = model(ids).logits.flatten(0, 1)[chosen]
    torch.testing.assert_close(logits.at(ids, torch.arange(20).expand(2, 20), chosen), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_model_keeps_texts_apart_but_for_rounding(dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "sums_llama", dtype=dtype)
    assert keeps_apart(model)


def test_a_model_that_mixes_texts_is_found() -> None:
    model = language_models.made("Llama")
    attend = model.forward

    def without_positions(ids: Any, position_ids: Any = None, **given: Any) -> Any:
        return attend(ids, **given)

    model.forward = without_positions
    assert not keeps_apart(model)


def test_gradients_of_a_step_do_not_depend_on_how_it_is_divided(tokenizer: Any) -> None:
    """One batch of four sequences, or two processes with two passes of one: every token weighs the same."""
    encoded = encode(ROWS, tokenizer, 12)
    whole = next(stream(encoded, 4, seed=3, start=0, stop=1, share=Share(), room=12, pad=257))
    parts = [
        batch
        for process in range(2)
        for batch in stream(encoded, 1, seed=3, start=0, stop=1, share=Share(2, process, 2), room=12, pad=257)
    ]
    assert sorted(torch.cat([part.wanted for part in parts]).tolist()) == sorted(whole.wanted.tolist())
    assert sum(len(part.wanted) * part.weight for part in parts) / 4 == pytest.approx(1)
    assert len(whole.wanted) * whole.weight == pytest.approx(1)


def test_batches_are_a_function_of_seed_and_step(tokenizer: Any) -> None:
    encoded = encode(ROWS, tokenizer, 16)
    for room in (16, None):
        given = {"seed": 1, "share": Share(), "room": room, "pad": 257}
        all_at_once = list(stream(encoded, 3, start=0, stop=12, **given))
        resumed = list(stream(encoded, 3, start=7, stop=12, **given))
        assert all(torch.equal(one.ids, other.ids) for one, other in zip(all_at_once[7:], resumed, strict=True))


def test_every_text_is_in_an_epoch_once(tokenizer: Any) -> None:
    encoded = encode(ROWS, tokenizer, 16)
    for room in (16, None):
        texts = [int(text) for batch in epoch(encoded, 3, 0, 5, room) for row in batch for text in row]
        assert sorted(texts) == list(range(len(ROWS)))


def test_texts_of_a_batch_have_similar_lengths_without_packing(tokenizer: Any) -> None:
    rows = [{"text": "x" * length} for length in np.random.RandomState(0).permutation(np.repeat(range(2, 42), 2))]
    encoded = encode(rows, tokenizer, 64)
    spans = [np.ptp(encoded.lengths[np.concatenate(batch)]) for batch in epoch(encoded, 4, 0, 0, None)]
    assert max(spans) <= 2


def test_an_answer_that_is_not_found_is_none() -> None:
    assert found_in("so it is 7", r"#### (\d+)") is None
    assert found_in("b x", r"a (\d+)|b (\w+)") == ""


def test_what_is_wrong_with_a_pattern_or_a_template_is_said(prepared: Cli) -> None:
    for words, says in (
        ("language.answer='('", "not a regular expression: missing )"),
        ("language.chat_template=none.jinja", "none.jinja: No such file or directory; a file, or a template"),
    ):
        refused = prepared("train", "r.yaml", words, "--dry-run")
        assert refused.code == 2
        assert says in refused.message


def test_bytes_are_of_the_tokens_that_have_a_loss(tokenizer: Any) -> None:
    texts = [{"text": "abcdefgh"}]
    assert [encode(texts, tokenizer, length).bytes for length in (9, 4, 3)] == [7, 6, 5]


def test_packing_takes_texts_in_order() -> None:
    assert [own.tolist() for own in packed(np.array([5, 1, 1, 5]), np.arange(4), 5)] == [[0], [1, 2], [3]]


def test_the_loss_is_that_of_transformers(prepared: Cli, folders: dict[str, Path], tokenizer: Any) -> None:
    done = prepared("train", "r.yaml", "data.validation=0", "train.optimizer.lr=0", "--out", "run", "--json").json()
    model = AutoModelForCausalLM.from_pretrained(folders["Llama"])
    total = count = 0.0
    for row in ROWS:
        ids = torch.tensor([[*tokenizer(row["prompt"] + row["completion"])["input_ids"], 256]])
        own = len(row["completion"]) + 1
        total += (
            model(ids, labels=ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - own, -100)).loss.item() * own
        )
        count += own
    assert done["metrics"]["loss"] == pytest.approx(total / count, rel=1e-4)
    size = sum(len(row["completion"]) for row in ROWS)
    assert done["metrics"]["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-4)
    assert done["texts"] == {"train": 30, "validation": 30, "test": 30}
    assert done["notes"] == ["no texts are held out: the loss is measured on the training texts"]
    assert json.loads(Path("run", "run.json").read_text())["notes"] == done["notes"]
    assert done["tokens_per_second"] > 0


def test_other_texts_are_judged_whole_and_changed_ones_are_called_texts(prepared: Cli) -> None:
    assert prepared("train", "r.yaml", "train.steps=1", "--out", "run", "--json").code == 0
    shutil.copy("sums.jsonl", "more.jsonl")
    for name in ("more.jsonl", "sums.jsonl"):
        with Path(name).open("a") as file:
            file.write('{"prompt": "7+7=", "completion": "14"}\n')
    more = prepared("eval", "run", "data.name=more.jsonl", "--json").json()
    assert more["n"] == 31
    assert more["notes"][0] == "judged by all 31 texts of more.jsonl, which has no test part"
    Path("part").mkdir()
    Path("more.jsonl").rename("part/test.jsonl")
    alone = prepared("eval", "run", "data.name=part", "--json").json()
    assert (alone["n"], alone["metrics"]) == (31, more["metrics"])
    assert alone["notes"] == more["notes"][1:]
    for command in ("train", "preview"):
        assert "no texts to train on" in prepared(command, "r.yaml", "data.name=part").message
    same = prepared("eval", "run", "--json").json()
    assert same["n"] == 3
    assert same["notes"][0].endswith("held-out texts may have been trained on")


def test_bad_rows_are_counted_and_named(prepared: Cli) -> None:
    with Path("sums.jsonl").open("a") as file:
        file.write('{"prompt": "1+1="}\nno JSON\n{"prompt": true, "completion": "x"}\n')
    done = prepared("train", "r.yaml", "--out", "run", "--json")
    assert done.code == 0, done.err
    log = Path("run", "log.txt").read_text()
    assert "left out 1 of 33 texts (not JSON): sums.jsonl:32" in log
    assert "left out 1 of 33 texts (its prompt is not a text): sums.jsonl:33" in log
    assert "and no messages, but only the columns prompt): sums.jsonl:31" in log


def test_a_dry_run_counts_evaluations_whose_batches_are_bounded(prepared: Cli) -> None:
    config = LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         vocab_size=151_936)  # fmt: skip
    config.save_pretrained("wide")
    change = ("model.name=transformers:wide", "language.length=128", "train.batch_size=1", "--dry-run", "--json")
    total, small = (
        prepared("train", "r.yaml", *change, f"eval.batch_size={size}").json()["memory"]["total"] for size in (256, 1)
    )
    logits = 4 * NUMBERS
    assert small < logits < total < 4 * logits


def test_a_dry_run_needs_neither_data_nor_weights(prepared: Cli, folders: dict[str, Path]) -> None:
    shutil.copytree(folders["GPT-2"], "bare")
    Path("bare", "model.safetensors").unlink()
    found = prepared(
        "train", "r.yaml", "model.name=transformers:bare", "data.name=nowhere.jsonl", "--dry-run", "--json"
    )
    assert found.code == 0, found.err
    assert found.json()["targets"]["weights"] == 8  # two layers of q and v in one weight, and two of the MLP
    assert found.json()["sequences"] == 8
    assert found.json()["memory"]["total"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.name=transformers:./nowhere", "no such folder"),
        ("model.kwargs={dtype: int8}", "model.kwargs.dtype: unknown dtype 'int8'"),
        ("data.name=nowhere.jsonl", "no such file"),
        ("data.name=digits", "'digits' holds no texts"),
        ("data.columns={promt: x}", "data.columns.promt: there is no column 'promt'"),
        ("language.answer='('", "language.answer"),
        ("task=classification", "language: does not apply to the task classification"),
        ("data.balance=true", "data.balance=true: does not apply to the task language"),
        ("data.augment=shift", "data.augment=shift: does not apply to the task language"),
    ],
)
def test_what_is_wrong_is_one_line(change: str, said: str, prepared: Cli) -> None:
    found = prepared("train", "r.yaml", change, "--out", "run")
    assert found.code == 2
    assert said in found.err
    assert not Path("run").exists()


def test_a_model_that_was_trained_whole_becomes_a_folder(prepared: Cli, folders: dict[str, Path]) -> None:
    done = prepared("train", "r.yaml", "adapter=null", "train.optimizer.lr=1e-3", "--out", "run", "--json")
    assert done.code == 0, done.err
    merged = prepared("merge", "run", "--out", "merged", "--json")
    assert merged.code == 0, merged.err
    old, new = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (folders["Llama"], "merged"))
    trained = load_file("run/model.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in new.items())
    assert merged.json()["tensors_changed"] == len(old)
    assert any(not torch.equal(value, new[name]) for name, value in old.items())


def test_prompts_are_completed(prepared: Cli, folders: dict[str, Path], tokenizer: Any) -> None:
    """The same tokens as transformers generates with the merged weights, whatever the batch."""
    assert prepared("train", "r.yaml", "train.optimizer.lr=0.3", "--out", "run").code == 0
    Path("prompts.txt").write_text("1+1=\n\n4+4 \n")
    words = ("generate", "run", "--prompt", "3+2=", "--prompts", "prompts.txt", "--max-tokens", "5")
    found = prepared(*words, "--json").json()["completions"]
    assert [each["prompt"] for each in found] == ["3+2=", "1+1=", "4+4"]
    one_by_one = prepared(*words, "--json", "--batch-size", "1").json()["completions"]
    assert one_by_one == found

    assert prepared("merge", "run", "--out", "merged").code == 0
    model = AutoModelForCausalLM.from_pretrained("merged")
    for each in found:
        ids = tokenizer(each["prompt"], return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=257)[0, ids.shape[1] :]
        assert tokenizer.decode(made, skip_special_tokens=True) == each["text"]

    said = prepared(*words[:4], "--max-tokens", "5")
    assert said.out == found[0]["text"] + "\n"
    assert prepared(*words, "--out", "found.json").code == 0
    assert json.loads(Path("found.json").read_text())["completions"] == found
    drawn = [prepared(*words, "--temperature", "2", "--seed", seed, "--json").json() for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_models_without_an_adapter_continue_prompts(prepared: Cli, folders: dict[str, Path], adapted: Path) -> None:
    words = ("--prompt", "3+2=", "--max-tokens", "5", "--json")
    assert prepared("merge", adapted, "--out", "merged").code == 0
    found = {source: prepared("generate", source, *words) for source in
             (f"transformers:{folders['Llama']}", str(folders["Llama"]), "merged", str(adapted))}  # fmt: skip
    assert [done.code for done in found.values()] == [0] * 4, [done.err for done in found.values()]
    named, folder, merged, run = (done.json() for done in found.values())
    assert (named, merged) == (folder, run)
    refused = prepared("generate", "transformers:nowhere", *words)
    assert refused.code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no prompt is given"),
        (("--prompt", "1+1=", "--num", "3"), "--num: does not apply to the task language"),
        (("--prompt", "1+1=", "--temperature", "-1"), "is not a temperature"),
        (("--prompt", ""), "a prompt is empty"),
        (("--prompt", "1", "--out", "nowhere/x.json"), "no such folder"),
    ],
)
def test_wrong_options_of_generate_are_one_line(words: tuple[str, ...], said: str, cli: Cli, adapted: Path) -> None:
    found = cli("generate", adapted, *words)
    assert found.code == 2
    assert said in found.err


def test_texts_are_not_measured_as_images(cli: Cli) -> None:
    assert "generates no images" in cli("eval", "sums_llama", "--against", "digits:test").message


@pytest.fixture(scope="module")
def adapted(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step; read only."""
    folder = tmp_path_factory.mktemp("adapted")
    with contextlib.chdir(folder):
        Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        Path("r.yaml").write_text(recipe(folders["Llama"], str(folder / "sums.jsonl"), "language: {length: 16}"))
        assert run_cli("train", "r.yaml", "train.steps=1", "--out", "run").code == 0
    return folder / "run"


QUESTIONS = [{"prompt": f"{a}+1=", "choices": [str(a), str(a + 1), f"{a + 2} or more"], "answer": 1} for a in range(12)]


def choice_of(model: Any, tokenizer: Any, row: dict[str, Any]) -> int:
    """The likeliest choice, one at a time."""
    scores = []
    for choice in row["choices"]:
        ids = torch.tensor([tokenizer(row["prompt"] + choice)["input_ids"]])
        logs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        scores.append(logs[len(row["prompt"]) - 1 :].sum().item())
    return int(np.argmax(scores))


def test_choices_are_rated_by_their_likelihoods(prepared: Cli, adapted: Path, tokenizer: Any) -> None:
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    change = ("data.name=questions.jsonl", "data.validation=0", "language={length: 32, judge: choices}")
    judged = prepared("eval", adapted, *change, "eval.batch_size=7", "--json")
    assert judged.code == 0, judged.err
    prepared("merge", adapted, "--out", "merged")
    model = AutoModelForCausalLM.from_pretrained("merged")
    right = np.mean([choice_of(model, tokenizer, row) == row["answer"] for row in QUESTIONS])
    assert judged.json()["metrics"]["accuracy"] == right
    short = prepared("eval", adapted, *change[:2], "language={length: 5, judge: choices}", "--json")
    assert "has no room for its choices" in short.out


def test_answers_are_judged_by_what_is_generated(prepared: Cli, adapted: Path) -> None:
    """Data whose completions are what the model generates are all right, and others are not."""
    asked = [word for row in ROWS[:4] for word in ("--prompt", row["prompt"])]
    found = prepared("generate", adapted, *asked, "--max-tokens", "4", "--json").json()["completions"]
    rows = [{"prompt": each["prompt"], "completion": each["text"] or "?"} for each in found]
    Path("made.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "9", "completion": "no"}])
    )
    settings = "language={length: 16, judge: exact_match, max_tokens: 4}"
    judged = prepared("eval", adapted, "data.name=made.jsonl", "data.validation=0", settings, "--json").json()
    assert judged["metrics"]["exact_match"] == pytest.approx(4 / 5)
    with Path("made.jsonl").open("a") as file:
        file.write('{"prompt": "9", "completion": "1234567"}\n{"text": "no question"}\n')
    judged = prepared("eval", adapted, "data.name=made.jsonl", "data.validation=0", settings, "--json").json()
    assert judged["metrics"]["exact_match"] == pytest.approx(4 / 6)
    assert "test: 6 of 7 texts have a prompt, of which exact_match is" in judged["notes"]
    assert "of 6 completions have more tokens than language.max_tokens (4), up to " in judged["notes"][2]


def test_texts_that_cannot_be_asked_are_left_out_and_named(prepared: Cli, adapted: Path) -> None:
    Path("made.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n{"prompt": "", "completion": "2"}\n')
    settings = ("language={length: 16, judge: exact_match, max_tokens: 2}", "data.validation=0")
    judged = prepared("eval", adapted, "data.name=made.jsonl", *settings, "--json")
    assert judged.code == 0, judged.err
    assert "test: left out 1 of 2 texts (its prompt is empty): made.jsonl:2" in judged.json()["notes"]


def test_an_answer_ends_where_positions_do(prepared: Cli, folders: dict[str, Path]) -> None:
    """As if each prompt were continued alone; those that leave no room are left out, or refused."""
    rows = [{"prompt": "1" * length, "completion": "2"} for length in (100, 126, 127, 128, 3)]
    Path("made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change = (f"model.name=transformers:{folders['GPT-2']}", "data.name=made.jsonl", "data.validation=0",
              "language={length: 128, judge: exact_match, max_tokens: 40}")  # fmt: skip
    done = prepared("train", "r.yaml", *change, "train.steps=1", "--out", "run", "--json")
    assert done.code == 0, done.err
    note = "test: left out 1 of 5 texts (its prompt leaves no room in the model's 128 positions): made.jsonl:4"
    assert note in Path("run", "log.txt").read_text()
    asked = [word for row in rows[:3] for word in ("--prompt", row["prompt"])]
    found = prepared("generate", "run", *asked, "--json").json()["completions"]
    assert all(each["tokens"] <= most for each, most in zip(found, (28, 2, 1), strict=True))
    assert found[0] == prepared("generate", "run", *asked[:2], "--json").json()["completions"][0]
    refused = prepared("generate", "run", "--prompt", "1" * 128, "--json")
    assert (refused.code, "has 128 tokens, and the model 128 positions" in refused.out) == (2, True)


def test_conversations_are_judged_and_a_chat_template_is_kept(prepared: Cli) -> None:
    """The answer that is right has all that the template writes of it, but for the token that ends it."""
    talks = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}] for n in range(20)]
    talks[7].insert(0, {"role": "system", "content": "be brief"})
    Path("talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    Path("chat.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
        "<{{ m.role }}>{{ '-' if m.role == 'assistant' }}{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    change = ("data.name=talks.jsonl", "train.steps=30", "train.checkpoint_every=30")
    settings = "language={length: 64, judge: exact_match, max_tokens: 8, chat_template: chat.jinja}"
    done = prepared("train", "r.yaml", *change, settings, "train.optimizer.lr=0.1", "--out", "run", "--json")
    assert done.code == 0, done.err
    assert done.json()["metrics"]["exact_match"] == 1
    assert "(the chat template refuses it: no system): talks.jsonl:8" in Path("run", "log.txt").read_text()
    Path("chat.jinja").unlink()
    judged = prepared("eval", "run", "--json")
    assert judged.json()["metrics"]["exact_match"] == 1
    assert not [note for note in judged.json()["notes"] if note.startswith("train:")]
    assert prepared("merge", "run", "--out", "merged").code == 0
    assert "no system" in AutoTokenizer.from_pretrained("merged").chat_template
    refused = prepared("train", "r.yaml", settings, "--out", "other")
    assert (refused.code, "language.chat_template" in refused.err) == (2, True)


def test_prompts_are_messages_with_chat(prepared: Cli, adapted: Path) -> None:
    Path("chat.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")
    words, template = ("--max-tokens", "3", "--json"), "language.chat_template=chat.jinja"
    asked = prepared("generate", adapted, template, "--prompt", "1", "--system", "s", *words)
    assert asked.code == 0, asked.err
    plain = prepared("generate", adapted, "--prompt", "<system>s<user>1<assistant>", *words).json()
    assert asked.json()["completions"] == [{**plain["completions"][0], "prompt": "1"}]
    refused = prepared("generate", adapted, "--prompt", "1", "--chat")
    assert (refused.code, "has no chat template" in refused.err) == (2, True)


def test_tokens_without_an_embedding_are_named(prepared: Cli, folders: dict[str, Path], adapted: Path) -> None:
    shutil.copytree(folders["Llama"], "more")
    tokenizer = AutoTokenizer.from_pretrained("more")
    tokenizer.add_tokens(["1+1"])
    tokenizer.save_pretrained("more")
    change = "model.name=transformers:more"
    for command in (("train", "r.yaml", change, "--out", "run"), ("preview", "r.yaml", change),
                    ("generate", adapted, change, "--prompt", "1+1")):  # fmt: skip
        refused = prepared(*command)
        assert refused.code == 2
        assert "has 258 embeddings, none for token 258 '1+1'" in refused.err


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("Llama", 3 * 32),
        pytest.param("BERT", 33 * 32 + 33 * 3, marks=pytest.mark.slow),
        pytest.param("RoBERTa", 33 * 32 + 33 * 3, marks=pytest.mark.slow),
        pytest.param("DistilBERT", 33 * 32 + 33 * 3, marks=pytest.mark.slow),
        pytest.param("ModernBERT", 33 * 32 + 33 * 3, marks=pytest.mark.slow),
    ],
)
def test_a_new_head_classifies_texts(
    family: str, head: int, prepared: Cli, folders: dict[str, Path], tokenizer: Any
) -> None:
    rows = [{"text": "abc"[n % 3] * (1 + n % 5), "label": str(n % 3 + 9)} for n in range(60)]
    Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change = (f"model.name=transformers:{folders[family]}", "model.head=new", "adapter.targets=[all-linear]",
              "data.name=labels.jsonl", "train.steps=30", "train.batch_size=16",
              "train.optimizer={lr: 0.01, head_lr: 0.1}")  # fmt: skip
    done = prepared("train", "r.yaml", *change, "train.checkpoint_every=20", "--out", "run", "--json")
    assert done.code == 0, done.err
    assert done.json()["params"]["head"] == head
    assert done.json()["metrics"]["accuracy"] > 0.9
    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    assert prepared("train", "r.yaml", *change, "train.checkpoint_every=20", "--resume", "half", "--json").code == 0
    assert Path("half", "adapter.safetensors").read_bytes() == Path("run", "adapter.safetensors").read_bytes()
    assert prepared("eval", "run", "--json").json()["metrics"]["accuracy"] == done.json()["metrics"]["accuracy"]
    merged = prepared("merge", "run", "--out", "merged", "--json")
    assert merged.code == 0, merged.err
    model = AutoModelForSequenceClassification.from_pretrained("merged")
    assert model.config.id2label == {0: "9", 1: "10", 2: "11"}
    seen = tokenizer(["bbb", "a", "ccccc"], padding=True, return_tensors="pt")
    assert model(seen["input_ids"], attention_mask=seen["attention_mask"]).logits.argmax(-1).tolist() == [1, 0, 2]
    assert "num_labels=3" in build_from_file(Path("run", "adapter.safetensors")).base.call
    other = prepared("eval", "run", "seed=1", "--json").json()["metrics"]
    assert other["accuracy"] == done.json()["metrics"]["accuracy"]


def test_some_of_the_texts_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = read_texts(DataSection(name=str(file), train_texts=5, eval_texts=2))
    whole = read_texts(DataSection(name=str(file)))
    assert [len(found.named(split)) for split in SPLITS] == [5, 2, 2]
    assert all(row in whole.train.rows for row in found.train.rows)


def test_texts_of_one_label_are_not_learned(prepared: Cli) -> None:
    rows = [{"text": "abc"[n % 3], "label": "x"} for n in range(30)]
    Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = prepared("train", "r.yaml", "model.head=new", "data.name=labels.jsonl", "--out", "run")
    assert refused.code == 2
    assert "data.name: the texts of 'labels.jsonl' have one label, and nothing to tell it from" in refused.message
    assert not Path("run").exists()


def factors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_with_half_the_batch_train_the_same(sharded: bool, prepared: Cli, commands: Commands) -> None:
    """Also if answers are generated, and the base is spread over both."""
    settings = ("language={length: 16, judge: exact_match, max_tokens: 3}", "train.device=cpu")
    alone = prepared("train", "r.yaml", *settings, "--out", "alone", "--json")
    assert alone.code == 0, alone.err
    half = ("train.batch_size=1", f"train.shard_base={str(sharded).lower()}")
    both = together(commands, "train", "r.yaml", *settings, *half, "--out", "both", "--json")
    assert both.code == 0, both.err
    assert both.json()["metrics"] == pytest.approx(alone.json()["metrics"], abs=1e-4)
    wanted = factors(Path("alone"))
    for name, own in factors(Path("both")).items():
        torch.testing.assert_close(own, wanted[name], rtol=0, atol=1e-4)


def test_recomputed_activations_give_the_same_adapter(prepared: Cli) -> None:
    for name, recomputes in (("plain", "false"), ("again", "true")):
        change = (f"train.gradient_checkpointing={recomputes}", "train.steps=2")
        assert prepared("train", "r.yaml", *change, "--out", name).code == 0
    wanted = factors(Path("plain"))
    for name, own in factors(Path("again")).items():
        torch.testing.assert_close(own, wanted[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_memory_of_a_step_is_less_with_recomputed_activations(cli: Cli) -> None:
    """Of a model of seven billion parameters, which is never in memory."""
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11_008}
    LlamaConfig(**shape, vocab_size=32_000, dtype="bfloat16").save_pretrained("seven")
    Path("r.yaml").write_text(recipe("seven", "sums"))
    plain, less = (
        cli("train", "r.yaml", "train.precision=bf16", f"train.gradient_checkpointing={again}", "--dry-run", "--json")
        .json()["memory"]
        for again in ("false", "true")
    )  # fmt: skip
    assert plain["base"] == pytest.approx(2 * 6_738_415_616, rel=0.01)
    assert less["activations"] < 0.2 * plain["activations"]
    assert less["total"] < plain["total"]


def test_positions_that_a_model_does_not_use_are_not_counted(folders: dict[str, Path]) -> None:
    section = ModelSection(name=f"transformers:{folders['RoBERTa']}", head="new")
    assert build_language(section, classes=2, weights=False).positions == 128


def test_a_model_without_its_weights_for_a_task_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    AutoModel.from_pretrained(folders["Llama"]).save_pretrained(tmp_path / "body")
    with pytest.raises(UsageError, match="the files lack 1 weights"):
        build_language(ModelSection(name=f"transformers:{tmp_path / 'body'}", head="frozen"), classes=None)
