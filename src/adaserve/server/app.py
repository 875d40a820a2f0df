"""The routes of the OpenAI-compatible server."""

import asyncio
import contextvars
import logging
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adaserve.errors import AdaServeError, InvalidRequest
from adaserve.request import Request as EngineRequest
from adaserve.server.admission import Caller, check_model
from adaserve.server.answers import ChatForm, Form, GrowingAnswer, TextForm
from adaserve.server.auth import key_checker, key_of
from adaserve.server.calls import Call, EventStream
from adaserve.server.choice import Choice
from adaserve.server.engine_link import EngineState
from adaserve.server.limits import read_json
from adaserve.server.messages import Ready
from adaserve.server.problems import Kind, Problem, problem_of
from adaserve.server.schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    TokenizeBody,
    read_body,
)
from adaserve.server.service import Service

logger = logging.getLogger("adaserve.server")

Result = TypeVar("Result")

BIG_TEXT = 16384
"""Bytes of a body beyond which tokenising moves to a thread, so that it holds no other call up."""


def reply(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(data), status, headers, "application/json")


def create_app(service: Service) -> FastAPI:
    """Make the application of one server."""
    app = FastAPI(
        title="AdaServe",
        version="1",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(key_checker(service.config.api_keys))],
    )
    app.add_middleware(Guard)
    app.add_exception_handler(Problem, lambda request, error: _answer_problem(error))
    app.add_exception_handler(AdaServeError, lambda request, error: _answer_problem(problem_of(error)))
    app.add_exception_handler(HTTPException, lambda request, error: _answer_problem(_of_http(request, error)))
    _add_probes(app, service)
    _add_generation(app, service)
    _add_tokenizing(app, service)
    _add_openapi(app)
    return app


def _answer_problem(error: Any) -> Response:
    return reply(error.body, error.status, error.headers)


def _of_http(request: Request, error: HTTPException) -> Problem:
    if error.status_code == 405:
        return Problem(Kind.NO_METHOD, f"{request.url.path[:100]} does not take {request.method[:20]}")
    return Problem(Kind.NO_ROUTE, f"there is no {request.url.path[:100]} here")


class Guard:
    """Gives every call an id, and turns an unforeseen error into 503 with its details in the log beside that id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call_id = scope["state"]["call_id"] = secrets.token_hex(12)
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", call_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except ClientDisconnect:
            pass
        except Exception:
            logger.exception("%s: unforeseen error", call_id)
            if not started:
                problem = Problem(Kind.INTERNAL, f"internal error; the server's log has details under {call_id}")
                await _answer_problem(problem)(scope, receive, tagged)


def body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a body that the route reads by itself."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the server is alive")
    async def health() -> Response:
        if service.link.state is EngineState.FAILED:
            raise Problem(Kind.FAILED, "the engine failed; this server is going to restart")
        return reply({"status": "ok"})

    @app.get("/ready", summary="Whether the server takes calls")
    async def ready() -> Response:
        return reply({"status": "ok"} if service.door is not None else {})

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(service.monitor.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", summary="The models served")
    async def models() -> Response:
        facts = service.door.facts
        return reply({"object": "list", "data": [_model(name, service.created, facts) for name in service.model_names]})

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> Response:
        return reply(_model(check_model(name, service.model_names), service.created, service.door.facts))


def _model(name: str, created: int, facts: Ready) -> dict[str, object]:
    """Describe a model. `baseline_ms`: TPOT of one request alone without speculation, what multiples in SLOs refer to.

    shared_ms: TPOT of each of 1, 2, ... requests at once without speculation, as the measured curves have it.
    """
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "adaserve",
        "max_model_len": facts.max_model_len,
        "baseline_ms": facts.baseline * 1e3,
        "shared_ms": [round(seconds * 1e3, 3) for seconds in facts.shared],
    }


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", summary="Continue a conversation", openapi_extra=body_schema(ChatBody))
    async def chat(request: Request) -> Response:
        return await generate(request, ChatBody, "chatcmpl", ChatForm())

    @app.post("/v1/completions", summary="Continue texts", openapi_extra=body_schema(CompletionBody))
    async def completions(request: Request) -> Response:
        return await generate(request, CompletionBody, "cmpl", TextForm())

    async def generate(request: Request, kind: type[GenerationBody], prefix: str, form: Form) -> Response:
        arrived = service.clock.now()
        door = service.door
        service.check_room(1)
        body = read_body(kind, await read_json(request, service.config.limits))
        model = check_model(body.model, service.model_names)
        if body.stream_options is not None and not body.stream:
            raise InvalidRequest("stream_options needs stream to be true", "stream_options")
        caller = Caller(f"{prefix}-{request.state.call_id}", arrived, request.headers, key_of(request))

        def admit() -> list[EngineRequest]:
            return door.chat(body, caller) if isinstance(body, ChatBody) else door.completion(body, caller)  # type: ignore[arg-type]

        requests = await in_thread_if_big(request, admit)
        skip = body.skip_special_tokens is not False
        choices = [Choice(item, door.tokenizer, bool(body.include_stop_str_in_output), skip) for item in requests]
        prompts = len(choices) // requests[0].sampling.n
        answer = GrowingAnswer(
            caller.id, service.unix_time(), model, form, choices, door.tokenizer, prompts, service_tier=body.service_tier
        )
        call = Call(answer, service.submit(requests), service.link, service.monitor)
        if body.stream:
            usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            return EventStream(call, usage, {})
        whole = await call.whole(request)
        return reply(whole) if whole is not None else Response(status_code=499)


async def in_thread_if_big(request: Request, work: Callable[[], Result]) -> Result:
    """Run `work` here, or in a thread when the call's body is big."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) <= BIG_TEXT:
        return work()
    return await asyncio.to_thread(contextvars.copy_context().run, work)


def _add_tokenizing(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", summary="Text or messages to token ids", openapi_extra=body_schema(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        door = service.door
        body = read_body(TokenizeBody, await read_json(request, service.config.limits))
        check_model(body.model, service.model_names)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("give either prompt or messages", "prompt")

        def work() -> list[int]:
            if body.messages is not None:
                return door.conversation(body.messages)
            return door.tokenizer.encode(body.prompt or "", body.add_special_tokens is not False)

        ids = await in_thread_if_big(request, work)
        return reply({"tokens": ids, "count": len(ids), "max_model_len": door.facts.max_model_len})

    @app.post("/detokenize", summary="Token ids to text", openapi_extra=body_schema(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        door = service.door
        body = read_body(DetokenizeBody, await read_json(request, service.config.limits))
        check_model(body.model, service.model_names)
        if any(not 0 <= token < door.facts.vocab_size for token in body.tokens):
            raise InvalidRequest(f"token ids must be between 0 and {door.facts.vocab_size - 1}", "tokens")
        text = await in_thread_if_big(request, lambda: door.tokenizer.decode(body.tokens, skip_special_tokens=False))
        return reply({"prompt": text})


def _add_openapi(app: FastAPI) -> None:
    @app.get("/openapi.json", summary="This document", include_in_schema=False)
    async def openapi() -> Response:
        return reply(document(app))


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that the routes read by themselves."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for kind in (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody):
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
    return found
