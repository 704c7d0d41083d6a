"""Texts as tokens: which of them are learned, of conversations as the model's template writes them."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from superlora_cli.data.text_rows import Row, UnfitError
from superlora_cli.errors import UsageError
from superlora_cli.models.embedded import ASSETS
from superlora_cli.tasks.language import encoding
from superlora_cli.tasks.language.encoding import Encoded, encode, prompt_ids, question
from superlora_cli.tasks.language.pieces import pieces

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" \
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # fmt: skip
MARKED = CHATML.replace("{{ m.content }}<|im_end|>", "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
                        "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}")  # fmt: skip
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content.split('</think>')[-1] }}{% for call in m.tool_calls or [] %}[{{ call.name }}]{% endfor %}\
<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
INST = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]" \
       "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"  # fmt: skip
WORDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}.\n{% endfor %}" \
        "{% if add_generation_prompt %}assistant: {% endif %}"  # fmt: skip
LAST_SYSTEM = "{% for m in messages if m.role != 'system' %}<|im_start|>" \
              "{% if m.role == 'user' and loop.revindex <= 2 %}{{ messages[0].content }}{% endif %}{{ m.content }}" \
              "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"  # fmt: skip


def said(*contents: str) -> list[dict[str, Any]]:
    """A conversation that a user begins."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "sums_llama")


@pytest.fixture
def talking(tokenizer: Any) -> Any:
    """A tokenizer with the special tokens of ChatML."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def sentencepiece(*, first: bool) -> Any:
    """A tokenizer that puts a space before the whole text, or before all that is between special tokens."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>"])}
    for letter in "▁ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:?!.[]/\n#":
        vocabulary[letter] = len(vocabulary)
    vocabulary["▁T"] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "T")], unk_token="<unk>"))
    if first:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def learned(encoded: Encoded, tokenizer: Any) -> list[str]:
    """Learned tokens by name."""
    names: list[str] = tokenizer.convert_ids_to_tokens(encoded.tokens[encoded.learned].tolist())
    return names


def spans(encoded: Encoded) -> list[tuple[int, int]]:
    return list(zip(encoded.starts[:-1].tolist(), encoded.starts[1:].tolist(), strict=True))


def test_only_completions_are_learned(tokenizer: Any) -> None:
    encoded = encode([{"prompt": "ab", "completion": "c"}, {"text": "xyz"}], tokenizer, 16)
    assert encoded.tokens.tolist() == [*b"abc", 256, *b"xyz", 256]
    assert encoded.learned.tolist() == [False, False, True, True, False, True, True, True]
    assert encoded.bytes == len("c") + len("yz")  # without the x that nothing comes before
    assert encoded.notes == ()


def test_what_is_too_long_is_cut_and_told(tokenizer: Any) -> None:
    rows = [{"text": "abcdefg"}, {"prompt": "ab", "completion": "cdefg"}, {"prompt": "abcd", "completion": "e"}]
    encoded = encode(rows, tokenizer, 4)
    texts = [
        bytes(encoded.tokens[a:b].tolist()) if 256 not in encoded.tokens[a:b] else b"efg" for a, b in spans(encoded)
    ]
    assert texts == [b"abcd", b"efg", b"abcd"]
    assert encoded.notes == (
        "3 of 3 texts are longer than 4 tokens and are cut",
        "left out 1 of 3 texts (no token of the completion is left)",
    )
    assert encoded.bytes == len("bcdfg") + len("cd")
    with pytest.raises(UsageError, match="nothing is left to learn"):
        encode(rows[2:], tokenizer, 4)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "37+85=", "completion": "122"},
        {"prompt": "eighty-five is", "completion": " one hundred"},
        {"prompt": "ü ", "completion": "  ß\n"},
        {"prompt": "x<|end|>", "completion": "<|end|>y"},
        {"prompt": "", "completion": "7"},
        {"prompt": "a ", "choices": ["b", " c"], "answer": 1},
        {"text": "A docstring.\n\n    With  spaces: „ß“."},
    ],
)
def test_the_shipped_model_reads_every_piece_by_itself(row: Row, tokenizer: Any) -> None:
    """Its records in benchmarks/ depend on these tokens."""
    own = pieces(row, tokenizer)
    ids = [tokenizer(piece.text, add_special_tokens=False)["input_ids"] for piece in own]
    ids[-1] += [256] * (ids[-1][-1] != 256)
    encoded = encode([row], tokenizer, 64)
    assert encoded.tokens.tolist() == [token for each in ids for token in each]
    wanted = [piece.learned for piece, each in zip(own, ids, strict=True) for _ in each]
    assert encoded.learned.tolist() == [False, *wanted[1:]]


