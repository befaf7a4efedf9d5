"""Several adapters of one base at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from hanlin.api.recipes import recipe_of_base
from hanlin.cli.main import main
from hanlin.generate.engine import Engine
from hanlin.generate.methods.sample import SampleSettings
from hanlin.run.adapted import adapted_engine, joint_engine
from hanlin.run.components import Components, build_components
from hanlin.run.weights import load_engine
from hanlin.serve.service import Service

Start = Callable[..., tuple[str, Service]]


def components_of(base: Path, adapter: Path | None) -> Components:
    return build_components(recipe_of_base(base, [], adapter=adapter))


@pytest.fixture(scope="module")
def engines(base: Path, lora: Path, prefix: Path) -> dict[str, Engine]:
    """The base, and a LoRA and a prefix that share its weights."""
    of_base = components_of(base, None)
    engine = load_engine(of_base.recipe, of_base)
    engine.prepack_weights()
    adapted = {
        name: adapted_engine(engine, components_of(base, path)) for name, path in (("law", lora), ("tax", prefix))
    }
    return {"tiny": engine, **adapted}


def test_the_weights_of_the_base_are_there_once(engines: dict[str, Engine]) -> None:
    held = set(map(id, engines["tiny"].model.parameters()))
    for name in ("law", "tax"):
        own = [weight for weight in engines[name].model.parameters() if id(weight) not in held]
        assert 0 < sum(weight.numel() for weight in own) < 2000
    assert not any("lora" in name for name, _ in engines["tiny"].model.named_parameters())


def test_each_request_is_answered_by_the_model_that_it_names(
    serve: Start, base: Path, lora: Path, prefix: Path, engines: dict[str, Engine]
) -> None:
    adapters = {name: engine for name, engine in engines.items() if name != "tiny"}
    url, service = serve(engine=engines["tiny"], adapters=adapters)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    names = {"tiny": "tiny", "tiny:law": "law", "law": "law", "tiny:tax": "tax", "tax": "tax"}
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:law", "tiny:tax", "law", "tax"]
    assert client.models.retrieve("tiny:law").model_dump()["parent"] == "tiny"

    def ask(number: int) -> tuple[str, int, str | None]:
        name, question = list(names)[number % len(names)], number % 3
        asked: Any = [{"role": "user", "content": "床前明月光"[: question + 2]}]
        found = client.chat.completions.create(model=name, messages=asked, temperature=1.4, seed=question, max_tokens=9)
        assert found.model == name
        return names[name], question, found.choices[0].message.content

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(15)))
    lone = {
        "tiny": load_engine((of := components_of(base, None)).recipe, of),
        "law": load_engine((of := components_of(base, lora)).recipe, of),
        "tax": load_engine((of := components_of(base, prefix)).recipe, of),
    }
    options = SampleSettings(max_new_tokens=9, temperature=1.4, top_p=1.0)
    texts: dict[tuple[str, int], str] = {}
    for name, question, text in found:
        record = {"input": "床前明月光"[: question + 2], "<ans>": ""}
        [answered] = lone[name].generate([record], options, seed=question)
        assert text == answered["<ans>"]
        texts[name, question] = text
    assert len({tuple(texts[name, question] for question in range(3)) for name in lone}) == 3
    assert service.scheduler.counts.failed == 0
    with pytest.raises(openai.NotFoundError, match="'tiny:law'"):
        client.chat.completions.create(model="tiny:trade", messages=[{"role": "user", "content": "床"}])


def test_what_goes_wrong_with_one_adapter_leaves_the_others(
    serve: Start, engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = serve(engine=engines["tiny"], adapters={"tax": engines["tax"]})
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    asked: Any = [{"role": "user", "content": "床前"}]
    monkeypatch.setattr(engines["tax"].model, "forward", lambda *_, **__: 1 / 0)
    stream = client.chat.completions.create(model="tiny", messages=asked, max_tokens=200, temperature=1.9, stream=True)
    pieces = [next(iter(stream))]
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="tax", messages=asked, max_tokens=3)
    pieces += list(stream)
    assert pieces[-1].choices[0].finish_reason is not None
    assert service.scheduler.counts.failed == 1


def test_options_of_a_model_without_a_run_are_refused_beside_one(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model:\n  family: cpm_bee\n  base: {base}\nrun:\n  folder: {tmp_path / 'run'}\n", "utf-8")
    for name in ("adapter", "vocab", "family"):
        assert main(["generate", str(recipe), "--record", "{}", f"--{name}", "cpm_bee"]) == 2
        assert f"--{name}: goes with --base" in capsys.readouterr().err


def test_adapters_that_add_to_linears_are_answered_in_one_pass(base: Path, lora: Path, prefix: Path) -> None:
    """Those that change more take turns."""
    of_base = components_of(base, None)
    engine = load_engine(of_base.recipe, of_base)
    adapted = {
        name: adapted_engine(engine, components_of(base, path))
        for name, path in (("law", lora), ("tax", prefix), ("trade", lora))
    }
    joint, together = joint_engine(engine, adapted)
    assert together == {"law", "trade"}
    held = set(map(id, (weight for one in (engine, *adapted.values()) for weight in one.model.parameters())))
    assert {id(weight) for weight in joint.model.parameters()} <= held
    assert joint_engine(engine, {"tax": adapted["tax"]}) == (engine, set())
    assert not any("additions" in name for name, _ in engine.model.named_modules())
