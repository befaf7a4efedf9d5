"""PEFT's folders, judged by the package peft itself: what we write is taken whole, what it writes is read as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

from hanlin.adapters.adapter import ForBase, load_adapter
from hanlin.adapters.opening import open_adapter
from hanlin.adapters.peft import PEFT
from hanlin.adapters.peft_ia3 import PEFT_IA3
from hanlin.adapters.peft_prefix import PEFT_PREFIX_TUNING
from hanlin.adapters.peft_prompt import PEFT_PROMPT_TUNING
from hanlin.core.errors import CheckpointError
from hanlin.formats.load import added_parameters, base_parameters
from hanlin.formats.translate import to_theirs
from hanlin.layers.lora import merge_lora
from hanlin.models.chatglm2 import family as glm
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.cpm1 import family as gpt2
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm1_t5 import family as cpm1_t5
from hanlin.models.cpm2 import family as cpm2
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm_bee import family as bee
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.family import Family
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.ia3 import Ia3Tuning
from hanlin.tuning.lora import LoraTuning
from hanlin.tuning.prefix import PrefixTuning
from hanlin.tuning.prompt import PromptTuning

# transformers warns of a name of its own that peft uses.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")

TOKENS = torch.arange(1, 15).reshape(2, 7)
GLM = ChatGlm2Config(
    vocab_size=24, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=12, max_length=32
)
CONFIGS: dict[str, tuple[Family, Any]] = {
    "glm": (glm, GLM),
    "gpt2": (gpt2, shape(16, 2, 4, vocab_size=24, max_length=32)),
    "t5": (cpm2, Cpm2Config(vocab_size=24, hidden_size=16, num_layers=2, num_heads=2, head_dim=6, ffn_size=12)),
    "bee": (bee, CpmBeeConfig(vocab_size=24, hidden_size=8, num_layers=2, num_heads=2, head_dim=6, ffn_size=10)),
}


def fresh(name: str) -> Any:
    """A model of the family with random weights, the same each time."""
    family, config = CONFIGS[name]
    model = family.model()(config)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    return model.eval()


def tuned(name: str, **settings: Any) -> tuple[Any, LoraTuning]:
    """The same model with an addition to each target, none of it zero."""
    method, model = LoraTuning(**settings), fresh(name)
    apply_tuning(model, method, CONFIGS[name][0])
    draw = torch.Generator().manual_seed(1)
    for parameter in added_parameters(model).values():
        nn.init.normal_(parameter, std=0.5, generator=draw)
    return model, method


def weights_in(model: Any, name: str, layout: str) -> dict[str, torch.Tensor]:
    form = CONFIGS[name][0].formats[layout]
    return {key: one.detach().clone() for key, one in to_theirs(form, model.config, base_parameters(model)).items()}


def of_transformers(name: str) -> Any:
    """The same model as a model of transformers."""
    values = CONFIGS[name][0].formats["huggingface"].write_config(CONFIGS[name][1])
    values = {key: value for key, value in values.items() if key not in ("architectures", "model_type")}
    classes = {
        "glm": (GlmForCausalLM, GlmConfig),
        "gpt2": (GPT2LMHeadModel, GPT2Config),
        "t5": (T5ForConditionalGeneration, T5Config),
    }
    make, settings = classes[name]
    model: Any = make(settings(**values))
    if name == "t5":  # its constructor ties the head, from_pretrained does not where a file has one of its own
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    found = model.load_state_dict(weights_in(fresh(name), name, "huggingface"), strict=False)
    copies = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    assert not [key for key in [*found.missing_keys, *found.unexpected_keys] if key not in copies]
    return model.eval()


@torch.no_grad()
def logits_there(model: Any, name: str) -> torch.Tensor:
    """What a model of transformers says to TOKENS."""
    more = {"decoder_input_ids": TOKENS.flip(1)} if name == "t5" else {}
    return model(input_ids=TOKENS, **more).logits


@torch.no_grad()
def logits_here(model: Any, name: str) -> torch.Tensor:
    """What ours says to them."""
    return model(encoder_tokens=TOKENS, tokens=TOKENS.flip(1)) if name == "t5" else model(tokens=TOKENS)


class Named(nn.Module):
    """Nothing but linears under the names of a layout, as the original's own code has them for PEFT."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, leaf = name.removesuffix(".weight").split(".")
            place: nn.Module = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            if name.endswith(".weight") and tensor.dim() == 2:
                linear = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
                linear.weight = nn.Parameter(tensor.clone())
                place.add_module(leaf, linear)

    def prepare_inputs_for_generation(self) -> None:
        """PEFT asks every language model for it."""


