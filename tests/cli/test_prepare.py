from __future__ import annotations

import json
from pathlib import Path

import pytest
from chatglm2_pieces import small_pieces
from data_files import write_rows

from hanlin.cli.main import main
from hanlin.data.sources import open_records

RAW = {"target": "1", "input": "[翻译]月光[0]床前[1]明月光[答案]"}


def run(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # of argparse
        return int(str(end.code))


@pytest.mark.parametrize("name", ["ccpm", "cpm_bee:ccpm"])
def test_raw_ccpm_becomes_records(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write_rows(tmp_path / "raw.jsonl", [RAW, RAW]), tmp_path / "data" / "train.jsonl"
    assert main(["prepare", "--from", name, str(source), str(target)]) == 0
    assert capsys.readouterr().out == f"{target}: 2 rows\n"
    record = json.loads(target.read_text(encoding="utf-8").splitlines()[0])
    assert record["options"] == {"<option_0>": "床前", "<option_1>": "明月光"}
    assert record["<ans>"] == "<option_1>"


def test_the_binary_form_is_written_and_read_back(tmp_path: Path) -> None:
    source, binary, back = tmp_path / "a.jsonl", tmp_path / "bee" / "train", tmp_path / "b.jsonl"
    write_rows(source, [{"input": "床", "<ans>": "月"}, {"input": "前", "<ans>": "光"}])
    assert main(["prepare", "--to", "bee", str(source), str(binary)]) == 0
    assert main(["prepare", "--from", "bee", str(binary), str(back)]) == 0
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("to", ["jsonl", "bee"])
def test_all_files_of_a_folder_are_converted(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, target = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    for name, count in (("train", 3), ("eval", 1)):
        write_rows(raw / f"{name}.jsonl", [RAW] * count)
    (raw / "README.md").write_text("no rows")
    assert main(["prepare", "--from", "ccpm", "--to", to, str(raw), str(target)]) == 0
    ending = "" if to == "bee" else ".jsonl"
    assert capsys.readouterr().out == "".join(
        f"{target}/{name}{ending}: {n} rows\n" for name, n in (("eval", 1), ("train", 3))
    )
    assert [len(open_records(target / f"{name}{ending}")) for name in ("train", "eval")] == [3, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "bee", "raw.jsonl", "out.jsonl"], "is a folder"),
        (["--from", "ccpm", "empty", "out"], "no data set, and no files in"),
        (["--from", "ccpm", "raw.jsonl", "out.jsonl", "--bad-rows", "no"], "invalid choice"),
        (["--from", "bee", "raw.jsonl", "out"], "ends with .jsonl"),
        (["--from", "ccpm", "raw.jsonl"], "SOURCE and TARGET"),
        (["--from", "ccpm", "none.jsonl", "out.jsonl"], "there is no such file"),
        (["--from", "ccpm", "odd.jsonl", "out.jsonl"], "odd.jsonl:1: "),
        (
            ["--from", "ccmp", "raw.jsonl", "out.jsonl"],
            "unknown; expected one of jsonl, bee, arrow, indexed, cpm1:chid",
        ),
    ],
)
def test_wrong_words_are_explained(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "raw.jsonl", [RAW])
    write_rows(tmp_path / "odd.jsonl", [{"a": 1}])
    (tmp_path / "empty").mkdir()
    assert run(["prepare", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def small_vocabulary(folder: Path) -> Path:
    tokens = ["<unk>", "<pad>", "<eod>", *"▂▃，。床前明月光疑是地上霜举头望低思故乡", *(f"<s_{n}>" for n in range(9))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return folder / "vocab.txt"


POEM = "床前明月光，疑是地上霜。", "举头望明月，低头思故乡。"


def test_texts_become_a_corpus_that_is_merged_shuffled_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocab, corpus = str(small_vocabulary(tmp_path)), str(tmp_path / "corpus")
    text, more = tmp_path / "a.txt", write_rows(tmp_path / "b.jsonl", [{"text": str(line)} for line in POEM])
    text.write_text("\n".join(POEM), encoding="utf-8")
    indexed = ["prepare", "--to", "indexed", "--workers", "1"]
    assert main([*indexed, str(text), str(more), corpus, "--vocab", vocab]) == 0
    shown = capsys.readouterr().out
    assert "documents  4" in shown
    assert "tokens     52, 13.0 a document" in shown
    assert main([*indexed, str(text), corpus, "--vocab", vocab]) == 2
    assert "a corpus is there already" in capsys.readouterr().err
    mixed, back = str(tmp_path / "mixed"), tmp_path / "back.jsonl"
    assert main(["prepare", "--from", "indexed", "--to", "indexed", corpus, corpus, mixed, "--shuffle", "1"]) == 0
    assert capsys.readouterr().out == f"{mixed}: 8 documents, 104 tokens\n"
    assert main(["prepare", "--from", "indexed", mixed, str(back), "--vocab", vocab]) == 0
    texts = [json.loads(line)["text"] for line in back.read_text(encoding="utf-8").splitlines()]
    assert texts != [f"{line}<eod>" for line in POEM] * 4
    assert sorted(texts) == sorted([f"{line}<eod>" for line in POEM] * 4)


def test_texts_lose_their_spans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, target = tmp_path / "a.txt", tmp_path / "t5"
    text.write_text("<n>".join(POEM) + "\n太短", encoding="utf-8")
    words = ["prepare", "--to", "indexed-spans", str(text), str(target), "--vocab", str(small_vocabulary(tmp_path))]
    assert main([*words, "--workers", "1"]) == 0
    assert "_context, _target, _target_offset: 1 documents" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("t5*.idx")) == [
        f"t5_{part}.idx" for part in ("context", "target", "target_offset")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "indexed", "a.txt", "out"], "--vocab: name the vocabulary"),
        (["--to", "indexed", "a.txt", "out.bin"], "the target is a prefix, without .bin"),
        (["--to", "indexed", "a.txt", "out", "--vocab", "vocab.txt", "--eod", "<end>"], "no token <end>"),
        (["--to", "indexed", "none.txt", "out", "--vocab", "vocab.txt"], "there is no such file"),
        (["--to", "bee", "raw.jsonl", "out", "--shuffle", "1"], "--shuffle: only with --to indexed"),
        (["--from", "indexed", "a", "out"], "--to: say what to write"),
    ],
)
def test_wrong_words_about_corpora_are_explained(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small_vocabulary(tmp_path)
    (tmp_path / "a.txt").write_text(POEM[0], encoding="utf-8")
    assert main(["prepare", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_rows_of_a_recipe_become_a_folder_of_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(small_pieces().model)
    rows = [{"prompt": "你好", "response": "世界"}, {"prompt": "颜色", "response": " "}]
    source, recipe = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "recipe.yaml"
    sizes = "{vocab_size: 512, hidden_size: 8, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 4, ffn_size: 8}"
    recipe.write_text(
        f"model: {{family: chatglm2, vocab: {tmp_path}/tokenizer.model, config: {sizes}}}\n"
        f"data: {{train: [{source}], max_length: 64, cache: {tmp_path}/cache, bad_rows: drop}}\n"
        f"train: {{steps: 1}}\nrun: {{folder: {tmp_path}/run}}\n"
    )
    words = ["prepare", "--to", "arrow", str(recipe), str(tmp_path / "ids")]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path}/ids/train_datasets: 1 rows, 1 left out\n"
    assert open_records(tmp_path / "ids" / "train_datasets")[0].keys() == {"input_ids", "labels"}
    assert main(words[:-1]) == 2
    assert "--to arrow needs a recipe and a folder to write" in capsys.readouterr().err
