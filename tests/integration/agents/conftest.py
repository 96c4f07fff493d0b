"""A small hospital's database, the agents' consumer on it, and an OpenAI-compatible server that behaves as scripted."""

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy import insert
from sqlmodel import col, select

from agents.handlers import AgentsConsumer
from agents.runner import Runner
from schemas.agent_runs import AgentRun
from schemas.events import AgentCommand, AgentReply, EvaluationCompleted, MaintenanceOrder, MaintenancePromotion, MetricValue
from schemas.settings import LlmSettings, PolicySettings, Settings
from schemas.tables import BaselineCase, Case, Evaluation, Job, ModelVersion, Order, Outbox, RegisteredModel
from schemas.topics import AGENT_COMMAND, AGENT_REPLY, EVALUATION_COMPLETED, ORDER, PROMOTION, Topic
from schemas.vocabulary import Diagnosis, Status, UserRole, Verdict
from services.runtime.consumer import process
from services.runtime.database import Database
from services.runtime.messages import Record, headers_of

METRIC = {"name": "accuracy", "value": 0.71, "low": 0.62, "high": 0.79, "cases": 100, "baseline": 0.91}


@dataclass
class Hospital:
    """The agents at work on one database: events in, rows and events out."""

    database: Database
    clock: Any
    settings: Settings

    def consumer(self) -> AgentsConsumer:
        return AgentsConsumer(Runner.of(self.database, self.clock, self.settings), self.settings)

    def handle(self, record: Record) -> AgentRun:
        assert process(self.database, self.consumer(), [record]) == 0
        return self.run_of(record)

    def run_of(self, record: Record) -> AgentRun:
        with self.database.read() as session:
            return session.exec(select(AgentRun).where(AgentRun.cause == record.event_id)).one()

    def say(self, text: str, role: UserRole = UserRole.ADMIN, thread: str = "t", user: str = "ada") -> AgentRun:
        return self.handle(self.command(text, role, thread, user))

    def command(self, text: str, role: UserRole = UserRole.ADMIN, thread: str = "t", user: str = "ada") -> Record:
        identity = str(uuid.uuid4())
        data = AgentCommand(command_id=identity, thread=thread, user=user, user_role=role, channel="console", text=text)
        return self.record(AGENT_COMMAND, identity, data)

    def record(self, topic: Topic, identity: str, data: Any) -> Record:
        self.clock.advance(1)
        return Record(topic.name, 0, 0, "k", headers_of(topic, identity, self.clock.now()), data.model_dump_json().encode())

    def evaluation(
        self,
        status: Status = Status.DEGRADED,
        diagnosis: Diagnosis = Diagnosis.COVARIATE,
        model: str = "brain_mri",
        version: int = 1,
        identity: str | None = None,
        **evidence: Any,
    ) -> Record:
        """Store an evaluation as its service does, and return its event."""
        self.clock.advance(60)
        identity = identity or uuid.uuid4().hex
        shared = {
            "evaluation_id": identity,
            "batch_id": f"b-{identity}"[:64],
            "model": model,
            "version": version,
            "status": status,
            "diagnosis": diagnosis,
            "cases": 100,
            "stream_cases": 100,
            "reclaim_rule": status == Status.DEGRADED,
            "summary": "Accuracy fell from 0.91 to 0.71.",
            "evaluated_at": self.clock.now(),
        }
        evidence = evidence or {"e_value": 55.1}
        with self.database.transaction() as tx:
            tx.session.add(Evaluation(**shared, metrics=[METRIC], evidence=evidence))
        data = EvaluationCompleted(**shared, task="tumour", metrics=(MetricValue(**METRIC),), evidence=evidence)
        return self.record(EVALUATION_COMPLETED, identity, data)

    def orders(self) -> list[Order]:
        with self.database.read() as session:
            return list(session.exec(select(Order).order_by(col(Order.created_at), col(Order.kind))))

    def sent(self) -> list[MaintenanceOrder]:
        return [MaintenanceOrder.model_validate_json(row.body) for row in self.outbox(ORDER)]

    def replies(self) -> list[AgentReply]:
        return [AgentReply.model_validate_json(row.body) for row in self.outbox(AGENT_REPLY)]

    def outbox(self, topic: Topic) -> list[Outbox]:
        with self.database.read() as session:
            return list(session.exec(select(Outbox).where(Outbox.topic == topic.name).order_by(col(Outbox.id))))

    def verdict(self, verdict: Verdict, **numbers: float) -> Record:
        """Conclude the remedy that is under way as remediation does, and return the gate's event."""
        self.clock.advance(60)
        now = self.clock.now()
        with self.database.transaction() as tx:
            order = next(row for row in tx.session.exec(select(Order)) if row.kind == "remedy" and row.state == "accepted")
            order.state = "done"
            number = len(tx.session.exec(select(ModelVersion).where(ModelVersion.model == order.model)).all()) + 1
            cases = tx.session.exec(select(Case).where(Case.role == "tune")).all()
            result = {"verdict": verdict, "challenger": number, "numbers": numbers, "reasons": ["It forgets too much."]}
            result["tune_cases"] = len(cases)
            shared = {"model": order.model, "created_at": now}
            states = {Verdict.PROMOTE: "champion", Verdict.REJECT: "rejected", Verdict.NEED_LABELS: "challenger"}
            made = {"parent": order.version, "origin": order.order_id, "metrics": numbers}
            job = {"order_id": order.order_id, "remedy": order.remedy, "state": "succeeded", "result": result, "updated_at": now}
            tx.session.add(Job(job_id=order.order_id, **job, **shared))
            tx.session.add(ModelVersion(version=number, state=states[verdict], bundle="x", sha256="1" * 64, **made, **shared))
            serves = number if verdict == Verdict.PROMOTE else order.version
            tx.session.get_one(RegisteredModel, order.model).champion = serves
            data = MaintenancePromotion(
                model=order.model,
                challenger=number,
                champion_before=order.version,
                champion_after=serves,
                verdict=verdict,
                reasons=("It forgets too much.",),
                order_id=order.order_id,
                actor="service:remediation",
            )
        return self.record(PROMOTION, f"promotion-{order.order_id}", data)

    def finish(self, state: str) -> None:
        """Let every order end in this state, and the cool-down pass."""
        self.clock.advance(2 * 86_400)
        with self.database.transaction() as tx:
            for order in tx.session.exec(select(Order)):
                order.state = state
                tx.session.add(order)

    def cases(self, tune: int, gate: int, model: str = "brain_mri", waiting: int = 0, patients: str = "0") -> None:
        """Scored studies, one a patient; `patients` is a hexadecimal digit that keeps two groups apart."""
        roles = ["tune"] * tune + ["gate"] * gate + ["trigger"] * waiting
        now = self.clock.now()
        alike = {"model": model, "version": 1, "task": "tumour", "predicted": "a", "probabilities": {"a": 0.9, "b": 0.1}}
        alike |= {"facets": {}, "findings": []}
        rows = []
        for number, role in enumerate(roles):
            key, truth = f"{patients}{number + 1:031x}", None if role == "trigger" else "b"
            names = {"study_key": key, "patient_key": key, "role": role, "truth": truth}
            times = {"acquired_at": now, "scored_at": now, "joined_at": now if truth else None}
            rows.append(alike | names | times | {"state": "joined" if truth else "waiting"})
        with self.database.transaction() as tx:
            tx.session.execute(insert(Case), rows)