def taken(base: nn.Module, path: Path) -> Any:
    """The base with the adapter at a path; every tensor of the file has its place there, and no place is without."""
    model = peft.PeftModel.from_pretrained(base, str(path)).eval()
    held, file = get_peft_model_state_dict(model), load_file(path / "adapter_model.safetensors")
    assert held.keys() == file.keys()
    assert all(held[key].equal(file[key]) for key in file)
    return model


SETS = {
    "one": ("query",),
    "fused": ("query", "gate", "up"),
    "all": ("query", "key", "value", "output", "gate", "up", "down"),
    "deep": ("1.attention.value", "0.ffn.up"),
}


@pytest.mark.parametrize("targets", SETS)
@pytest.mark.parametrize("name", ["glm", "gpt2", "t5"])
def test_what_is_written_computes_in_peft_what_it_computes_here(name: str, targets: str, tmp_path: Path) -> None:
    wanted = tuple(target for target in SETS[targets] if name != "gpt2" or target != "gate")
    model, settings = tuned(name, rank=3, alpha=7, targets=wanted)
    PEFT.save(model, settings, tmp_path / "peft", CONFIGS[name][0])
    there = taken(of_transformers(name), tmp_path / "peft")
    logits = logits_there(there, name)
    torch.testing.assert_close(logits, logits_here(model, name), rtol=1e-4, atol=1e-4)
    assert (logits - logits_there(of_transformers(name), name)).abs().max() > 0.1


VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True, "targets": SETS["one"]},
    "dora": {"dora": True, "targets": "all-linear"},
    "pissa": {"init": "pissa", "targets": ("down",)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["glm", "gpt2", "t5"])
def test_and_so_do_the_variants(name: str, variant: str, tmp_path: Path) -> None:
    model, settings = tuned(name, rank=4, alpha=6, **VARIANTS[variant])
    PEFT.save(model, settings, tmp_path / "peft", CONFIGS[name][0])
    logits = logits_there(taken(of_transformers(name), tmp_path / "peft"), name)
    torch.testing.assert_close(logits, logits_here(model, name), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, logits_of(name, tmp_path / "peft"), rtol=1e-4, atol=1e-4)
    read: Any = open_adapter(tmp_path / "peft", *CONFIGS[name]).settings
    # What begins as the weight is a plain addition of twice the rank for others.
    assert (read.rslora, read.dora, read.factor) == (settings.rslora, settings.dora, settings.factor)
    merge_lora(model)
    torch.testing.assert_close(logits_here(model, name), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "pissa"}],
    ids=["plain", "rslora", "dora", "pissa"],
)
def test_training_goes_as_in_peft(changes: dict[str, Any]) -> None:
    """Some steps of plain descent from the same beginning; B ten times as fast, as LoRA+ has it."""
    there: Any = peft.get_peft_model(
        of_transformers("glm"),
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=["o_proj", "down_proj"], **changes),
    )
    here, kinds = fresh("glm"), {"rslora": "use_rslora" in changes, "dora": "use_dora" in changes}
    init = "pissa" if "init_lora_weights" in changes else "default"
    method = LoraTuning(rank=4, alpha=6, targets=("output", "down"), init=init, b_rate=10, **kinds)
    apply_tuning(here, method, glm, torch.Generator().manual_seed(0))
    started = {name: one for name, one in there.state_dict().items() if "lora_A" in name}
    for name, one in added_parameters(here).items():
        if init == "default" and name.endswith("lora_A"):
            layer, part = name.split(".")[1], "self_attn.o_proj" if "attention" in name else "mlp.down_proj"
            one.data.copy_(started[f"base_model.model.model.layers.{layer}.{part}.lora_A.default.weight"])
    torch.testing.assert_close(logits_there(there, "glm"), logits_here(here, "glm"), rtol=1e-4, atol=1e-4)
    for model, run in ((there, lambda: there(input_ids=TOKENS).logits), (here, lambda: here(tokens=TOKENS))):
        for _ in range(3):
            nn.functional.cross_entropy(run().flatten(0, 1), TOKENS.flip(1).flatten()).backward()
            for name, one in model.named_parameters():
                if one.requires_grad:
                    rate = method.rate_factors.get("lora_B", 1) if "lora_B" in name else 1
                    one.data.sub_(one.grad, alpha=0.05 * rate)
                    one.grad = None
    with torch.no_grad():
        assert (logits_here(here, "glm") - logits_here(fresh("glm"), "glm")).abs().max() > 0.05
    torch.testing.assert_close(logits_there(there, "glm"), logits_here(here, "glm"), rtol=1e-3, atol=1e-3)


