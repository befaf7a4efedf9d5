"""A head for labels on ChatGLM2: its numbers are those of the last real token, its files those of the original."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_folder import write_original
from torch.nn import functional

from hanlin.core.batch import IGNORED
from hanlin.core.errors import CheckpointError, ConfigError, DataError
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.load import load_into, open_ours
from hanlin.formats.source import read_config
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.common import decoder_batch

CONFIG = ChatGlm2Config(
    vocab_size=50, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=32, max_length=64,
    labels=("a", "b", "c"),
)  # fmt: skip
LENGTHS = (5, 9, 3)


def make_model(config: ChatGlm2Config = CONFIG, *, bias: bool = True) -> ChatGlm2:
    model, draw = ChatGlm2(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=draw)
        if not bias:
            model.head.label_bias.zero_()
    return model.double().eval()


def texts() -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [draw.integers(1, CONFIG.vocab_size, length) for length in LENGTHS]


def last_numbers(model: ChatGlm2, text: np.ndarray) -> torch.Tensor:
    """Hidden state of the last token @ weight + bias, of a text that is alone."""
    hidden = []
    hook = model.norm.register_forward_hook(lambda _, __, out: hidden.append(out))
    model(tokens=torch.from_numpy(text)[None])
    hook.remove()
    return hidden[0][0, -1] @ model.head.label_weight.T + model.head.label_bias


@torch.no_grad()
def test_the_last_real_token_decides_wherever_padding_is() -> None:
    model = make_model()
    expected = torch.stack([last_numbers(model, text) for text in texts()])
    left = decoder_batch.pad_left(texts(), pad=0)
    torch.testing.assert_close(model(**left, logits_to_keep=1)[:, 0], expected)
    right = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, text in enumerate(texts()):
        right[row, : len(text)] = torch.from_numpy(text)
    found = model(tokens=right)[range(len(LENGTHS)), [length - 1 for length in LENGTHS]]
    torch.testing.assert_close(found, expected)


LABELS = {
    "one": ("single_label_classification", torch.tensor([2, 0, 1])),
    "several": ("multi_label_classification", torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1]])),
    "number": ("regression", torch.tensor([[0.5, -1, 2], [3, 0, 1], [0, 1, -2.5]])),
}


@pytest.mark.parametrize("kind", LABELS)
def test_transformers_own_classifier_says_the_same(kind, tmp_path: Path) -> None:
    """GlmForSequenceClassification has no bias and finds the last token that is not padding; else it is the same."""
    transformers = pytest.importorskip("transformers")
    model = make_model(replace(CONFIG, label_kind=kind), bias=False)
    problem, labels = LABELS[kind]
    theirs = transformers.GlmForSequenceClassification(
        transformers.GlmConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=32, max_position_embeddings=64, rms_norm_eps=1e-5, attention_bias=True,
            pad_token_id=0, eos_token_id=2, bos_token_id=1, num_labels=3, problem_type=problem,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        )
    ).double()  # fmt: skip
    plain = replace(CONFIG, labels=())
    ours = {**dict(model.named_parameters()), "head.weight": torch.zeros(50, 24)}
    moved = to_theirs(plain, ours)
    moved["score.weight"] = model.head.label_weight
    del moved["lm_head.weight"]
    theirs.load_state_dict(moved)
    left = decoder_batch.pad_left(texts(), pad=0)
    mask = (left["spans"] >= 0).long()
    wanted = theirs.eval()(left["tokens"], attention_mask=mask, position_ids=left["positions"], labels=labels)
    torch.testing.assert_close(model(**left, logits_to_keep=1)[:, 0], wanted.logits)
    places, targets = torch.full_like(left["tokens"], IGNORED), torch.zeros(*left["tokens"].shape, 3)
    places[:, -1] = labels if kind == "one" else 0
    targets[:, -1] = functional.one_hot(labels, 3) if kind == "one" else labels
    loss = model(**left, targets=targets, labels=places) / len(LENGTHS)
    torch.testing.assert_close(loss, wanted.loss.to(loss.dtype), atol=1e-6, rtol=1e-6)  # theirs is added in fp32


def to_theirs(config: ChatGlm2Config, ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from hanlin.formats.rules import find_moves

    moves = find_moves(family.formats["huggingface"].rules(config), ours, "to_theirs")
    return {
        name: tensor
        for move in moves
        for name, tensor in zip(move.targets, move.run(tuple(ours[source] for source in move.sources)), strict=True)
    }


# --- files ---


def write_classifier(folder: Path, **values: object) -> Path:
    """What ChatGLMForSequenceClassification saves: also the vocabulary's head, which it never uses."""
    write_original(folder)
    weights, draw = torch.load(folder / "pytorch_model.bin", weights_only=True), torch.Generator().manual_seed(4)
    weights["classifier_head.weight"] = torch.randn(2, 32, generator=draw).half()
    weights["classifier_head.bias"] = torch.randn(2, generator=draw).half()
    torch.save(weights, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["ChatGLMForSequenceClassification"], **values}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_original_classifier_is_read_and_written_again(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "original", id2label={"0": "坏", "1": "好"}, classifier_dropout=0.1)
    config = read_config(folder, family)
    assert (config.labels, config.label_kind, config.label_dropout) == (("坏", "好"), "one", 0.1)
    model = ChatGlm2(config)
    load_into(model, folder, family, dtype=torch.float32)
    theirs = open_weights(folder)
    assert model.head.label_weight.equal(theirs["classifier_head.weight"].float())
    assert model.head.label_bias.equal(theirs["classifier_head.bias"].float())
    convert(folder, family, None, "base", tmp_path / "base")
    convert(tmp_path / "base", family, None, "original", tmp_path / "again")
    again = open_weights(tmp_path / "again")
    assert set(theirs) - set(again) == {"transformer.output_layer.weight"}
    assert all(again[name].equal(theirs[name]) for name in again)
    assert read_config(tmp_path / "again", family) == config
    written = json.loads((tmp_path / "again/config.json").read_text())
    expected = {"architectures": ["ChatGLMForSequenceClassification"], "id2label": {"0": "坏", "1": "好"},
                "label2id": {"坏": 0, "好": 1}, "problem_type": "single_label_classification",
                "classifier_dropout": 0.1}  # fmt: skip
    assert written | expected == written


