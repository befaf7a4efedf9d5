"""`examples/cluster`, `examples/containers` and `.github`: dry runs, fields, commands, paths; no network."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hanlin import __version__
from hanlin.cli.main import _parser, main

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples/cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
JOBS = sorted(CLUSTER.glob("*.yaml"))
DOCKERFILES = sorted(ROOT.glob("examples/containers/*.Dockerfile"))
REPOSITORY_FILES = sorted((ROOT / ".github").rglob("*.yml"))


def _name(path: Path) -> str:
    return path.name


# Scripts: run, with programs that write down what they are called with ----------------------------------------------


def _run(script: Path, words: list[str], folder: Path, **variables: str) -> tuple[int, list[str]]:
    """The exit code and the calls of hanlin, srun, torchrun and scontrol; CODE_OF_SRUN: how the first two end."""
    called = folder / "called"
    for program in ("hanlin", "srun", "torchrun", "scontrol"):
        fake = folder / "bin" / program
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(
            f'#!/bin/sh\necho {program} "$@" >>{called}\n[ {program} != srun ] || exit ${{CODE_OF_SRUN:-0}}\n'
        )
        fake.chmod(0o755)
    (folder / "bin/activate").write_text("")
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HANLIN_VENV": str(folder), **variables}
    code = subprocess.run(["bash", script, *words], env=environment, capture_output=True, check=False).returncode
    return code, called.read_text().splitlines() if called.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=_name)
def test_scripts_are_bash_and_ask_for_a_recipe(script: Path, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    assert _run(script, [], tmp_path) == (2, [])


def test_slurm_checks_then_trains_with_the_settings(tmp_path: Path) -> None:
    code, calls = _run(CLUSTER / "slurm.sh", ["r.yaml", "train.lr=1e-4"], tmp_path)
    assert code == 0
    assert calls == [
        "hanlin check r.yaml train.lr=1e-4",
        "srun --kill-on-bad-exit=0 python -m hanlin train r.yaml train.lr=1e-4",
    ]
    for call in calls:
        _parse(call)


def test_slurm_queues_a_run_again_that_was_stopped_and_saved_and_no_other(tmp_path: Path) -> None:
    code, calls = _run(CLUSTER / "slurm.sh", ["r.yaml"], tmp_path, CODE_OF_SRUN="75", SLURM_JOB_ID="7")
    assert (code, calls[-1]) == (75, "scontrol requeue 7")
    (tmp_path / "called").unlink()
    code, calls = _run(CLUSTER / "slurm.sh", ["r.yaml"], tmp_path, CODE_OF_SRUN="2", SLURM_JOB_ID="7")
    assert code == 2
    assert calls[-1].startswith("srun")


def test_modelarts_meets_on_the_first_host(tmp_path: Path) -> None:
    said = {"MA_NUM_HOSTS": "2", "MA_NUM_GPUS": "4", "VC_TASK_INDEX": "1", "VC_WORKER_HOSTS": "a.svc,b.svc"}
    code, [call] = _run(CLUSTER / "modelarts.sh", ["r.yaml"], tmp_path, **said)
    assert code == 0
    told = _parse_torchrun(call)
    assert (told.nnodes, told.node_rank, told.nproc_per_node) == ("2", 1, "4")
    assert (told.master_addr, told.master_port) == ("a.svc", 29500)
    (tmp_path / "called").unlink()
    _, calls = _run(CLUSTER / "modelarts.sh", ["r.yaml"], tmp_path)
    assert calls[0] == "hanlin check r.yaml"  # one machine alone checks, and is the first
    assert _parse_torchrun(calls[1]).nnodes == "1"


def test_the_hostfile_is_one_of_launch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--hostfile", str(CLUSTER / "hostfile"), "train", "recipe.yaml"]) == 0
    assert capsys.readouterr().out.count("hanlin train recipe.yaml") == 2


# Jobs -----------------------------------------------------------------------------------------------------------------

FIELDS = {
    "TrainingRuntime": ("trainer.kubeflow.org/v1alpha1", "spec.mlPolicy.torch spec.template.spec.replicatedJobs"),
    "TrainJob": ("trainer.kubeflow.org/v1alpha1", "spec.runtimeRef.name spec.trainer.numNodes spec.trainer.image"),
    "PyTorchJob": ("kubeflow.org/v1", "spec.pytorchReplicaSpecs.Worker.template.spec spec.nprocPerNode"),
    "Job": ("batch.volcano.sh/v1alpha1", "spec.minAvailable spec.schedulerName spec.tasks spec.plugins.pytorch"),
}


def _documents() -> Iterator[Any]:
    for path in JOBS:
        yield from yaml.safe_load_all(path.read_text("utf-8"))


def _inside(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _inside(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _inside(inner)


def test_jobs_have_the_fields_of_their_kind() -> None:
    kinds = {document["kind"]: document for document in _documents()}
    assert kinds.keys() == FIELDS.keys()
    for kind, (version, paths) in FIELDS.items():
        assert kinds[kind]["apiVersion"] == version
        for path in paths.split():
            value = kinds[kind]
            for key in path.split("."):
                value = value[key]
    assert kinds["TrainJob"]["spec"]["runtimeRef"]["name"] == kinds["TrainingRuntime"]["metadata"]["name"]
    tasks = kinds["Job"]["spec"]["tasks"]
    assert kinds["Job"]["spec"]["minAvailable"] == sum(task["replicas"] for task in tasks)
    named = {word.split("=")[1] for word in kinds["Job"]["spec"]["plugins"]["pytorch"][:2]}
    assert named == {task["name"] for task in tasks}


def test_pods_mount_what_they_declare_and_have_memory_to_share() -> None:
    specs = [part for document in _documents() for part in _inside(document) if "containers" in part]
    assert len(specs) == 4
    for spec in specs:
        mounted = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounted == {"work": "/work", "shm": "/dev/shm"}
        assert mounted.keys() == {volume["name"] for volume in spec["volumes"]}
        assert spec["terminationGracePeriodSeconds"] > 120  # what torchrun is told


def test_their_commands_exist_and_start_a_process_for_each_device() -> None:
    calls = [part for document in _documents() for part in _inside(document) if "command" in part]
    assert len(calls) == 4
    for part in calls:
        command, limits = part["command"], part.get("resources", part.get("resourcesPerNode"))["limits"]
        line = command[-1] if command[0] == "bash" else shlex.join(command)
        line = line.replace("$WORLD_SIZE", "2").replace("$RANK", "0").replace("$MASTER_PORT", "29500")
        told = _parse_torchrun(line.removeprefix("exec "))
        if "--nproc-per-node" in line:
            assert int(told.nproc_per_node) == limits["nvidia.com/gpu"]
    for document in _documents():
        for part in _inside(document):
            for key in ("numProcPerNode", "nprocPerNode"):
                assert int(part.get(key, 8)) == 8


def test_the_job_for_modelarts_is_json_that_calls_the_script() -> None:
    job = json.loads((CLUSTER / "modelarts_job.json").read_text())
    command = job["algorithm"]["command"].split()
    [volume] = job["spec"]["volumes"]
    assert job["kind"] == "job"
    assert job["spec"]["resource"]["node_count"] == 2
    assert all(word.startswith(volume["nfs"]["local_path"]) for word in command[1:])
    assert (CLUSTER / Path(command[1]).name).exists()


def test_images_are_those_of_this_version() -> None:
    texts = [path.read_text("utf-8") for path in [*CLUSTER.iterdir(), *DOCKERFILES]]
    versions = [found for text in texts for found in re.findall(r"hanlin:([\d.]+)", text)]
    assert len(versions) >= 8
    assert set(versions) == {__version__}


def _parse(line: str) -> None:
    """See that a command of ours takes these words; argparse ends the test otherwise."""
    words = shlex.split(line)
    words = words[words.index("hanlin") + 1 :]
    _parser([words[0]]).parse_args(words)


def _parse_torchrun(line: str) -> Any:
    from torch.distributed.run import parse_args

    words = shlex.split(line)
    assert words[0] == "torchrun"
    told = parse_args(words[1:])
    assert told.module
    _parse(shlex.join([told.training_script, *told.training_script_args]))
    return told


# Containers -----------------------------------------------------------------------------------------------------------

INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "WORKDIR"}


def _instructions(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=_name)
def test_dockerfiles_copy_what_is_there_and_take_the_rest_from_registries(path: Path) -> None:
    told = _instructions(path)
    assert {word for word, _ in told} <= INSTRUCTIONS
    copied = {name for word, rest in told if word == "COPY" for name in rest.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all((ROOT / name).exists() and name not in ignored for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"src", "recipes", "examples", "pyproject.toml", "setup.py", project["readme"], *project["license-files"]}
    assert needed <= copied
    arguments = {name.partition("=")[0] for word, rest in told if word == "ARG" for name in rest.split()}
    for word, rest in told:
        if word == "RUN":
            assert rest.startswith("pip install ")
            for extras in re.findall(r"\.\[(.*?)\]", rest):
                assert set(extras.split(",")) <= project["optional-dependencies"].keys()
            assert "-c constraints.txt" not in rest or "constraints.txt" in copied
        if word in ("CMD", "ENTRYPOINT"):
            assert json.loads(rest)
        assert set(re.findall(r"\$\{(\w+)\}", rest)) <= arguments
    assert [rest for word, rest in told if word == "CMD"] == ['["hanlin", "--help"]']


# What the site that hosts the repository reads -----------------------------------------------------------------------


@pytest.mark.parametrize("path", REPOSITORY_FILES, ids=_name)
def test_templates_and_workflows_are_right(path: Path) -> None:
    told = yaml.safe_load(path.read_text("utf-8"))
    if path.parent.name == "workflows":
        steps = [step for job in told["jobs"].values() for step in job["steps"]]
        lines = "\n".join(step.get("run", "") for step in steps)
        goals = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(re.findall(r"\bmake ([a-z]+)", lines)) <= goals
        assert all((ROOT / word).exists() for word in re.findall(r"(?<!\S)\.[a-z]+/run\b", lines))
        lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        [torch] = [one for one in lowest if one.startswith("torch>=")]
        assert f"torch=={torch.removeprefix('torch>=')}.*" in told["jobs"]["torch"]["strategy"]["matrix"]["torch"]
    elif path.name != "config.yml":
        assert {"name", "description", "body"} <= told.keys()
        for field in told["body"]:
            assert {"id", "type", "attributes"} <= field.keys()
            label = field["attributes"]["label"]
            assert re.search("[a-z]", label)
            assert re.search("[一-龥]", label)