def test_a_dora_that_peft_does_not_compute_is_refused(tmp_path: Path) -> None:
    model, settings = tuned("bee", dora=True, targets=("query",))
    with pytest.raises(CheckpointError, match="its linears multiply what they have computed by a factor"):
        PEFT.save(model, settings, tmp_path / "peft", bee)
    model, settings = tuned("glm", dora=True, targets=("gate",))
    with pytest.raises(CheckpointError, match=r"ffn.up would need one"):
        PEFT.save(model, settings, tmp_path / "peft", glm)


@pytest.mark.parametrize("targets", SETS)
@pytest.mark.parametrize("form", ["original", "scaled"])
@pytest.mark.parametrize(("name", "layout"), [("glm", "original"), ("bee", "huggingface")])
def test_the_originals_code_gets_its_own_names(name: str, layout: str, form: str, targets: str, tmp_path: Path) -> None:
    model, settings = tuned(name, rank=3, alpha=7, targets=SETS[targets], form=form)
    PEFT.for_base(ForBase(layout)).save(model, settings, tmp_path / "peft", CONFIGS[name][0])
    base = {key: one for key, one in weights_in(fresh(name), name, layout).items() if "lm_head" not in key}
    there = taken(Named(base), tmp_path / "peft").merge_and_unload().state_dict()
    merge_lora(model)
    ours = weights_in(model, name, layout)
    assert {key for key in base if not ours[key].equal(base[key])} == {
        key for key in there if not there[key].equal(base[key])
    }
    for key, weight in there.items():
        # CPM-Bee's linears multiply their weight by this, and not what PEFT adds to their output.
        scale = weight.shape[1] ** -0.5 if name == "bee" else 1.0
        torch.testing.assert_close(weight - base[key], (ours[key] - base[key]) * scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layout", "targets", "stated"),
    [
        ("glm", None, ("query",), {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}),
        (
            "glm", None, ("query", "gate", "up"),
            {"r": 6, "lora_alpha": 12, "target_modules": ["gate_up_proj", "q_proj"], "rank_pattern": {"q_proj": 3},
             "alpha_pattern": {"q_proj": 6}},
        ),
        ("glm", "original", ("query", "value"), {"r": 6, "lora_alpha": 12, "target_modules": ["query_key_value"]}),
        ("glm", None, ("0.ffn.down",), {"target_modules": ["0.mlp.down_proj"]}),
        # c_proj alone would be that of the attention too.
        ("gpt2", None, ("down",), {"target_modules": ["mlp.c_proj"], "fan_in_fan_out": True}),
        ("bee", None, ("query",), {"target_modules": ["project_q"], "fan_in_fan_out": False}),
    ],
)  # fmt: skip
def test_the_configuration_names_what_is_there_and_comes_back(
    name: str, layout: str | None, targets: tuple[str, ...], stated: dict[str, Any], tmp_path: Path
) -> None:
    family, config = CONFIGS[name]
    model, settings = tuned(name, rank=3, alpha=6, targets=targets)
    PEFT.for_base(ForBase(layout, "/models/base", layout or "huggingface")).save(
        model, settings, tmp_path / "peft", family
    )
    written = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert written | stated == written
    assert (written["task_type"], written["base_model_name_or_path"]) == ("CAUSAL_LM", "/models/base")
    adapter = open_adapter(tmp_path / "peft", family, config)
    read: Any = adapter.settings
    assert (read.rank, read.alpha, set(read.targets)) == (3, 6, set(targets))
    held = added_parameters(model)
    assert adapter.tensors.keys() == held.keys()
    assert all(adapter.tensors[key].equal(held[key]) for key in held)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("t5", {"num_experts": 2}, "no class of transformers computes"),
        ("gpt2", {"residual_after_norm": True}, "residual"),
    ],
)
def test_a_base_that_transformers_does_not_compute_is_refused(
    name: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    family, config = CONFIGS[name]
    model, settings = family.model()(replace(config, **changes)), LoraTuning(targets=("query",))
    apply_tuning(model, settings, family)
    with pytest.raises(CheckpointError, match=says):
        PEFT.save(model, settings, tmp_path / "peft", family)
    assert not (tmp_path / "peft").exists()


def test_additions_that_share_their_a_are_joined_without_a_larger_rank(tmp_path: Path) -> None:
    model, settings = tuned("glm", rank=3, alpha=6, targets=("gate", "up"))
    with torch.no_grad():
        for block in model.blocks.values():
            block.ffn.up.lora_A.copy_(block.ffn.gate.lora_A)
    PEFT.save(model, settings, tmp_path / "peft", glm)
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["r"] == 3
    with torch.no_grad():
        there = taken(of_transformers("glm"), tmp_path / "peft")(input_ids=TOKENS).logits
        torch.testing.assert_close(there, model(tokens=TOKENS), rtol=1e-4, atol=1e-4)


def test_a_base_in_another_layout_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, settings = tuned("glm", targets=("query",))
    PEFT.for_base(ForBase(None, "/models/base", "original")).save(model, settings, tmp_path / "peft", glm)
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert "names no base, since that in /models/base is in the layout original" in caplog.text


def test_a_family_that_peft_does_not_know_is_refused(tmp_path: Path) -> None:
    config = cpm1_t5.sizes["tiny"]
    model, settings = cpm1_t5.model()(config), LoraTuning(targets=("query",))
    apply_tuning(model, settings, cpm1_t5)
    with pytest.raises(CheckpointError, match="transformers has none for cpm1_t5"):
        PEFT.save(model, settings, tmp_path / "peft", cpm1_t5)
    model, settings = tuned("gpt2", targets=("query",))
    with pytest.raises(CheckpointError, match=r"--layout original: PEFT knows no model.*known: huggingface"):
        PEFT.for_base(ForBase("original")).save(model, settings, tmp_path / "peft", gpt2)
    assert not (tmp_path / "peft").exists()


# In -------------------------------------------------------------------------------------------------------------------


def trained_in_peft(name: str, folder: Path, safe: bool = True, **settings: Any) -> Any:
    """An adapter of PEFT on the model of transformers, none of it zero, and its folder."""
    task = "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    model: Any = peft.get_peft_model(of_transformers(name), peft.LoraConfig(task_type=task, **settings))
    draw = torch.Generator().manual_seed(2)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, std=0.5, generator=draw)
    model.eval().save_pretrained(str(folder), safe_serialization=safe)
    return model


