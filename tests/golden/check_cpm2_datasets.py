"""The nine data sets of CPM-2's fine-tuning: raw records -> ids, with and without prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hanlin.core.settings import PromptSettings
from hanlin.models.cpm2.datasets import adgen, c3, ccpm, kdconv, lcqmc, sogou, text_to_text
from hanlin.models.cpm2.pieces import source_of, target_of
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer

TEMPLATES = {
    "c3": c3.make_items,
    "adgen": adgen.make_items,
    "lcqmc": lcqmc.make_items,
    "math": text_to_text.make_math_items,
    "wmtencn": text_to_text.make_wmt_items,
    "lcsts": text_to_text.make_lcsts_items,
    "ccpm": ccpm.make_items,
    "kdconv": kdconv.make_items,
}


def check(case: Path, vocab: Path) -> None:
    tokenizers = {name: Cpm2Tokenizer.load(vocab / "cpm2" / name) for name in ("cn", "cn_en")}
    for variant in json.loads((case / "samples.json").read_text("utf-8")):
        name, _, kind = variant["id"].partition("/")
        if name in TEMPLATES and kind != "infer":
            _check_variant(case, name, variant, tokenizers[variant["tokenizer"]])
        elif name.startswith("sogou"):
            _check_ranking(case, variant, tokenizers[variant["tokenizer"]])


def _check_variant(case: Path, name: str, variant: dict[str, Any], tokenizer: Cpm2Tokenizer) -> None:
    prompts = _settings(variant["prompt_config"])
    records = _records(case / variant["raw"])
    records = records[: int(variant["kwargs"].get("ratio", 1) * len(records))]
    items = [item for record in records for item in TEMPLATES[name](record, prompts)]
    items = items[: variant["kwargs"].get("num", len(items))]
    for item, wanted in zip(items, variant["samples"], strict=True):
        target = target_of(item, tokenizer)
        assert source_of(item, tokenizer) == wanted["enc_input_ids"], variant["id"]
        assert (target[:-1], target[1:]) == (wanted["dec_input_ids"], wanted["label_ids"]), variant["id"]


def _check_ranking(case: Path, variant: dict[str, Any], tokenizer: Cpm2Tokenizer) -> None:
    records = _records(case / variant["raw"])
    if variant["split"] == "train":
        kept = [one for record in records[: int(sogou.TRAIN_SHARE * len(records))] for one in sogou.records(record)]
        found = [[source_of(item, tokenizer) for item in sogou.make_pair(record)] for record in kept]
        assert found == [[row["pos_input_idx"], row["neg_input_idx"]] for row in variant["samples"]]
        return
    ranked = [(record["query_id"], *title) for record in records for title in sogou.make_candidates(record)]
    for (query, number, item), wanted in zip(ranked, variant["samples"], strict=True):
        assert (query, number) == (wanted["qidx"], wanted["cidx"])
        assert source_of(item, tokenizer) == wanted["enc_input_ids"]
        assert target_of(item, tokenizer) == wanted["dec_input_ids"]


def _settings(values: dict[str, Any] | None) -> PromptSettings | None:
    if values is None:
        return None
    return PromptSettings.model_validate(values)


def _records(path: Path) -> list[Any]:
    text = path.read_text("utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
