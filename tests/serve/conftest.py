"""A tiny ChatGLM3 behind a real HTTP server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from chatglm2_pieces import small_pieces
from family_cases import case_of
from small_bee import LETTERS, write_base

from hanlin.adapters.folder import save_adapter
from hanlin.api.recipes import recipe_of_base
from hanlin.formats.load import added_parameters
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.recipe.tuning import TuningMethod
from hanlin.run.adapted import joint_engine
from hanlin.run.components import build_components
from hanlin.run.weights import load_engine
from hanlin.serve.app import make_app
from hanlin.serve.limits import Limits
from hanlin.serve.scheduler import Scheduler
from hanlin.serve.server import server_config
from hanlin.serve.service import Service
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.lora import LoraTuning
from hanlin.tuning.prefix import PrefixTuning

Start = Callable[..., Any]


@pytest.fixture(scope="session")
def engine() -> Engine:
    tokenizer = ChatGlm2Tokenizer(small_pieces())
    config = ChatGlm2Config(
        vocab_size=tokenizer.with_roles().vocab_size + 3,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        head_dim=8,
        num_kv_heads=1,
        ffn_size=24,
        max_length=256,
    )
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(7))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())), alpha=0.3)
    model.double().requires_grad_(False)
    return Engine(model.eval(), ChatGlm2Processor(tokenizer, config), max_length=config.max_length, family=family)


@pytest.fixture(scope="session")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    """A tiny model of a family."""

    @cache
    def make(name: str) -> Engine:
        case = case_of(name, tmp_path_factory.mktemp(name))
        limit = getattr(case.config, "max_length", None)
        return Engine(case.model().requires_grad_(False), case.processor, max_length=limit, family=case.family)

    return make


@pytest.fixture(scope="session")
def text_engine(engine_of: Callable[[str], Engine]) -> Engine:
    """A tiny CPM-1."""
    return engine_of("cpm1")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny CPM-Bee."""
    return write_base(tmp_path_factory.mktemp("bees") / "bee", "<" + LETTERS)


def _saved_adapter(base: Path, settings: TuningMethod, folder: Path) -> Path:
    """Of values that hide nothing."""
    components = build_components(recipe_of_base(base, []))
    model = apply_tuning(load_engine(components.recipe, components).model, settings, components.family)
    with torch.no_grad():
        for weight in added_parameters(model).values():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 4)
    save_adapter(model, settings, folder)
    return folder


@pytest.fixture(scope="session")
def lora(base: Path) -> Path:
    return _saved_adapter(base, LoraTuning(rank=2), base.parent / "lora")


@pytest.fixture(scope="session")
def prefix(base: Path) -> Path:
    return _saved_adapter(base, PrefixTuning(length=3), base.parent / "prefix")


@pytest.fixture
def serve(engine: Engine) -> Iterator[Start]:
    """Start a server; returns its URL and its `Service`."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(
        limits: Limits | None = None,
        engine: Engine = engine,
        adapters: Mapping[str, Engine] | None = None,
        max_new_tokens: int = 16,
        **options: Any,
    ) -> tuple[str, Service]:
        limits = limits or Limits()
        settings, scheduler = GreedySettings(max_new_tokens=max_new_tokens), Scheduler(engine, limits)
        joint, together = joint_engine(engine, adapters or {})
        common = (settings, scheduler, limits, 1)
        adapted = {
            name: Service(f"tiny:{name}", one, *common, {}, 1.0, joint if name in together else None, name)
            for name, one in (adapters or {}).items()
        }
        service = Service("tiny", engine, *common, adapted, 1.0, joint)
        server = uvicorn.Server(server_config(make_app(service, **options), limits, port=0))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        started.append((server, thread))
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}", service

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(60)