@pytest.mark.parametrize(
    ("template", "talk", "answers"),
    [
        (CHATML, said("a", "2", "again", "3"), ["2<|im_end|>", "3<|im_end|>"]),
        (CHATML, said("user", " s", "m", "assistant "), [" s<|im_end|>", "assistant <|im_end|>"]),
        (CHATML, said("a", "2", "again"), ["2<|im_end|>"]),
        (CHATML, said("a", ""), ["<|im_end|>"]),
        (MARKED, said("a", "2", "again", "3"), ["2<|im_end|>", "3<|im_end|>"]),
        (THINKING, said("a", "2", "again", "3"), ["2<|im_end|>", "<think>\n\n</think>\n\n3<|im_end|>"]),
        (THINKING, said("a", "hm</think>2", "b", "hm</think>3"), ["<think>\n\n</think>\n\n3<|im_end|>"]),
        (THINKING, [*said("a"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
                    {"role": "tool", "content": "7"}, *said("", "7")[1:]],
         ["[f]<|im_end|>", "<think>\n\n</think>\n\n7<|im_end|>"]),
        (INST, said(" a", "2 ", "again", "3"), [" 2 <|end|>", " 3 <|end|>"]),
        (WORDS, said("a", "2", "again", "3"), ["2.", "3."]),
        (LAST_SYSTEM, [{"role": "system", "content": "s"}, *said("a", "2", "again", "3")],
         ["2<|im_end|>", "3<|im_end|>"]),
    ],
)  # fmt: skip
def test_of_a_conversation_the_answers_are_learned(template: str, talk: Any, answers: list[str], talking: Any) -> None:
    """Up to the token that ends them, in the tokens that the template gives the whole conversation."""
    talking.chat_template = template
    found = pieces({"messages": talk}, talking)
    assert [piece.text for piece in found if piece.learned] == answers
    encoded = encode([{"messages": talk}], talking, 256)
    assert talking.decode(encoded.tokens[encoded.learned]) == "".join(answers)
    whole = talking.apply_chat_template(talk, tokenize=True)["input_ids"]
    assert whole[: len(encoded.tokens)] == encoded.tokens.tolist()
    assert question({"messages": talk}, talking).answer == answers[-1].replace("<|im_end|>", "").replace("<|end|>", "")


def test_only_the_last_answer_is_learned_if_a_template_changes_others(talking: Any) -> None:
    talking.chat_template = THINKING
    rows = [{"messages": said("a", "hm</think>2", "b", "3")}, {"messages": said("a", "2")}]
    notes = encode(rows, talking, 256).notes
    assert notes == ("of 1 of 2 texts only the last answer is learned (the chat template changes earlier ones)",)


def test_of_messages_as_prompt_and_completion_those_of_the_completion_are_learned(talking: Any) -> None:
    talking.chat_template = CHATML
    encoded = encode([{"prompt": said("a", "2", "b"), "completion": said("", "3")[1:]}], talking, 256)
    assert talking.decode(encoded.tokens[encoded.learned]) == "3<|im_end|>"


def test_a_template_is_told_which_tools_there_are(talking: Any) -> None:
    talking.chat_template = "{% for tool in tools or [] %}{{ tool.name }}{% endfor %}" + CHATML
    row = {"messages": said("a", "2"), "tools": [{"name": "look"}]}
    assert pieces(row, talking)[0].text == "look<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_conversations_that_a_template_refuses_are_left_out_and_named(talking: Any) -> None:
    rows = [{"messages": [{"role": "system", "content": "x"}, *said("a", "2")]}, {"messages": said("a", "2")}]
    with pytest.raises(UsageError, match="no chat template"):
        encode(rows, talking, 64)
    talking.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    )
    encoded = encode(rows, talking, 64, places=["a:1", "a:2"])
    assert len(encoded) == 1
    assert encoded.notes == ("left out 1 of 2 texts (the chat template refuses it: no system): a:1",)
    with pytest.raises(UsageError, match="a:1: no text can be used: the chat template refuses it: no system"):
        encode(rows[:1], talking, 64, places=["a:1"])
    talking.chat_template = "{{ messages | length }}"
    with pytest.raises(UnfitError, match="does not write an answer after the request"):
        pieces(rows[1], talking)


