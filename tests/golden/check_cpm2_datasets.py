"""The nine data sets of CPM-2's fine-tuning: raw files -> ids, prompts and batches, with and without soft prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cpm2_case import Arrays, check_masks
from golden_case import Case, Reading, needed

from hanlin.core.batch import IGNORED, Batch, Sample
from hanlin.data.expand import open_part
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.datasets import sogou
from hanlin.models.cpm2.model import visible_spans
from hanlin.models.cpm2.processor import Cpm2Processor
from hanlin.models.cpm2.record import Cpm2Options
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer
from hanlin.recipe.cpm2_prompts import translate
from hanlin.recipe.settings import DataSettings
from hanlin.tuning.prompt import PromptTuning

PAD = 5
RANKED = {"sogou_train": "sogou-log", "sogou_test": "sogou-log"}


def check(case: Case, vocab: Path) -> None:
    expected, variants, data = case.arrays(), case.json("samples.json"), case.data("samples.json")
    names = {variant["tokenizer"] for variant in variants}
    tokenizers = {name: Cpm2Tokenizer.load(needed(vocab / "cpm2" / name)) for name in names}
    for variant, plain in zip(variants, data, strict=True):
        processor = _processor(plain, tokenizers[variant["tokenizer"]])
        if not case.holds(variant["raw"]):
            continue
        records = _records(case / variant["raw"], plain, processor)
        arrays = expected.under(f"{variant['id']}/")
        if variant["kwargs"].get("do_infer") or variant["id"].endswith("/infer"):
            _check_prompts(records, processor, variant["samples"], arrays)
        elif variant["split"] == "test":
            _check_ranked_examples(records, processor, variant["samples"], arrays)
        else:
            _check_training(records, processor, variant, arrays)
    case.set_aside(r"samples\.json: \[\]\.(prompt_config|kwargs|note).*", "given to ours as they are")
    case.set_aside(
        r"samples\.json: \[\]\.(max_...|eval_batch_size|split).*", "how far the original pads, and fills batches"
    )
    case.set_aside(r"samples\.json: .*\.enc_attention_mask", "of a sample; that of the batch is compared")
    case.set_aside(r"expected\.npz: .*/(idx|qidx|cidx)", "the rows' numbers, which samples.json tells too")


def _cropped(array: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The original pads to the longest of all samples, also of those that were not wanted (num)."""
    return array[tuple(slice(size) for size in like.shape)]


def _processor(variant: dict[str, Any], tokenizer: Cpm2Tokenizer) -> Cpm2Processor:
    name = variant["id"].partition("/")[0]
    options = Cpm2Options(dataset=RANKED.get(name, name))  # pyright: ignore[reportArgumentType]: any of the names
    processor = Cpm2Processor(tokenizer, Cpm2Config(vocab_size=tokenizer.vocab_size), options)
    prompts = variant["prompt_config"]
    return processor if prompts is None else processor.with_prompts(PromptTuning(**translate(prompts, variant["id"])))


def _records(path: Path, variant: dict[str, Any], processor: Cpm2Processor) -> list[Any]:
    is_pairs = variant["id"].startswith("sogou") and variant["split"] == "train"
    share = sogou.TRAIN_SHARE if is_pairs else variant["kwargs"].get("ratio", 1.0)
    source = open_part(path, DataSettings(), processor, share=share, limit=variant["kwargs"].get("num"))
    return [source[number] for number in range(len(source))]


def _check_training(records: list[Any], processor: Cpm2Processor, variant: dict[str, Any], arrays: Reading) -> None:
    made = [processor.sample(record) for record in records]
    for sample, wanted in zip(made, variant["samples"], strict=True):
        if "pos_input_idx" in wanted:
            assert sample.inputs["encoder_tokens"].tolist() == wanted["pos_input_idx"] + wanted["neg_input_idx"]
            assert sample.inputs["tokens"].tolist() == wanted["dec_input_ids"] * 2
            continue
        assert sample.inputs["encoder_tokens"].tolist() == wanted["enc_input_ids"], variant["id"]
        assert sample.inputs["tokens"].tolist() == wanted["dec_input_ids"]
        assert sample.labels[: len(wanted["label_ids"])].tolist() == wanted["label_ids"]
    if variant["id"].startswith("sogou"):
        _check_pairs(variant["samples"], arrays)
    elif arrays:
        batch = _collated(processor, made)
        _check_inputs(batch.inputs, arrays, processor.prompts)
        _check_loss(batch, arrays)


