"""What comes in from Teams: messages and buttons of people of the own tenant, once the Bot Connector is proved to speak."""

import asyncio
import hashlib
import logging
import re
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from listeners.chat import repository
from listeners.chat.cards import Card
from listeners.chat.conversation import Outcome, Pressed, Said, decide, receive
from listeners.chat.teams.text import APPROVE, REJECT, typed
from services.runtime.service import Context

logger = logging.getLogger(__name__)
ORDER: Final = re.compile(r"ord-[0-9a-f]{12}")
OBJECT_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
WITHOUT_ACCOUNT: Final = "Only people with an account of this organisation are answered."


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_absence(cls, value: Any) -> Any:
        """A field that is null is as good as absent: a pressed Action.Submit has no text."""
        return {name: inner for name, inner in value.items() if inner is not None} if isinstance(value, dict) else value


class Who(_Part):
    """A person or bot; `aadObjectId` is the Entra object id."""

    id: str = ""
    aad_object_id: str = Field("", alias="aadObjectId")


class Conversation(_Part):
    """Where it was said. In a channel the id ends with the message that began the thread."""

    id: str = Field(min_length=1, max_length=512)
    tenant_id: str = Field("", alias="tenantId")


class Activity(_Part):
    """What we read of a Bot Framework activity."""

    type: str
    id: str = Field("", max_length=256)
    name: str = ""
    channel_id: str = Field("", alias="channelId")
    service_url: str = Field("", alias="serviceUrl", max_length=512)
    sender: Who = Field(Who(), alias="from")
    conversation: Conversation
    channel_data: dict[str, Any] = Field(default_factory=dict, alias="channelData")
    text: str = ""
    value: Any = None

    @property
    def tenants(self) -> set[str]:
        """Every tenant that the activity names."""
        inside = self.channel_data.get("tenant")
        return {self.conversation.tenant_id, str(inside.get("id", "")) if isinstance(inside, dict) else ""} - {""}

    @property
    def thread(self) -> str:
        """Our name of the conversation."""
        return f"teams:{hashlib.sha256(self.conversation.id.encode()).hexdigest()[:48]}"

    @property
    def keys(self) -> tuple[str, ...]:
        """What names this activity, however often it is delivered."""
        return (f"{self.conversation.id}|{self.id}",)

    @property
    def reference(self) -> dict[str, Any]:
        """What it takes to answer later."""
        return {"conversation": self.conversation.id, "service_url": self.service_url}


class Bot:
    """Turns activities into commands."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def speaks_for_us(self, activity: Activity) -> bool:
        """Whether it comes from Teams and from the own tenant alone."""
        tenant = self._context.settings.teams.tenant
        return activity.channel_id == "msteams" and {each.lower() for each in activity.tenants} == {tenant.lower()}

    async def take(self, activity: Activity) -> dict[str, Any] | None:
        """Deal with an activity durably; the body to answer an invoke with, None where nothing is answered."""
        pressed = _decision(activity)
        if activity.type == "invoke":
            return _told(await self._press(activity, pressed)) if pressed else None
        if activity.type == "message" and activity.id:
            await self._message(activity, pressed)
        elif activity.type in {"conversationUpdate", "installationUpdate"}:
            logger.info("CHT-120 Teams: we are in conversation %s", re.sub(r"[^\w:;=@.-]", "", activity.conversation.id)[:128])
        return None

    async def _message(self, activity: Activity, pressed: tuple[str, bool] | None) -> None:
        if pressed:
            outcome = await self._press(activity, pressed)
        elif (person := _person(activity)) is None:
            outcome = Outcome(refusal=WITHOUT_ACCOUNT)
        else:
            said = Said("teams", person, activity.thread, activity.reference, typed(activity.text), activity.keys)
            outcome = await asyncio.to_thread(receive, self._context, said)
        if outcome.refusal:
            await asyncio.to_thread(self._refuse, activity, outcome.refusal)

    async def _press(self, activity: Activity, decision: tuple[str, bool]) -> Outcome:
        person, (order_id, approve) = _person(activity), decision
        if person is None:
            return Outcome(refusal=WITHOUT_ACCOUNT)
        if not ORDER.fullmatch(order_id):
            return Outcome(refusal="This button belongs to no order.")
        pressed = Pressed("teams", person, activity.thread, activity.reference, order_id, approve, activity.keys)
        return await asyncio.to_thread(decide, self._context, pressed)

    def _refuse(self, activity: Activity, refusal: str) -> None:
        """Teams has no message for one person alone in a channel; the refusal stands in the thread."""
        with self._context.database.transaction() as tx:
            repository.remember(tx, activity.thread, "teams", activity.reference)
            tx.session.flush()
            thread = repository.thread(tx.session, activity.thread)
            if thread is not None:
                repository.put(tx, thread, f"refusal|{activity.id}", "reply", Card(text=refusal))


def _person(activity: Activity) -> str | None:
    identity = activity.sender.aad_object_id
    return identity.lower() if OBJECT_ID.fullmatch(identity) else None


def _decision(activity: Activity) -> tuple[str, bool] | None:
    """The order and the decision of a button (Action.Execute as an invoke, Action.Submit as a message); None for anything else."""
    value = activity.value
    if not isinstance(value, dict):
        return None
    action = value.get("action") if activity.type == "invoke" else None
    data, verb = (action.get("data"), action.get("verb")) if isinstance(action, dict) else (value, None)
    if not isinstance(data, dict) or data.get("reclaim") != "decision":
        return None
    approve = data.get("approve")
    if not isinstance(approve, bool) or (verb is not None and verb != (APPROVE if approve else REJECT)):
        return None
    return str(data.get("order_id", "")), approve


def _told(outcome: Outcome) -> dict[str, Any]:
    """Answer to Action.Execute: a text that only the person who pressed sees."""
    said = outcome.refusal or (
        "This was taken already." if outcome.repeated else "Taken. What becomes of it is told in this thread."
    )
    return {"statusCode": 200, "type": "application/vnd.microsoft.activity.message", "value": said}
