"""What a command that shows a text while it is written takes for a choice; a default that is spelled out is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanlin.api.generation import chatting, streaming
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings
from hanlin.recipe.reading import dump_recipe, load_recipe, make_recipe
from hanlin.recipe.settings import GenerateSettings

CHAT = SampleSettings(top_p=0.8, temperature=0.8, max_new_tokens=1024)


def of_a_run(folder: Path, *changes: str) -> GenerateSettings:
    """The settings in the config.yaml of a run with these, which spells out all of them."""
    recipe = make_recipe({"model": {"family": "chatglm2"}, "run": {"folder": str(folder)}}, changes)
    (folder / "config.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    return load_recipe(folder).generate


@pytest.mark.parametrize(
    ("changes", "words", "streamed", "chatted"),
    [
        ([], [], GreedySettings(), CHAT),
        (["generate.batch_size=2"], [], GreedySettings(batch_size=2), CHAT.model_copy(update={"batch_size": 2})),
        (["generate=greedy"], [], GreedySettings(), GreedySettings(max_new_tokens=1024)),
        (["generate=sample"], [], SampleSettings(), SampleSettings(max_new_tokens=1024)),
        (["generate.beams=4"], [], BeamSettings(beams=4), BeamSettings(beams=4, max_new_tokens=1024)),
        ([], ["run", "generate.method=beam"], BeamSettings(), BeamSettings(max_new_tokens=1024)),
        ([], ["generate.max_new_tokens=100"], GreedySettings(), CHAT.model_copy(update={"max_new_tokens": 100})),
    ],
)
def test_settings_are_chosen_that_differ_from_the_default_or_were_typed(
    tmp_path: Path, changes: list[str], words: list[str], streamed: GenerateSettings, chatted: GenerateSettings
) -> None:
    options = of_a_run(tmp_path, *changes)
    assert streaming(options, words) == streamed
    assert chatting(options, words) == chatted
