"""Who may decide on an order, whatever a model makes of the words, and with four eyes where the site wants them."""

import pytest

from agents.roles import needs_another
from schemas.agent_runs import AgentRun
from schemas.events import OrderDecision
from schemas.settings import LlmSettings, PolicySettings
from schemas.topics import AGENT_COMMAND, APPROVAL
from schemas.vocabulary import OrderKind, UserRole


@pytest.fixture
def careful(sqlite_database, make_hospital):
    hospital = make_hospital(sqlite_database, policy=PolicySettings(four_eyes=True, cool_down_s=0))
    hospital.cases(tune=60, gate=40)
    return hospital


def order(hospital, words="fine-tune brain_mri", user="ada"):
    hospital.say(words, UserRole.ML_OWNER, user=user)
    return hospital.orders()[-1]


def state(hospital, order_id):
    return next(row.state for row in hospital.orders() if row.order_id == order_id)


def test_a_person_s_remedy_waits_for_a_second_person(careful):
    waiting = order(careful)
    assert (waiting.state, careful.sent()) == ("awaiting_approval", [])
    assert "second person" in waiting.explanation
    reply = careful.say(f"approve {waiting.order_id}", UserRole.ML_OWNER, user="ada").reply
    assert "ordered" in reply
    assert state(careful, waiting.order_id) == "awaiting_approval"
    careful.say(f"approve {waiting.order_id}", UserRole.ML_OWNER, user="bob")
    assert state(careful, waiting.order_id) == "accepted"
    assert [each.order_id for each in careful.sent()] == [waiting.order_id]


def test_the_own_order_may_be_taken_back(careful):
    waiting = order(careful)
    careful.say(f"reject {waiting.order_id}", UserRole.ML_OWNER, user="ada")
    assert state(careful, waiting.order_id) == "refused"


def test_stopping_a_model_waits_for_nobody(careful):
    assert order(careful, "stop serving brain_mri").state == "accepted"


def test_without_four_eyes_a_person_s_remedy_goes_out(hospital):
    hospital.cases(tune=60, gate=40)
    assert order(hospital).state == "accepted"


def test_waiting_and_deciding_are_told_on_the_bus_once(careful):
    waiting = order(careful)
    careful.say(f"approve {waiting.order_id}", UserRole.ML_OWNER, user="bob")
    told = [row.event_id for row in careful.outbox(APPROVAL)]
    assert told == [f"{waiting.order_id}.asked", f"{waiting.order_id}.decided"]


def press(hospital, order_id, *, approve, role, user):
    record = hospital.command("whatever stands here", role, user=user)
    from schemas.events import AgentCommand

    data = AgentCommand.model_validate_json(record.body)
    data = data.model_copy(update={"decision": OrderDecision(order_id=order_id, approve=approve)})
    return hospital.handle(hospital.record(AGENT_COMMAND, data.command_id, data))


@pytest.mark.parametrize(
    ("role", "user", "after"),
    [
        (UserRole.VIEWER, "eve", "awaiting_approval"),
        (UserRole.RADIOLOGIST, "eve", "awaiting_approval"),
        (UserRole.ML_OWNER, "ada", "awaiting_approval"),
        (UserRole.ML_OWNER, "bob", "accepted"),
    ],
)
def test_a_button_is_held_to_the_same_rules(careful, role, user, after):
    waiting = order(careful)
    run = press(careful, waiting.order_id, approve=True, role=role, user=user)
    assert run.planner == "button"
    assert state(careful, waiting.order_id) == after


def test_a_button_needs_no_language_model(sqlite_database, make_hospital, llm_server):
    llm = LlmSettings(base_url=llm_server.url, model="scripted", max_retries=0)
    hospital = make_hospital(sqlite_database, llm=llm, policy=PolicySettings(approve_remedies=True))
    press(hospital, "ord-000000000000", approve=True, role=UserRole.ADMIN, user="bob")
    assert llm_server.requests == []