@pytest.mark.parametrize("first", [True, False], ids=["before the text", "behind special tokens"])
def test_spaces_that_a_tokenizer_adds_are_those_of_the_whole_text(first: bool) -> None:
    tokenizer = sentencepiece(first=first)
    for prompt, completion, own in (
        ("Q:", " Two", ["▁T", "w", "o"]),
        ("Answer:\n", "Two", ["T", "w", "o"]),
        ("Q: ", "Two", ["▁T", "w", "o"]),  # the prompt's own tokens end with a space, and more would be added
    ):
        encoded = encode([{"prompt": prompt, "completion": completion}], tokenizer, 64)
        assert encoded.tokens.tolist() == [*tokenizer(prompt + completion)["input_ids"], 2]
        assert learned(encoded, tokenizer) == [*own, "</s>"]
    tokenizer.chat_template = INST
    talk = said("Hi", "Yes", "Ok?", "No")
    encoded = encode([{"messages": talk}], tokenizer, 64)
    assert encoded.tokens.tolist() == tokenizer.apply_chat_template(talk, tokenize=True)["input_ids"]
    assert prompt_ids("<s>[INST] Hi", tokenizer) == tokenizer("<s>[INST] Hi", add_special_tokens=False)["input_ids"]


def test_a_prompt_has_its_own_tokens_where_one_lies_across_its_end() -> None:
    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "e": 3}, merges=[("a", "b")]))
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="e")
    assert tokenizer("ab")["input_ids"] == [2]
    encoded = encode([{"prompt": "aba", "completion": "bab"}], tokenizer, 64)
    assert encoded.tokens.tolist() == [*prompt_ids("aba", tokenizer), 1, 2, 3]
    assert learned(encoded, tokenizer) == ["b", "ab", "e"]


def test_an_end_that_the_tokenizer_adds_is_only_at_the_end(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", 256)]
    )
    assert tokenizer("a")["input_ids"] == [97, 256]
    encoded = encode([{"prompt": "ab", "completion": "c"}, {"text": "de"}], tokenizer, 16)
    assert encoded.tokens.tolist() == [*b"abc", 256, *b"de", 256]
    assert encode([{"prompt": "a", "completion": "b"}], tokenizer, 9, ended=False).tokens.tolist() == [*b"ab"]
    assert prompt_ids("ab", tokenizer) == [*b"ab"]


def test_many_texts_are_cut_into_tokens_some_at_a_time(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{number}=", "completion": str(number)} for number in range(10)]
    whole = encode(rows, tokenizer, 16)
    monkeypatch.setattr(encoding, "CHUNK", 3)
    parts = encode(rows, tokenizer, 16)
    assert (whole.tokens.tolist(), whole.starts.tolist()) == (parts.tokens.tolist(), parts.starts.tolist())