def test_a_classifier_may_be_quantised(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "original")
    convert(folder, family, None, "int8", tmp_path / "int8")
    assert read_config(tmp_path / "int8", family).labels == ("LABEL_0", "LABEL_1")
    weights = open_ours(tmp_path / "int8", family)
    assert weights["head.label_weight"].equal(open_weights(folder)["classifier_head.weight"])


def test_what_transformers_does_not_write_is_its_default(tmp_path: Path) -> None:
    config = read_config(write_classifier(tmp_path / "original"), family)
    assert (config.labels, config.label_kind, config.label_dropout) == (("LABEL_0", "LABEL_1"), "one", 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "id2label has 3 names, but classifier_head has 2 rows"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking', expected one of single_label_classification"),
        ({"quantization_bit": 3}, r"quantization_bit is 3, expected 0 \(plain numbers\), 4 or 8"),
    ],
)
def test_a_config_that_does_not_fit_is_said(values: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_config(write_classifier(tmp_path / "original", **values), family)


def test_a_base_folder_with_impossible_bits_is_said(tmp_path: Path) -> None:
    convert(write_original(tmp_path / "original"), family, None, "base", tmp_path / "base")
    config = tmp_path / "base/config.json"
    config.write_text(config.read_text().replace('"bits": 0', '"bits": 3'))
    with pytest.raises(CheckpointError, match="config value bits: 3 is none of 0, 4, 8"):
        read_config(tmp_path / "base", family)


def test_transformers_glm_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a head for labels"):
        convert(write_classifier(tmp_path / "original"), family, None, "huggingface", tmp_path / "glm")


# --- records ---


def make_processor(tokenizer, kind="one", labels=("好", "坏"), **options):
    config = replace(CONFIG, vocab_size=400, max_length=256, labels=labels, label_kind=kind)
    return family.processor(tokenizer, config, ChatGlm2Options(response_column="label", **options))


def test_the_label_stands_at_the_last_token_of_the_prompt(tokenizer) -> None:
    processor = make_processor(tokenizer)
    record = {"prompt": "黑色百搭", "label": "坏"}
    sample, expected = processor.sample(record), tokenizer.encode_prompt("[Round 1]\n\n问：黑色百搭\n\n答：")
    assert sample.inputs["tokens"].tolist() == expected
    assert sample.labels.tolist() == [IGNORED] * (len(expected) - 1) + [1]
    assert sample.weights.tolist() == [0] * (len(expected) - 1) + [1]
    plain = make_processor(tokenizer, template="plain")
    assert plain.sample(record).inputs["tokens"].tolist() == tokenizer.encode_prompt("黑色百搭")
    assert processor.show(sample)[-1] == (" 坏", True)


def test_targets_stand_where_the_labels_do_in_packed_rows(tokenizer) -> None:
    processor = make_processor(tokenizer, "number", ("x", "y"))
    made = [processor.sample({"prompt": "你好" * n, "label": [n, -n]}) for n in (1, 3, 2)]
    batch = processor.collate([made[:2], made[2:]], made[0].length + made[1].length + 4)
    at = batch.labels != IGNORED
    assert batch.inputs["targets"][at].tolist() == [[1, -1], [3, -3], [2, -2]]
    assert at.nonzero().tolist() == [[0, made[0].length - 1], [0, made[0].length + made[1].length - 1],
                                     [1, made[2].length - 1]]  # fmt: skip
    assert batch.inputs["targets"][~at].abs().max() == 0


def test_several_labels_are_a_list(tokenizer) -> None:
    processor = make_processor(tokenizer, "several", ("x", "y", "z"))
    assert processor.targets({"prompt": "你好", "label": ["z", "x"]}) == [1, 0, 1]
    assert processor.targets({"prompt": "你好", "label": []}) == [0, 0, 0]
    with pytest.raises(DataError, match="expected a list of labels, found 'x'"):
        processor.targets({"prompt": "你好", "label": "x"})


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("one", "中", "unknown label '中' in \"label\"; known: 好, 坏"),
        ("one", 1, "unknown label 1 in"),
        ("number", [1.0], "expected 2 numbers, of 好, 坏, found"),
        ("number", [1.0, True], "expected 2 numbers"),
        ("number", [1.0, float("nan")], "expected 2 numbers"),
        ("several", ["好", "中"], "unknown label '中'"),
    ],
)
def test_a_wrong_label_is_said(tokenizer, kind, label, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_processor(tokenizer, kind).check({"prompt": "你好", "label": label})


def test_a_row_without_label_is_said(tokenizer) -> None:
    with pytest.raises(DataError, match=r'no column "label" \(the row has: prompt\)'):
        make_processor(tokenizer).check({"prompt": "你好"})


def test_long_texts_lose_their_end_and_keep_their_template(tokenizer) -> None:
    record = {"prompt": "黑色百搭" * 50, "label": "好"}
    processor = make_processor(tokenizer)
    whole, (cut,) = processor.sample(record), processor.fit(record, 40, "truncate")
    sample = processor.sample(cut)
    assert whole.length > 100
    assert 38 <= sample.length <= 40
    assert record["prompt"].startswith(cut["prompt"])
    assert cut["label"] == "好"
    assert sample.inputs["tokens"][-1] == whole.inputs["tokens"][-1]
    limited = make_processor(tokenizer, prompt_length=40)
    assert limited.sample(record).inputs["tokens"].tolist() == sample.inputs["tokens"].tolist()
    assert limited.prompt(record).length == sample.length - 1
    with pytest.raises(DataError, match='too long: all but its "prompt" makes more than 5 tokens'):
        processor.fit(record, 5, "truncate")


@pytest.mark.parametrize(
    ("kind", "labels", "options", "message"),
    [
        ("one", ("好", "好"), {}, "'好' stands there twice"),
        ("one", ("好",), {}, "one label alone leaves nothing to choose"),
        ("one", ("好", "坏"), {"answer_length": 8}, "answer_length has no effect on labels"),
        ("one", ("好", "坏"), {"eval_prompt_length": 8}, "eval_prompt_length has no effect on labels"),
        ("one", ("好", "坏"), {"compatible": True}, "compatible has no effect on labels"),
    ],
)
def test_settings_that_make_no_head_are_refused(tokenizer, kind, labels, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_processor(tokenizer, kind, labels, **options)
