"""What is served, and how it is: /v1/models, /health, /ready, /metrics, /version."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

import hanlin
from hanlin.generate.prompts import accepted_questions
from hanlin.models.family import FillsBlanks, PredictsLabels

from .errors import RequestError
from .service import Service

_METRICS = {
    "requests": ("counter", "requests_total", "Requests that were taken."),
    "refused": ("counter", "requests_refused_total", "Requests that were turned away since too many waited."),
    "failed": ("counter", "requests_failed_total", "Requests that ended in an error."),
    "cancelled": ("counter", "requests_cancelled_total", "Requests whose client left while they waited."),
    "prompt_tokens": ("counter", "prompt_tokens_total", "Tokens of prompts that were read."),
    "answer_tokens": ("counter", "answer_tokens_total", "Tokens of answers that were ended."),
    "first_token_seconds": ("counter", "first_token_seconds_sum", "Seconds from a request to its first token."),
    "first_tokens": ("counter", "first_token_seconds_count", "Requests whose first token was written."),
    "between_tokens_seconds": (
        "counter",
        "inter_token_seconds_sum",
        "Seconds between tokens of requests' first answers.",
    ),
    "between_tokens": ("counter", "inter_token_seconds_count", "Times between two such tokens."),
    "queue_seconds": ("counter", "queue_seconds_sum", "Seconds that requests waited before they were begun."),
    "begun": ("counter", "queue_seconds_count", "Requests that were begun."),
    "waiting": ("gauge", "requests_waiting", "Requests in the queue."),
    "running": ("gauge", "answers_running", "Answers that are being written."),
    "cache_positions": ("gauge", "cache_positions", "Positions that the KV cache holds, over all rows."),
}


async def list_models(request: Request) -> Response:
    service: Service = request.app.state.service
    cards = await asyncio.to_thread(lambda: [_card(service, name) for name in service.models])
    return JSONResponse({"object": "list", "data": cards})


async def show_model(request: Request) -> Response:
    service: Service = request.app.state.service
    return JSONResponse(await asyncio.to_thread(_card, service, request.path_params["name"]))


async def health(request: Request) -> Response:
    service: Service = request.app.state.service
    if not service.scheduler.is_alive:
        raise RequestError("the server is shutting down, or its model has stopped", 503)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    lines = []
    for name, (kind, title, text) in _METRICS.items():
        lines += [f"# HELP hanlin_{title} {text}", f"# TYPE hanlin_{title} {kind}"]
        lines.append(f"hanlin_{title} {getattr(service.scheduler.counts, name)}")
    lines += [
        "# HELP hanlin_cache_positions_limit Positions that it may hold.",
        "# TYPE hanlin_cache_positions_limit gauge",
    ]
    lines.append(f"hanlin_cache_positions_limit {service.limits.cache_tokens}")
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


async def version(request: Request) -> Response:
    return JSONResponse({"version": hanlin.__version__})


def _card(base: Service, name: str) -> dict[str, object]:
    """What it accepts is tried, which takes a second where a dictionary of words is read for it. parent: of an adapter,
    the name of its base, as vLLM tells it.

    Raises: RequestError.
    """
    service = base.named(name)
    return {
        "id": name,
        "object": "model",
        "created": base.created,
        "owned_by": "hanlin",
        "parent": None if service is base else base.name,
        "max_model_len": service.engine.max_length,
        "accepts": accepted_questions(service.processor),
        "blanks": asdict(service.processor.blanks) if isinstance(service.processor, FillsBlanks) else None,
        "labels": list(service.processor.labels) if isinstance(service.processor, PredictsLabels) else None,
        "settings": service.settings.model_dump(),
    }