def _check_pairs(wanted: list[dict[str, Any]], arrays: Reading) -> None:
    """In the original's batch the better ones come first; ours keeps each pair in a row of its own."""
    check_masks(arrays)
    if not all(name in arrays for name in ("enc_input_ids", "enc_attention_mask", "dec_input_ids")):
        return
    there = arrays["enc_attention_mask"][:, 0].any(1)
    found = [ids[kept.bool()].tolist() for ids, kept in zip(arrays["enc_input_ids"], there, strict=True)]
    halves = ("pos_input_idx", "neg_input_idx")
    assert found in (
        [row[half] for half in halves for row in wanted],
        [row[half] for row in wanted for half in halves],
    )
    assert arrays["dec_input_ids"].tolist() == [row["dec_input_ids"] for row in wanted] * 2
    assert not arrays.get("loss_mask", torch.zeros(1)).any()  # its loss is that of the scores
    assert arrays.get("labels", torch.tensor(PAD)).eq(PAD).all()


def _check_prompts(records: list[Any], processor: Cpm2Processor, wanted: list[dict[str, Any]], arrays: Reading) -> None:
    """The original fills the list with copies of its first sample (idx -1), so that batches are full."""
    assert len(records) == len([row for row in wanted if row["idx"] != -1])
    prompts = [processor.prompt(_without_answer(record, processor)) for record in records]
    for prompt, row in zip(prompts, wanted, strict=False):
        assert prompt.inputs["encoder_tokens"].tolist() == row["enc_input_ids"]
        fed = [*prompt.inputs["tokens"].tolist(), prompt.cursor.inputs()["tokens"]]
        assert fed == row["dec_input_ids"][: len(fed)]
        # An empty answer: the marks around a <pad>.
        assert row.get("label_ids", fed[1:])[: len(fed) - 1] == fed[1:]
    check_masks(arrays)
    if "enc_input_ids" in arrays:
        inputs = processor.collate_prompts(prompts).inputs
        assert inputs["encoder_tokens"].tolist() == arrays["enc_input_ids"][: len(prompts)].tolist()
    if "dec_input_ids" in arrays:
        theirs = [row["dec_input_ids"] for row in wanted]
        assert [row[: len(ids)] for row, ids in zip(arrays["dec_input_ids"].tolist(), theirs, strict=True)] == theirs


def _check_ranked_examples(
    records: list[Any], processor: Cpm2Processor, wanted: list[dict[str, Any]], arrays: Reading
) -> None:
    ranked_examples = [(record["query_id"], processor.ranked_example(record)) for record in records]
    ranked = [
        (query, int(name), sample)
        for query, ranked_example in ranked_examples
        for name, sample in zip(ranked_example.names, ranked_example.samples, strict=True)
    ]
    for (query, number, sample), row in zip(ranked, wanted, strict=True):
        assert (query, number) == (row["qidx"], row["cidx"])
        assert sample.inputs["encoder_tokens"].tolist() == row["enc_input_ids"]
        assert sample.inputs["tokens"].tolist() == row["dec_input_ids"]
    if arrays:
        _check_inputs(_collated(processor, [sample for _, _, sample in ranked]).inputs, arrays, None)


def _without_answer(record: Any, processor: Cpm2Processor) -> Any:
    assert processor.data_set.answer is not None
    return {key: value for key, value in record.items() if key != processor.data_set.answer.key}


def _collated(processor: Cpm2Processor, made: Sequence[Sample]) -> Batch:
    return processor.collate([[sample] for sample in made], max(sample.length for sample in made))


def _check_inputs(inputs: Arrays, arrays: Reading, prompts: PromptTuning | None) -> None:
    for name, theirs in (("encoder_tokens", "enc_input_ids"), ("tokens", "dec_input_ids")):
        assert theirs not in arrays or inputs[name].equal(_cropped(arrays[theirs], inputs[name]).long()), name
    read, own = inputs["encoder_spans"], inputs["spans"]
    encoder = visible_spans(read, read)
    if prompts is not None:
        shown = SoftPrompt(prompts.length, 1, sees_tokens=prompts.sees_tokens, is_seen=prompts.is_seen)
        encoder = shown.restrict(encoder, inputs["encoder_tokens"])
    sights = {
        "enc_attention_mask": encoder,
        "dec_attention_mask": visible_spans(own, own).tril(),
        "cross_attention_mask": visible_spans(own, read),
    }
    for name, seen in sights.items():
        assert name not in arrays or seen.equal(_cropped(arrays[name][:, 0], seen).bool()), name
    assert inputs["lengths"].equal((read >= 0).sum(1) + (own >= 0).sum(1))


def _check_loss(batch: Batch, arrays: Reading) -> None:
    """The mean over samples of the mean over their labels."""
    if "loss_mask" not in arrays or "labels" not in arrays:
        return
    mask, labels = (_cropped(arrays[name], batch.labels) for name in ("loss_mask", "labels"))
    mask = mask.bool()
    assert batch.labels.equal(torch.where(mask, labels.long(), IGNORED))
    torch.testing.assert_close(batch.weights, mask / mask.sum(1, keepdim=True))
    assert round(batch.loss_tokens, 4) == batch.size
