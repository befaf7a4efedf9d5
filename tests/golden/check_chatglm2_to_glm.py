"""The layout of transformers' GlmForCausalLM: read, written, and from it the original's logits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from glm_case import arrays_of, assert_close, facts_of, inputs_of, load_model, real_columns

from hanlin.core.files import read_json_object
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.source import open_source
from hanlin.models.chatglm2 import family


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts, folder = facts_of(case), case / "hf_glm"
    atol, expected = facts["tolerance"]["fp32_atol_real_tokens"], arrays_of(case / "expected.npz")
    assert open_source(folder, family).format == "huggingface"
    model = load_model(folder)
    for kind in ("right", "left", "nomask"):
        arrays = arrays_of(case / "inputs.npz", f"{kind}.")
        real = real_columns(arrays)
        with torch.no_grad():
            assert_close(kind, model(**inputs_of(arrays))[real], expected[f"{kind}.logits"][real], atol)
    _check_written(folder, folder)
    if (original := case.with_name(facts["source_case"])).is_dir():
        _check_written(original, folder)


def _check_written(source: Path, expected: Path) -> None:
    """Converted, a folder holds the expected one's tensors, bit by bit, and at least its config."""
    with tempfile.TemporaryDirectory() as temporary:
        convert(source, family, None, "huggingface", Path(temporary) / "out")
        written, theirs = open_weights(Path(temporary) / "out"), open_weights(expected)
        assert sorted(written) == sorted(theirs)
        assert all(written[name].equal(theirs[name]) for name in theirs)
        config, known = (read_json_object(folder / "config.json") for folder in (Path(temporary) / "out", expected))
        of_the_writer = ("transformers_version", "dtype")
        assert {name: config.get(name) for name in known if name not in of_the_writer} == {
            name: value for name, value in known.items() if name not in of_the_writer
        }