def logits_of(name: str, path: Path) -> torch.Tensor:
    """Ours, with the adapter at a path on the model."""
    family, config = CONFIGS[name]
    adapter, model = open_adapter(path, family, config), fresh(name)
    apply_tuning(model, adapter.settings, family)
    load_adapter(model, adapter)
    return logits_here(model.eval(), name)


MLP, ATTENTION = ["gate_up_proj", "down_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("glm", {"r": 4, "lora_alpha": 7, "target_modules": [*MLP, *ATTENTION]}),
    "rslora": ("glm", {"r": 4, "use_rslora": True, "target_modules": MLP}),
    "patterns": (
        "glm",
        {
            "r": 4, "lora_alpha": 7, "target_modules": [*MLP, "q_proj"], "use_rslora": True,
            "rank_pattern": {"down_proj": 2, r"layers\.1\.mlp\.gate_up_proj": 5}, "alpha_pattern": {"q_proj": 3},
        },
    ),
    "one block": ("glm", {"target_modules": ["q_proj", "gate_up_proj"], "layers_to_transform": [1]}),
    "blocks": ("glm", {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}),
    "expression": ("glm", {"target_modules": r".*\.(q_proj|gate_up_proj)", "exclude_modules": ["0.self_attn.q_proj"]}),
    "all": ("glm", {"target_modules": "all-linear"}),
    "fused, turned": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "all turned": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "rank_pattern": {"attn.c_proj": 3}}),
    "orthogonal": ("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "orthogonal"}),
    "dora": ("glm", {"r": 4, "lora_alpha": 7, "target_modules": [*MLP, *ATTENTION], "use_dora": True}),
    "dora, turned": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "use_rslora": True}),
    "dora, both stacks": ("t5", {"target_modules": ["q", "wo"], "use_dora": True}),
    "both stacks": ("t5", {"target_modules": ["q", "v"]}),
    "all of both": ("t5", {"target_modules": "all-linear", "rank_pattern": {"EncDecAttention.v": 3}}),
    "the decoder": ("t5", {"target_modules": r"decoder\..*(SelfAttention\.o|wi_1)"}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("case", READ)
def test_what_peft_writes_computes_here_what_it_computes_there(case: str, tmp_path: Path) -> None:
    name, settings = READ[case]
    there = trained_in_peft(name, tmp_path / "peft", **settings)
    expected = logits_there(there, name)
    torch.testing.assert_close(logits_of(name, tmp_path / "peft"), expected, rtol=1e-4, atol=1e-4)
    # And out again, to PEFT.
    family, config = CONFIGS[name]
    adapter, model = open_adapter(tmp_path / "peft", family, config), fresh(name)
    apply_tuning(model, adapter.settings, family)
    load_adapter(model, adapter)
    PEFT.save(model, adapter.settings, tmp_path / "again", family)
    again = logits_there(taken(of_transformers(name), tmp_path / "again"), name)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)