def _populate(database: Database, now: Any) -> None:
    with database.transaction() as tx:
        for name in ("brain_mri", "chest_xray"):
            tx.session.add(RegisteredModel(name=name, task="tumour", classes=["a", "b"], champion=1, created_at=now))
            tx.session.flush()
            tx.session.add(ModelVersion(model=name, version=1, state="champion", bundle="x", sha256="0" * 64, created_at=now))
            for number in range(10):
                tx.session.add(
                    BaselineCase(
                        model=name,
                        version=1,
                        case_key=f"c{number}",
                        patient_key=f"p{number}",
                        truth="a",
                        predicted="a" if number else "b",
                        probabilities={"a": 0.9, "b": 0.1},
                    )
                )


@pytest.fixture
def make_hospital(clock: Any, tmp_path: Any) -> Callable[..., Hospital]:
    def make(database: Database, **settings: Any) -> Hospital:
        _populate(database, clock.now())
        return Hospital(database, clock, Settings(state_dir=tmp_path / "state", **settings))

    return make


@pytest.fixture
def hospital(sqlite_database: Database, make_hospital: Callable[..., Hospital]) -> Hospital:
    return make_hospital(sqlite_database)


@pytest.fixture
def strict_hospital(sqlite_database: Database, make_hospital: Callable[..., Hospital]) -> Hospital:
    """Remedies wait for a person."""
    return make_hospital(sqlite_database, policy=PolicySettings(approve_remedies=True))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """An assistant message that calls a tool, as OpenAI's API writes it."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"c{uuid.uuid4().hex[:8]}", "type": "function", "function": function}],
    }


Script = Callable[[dict[str, Any], int], Any]


@dataclass
class LlmServer:
    """An OpenAI-compatible endpoint. `script(request, n)` returns a message, text, a status code, or seconds to hang."""

    script: Script = lambda _request, _n: "done"
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def tool(self, name: str, **arguments: Any) -> dict[str, Any]:
        return call(name, **arguments)

    async def chat(self, request: web.Request) -> web.Response:
        raw = await request.text()
        self.requests.append(raw)
        answer = self.script(json.loads(raw), len(self.requests))
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = "late"
        if isinstance(answer, int):
            return web.json_response({"error": {"message": "broken"}}, status=answer)
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type="application/json")
        message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return web.json_response(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice], "usage": usage}
        )


@pytest.fixture
def llm_server() -> Iterator[LlmServer]:
    server, started, loop = LlmServer(), threading.Event(), asyncio.new_event_loop()
    runner = web.AppRunner(_app(server))

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()

    def serve() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(10)
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def _app(server: LlmServer) -> web.Application:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    return app


@pytest.fixture
def llm_hospital(sqlite_database: Database, make_hospital: Callable[..., Hospital], llm_server: LlmServer) -> Hospital:
    llm = LlmSettings(base_url=llm_server.url, model="scripted", timeout_s=2, run_timeout_s=30, max_retries=0)
    return make_hospital(sqlite_database, llm=llm)