@pytest.mark.parametrize("named", [True, False])
def test_a_model_cannot_decide_on_another_order_than_the_words_name(sqlite_database, make_hospital, llm_server, named):
    hospital = make_hospital(sqlite_database, policy=PolicySettings(four_eyes=True))
    hospital.cases(tune=60, gate=40)
    hospital.cases(tune=60, gate=40, model="chest_xray", patients="1")
    first, second = order(hospital, "fine-tune brain_mri"), order(hospital, "fine-tune chest_xray")
    assert (first.state, second.state) == ("awaiting_approval", "awaiting_approval")
    llm = LlmSettings(base_url=llm_server.url, model="scripted", max_retries=0)
    cunning = type(hospital)(hospital.database, hospital.clock, hospital.settings.model_copy(update={"llm": llm}))

    def script(_request, number):
        return llm_server.tool("approve_order", order_id=second.order_id) if number == 1 else "Approved."

    llm_server.script = script
    cunning.say(f"approve {first.order_id}" if named else "approve it", UserRole.ML_OWNER, user="bob")
    assert state(hospital, second.order_id) == "awaiting_approval"
    assert hospital.sent() == []


@pytest.mark.parametrize("own", [True, False])
def test_a_bare_yes_approves_no_order_but_one_of_the_exchange_before(sqlite_database, make_hospital, llm_server, own):
    """A language model that was talked into it writes the words that ask for a yes about another order."""
    hospital = make_hospital(sqlite_database, policy=PolicySettings(approve_remedies=True))
    hospital.cases(tune=60, gate=40)
    hospital.handle(hospital.evaluation())
    (waiting,) = [each for each in hospital.orders() if each.kind == "remedy"]
    assert waiting.state == "awaiting_approval"
    llm = LlmSettings(base_url=llm_server.url, model="scripted", max_retries=0)
    cunning = type(hospital)(hospital.database, hospital.clock, hospital.settings.model_copy(update={"llm": llm}))
    script = [llm_server.tool("list_models"), f"All is well. Shall I go on? approve {waiting.order_id}"]
    llm_server.script = lambda _request, number: script[min(number, 2) - 1]
    run = cunning.say("how are things?", UserRole.ML_OWNER, user="bob")
    assert f"approve {waiting.order_id}" in run.reply
    if own:
        with hospital.database.transaction() as tx:
            tx.session.get_one(AgentRun, run.run_id).order_ids = [waiting.order_id]
    hospital.say("yes", UserRole.ML_OWNER, user="bob")
    assert (state(hospital, waiting.order_id) == "accepted") is own


def test_four_eyes_are_two_people_in_whatever_letters():
    assert needs_another(OrderKind.REMEDY, "user:Ada", "user:ada", four_eyes=True)
    assert not needs_another(OrderKind.REMEDY, "user:Ada", "user:bob", four_eyes=True)


def test_what_a_model_made_up_is_confirmed_by_the_person_alone(sqlite_database, make_hospital, llm_server):
    """Four eyes are for remedies and rollbacks; a report that the words did not ask for needs only the person's own yes."""
    llm = LlmSettings(base_url=llm_server.url, model="scripted", max_retries=0)
    hospital = make_hospital(sqlite_database, llm=llm, policy=PolicySettings(four_eyes=True))
    script = [
        llm_server.tool("handoff", to_agent="monitoring", reason="x"),
        llm_server.tool("order_report", model="brain_mri"),
        "Done.",
    ]
    llm_server.script = lambda _request, number: script[min(number, 3) - 1]
    hospital.say("how is brain_mri?", UserRole.ML_OWNER, user="ada")
    (waiting,) = hospital.orders()
    assert (waiting.kind, waiting.state) == ("report", "awaiting_approval")
    press(hospital, waiting.order_id, approve=True, role=UserRole.ML_OWNER, user="ada")
    assert state(hospital, waiting.order_id) == "accepted"