# What version 0.4 wrote, with the defaults of its time.
OLD = {
    "auto_mapping": None, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layers_pattern": None, "layers_to_transform": None, "lora_dropout": 0.1, "modules_to_save": None,
    "peft_type": "LORA", "revision": None, "base_model_name_or_path": "THUDM/chatglm2-6b", "enable_lora": None,
    "merge_weights": False, "task_type": "CAUSAL_LM",
}  # fmt: skip


@pytest.mark.parametrize("spelling", ["lora_{}.weight", "lora_{}.default.weight"])
def test_a_folder_of_old_versions_is_read(spelling: str, tmp_path: Path) -> None:
    settings = {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "gate_up_proj"]}
    there = trained_in_peft("glm", tmp_path / "peft", **settings)
    file = tmp_path / "peft/adapter_model.safetensors"
    tensors = {
        key.replace("lora_A.weight", spelling.format("A")).replace("lora_B.weight", spelling.format("B")): one
        for key, one in load_file(file).items()
    }
    file.unlink()
    torch.save(tensors, tmp_path / "peft/adapter_model.bin")
    torch.save({"epoch": 1}, tmp_path / "peft/training_args.bin")
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps({**OLD, **settings}))
    with torch.no_grad():
        expected = there(input_ids=TOKENS).logits
    torch.testing.assert_close(logits_of("glm", tmp_path / "peft"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_bias": True}, "a trained bias of lora_B"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, r"trained whole \(head.weight; see modules_to_save"),
        ({"trainable_token_indices": [3]}, "trained rows of an embedding"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "an addition to an embedding"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is .*behind certain tokens"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    trained_in_peft("glm", tmp_path / "peft", **{"target_modules": ["q_proj"], **settings})
    with pytest.raises(CheckpointError, match=says):
        open_adapter(tmp_path / "peft", glm, GLM)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer_replication": [[0, 2]]}, "layer_replication is .*blocks of the base several times"),
        ({"megatron_config": {"x": 1}}, "megatron_config is .*one rank's of Megatron"),
        ({"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"enable_lora": [True, False, True]}, "enable_lora is .*version 0.2"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"use_new_thing": True}, "use_new_thing is True, which is unknown here"),
        ({"target_modules": ["q_proj"]}, "by its target_modules .*no addition to model.layers.0.mlp.gate_up_proj"),
        ({"target_modules": ".*q_proj"}, "by its target_modules"),
        ({"exclude_modules": ["q_proj"]}, "by its exclude_modules .*no addition to model.layers.0.self_attn.q_proj"),
        ({"layers_to_transform": [0]}, "by its layers_to_transform .*no addition to model.layers.1"),
        ({"target_modules": 5}, "target_modules is 5, expected names or an expression"),
        ({"target_modules": "(("}, "is no expression"),
        ({"modules_to_save": ["lm_head"]}, "says that lm_head was trained whole, but no tensor of it is there"),
    ],
)
def test_a_configuration_that_does_not_fit_the_tensors_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    trained_in_peft("glm", tmp_path / "peft", target_modules=["q_proj", "gate_up_proj"])
    file = tmp_path / "peft/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=says):
        open_adapter(tmp_path / "peft", glm, GLM)


def test_an_expression_that_may_search_for_ever_is_said_and_not_searched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained_in_peft("glm", tmp_path / "peft", target_modules=["q_proj"])
    file = tmp_path / "peft/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": "(m*o*)*x"}))
    open_adapter(tmp_path / "peft", glm, GLM)
    assert "target_modules is not compared" in caplog.text


# IA3 ------------------------------------------------------------------------------------------------------------------


IA3_PARTS = {"glm": ["k_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"], "t5": ["k", "v", "wo"]}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", IA3_PARTS)
def test_ia3_computes_the_same_in_peft_and_comes_back(name: str, tmp_path: Path) -> None:
    model = with_random_additions(name, Ia3Tuning())
    PEFT_IA3.save(model, Ia3Tuning(), tmp_path / "peft", CONFIGS[name][0])
    there = taken(of_transformers(name), tmp_path / "peft")
    torch.testing.assert_close(logits_there(there, name), logits_here(model, name), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(name, tmp_path / "peft"), logits_here(model, name), rtol=1e-4, atol=1e-4)
    before = logits_here(model, name)
    Ia3Tuning().merge(model)
    torch.testing.assert_close(logits_here(model, name), before, rtol=1e-4, atol=1e-4)

    config = peft.IA3Config(
        task_type="SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM",
        target_modules=IA3_PARTS[name],
        feedforward_modules=IA3_PARTS[name][-1:],
    )
    other = trained_table(name, tmp_path / "theirs", config, mark="ia3_l")
    torch.testing.assert_close(logits_of(name, tmp_path / "theirs"), logits_there(other, name), rtol=1e-4, atol=1e-4)


def test_an_ia3_that_peft_cannot_express_is_refused(tmp_path: Path) -> None:
    for settings, says in (
        (Ia3Tuning(inputs=("gate",)), "ffn.gate, blocks.0.ffn.up are one linear there"),
        (Ia3Tuning(outputs=("down",)), "either the outputs or the inputs of a module, here both of"),
    ):
        with pytest.raises(CheckpointError, match=says):
            PEFT_IA3.save(with_random_additions("glm", settings), settings, tmp_path / "peft", glm)


# Prefixes and prompts -------------------------------------------------------------------------------------------------


def with_random_additions(name: str, settings: Any) -> Any:
    model = fresh(name)
    apply_tuning(model, settings, CONFIGS[name][0])
    draw = torch.Generator().manual_seed(1)
    for parameter in added_parameters(model).values():
        nn.init.normal_(parameter, std=0.5, generator=draw)
    return model.eval()


def trained_table(name: str, folder: Path, config: Any, mark: str = "prompt_encoder") -> Any:
    model: Any = peft.get_peft_model(of_transformers(name), config)
    draw = torch.Generator().manual_seed(2)
    for key, parameter in model.named_parameters():
        if mark in key:
            nn.init.normal_(parameter, std=0.5, generator=draw)
    model.eval().save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("divisor", [1.0, 2.0])
@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_is_the_same_in_peft_though_it_moves_the_positions_there(
    projection: bool, divisor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "glm", (glm, replace(GLM, position_divisor=divisor)))
    model = with_random_additions("glm", PrefixTuning(length=5, projection=projection))
    PEFT_PREFIX_TUNING.save(model, None, tmp_path / "peft", glm)
    there = peft.PeftModel.from_pretrained(of_transformers("glm"), str(tmp_path / "peft")).eval()
    with torch.no_grad():
        torch.testing.assert_close(there(input_ids=TOKENS).logits, model(tokens=TOKENS), rtol=1e-4, atol=1e-4)
        answer = there.generate(input_ids=TOKENS[:1], max_new_tokens=5, min_new_tokens=5, do_sample=False)
        tokens = TOKENS[:1]
        for _ in range(5):
            logits = model(tokens=tokens)[:, -1:]
            logits[..., 2] = -torch.inf  # the end, which may not come yet
            tokens = torch.cat((tokens, logits.argmax(-1)), dim=1)
        assert answer.equal(tokens)


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_of_peft_computes_here_what_it_computes_there(projection: bool, tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=projection)
    there = trained_table("glm", tmp_path / "peft", config)
    with torch.no_grad():
        torch.testing.assert_close(
            logits_of("glm", tmp_path / "peft"), there(input_ids=TOKENS).logits, rtol=1e-4, atol=1e-4
        )
    file = tmp_path / "peft/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_attention_heads": 0}))
    with pytest.raises(CheckpointError, match="num_attention_heads is 0"):
        open_adapter(tmp_path / "peft", glm, GLM)


