"""The AsyncAPI 3 document of the bus, made from `schemas.topics`; `python -m services.runtime.asyncapi [FILE]` writes it.

FastStream makes the document; what it cannot know (the CloudEvents headers, the keys, the dead-letter channels) is added
here, so that a consumer can be written from the document alone.
"""

import sys
from pathlib import Path
from typing import Any, Final

import yaml
from faststream.kafka import KafkaBroker
from faststream.specification import AsyncAPI

from schemas.topics import TOPICS, Topic
from services.runtime.messages import SOURCE

VERSION: Final = "1.0.0"
"""Version of the contract. A field or topic that is added raises the second number; a break is a new topic, not a version."""
DEFAULT_PATH: Final = Path("docs/asyncapi.yaml")
DESCRIPTION: Final = """\
Events of reclaim. Every message is a CloudEvents 1.0 event in the Kafka protocol binding's binary mode: the attributes are
Kafka headers with the prefix ce_, the data is the JSON value. Header values are UTF-8 strings.

Delivery is at least once: a consumer keeps the ce_id of what it has handled and ignores repetitions. Order holds per key.
Ignore fields you do not know: fields are added, never renamed or removed; a breaking change gets a new topic (.v2).
No message holds a patient's name, ID or birth date; study_key and patient_key are keyed pseudonyms.
A message that one of our consumers cannot process appears unchanged on TOPIC.dlq with dlq_ headers that say why.
"""
ENVELOPE: Final[dict[str, Any]] = {
    "title": "CloudEvents envelope",
    "type": "object",
    "description": "CloudEvents 1.0 attributes and W3C Trace Context as Kafka headers (CloudEvents Kafka binding, 3.2)",
    "required": ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type"],
    "properties": {
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_id": {"type": "string", "minLength": 1, "maxLength": 64, "description": "Unique per event; the key for deduplication"},
        "ce_source": {"type": "string", "pattern": f"^{SOURCE}/", "description": "Which part of reclaim published the event"},
        "ce_type": {"type": "string", "description": "Topic name in reverse-DNS form"},
        "ce_time": {"type": "string", "format": "date-time", "description": "When the event was recorded, with its UTC offset"},
        "content-type": {"type": "string", "const": "application/json"},
        "traceparent": {
            "type": "string",
            "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
            "description": "W3C Trace Context; absent when the event was recorded outside any trace",
        },
        "correlation_id": {"type": "string", "description": "Equals ce_id on the first delivery; for tools, not for deduplication"},
    },
}
REJECTION: Final[dict[str, Any]] = {
    "title": "Rejected message",
    "type": "object",
    "description": "The original message's headers and these",
    "required": ["dlq_topic", "dlq_partition", "dlq_offset", "dlq_consumer", "dlq_error", "dlq_reason"],
    "properties": {
        "dlq_topic": {"type": "string", "description": "Topic that the message came from"},
        "dlq_partition": {"type": "string", "pattern": "^-?[0-9]+$"},
        "dlq_offset": {"type": "string", "pattern": "^[0-9]+$"},
        "dlq_consumer": {"type": "string", "description": "Consumer that rejected it"},
        "dlq_error": {"type": "string"},
        "dlq_reason": {"type": "string", "description": "One sentence without identities"},
    },
}


def document() -> dict[str, Any]:
    """The whole document, ready for YAML or JSON."""
    broker = KafkaBroker(
        "localhost:9092", description="The site's Kafka; `reclaim up` without one prints its embedded broker's port"
    )
    for topic in TOPICS:
        broker.publisher(topic.name, title=topic.name, description=topic.summary, schema=topic.model)
    made: dict[str, Any] = (
        AsyncAPI(broker, title="reclaim", version=VERSION, description=DESCRIPTION).to_specification().to_jsonable()
    )
    for topic in TOPICS:
        _complete(made, topic)
        _add_dead_letters(made, topic)
    for part in (made, made["components"]):  # FastStream keeps publishers in a set: without this every run differs
        for name in ("channels", "operations", "messages", "schemas"):
            if name in part:
                part[name] = dict(sorted(part[name].items()))
    return made


def _complete(made: dict[str, Any], topic: Topic) -> None:
    (reference,) = made["channels"][topic.name]["messages"].values()
    message = made["components"]["messages"][reference["$ref"].rsplit("/", 1)[-1]]
    message["name"], message["title"], message["summary"] = topic.ce_type, topic.name, topic.summary
    message["contentType"] = "application/json"
    message["headers"] = {"allOf": [{"$ref": "#/components/schemas/CloudEventHeaders"}, _type_is(topic)]}
    key = {"type": "string", "description": f"The value of {topic.key}; order holds among messages of one key"}
    message["bindings"] = {"kafka": {"key": key, "bindingVersion": "0.5.0"}}
    message.pop("correlationId", None)
    made["components"]["schemas"]["CloudEventHeaders"] = ENVELOPE


def _type_is(topic: Topic) -> dict[str, Any]:
    return {"type": "object", "properties": {"ce_type": {"const": topic.ce_type}}}


def _add_dead_letters(made: dict[str, Any], topic: Topic) -> None:
    name = topic.dead_letter
    made["components"]["schemas"]["RejectionHeaders"] = REJECTION
    made["components"]["messages"][f"{name}:Message"] = {
        "title": name,
        "summary": f"A message of {topic.name} that a consumer could not process, byte for byte",
        "headers": {"$ref": "#/components/schemas/RejectionHeaders"},
        "payload": {},
    }
    made["channels"][name] = {
        "address": name,
        "description": f"Messages of {topic.name} that a consumer could not process",
        "servers": made["channels"][topic.name]["servers"],
        "messages": {"Message": {"$ref": f"#/components/messages/{name}:Message"}},
        "bindings": {"kafka": {"topic": name, "bindingVersion": "0.4.0"}},
    }


def as_yaml() -> str:
    """The document as it is committed."""
    head = "# Made by `make asyncapi` from schemas/; edit those.\n"
    return head + yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """YAML as a person writes it: no aliases, paragraphs as blocks."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - signature of PyYAML
        """Repeat what is repeated."""
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A string; as a literal block when it has several lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def main() -> None:
    """Write the document."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_PATH
    path.write_text(as_yaml())


if __name__ == "__main__":
    main()
