"""The server's routes: rewards, and what a server is asked about itself; `frameworks` and `teachers` add those of trainers."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from jobs.serve import frameworks, teachers
from jobs.serve.batching import Expired, Lost, Unready
from jobs.serve.bodies import ARROW, RewardsRequest, as_arrow, as_json, json_response
from jobs.serve.desk import Desk
from jobs.serve.gate import FAILED, RETRY_LOADING_S, Gate, refusal
from jobs.serve.metrics import Metrics
from jobs.serve.service import Refused, Service, sentence_of_mistakes, status_of
from pipeline import __version__
from pipeline.errors import RowError

TEXT = "text/plain; version=0.0.4; charset=utf-8"  # of Prometheus


def app_of(desk: Desk, token: str = "") -> Gate:
    """The server as an ASGI application; it starts loading its models when it is started."""

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        desk.close()

    app = FastAPI(title="endoreward", version=__version__, lifespan=living, redoc_url=None)
    metrics = Metrics(desk)
    _add_errors(app)
    _add_rewards(app, desk)
    _add_state(app, desk, metrics)
    frameworks.add_routes(app, desk)
    teachers.add_routes(app, desk)
    return Gate(app, desk, metrics, {getattr(route, "path", "") for route in app.routes}, token)


def _add_rewards(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/rewards")
    async def rewards(body: RewardsRequest, request: Request) -> Response:
        """The endogenous reward of each response, in nats times alpha; as an Arrow stream where Accept asks for one.

        A response that cannot be scored has `error` in the place of its numbers; where none can, the status is 422."""
        service = desk.service(request, body.model)
        reward = service.reward_under(body.reward)
        inputs = [each.model_dump(exclude_none=True) for each in body.inputs]
        rows = await service.rewards(inputs, reward, request.scope["deadline"])
        errors = [row.answer for row in rows if isinstance(row.answer, RowError)]
        status = status_of(errors) if len(errors) == len(rows) else 200
        if ARROW in request.headers.get("accept", ""):
            return Response(as_arrow(rows, body.include), status, media_type=ARROW)
        answer = {"model": service.name, "reward": reward.model_dump(), "data": as_json(rows, body.include)}
        return json_response(answer, status)


def _add_state(app: FastAPI, desk: Desk, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 once all models are loaded, 503 before, on the way down, and while one has no replica."""
        return json_response({"status": "ready" if desk.ready else "not ready"}, 200 if desk.ready else 503)

    @app.get("/v1/models")
    async def models() -> Response:
        """What is served, by the names that requests call it."""
        return json_response({"object": "list", "data": [_listed(service) for service in desk.services.values()]})

    @app.get("/metrics")
    async def figures() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), headers={"content-type": TEXT})


def _listed(service: Service) -> dict[str, Any]:
    known = {"id": service.name, "object": "model", "created": service.created, "owned_by": "endoreward"}
    return {**known, "max_model_len": service.renderer.max_length, "reward": service.config.reward.model_dump()}


def _add_errors(app: FastAPI) -> None:
    """Each error as a status and a sentence; none repeats the request."""

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError) -> Response:
        mistakes = error.errors()
        if any(each["type"] == "json_invalid" for each in mistakes):
            return _refused(400, "the body is not JSON")
        return _refused(400, sentence_of_mistakes(mistakes))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        sentences = {
            404: "there is no such route; /docs lists them",
            405: "this route takes another method; /docs has it",
        }
        return _refused(error.status_code, sentences.get(error.status_code, "the body cannot be read as JSON"))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _refused(error.status, str(error))

    @app.exception_handler(Expired)
    async def expired(request: Request, error: Expired) -> Response:
        return _refused(504, str(error))

    @app.exception_handler(Unready)
    async def unready(request: Request, error: Unready) -> Response:
        answer = _refused(503, f"{error}; try again")
        answer.headers["retry-after"] = str(RETRY_LOADING_S)
        return answer

    @app.exception_handler(Lost)
    async def lost(request: Request, error: Lost) -> Response:
        return _refused(
            500, "the process that computed this request ended each time, also with nothing else; send less of it"
        )

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _refused(500, FAILED)  # the gate has the error too


def _refused(status: int, sentence: str) -> Response:
    return Response(refusal(status, sentence), status, media_type="application/json")