@pytest.mark.parametrize("name", ["gpt2", "bee"])
def test_a_prefix_that_peft_cannot_express_is_refused(name: str, tmp_path: Path) -> None:
    model = with_random_additions(name, PrefixTuning(length=3))
    with pytest.raises(CheckpointError, match="is not the same in PEFT: there it moves the positions"):
        PEFT_PREFIX_TUNING.save(model, None, tmp_path / "peft", CONFIGS[name][0])
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trained_table("gpt2", tmp_path / "peft", config)
    with pytest.raises(CheckpointError, match="is not the same in PEFT"):
        open_adapter(tmp_path / "peft", *CONFIGS[name])
    with pytest.raises(CheckpointError, match="there it stands in the decoder alone"):
        PEFT_PREFIX_TUNING.save(with_random_additions("t5", PrefixTuning(length=3)), None, tmp_path / "peft", cpm2)
    model = with_random_additions("glm", PrefixTuning(length=3))
    with pytest.raises(CheckpointError, match="--layout original: its code takes no prefix from PEFT"):
        PEFT_PREFIX_TUNING.for_base(ForBase("original")).save(model, None, tmp_path / "other", glm)


PROMPTED = torch.cat((torch.arange(-1, -4, -1).expand(2, 3), TOKENS), dim=1)


