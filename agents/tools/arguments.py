"""What the tools take. Ranges are checked here; names are resolved by the tool."""

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.vocabulary import Remedy
from services.evaluation.replay import Rule

ModelName = Annotated[str, Field(min_length=1, max_length=64, description="Name of a registered model")]
Last = Annotated[int, Field(ge=1, le=100, description="How many, newest first")]
Since = Annotated[date | None, Field(description="First day, YYYY-MM-DD; left out: from the beginning")]
Until = Annotated[date | None, Field(description="Last day, YYYY-MM-DD; left out: until now")]
Cases = Annotated[int | None, Field(ge=1, le=100_000, description="Only the newest so many labelled cases")]
Facet = Annotated[str, Field(max_length=130, pattern=r"^[A-Za-z]+=.+$", description="NAME=VALUE, such as StationName=CT2")]
Reason = Annotated[str, Field(max_length=800, description="Why, in one or two plain sentences")]


class Arguments(BaseModel):
    """Base of all tool arguments: unknown arguments are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NoArguments(Arguments):
    """Nothing to say."""


class OneModel(Arguments):
    """One model."""

    model: ModelName


class HistoryArguments(Arguments):
    """The run of a model's evaluations."""

    model: ModelName
    last: Last = 10
    since: Since = None
    until: Until = None
    cases: Cases = None


class ReplayArguments(Arguments):
    """Which cases a rule is replayed on."""

    model: ModelName
    since: Since = None
    until: Until = None
    cases: Cases = None
    facets: Annotated[tuple[Facet, ...], Field(max_length=5, description="Only cases with these facets: a subgroup")] = ()
    rule: Annotated[Rule, Field(description="paired: the detector; reclaim: the 5 % rule; cusum: a control chart")] = Rule.PAIRED
    version: Annotated[int | None, Field(ge=1, description="Only this version; left out: the one in service")] = None


class SuspectArguments(Arguments):
    """Labels to look at again."""

    model: ModelName
    label: Annotated[str, Field(max_length=64, description="Only labels of this class; empty for all")] = ""
    version: Annotated[int | None, Field(ge=1, description="Only this version; left out: the one in service")] = None
    last: Annotated[int, Field(ge=1, le=100, description="How many of each list, the surest and the newest first")] = 10


class CompareArguments(Arguments):
    """Two versions; what is left out is the champion and the version before it."""

    model: ModelName
    first: Annotated[int | None, Field(ge=1, description="Version number")] = None
    second: Annotated[int | None, Field(ge=1, description="Version number")] = None


class OrdersArguments(Arguments):
    """Orders, of one model or of all."""

    model: Annotated[str, Field(max_length=64, description="Name of a model; empty for all")] = ""
    waiting: Annotated[bool, Field(description="Only those that wait for approval")] = False
    last: Last = 10
    since: Since = None
    until: Until = None


class ListArguments(Arguments):
    """Things of one model or of all."""

    model: Annotated[str, Field(max_length=64, description="Name of a model; empty for all")] = ""
    last: Last = 5
    since: Since = None
    until: Until = None


class OrderArguments(Arguments):
    """An order that needs no settings."""

    model: ModelName
    reason: Reason = ""


class ReportArguments(OrderArguments):
    """A report, with advice where new weights would not help."""

    advice: Annotated[Literal["", "fix_feed", "rethreshold", "recalibrate"], Field(description="Remedy for a person")] = ""


class RemedyArguments(OrderArguments):
    """A repair of the version in service. What is left out is taken from the site's settings."""

    remedy: Annotated[
        Literal[
            Remedy.RETHRESHOLD,
            Remedy.RECALIBRATE,
            Remedy.HARMONISE,
            Remedy.ADAPT_STATISTICS,
            Remedy.HEAD_ONLY,
            Remedy.PARTIAL,
            Remedy.PARAMETER_EFFICIENT,
            Remedy.GRADUAL,
            Remedy.FULL,
        ],
        Field(
            description="rethreshold: decision thresholds; recalibrate: probabilities, for another mix of patients; "
            "harmonise: grey levels and statistics for images of a new look alone; "
            "adapt_statistics: BatchNorm statistics from images; head_only: last layer; partial: rear part of the network; "
            "parameter_efficient: small added matrices; gradual: all layers, one after the other; full: all layers"
        ),
    ]
    epochs: Annotated[int | None, Field(ge=1, le=200)] = None
    batch_size: Annotated[int | None, Field(ge=1, le=512)] = None
    head_learning_rate: Annotated[float | None, Field(ge=1e-7, le=1.0)] = None
    body_learning_rate: Annotated[float | None, Field(ge=1e-8, le=1.0)] = None
    rehearsal_share: Annotated[float | None, Field(ge=0.0, le=0.95, description="Share of old cases in each training batch")] = None


class RollbackArguments(OrderArguments):
    """A rollback goes to the version that served before, or to the earlier one that is named."""

    to_version: Annotated[int | None, Field(ge=1, description="The version to come back; left out: the last champion")] = None


class LabelArguments(OrderArguments):
    """A request for labels."""

    cases: Annotated[int | None, Field(ge=1, le=10_000, description="How many more; left out: what a remedy needs")] = None


class DecideArguments(Arguments):
    """An order that waits for approval."""

    order_id: Annotated[str, Field(max_length=64, description="Its id; empty when only one order waits")] = ""
    model: Annotated[str, Field(max_length=64, description="Or the model whose only waiting order is meant")] = ""
