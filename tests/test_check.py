from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_bee import SPECIALS, write_vocab

from hanlin.checking import check, check_file
from hanlin.cli.main import main
from hanlin.core.errors import ConfigError
from hanlin.core.manifest import write_manifest
from hanlin.formats.files import write_safetensors
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.recipe.reading import dump_recipe, load_recipe

RECIPE = """\
model:
  family: cpm_bee
  size: tiny
  vocab: vocab.txt
data:
  train: [train.jsonl]
  eval: [train.jsonl]
train:
  steps: 10
run:
  folder: run
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    write_vocab(tmp_path / "vocab.txt")
    (tmp_path / "train.jsonl").write_text('{"input": "床前", "<ans>": "明月光"}\n' * 3, encoding="utf-8")
    return tmp_path


def problems(*changes: str, **options) -> list[str]:
    return [f"{problem.key}: {problem.text}" for problem in check(load_recipe("recipe.yaml", changes), **options)]


def write_base(folder: Path, vocab_size: int, tokens: int) -> None:
    folder.mkdir()
    config = CpmBeeConfig(vocab_size=vocab_size, hidden_size=8, num_layers=1, num_heads=2, head_dim=4, ffn_size=8)
    (folder / "config.json").write_text(json.dumps({"family": "cpm_bee", **asdict(config)}), encoding="utf-8")
    words = [*SPECIALS, *(f"w{number}" for number in range(tokens - len(SPECIALS)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    weights = {name: torch.ones(weight.shape) for name, weight in CpmBee(config).named_parameters()}
    write_safetensors(folder / "model.safetensors", weights)


@pytest.mark.usefixtures("project")
def test_a_right_recipe_has_no_problems() -> None:
    assert problems() == []


def test_problems_carry_the_place_of_their_setting(project: Path) -> None:
    (project / "vocab.txt").unlink()
    with pytest.raises(ConfigError) as caught:
        check_file("recipe.yaml", ["train.micro_batch_size=3", "train.batch_size=8", "run.folder=train.jsonl/run"])
    assert "command line: train.batch_size: 8 is not" in str(caught.value)
    assert "recipe.yaml:4: model.vocab: there is no vocab.txt" in str(caught.value)


def test_a_switch_on_the_command_line_may_idle_settings_of_the_file(project: Path) -> None:
    text = RECIPE + "tuning:\n  method: lora\n  rank: 4\n"
    (project / "recipe.yaml").write_text(text, encoding="utf-8")
    check_file("recipe.yaml", ["tuning.method=full"])
    with pytest.raises(ConfigError, match=r"tuning\.rank: is a setting of method lora"):
        check_file("recipe.yaml", ["tuning.method=full", "tuning.rank=4"])


def test_the_written_recipe_passes_the_check_again(project: Path) -> None:
    run = project / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_recipe(check_file("recipe.yaml")), encoding="utf-8")
    assert check_file(run) == check_file("recipe.yaml")


@pytest.mark.parametrize(
    ("change", "is_same_run"),
    [("train.lr=1e-3", False), ("run.seed=5", False), ("model.config.num_layers=1", False), ("train.steps=20", True),
     ("run.log_every=1", True), ("generate.beams=2", True), ("data.eval=[]", True)],
)  # fmt: skip
def test_a_run_goes_on_only_with_its_own_settings(project: Path, change: str, is_same_run: bool) -> None:
    run = project / "run"
    (run / "checkpoints" / "000005").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_recipe(load_recipe("recipe.yaml")), encoding="utf-8")
    found = problems(change)
    assert found == [] if is_same_run else "holds a run with other settings" in found[0]


@pytest.mark.parametrize(("start", "code"), [([], 2), (["--change"], 0), (["--restart"], 0)])
def test_a_run_is_checked_for_the_start_that_it_is_to_have(project: Path, start: list[str], code: int) -> None:
    run = project / "run"
    (run / "checkpoints" / "000005").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_recipe(load_recipe("recipe.yaml")), encoding="utf-8")
    assert main(["check", "recipe.yaml", "train.lr=1e-3", *start]) == code


def test_what_is_not_needed_is_not_asked_for(project: Path) -> None:
    (project / "train.jsonl").unlink()
    assert problems(purpose="generate") == []
    assert "evaluate.data" in problems("data.eval=[]", purpose="evaluate")[0]
    (project / "eval.jsonl").write_text('{"input": "床", "<ans>": "明"}\n', encoding="utf-8")
    assert problems("evaluate.data=eval.jsonl", purpose="evaluate") == []


@pytest.mark.parametrize(
    ("vocab_size", "tokens", "is_right"), [(20, 20, True), (40, 20, True), (2000, 20, False), (19, 20, False)]
)
def test_the_vocabulary_must_be_the_bases(project: Path, vocab_size: int, tokens: int, is_right: bool) -> None:
    write_base(project / "base", vocab_size, tokens)
    (project / "recipe.yaml").write_text(
        RECIPE.replace("size: tiny", "base: base").replace("  vocab: vocab.txt\n", ""), encoding="utf-8"
    )
    assert (problems() == []) is is_right


def test_weights_of_other_shapes_than_their_configuration_says_are_told(project: Path) -> None:
    write_base(project / "base", 20, 20)
    config = project / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_heads": 3}), encoding="utf-8")
    (project / "recipe.yaml").write_text(RECIPE.replace("size: tiny", "base: base"), encoding="utf-8")
    found = problems("model.vocab=base")
    assert len(found) == 1
    assert "model.base: base: tensors of another shape than the config says" in found[0]
    assert "blocks.0.attention.query.weight: found [8, 8], expected [12, 8]" in found[0]


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 5, None, ["x"], "x" * 300, "a\0b"])
def test_an_index_of_shards_names_files_of_its_own_folder(project: Path, name: object) -> None:
    write_base(project / "base", 20, 20)
    index = project / "base" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    (project / "recipe.yaml").write_text(RECIPE.replace("size: tiny", "base: base"), encoding="utf-8")
    assert "model.base: base/model.safetensors.index.json: " in problems()[0]


def test_a_damaged_base_is_told_before_what_follows_from_it(project: Path) -> None:
    write_base(project / "base", 20, 20)
    write_manifest(project / "base")
    vocab = project / "base" / "vocab.txt"
    vocab.write_text(vocab.read_text().replace("<ans>", "<xns>"), encoding="utf-8")
    (project / "recipe.yaml").write_text(
        RECIPE.replace("size: tiny", "base: base").replace("  vocab: vocab.txt\n", ""), encoding="utf-8"
    )
    assert "base: not as it was written: vocab.txt was changed" in problems()[0]
    (project / "base" / "config.json").unlink()
    assert "base: not as it was written: config.json is missing" in problems()[0]


def test_the_least_rate_is_not_above_the_highest(project: Path) -> None:
    changes = ["train.schedule=cosine", "train.schedule_form=floored", "train.lr=1e-4"]
    assert problems(*changes, "train.min_lr=1e-4") == []
    assert problems(*changes, "train.min_lr=2e-4") == [
        "train.min_lr: 0.0002 is above train.lr (0.0001), from which the rate falls; lower it"
    ]


def test_the_root_of_the_file_system_is_no_run_folder(project: Path) -> None:
    assert any(found.startswith("run.folder: / is the root") for found in problems("run.folder=/"))


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "checkpoints/latest", "config.yaml"])
def test_what_stands_in_the_place_of_what_a_run_writes_is_told(project: Path, name: str) -> None:
    """A pipe would be waited for."""
    (project / "run" / "checkpoints").mkdir(parents=True)
    os.mkfifo(project / "run" / name)
    assert f"run.folder: run/{name}: is a pipe or a device" in problems()[0]
    (project / "run" / name).unlink()
    (project / "run" / name).mkdir()
    assert f"run.folder: run/{name}: is a folder" in problems()[0]


def test_missing_shards_are_named(project: Path) -> None:
    write_base(project / "base", 20, 20)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (project / "base" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (project / "base" / "model-00001-of-00002.safetensors").write_bytes(b"")
    (project / "recipe.yaml").write_text(RECIPE.replace("size: tiny", "base: base"), encoding="utf-8")
    assert "files that are not there: model-00002-of-00002.safetensors" in problems("data.train=train.jsonl")[0]


def test_an_original_checkpoint_is_read(project: Path, shared: Path) -> None:
    case = shared / "golden" / "bee_model_a"
    text = RECIPE.replace("size: tiny", f"base: {case / 'pytorch_model.bin'}")
    (project / "recipe.yaml").write_text(text, encoding="utf-8")
    assert problems() == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("value", "is_right"), [(0, True), (-1, False)])
def test_a_default_of_0_may_be_written_out(value: int, is_right: bool) -> None:
    found = problems("model.family=cpm2", f"model.config.num_experts={value}")
    assert is_right != any(problem.startswith("model.config.num_experts: must be greater") for problem in found)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("changes", "is_right"),
    [
        (["train.schedule=linear"], False),
        (["train.schedule=cosine"], False),
        (["train.schedule=cosine", "train.schedule_form=endless"], False),
        (["train.schedule=cosine", "train.schedule_form=floored", "train.min_lr=1e-5"], True),
        (["train.schedule=linear", "train.steps=8"], True),
    ],
)
def test_steps_behind_the_end_of_the_schedule_are_told(changes: list[str], is_right: bool) -> None:
    told = [] if is_right else ["train.decay_steps: 8, but the run has 10 steps, and the rate of those behind it is 0"]
    assert [text.partition(";")[0] for text in problems("train.decay_steps=8", *changes)] == told


@pytest.mark.usefixtures("project")
def test_counting_padding_needs_a_family_that_counts_the_prompt() -> None:
    [problem] = problems("generate.count_padding=true")
    assert problem.startswith("generate.count_padding: has no effect with cpm_bee")


@pytest.mark.usefixtures("project")
def test_looking_tokens_up_ahead_needs_a_family_that_reads_several_at_once() -> None:
    [problem] = problems("generate.method=greedy", "generate.lookup=4")
    assert problem.startswith("generate.lookup: has no effect with cpm_bee")
    with pytest.raises(ConfigError, match="is a setting of method greedy, not of sample"):
        problems("generate.method=sample", "generate.lookup=4")


@pytest.mark.usefixtures("project")
def test_a_full_disk_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    assert "0.0 GB free, the run writes at least 0.1 GB" in problems()[0]


@pytest.mark.usefixtures("project")
def test_a_missing_tracker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    [problem] = problems("run.trackers=wandb")
    assert problem.startswith("run.trackers: wandb is not installed; pip install 'hanlin[wandb]'")


def test_bad_rows_are_shown_unless_they_are_dropped(project: Path) -> None:
    (project / "train.jsonl").write_text('{"input": "床", "<ans>": "月"}\nnot json\n{"a": 1}\n', encoding="utf-8")
    found = problems("data.eval=[]")
    assert len(found) == 1
    head, second, third, advice = found[0].splitlines()
    assert head == "data.train: 2 of the 3 rows cannot be used."
    assert second.strip().startswith("train.jsonl:2: not JSON")
    assert third.strip().startswith("train.jsonl:3: ")
    assert "data.bad_rows=drop" in advice
    assert problems("data.eval=[]", "data.bad_rows=drop") == []


def test_of_a_long_file_the_first_rows_are_tried(project: Path) -> None:
    good, bad = '{"input": "床", "<ans>": "月"}\n', '{"a": 1}\n'
    (project / "train.jsonl").write_text(bad * 60 + good * 40 + bad, encoding="utf-8")
    [found] = problems("data.eval=[]")
    head = "data.train: 60 of the first 100 rows, more were not looked at, cannot be used. train.jsonl:1: "
    assert found.startswith(head)
    assert "(also 2, 3, " in found
    assert "49, 50 and 10 more)" in found
    (project / "train.jsonl").write_text(good * 100 + bad, encoding="utf-8")
    assert problems("data.eval=[]") == []


def test_rows_that_are_dropped_must_leave_some(project: Path) -> None:
    (project / "train.jsonl").write_text('{"a": 1}\n' * 100, encoding="utf-8")
    dropping = ("data.eval=[]", "data.bad_rows=drop")
    assert problems(*dropping)[0].startswith("data.train: No row is left: all were dropped.")
    with (project / "train.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"input": "床", "<ans>": "月"}\n')
    assert problems(*dropping) == []


def test_rows_that_are_too_long_are_told(project: Path) -> None:
    (project / "train.jsonl").write_text('{"input": "床", "<ans>": "月"}\n', encoding="utf-8")
    [found] = problems("data.eval=[]", "data.max_length=10")
    assert "train.jsonl:1: too long: " in found
    assert "data.overlong" in found


def test_records_that_a_task_cannot_score_are_told(project: Path) -> None:
    rows = '{"input": "床", "<ans>": ""}\n{"input": "床", "<ans>": "月"}\n'
    (project / "train.jsonl").write_text(rows, encoding="utf-8")
    found = problems("evaluate.tasks=[generate,loss]", purpose="evaluate")
    assert found[0].startswith("data.eval: 1 of the 2 rows cannot be used. train.jsonl:1: ")
    assert problems("evaluate.tasks=[generate,loss]", "data.bad_rows=drop", purpose="evaluate") == []
    assert "has no options" in problems("evaluate.tasks=likelihood", purpose="evaluate")[0]
    assert "evaluate.tasks: records of this family" in problems("evaluate.tasks=rank", purpose="evaluate")[0]
    assert "evaluate.tasks: classify needs a head" in problems("evaluate.tasks=classify", purpose="evaluate")[0]


def test_a_mapping_is_applied_before_rows_are_checked(project: Path) -> None:
    (project / "train.jsonl").write_text('{"title": "床", "text": "月"}\n', encoding="utf-8")
    assert problems("data.transform={标题: $title, <ans>: $text}") == []
    assert "no key 'body'" in problems("data.transform={标题: $title, <ans>: $body}")[0]


def write_mixture(project: Path, **entry: object) -> None:
    one = {"task_name": "诗", "dataset_name": "a", "path": "train.jsonl", **entry}
    (project / "datasets.json").write_text(json.dumps([one], ensure_ascii=False), encoding="utf-8")


def test_a_list_of_data_sets_is_looked_through(project: Path) -> None:
    mixed = ("data.train=[]", "data.mixture=datasets.json")
    write_mixture(project, incontext_weight=[1, 1])
    assert problems(*mixed) == []
    assert problems("data.mixture=datasets.json") == ["data.mixture: stands beside data.train; keep one of them"]
    assert problems("data.train=datasets.json") == [
        "data.train: datasets.json is a list of data sets; name it in data.mixture"
    ]
    write_mixture(project, transforms=[{"*": "$*"}, {"<ans>": "$title"}])
    [found] = problems(*mixed)
    assert found.startswith("data.mixture: 诗.a: 3 of the 3 rows cannot be used. train.jsonl:1: ")
    assert "no key 'title'" in found
    write_mixture(project, weight="much")
    [found] = problems(*mixed)
    assert found.startswith("data.mixture: datasets.json:1 (entry 1): weight: expected a valid number")


def test_settings_that_a_list_of_data_sets_has_itself_are_refused(project: Path) -> None:
    write_mixture(project)
    mixed = ("data.train=[]", "data.mixture=datasets.json", "data.shuffle=false", "data.in_context=[1,1]")
    assert [found.split(" has no effect ")[0] for found in problems(*mixed)] == ["data.shuffle:", "data.in_context:"]


def test_a_script_that_is_not_there_is_named(project: Path) -> None:
    (project / "make.py").write_text("def transform(data, num_sample, r):\n    return data\n", encoding="utf-8")
    assert problems("data.transform=make.py") == []
    [found] = problems("data.transform=mak.py")
    assert found.startswith("data.transform: there is no mak.py (")
    assert found.endswith("did you mean 'make.py'?")


@pytest.mark.usefixtures("project")
def test_records_that_are_no_prompts_are_told_before_training() -> None:
    given = ('train.samples=[{input: 床前, <ans>: ""}, {input: 床前}, {input: 5, <ans>: ""}]', "train.eval_every=5")
    assert problems(*given) == [
        'train.samples: entry 2: no "<ans>" at the top of the record; its keys are input',
        'train.samples: entry 3: input: expected a text or a dict, found 5; write it as a text: "5"',
    ]


LAYOUTS = [
    ("offload=true", "parallel.offload: only with parallel.shard: parameters"),
    (
        "shard=gradients data=4 shard_ranks=3",
        "parallel.shard_ranks: 3 does not divide the 4 data ranks; use a divisor of 4",
    ),
    ("shard_ranks=2", "parallel.shard_ranks: has no effect with parallel.shard none"),
    ("schedule=interleaved", "parallel.schedule: has no effect with parallel.pipe 1"),
    ("pipe=2 stages_per_rank=2", "parallel.stages_per_rank: has no effect with parallel.schedule 1f1b"),
    ("sequence_parallel=true", "parallel.sequence_parallel: has no effect with parallel.tensor 1"),
    ("data=4 micro_batches=3", "train.batch_size: 8 rows are too few for 3 micro-batches x 4 data ranks: train.b"),
    ("micro_batches=2 train.micro_batch_size=2", "parallel.micro_batches: 2 is given beside train.micro_batch_size 2"),
    ("pipe=2 schedule=interleaved micro_batches=5", "parallel.micro_batches: 5 cannot go through an interleaved"),
    ("data=4 expert=3", "parallel.expert: 3 does not divide the 4 data ranks; use a divisor of 4"),
    ("data=2 expert=2", "parallel.expert: this model is no mixture of experts; use 1"),
    ("data=2 expert=2 shard=parameters offload=true", "parallel.offload: not with parallel.expert"),
    ("tensor=3", "parallel.tensor: 4 heads cannot be divided among 3 ranks; use a divisor of 4 ("),
    (
        "tensor=16 model.config.num_heads=16 model.config.ffn_size=384 train.optimizer=adamw_8bit",
        "train.optimizer: adamw_8bit keeps blocks of ",
    ),
    ("pipe=3", "parallel.pipe: 2 blocks cannot be cut into 3 stages; use fewer"),
    ("pipe=2 schedule=interleaved", "parallel.pipe: 2 blocks cannot be cut into 4 stages"),
]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("settings", "problem"), LAYOUTS)
def test_a_layout_that_does_not_fit_is_told_with_its_key(settings: str, problem: str) -> None:
    changes = [word if "." in word else f"parallel.{word}" for word in settings.split()]
    [found] = problems("model.config.num_layers=2", *changes)
    assert found.startswith(problem)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "settings",
    [
        "tensor=2",
        "data=2",
        "pipe=2",
        "data=2 tensor=4 pipe=2 shard=parameters",
        "tensor=2 sequence_parallel=true data.pack=false data.max_length=63",
    ],
)
def test_a_layout_that_fits_has_no_problems(settings: str) -> None:
    changes = [word if "." in word else f"parallel.{word}" for word in settings.split()]
    assert problems("model.config.num_layers=2", *changes) == []


def test_a_vocabulary_that_cannot_end_documents_is_named(project: Path) -> None:
    (project / "pieces.txt").write_text("<unk>\n<pad>\n<s_0>\n<s_1>\n床\n", encoding="utf-8")
    recipe = RECIPE.replace("family: cpm_bee", "family: cpm1_t5").replace("vocab: vocab.txt", "vocab: pieces.txt")
    (project / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert "model.vocab: pieces.txt: the vocabulary lacks <eod>" in " ".join(problems("data.max_length=256"))