@pytest.mark.parametrize("name", ["gpt2", "glm"])
def test_soft_prompts_are_the_same_in_peft(name: str, tmp_path: Path) -> None:
    settings, family = PromptTuning(length=3), CONFIGS[name][0]
    model = with_random_additions(name, settings)
    PEFT_PROMPT_TUNING.save(model, settings, tmp_path / "peft", family)
    there = peft.PeftModel.from_pretrained(of_transformers(name), str(tmp_path / "peft")).eval()
    with torch.no_grad():
        torch.testing.assert_close(there(input_ids=TOKENS).logits, model(tokens=PROMPTED), rtol=1e-4, atol=1e-4)
    hidden = PromptTuning(length=3, is_seen=False)
    with pytest.raises(CheckpointError, match="a text always sees its prompts"):
        PEFT_PROMPT_TUNING.save(with_random_additions(name, hidden), hidden, tmp_path / "other", family)
    behind = PromptTuning(length=4, ratios=(0.5, 0, 0.5))
    with pytest.raises(CheckpointError, match="all prompts stand in front of a text"):
        PEFT_PROMPT_TUNING.save(with_random_additions(name, behind), behind, tmp_path / "other", family)


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PromptEncoderConfig])
def test_soft_prompts_of_peft_compute_here_what_they_compute_there(config: Callable, tmp_path: Path) -> None:
    there = trained_table("gpt2", tmp_path / "peft", config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    adapter, model = open_adapter(tmp_path / "peft", *CONFIGS["gpt2"]), fresh("gpt2")
    load_adapter(apply_tuning(model, adapter.settings, gpt2).eval(), adapter)
    with torch.no_grad():
        torch.testing.assert_close(there(input_ids=TOKENS).logits, model(tokens=PROMPTED), rtol=1e-4, atol=1e-4)


def test_soft_prompts_of_an_encoder_decoder_are_refused_both_ways(tmp_path: Path) -> None:
    settings = PromptTuning(length=3)
    with pytest.raises(CheckpointError, match="soft prompts of cpm2 are not the same in PEFT"):
        PEFT_PROMPT_TUNING.save(with_random_additions("t5", settings), settings, tmp_path / "peft", cpm2)
    trained_table("gpt2", tmp_path / "peft", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(CheckpointError, match="soft prompts of cpm2 are not the same in PEFT"):
        open_adapter(tmp_path / "peft", *CONFIGS["t5"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_rslora": "no"}, "use_rslora is 'no', expected bool or null"),
        ({"layers_pattern": 5, "layers_to_transform": [0, 1]}, "layers_pattern is 5, expected str or list or null"),
        ({"layers_to_transform": "0"}, "layers_to_transform is '0'"),
        ({"modules_to_save": 3}, "modules_to_save is 3"),
        ({"modules_to_save": "embed_tokens"}, "embed_tokens was trained whole, but no tensor of it"),
        ({"r": "4"}, "r is '4', expected int"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    trained_in_peft("glm", tmp_path, r=4, lora_alpha=7, target_modules=["q_proj"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=says):
        open_adapter(tmp_path, glm, GLM)
