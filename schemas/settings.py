"""Settings: environment (`RECLAIM_GROUP_NAME`) over one TOML file (`RECLAIM_CONFIG`, default `reclaim.toml`) over defaults.

Built once per process with `load_settings()` and handed down; nothing reads the environment at import time.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from schemas.chat_settings import ChatSettings, SlackSettings, TeamsSettings
from schemas.drift_settings import DriftSettings
from schemas.evaluation_settings import EvaluationSettings
from schemas.group import Group
from schemas.http_settings import HttpSettings
from schemas.report_settings import ReportSettings


class DatabaseSettings(Group):
    """Where state lives. Empty means SQLite in the state folder (one machine only)."""

    url: SecretStr = Field(SecretStr(""), description="SQLAlchemy address, e.g. postgresql+psycopg://user:secret@host/reclaim")
    pool_size: int = Field(5, ge=1)


class KafkaSettings(Group):
    """The bus. Empty bootstrap means the embedded broker that `reclaim up` starts."""

    bootstrap: str = Field("", description="Comma-separated host:port of the brokers; empty starts the embedded broker")
    embedded: bool = Field(False, description="True when bootstrap names an embedded broker (set by `reclaim up`)")
    embedded_port: int = Field(0, ge=0, le=65535, description="Loopback port of the embedded broker; 0 takes a free one")
    incarnation: str = Field("", description="Identity of the embedded broker's current life (set by `reclaim up`)")
    partitions: int = Field(4, ge=1)
    replication: int = Field(1, ge=1)
    session_timeout_ms: int = Field(6000, ge=1000)
    heartbeat_interval_ms: int = Field(1000, ge=100)
    max_poll_interval_ms: int = Field(300_000, ge=10_000)
    fetch_max_wait_ms: int = Field(100, ge=10)
    graceful_timeout_s: float = Field(15.0, gt=0)
    group_instance_id: str = Field("", description="Stable name of this process for static group membership, e.g. the pod name")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    ca_file: Path | None = None

    @field_validator("bootstrap")
    @classmethod
    def _names_ports(cls, value: str) -> str:
        for server in filter(None, (part.strip() for part in value.split(","))):
            _, colon, port = server.rpartition(":")
            if not colon or not port.isdecimal() or not 0 < int(port) <= 65_535:
                msg = f"{server!r} is no host:port"
                raise ValueError(msg)
        return value

    @property
    def servers(self) -> list[str]:
        """Bootstrap servers as the list that FastStream and aiokafka want."""
        return [server.strip() for server in self.bootstrap.split(",") if server.strip()]


class OutboxSettings(Group):
    """The relay from the outbox to the bus."""

    batch: int = Field(500, ge=1, le=10_000, description="Events published between two looks at the outbox")
    lease_s: float = Field(10.0, ge=1, description="A relay that has not been heard of for this long is replaced")
    retention_s: float = Field(7 * 86_400.0, gt=0, description="How long sent events stay, in case a broker loses them")
    reconcile_s: float = Field(600.0, gt=0, description="Embedded broker: an event unread for this long is sent once more")


class DeadLetterSettings(Group):
    """When to stop instead of emptying a whole topic into the dead letters."""

    max_consecutive: int = Field(100, ge=1, description="Stop the consumer after this many rejected messages in a row")
    max_ratio: float = Field(0.5, gt=0, le=1, description="Stop when this share of the last 1,000 messages was rejected")


class PeerSettings(Group):
    """A DICOM system that we call: a PACS, an archive, a workstation."""

    ae_title: str = Field(min_length=1, max_length=16)
    host: str = Field(min_length=1)
    port: int = Field(104, ge=1, le=65535)
    tls: bool = False
    ca_file: Path | None = Field(None, description="Certificates that may have signed the peer's; default: the system's")
    certificate_file: Path | None = Field(None, description="Our certificate, for a peer that asks for one")
    key_file: Path | None = None
    check_hostname: bool = Field(True, description="False where the peer's certificate does not carry its host name")


class DicomSettings(Group):
    """The C-STORE listener."""

    host: str = "0.0.0.0"  # noqa: S104 - modalities reach the listener over the hospital network
    port: int = Field(11112, ge=0, le=65535)
    ae_title: str = Field("RECLAIM", min_length=1, max_length=16)
    quiet_period_s: float = Field(30.0, gt=0, description="A study without new instances for this long is complete")
    quiet_periods: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="The same by Modality (0008,0060); a study with several waits for the longest"
    )
    longest_open_s: float = Field(7200.0, gt=0, description="A study that is open for this long is announced as it is")
    completion_signals: tuple[Literal["mpps", "storage_commitment", "instance_count"], ...] = Field(
        ("mpps", "storage_commitment", "instance_count"),
        description="What completes a study before its quiet period; leave out what the site's modalities get wrong",
    )
    commitment_wait_s: float = Field(10.0, ge=0, description="How long a commitment report waits for instances that are under way")
    commitment_retry_s: float = Field(30.0, gt=0, description="Pause before a report is tried again; doubles up to an hour")
    commitment_give_up_s: float = Field(
        86_400.0, gt=0, description="A report that could not be delivered for this long is given up"
    )
    max_associations: int = Field(50, ge=1)
    max_associations_per_peer: int = Field(25, ge=0, description="Associations of one IP address at the same time; 0: no limit")
    max_pending_connections: int = Field(100, ge=1, description="Connections that have not negotiated yet; the oldest gives way")
    max_pdu: int = Field(131_072, ge=0, description="Longest PDU accepted; 0: no limit")
    max_object_bytes: int = Field(1 << 31, ge=1_000, description="A larger object is answered A700")
    network_timeout_s: float = Field(
        60.0, gt=0, description="A peer that sends nothing, or next to nothing, for so long is cut off"
    )
    acse_timeout_s: float = Field(30.0, gt=0, description="Time for TLS handshake and association negotiation together")
    calling_ae_titles: tuple[str, ...] = Field((), description="Who may call; empty: everybody")
    called_ae_titles: tuple[str, ...] = Field((), description="By which titles we may be called; empty: by any")
    mpps_ae_titles: tuple[str, ...] = Field(
        (), description="Who may announce performed procedure steps, which complete studies; empty: whoever may call"
    )
    allowed_networks: tuple[str, ...] = Field((), description="Networks (CIDR) that may connect; empty: all")
    sop_classes_by_ae: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Calling AE title to the only SOP Class UIDs that it may store; the others may store all"
    )
    tls_certificate: Path | None = Field(None, description="Certificate chain (PEM); with it the listener speaks TLS only")
    tls_key: Path | None = Field(None, description="Its private key (PEM); default: in the certificate's file")
    tls_ca: Path | None = Field(None, description="Certificates that must have signed the peer's: mutual authentication")
    min_free_bytes: int = Field(500_000_000, ge=0, description="Below this much free disk C-STORE answers A700")
    silent_after_s: float = Field(
        2 * 86_400.0, gt=0, description="`reclaim doctor`: no study for this long is a fault where a model serves"
    )
    sop_classes: tuple[str, ...] = Field(
        (), description="SOP Class UIDs to accept beside DICOM's storage classes: private ones of the site's modalities"
    )
    only_sop_classes: tuple[str, ...] = Field((), description="The only storage classes of DICOM to accept; empty: all")
    peers: dict[str, PeerSettings] = Field(default_factory=dict, description="Name to DICOM system that we may call, e.g. pacs")


class RetentionSettings(Group):
    """How long pixel data stays. Results, cases, reports and the audit record stay in any case."""

    pixel_days: float = Field(0.0, ge=0, description="Images of studies whose last image came longer ago are deleted; 0 keeps them")
    committed: bool = Field(False, description="True: delete also what a sender has asked storage commitment for")


class InferenceSettings(Group):
    """The scoring consumer."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: int = Field(32, ge=1)
    decode_workers: int = Field(2, ge=1, description="Threads that read and prepare images while others are scored")
    threads: int = Field(0, ge=0, description="Cores of a forward pass on the CPU; 0 leaves it to torch (all, or OMP_NUM_THREADS)")
    unscored_days: int = Field(
        30, ge=1, description="How long a study that came while a model was stopped waits to be scored when it is resumed"
    )


class JoinSettings(Group):
    """The ground-truth join and the roles of patients."""

    batch_size: int = Field(100, ge=1, description="Labelled trigger cases per evaluation batch")
    batch_max_age_s: float = Field(7 * 86_400.0, gt=0, description="A batch with at least one case closes after this long")
    tune_share: float = Field(0.35, ge=0, lt=1, description="Share of patients whose cases may train a repair")
    gate_share: float = Field(0.25, ge=0, lt=1, description="Share of patients whose cases judge a repair")

    @model_validator(mode="after")
    def _shares_leave_a_trigger(self) -> "JoinSettings":
        if self.tune_share + self.gate_share >= 1:
            msg = "join.tune_share + join.gate_share must stay below 1, or no patient is left to raise the alarm"
            raise ValueError(msg)
        return self


class RemediationSettings(Group):
    """Fine-tuning jobs and the gate."""

    lease_s: float = Field(60.0, gt=1)
    max_attempts: int = Field(3, ge=1)
    epochs: int = Field(8, ge=1)
    batch_size: int = Field(16, ge=1)
    head_learning_rate: float = Field(1e-3, gt=0)
    body_learning_rate: float | None = Field(None, gt=0, description="None: half of its first rate, 1e-4 where that is not known")
    rehearsal_share: float = Field(0.5, ge=0, lt=1, description="Share of each training batch drawn from old cases")
    rank: int = Field(8, ge=1, le=256, description="Rank of the matrices that the remedy parameter_efficient adds")
    search: bool = Field(
        True,
        description="A training remedy tries penalties against forgetting and interpolations, and keeps what held-out cases favour",
    )
    search_trainings: int = Field(2, ge=1, le=6, description="Most trainings of a search; a further one where an old class pays")
    distillation: float | None = Field(None, gt=0, description="Weight of the former answers on old cases; None: searched for")
    l2sp: float | None = Field(None, gt=0, description="Pull towards the former weights; None: searched for")
    ewc: float | None = Field(None, gt=0, description="The same, by each weight's importance for old cases; None: searched for")
    accumulation: int = Field(1, ge=1, description="Parts that a batch is computed in, where it does not fit the memory whole")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field("float32", description="auto: mixed on a GPU")
    min_tune_cases: int = Field(40, ge=1)
    min_gate_cases: int = Field(30, ge=1)
    min_class_cases: int = Field(20, ge=1, description="Gate cases that it takes of a class which only the judged version knows")
    devices: int = Field(
        1, ge=1, description="GPUs that a repair trains on, or processes where there is none; each takes its share of batch_size"
    )
    max_cases: int = Field(2000, ge=1, description="Newest cases of either role, and old cases for rehearsal, that a repair uses")
    gate_alpha: float = Field(0.05, gt=0, lt=0.5)
    gate_margin: float = Field(0.05, gt=0, lt=0.5, description="Largest tolerated loss of recall on the baseline set")
    seed: int = 0


class PolicySettings(Group):
    """What may happen without a person."""

    approve_remedies: bool = Field(False, description="True: a remedy waits for a person with role ml_owner")
    four_eyes: bool = Field(
        False, description="True: a remedy or rollback that a person orders waits for a second person's approval"
    )
    cool_down_s: float = Field(3600.0, ge=0, description="Least time between two remedies of one model")
    max_remedies_per_day: int = Field(4, ge=0)
    report_interval_s: float = Field(
        7 * 86_400.0,
        ge=0,
        description="The agents' least time between reports on an unchanged version, where reports.weekly is off",
    )


class ResultsSettings(Group):
    """Results back to the PACS. Nothing is sent unless a destination is set."""

    destination: str = Field("", description="Name of one of dicom.peers that gets every champion's result; empty: none")
    structured_report: bool = Field(True, description="Send a DICOM SR (TID 1500)")
    secondary_capture: bool = Field(True, description="Send an image of the result, for viewers that show no SR")
    codes: dict[str, tuple[str, str, str]] = Field(
        default_factory=dict, description="Class or task to (value, scheme, meaning) of a coded concept, e.g. of SNOMED CT"
    )
    first_delay_s: float = Field(30.0, gt=0, description="Wait after the first failure; doubles each time")
    longest_delay_s: float = Field(3600.0, gt=0)
    max_attempts: int = Field(
        64, ge=1, description="Then it is a dead letter; with the default delays after about two days and a half"
    )
    lease_s: float = Field(300.0, ge=10, description="An attempt that has not been heard of for this long is made anew")


class LlmSettings(Group):
    """Any OpenAI-compatible endpoint. Empty base_url means the built-in rule planner."""

    base_url: str = ""
    model: str = ""
    api_key: SecretStr = SecretStr("")
    calls: Literal["auto", "tools", "choice"] = Field(
        "auto",
        description="tools: the model calls tools itself; choice: it chooses one under a JSON schema, for commands that the rules "
        "do not understand (small models); auto: tools, and choice once it has shown that it cannot call them",
    )
    timeout_s: float = Field(60.0, gt=0)
    run_timeout_s: float = Field(150.0, gt=0, description="Longest agent run before the rule planner takes over")
    max_retries: int = Field(2, ge=0)
    context_window: int = Field(16_384, ge=1024)
    max_tokens: int = Field(1024, ge=64)
    input_cost: float = Field(
        0.0, ge=0, description="Price of a million input tokens in the site's currency, for counters and records"
    )
    output_cost: float = Field(0.0, ge=0, description="The same for output tokens")


class TelemetrySettings(Group):
    """OpenTelemetry. Nothing leaves the machine unless an OTLP endpoint is set."""

    content: bool = Field(False, description="True: agents' spans hold prompts and answers, which may quote what people typed")
    otlp_endpoint: str = Field("", description="e.g. http://collector:4318")
    file: bool = Field(True, description="Keep spans as JSON lines in the state folder")


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="RECLAIM_", env_nested_delimiter="_", env_nested_max_split=1, frozen=True, extra="ignore"
    )

    state_dir: Path = Field(Path("state"), description="Archive, models, reports, database and traces of this machine")
    pseudonym_key: SecretStr = Field(SecretStr(""), description="Key of the pseudonyms; empty: made once and kept in state_dir")
    separate_issuers: bool = Field(False, description="The same patient ID of two issuers: two patients")
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    database: DatabaseSettings = DatabaseSettings()
    kafka: KafkaSettings = KafkaSettings()
    outbox: OutboxSettings = OutboxSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    dicom: DicomSettings = DicomSettings()
    http: HttpSettings = HttpSettings()
    retention: RetentionSettings = RetentionSettings()
    inference: InferenceSettings = InferenceSettings()
    join: JoinSettings = JoinSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    drift: DriftSettings = DriftSettings()
    remediation: RemediationSettings = RemediationSettings()
    reports: ReportSettings = ReportSettings()
    policy: PolicySettings = PolicySettings()
    results: ResultsSettings = ResultsSettings()
    llm: LlmSettings = LlmSettings()
    chat: ChatSettings = ChatSettings()
    slack: SlackSettings = SlackSettings()
    teams: TeamsSettings = TeamsSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def archive_dir(self) -> Path:
        """Root of the DICOM archive."""
        return self.state_dir / "archive"

    @property
    def models_dir(self) -> Path:
        """Root of the model bundles: `NAME/VERSION/`."""
        return self.state_dir / "models"

    @property
    def reports_dir(self) -> Path:
        """Root of the written reports."""
        return self.state_dir / "reports"

    @property
    def bells_dir(self) -> Path:
        """Where processes of this machine wake one another."""
        return self.state_dir / "run" / "bells"

    @property
    def database_url(self) -> str:
        """SQLAlchemy address in use, the embedded SQLite file when none is set."""
        configured = self.database.url.get_secret_value()
        return configured or f"sqlite:///{(self.state_dir / 'reclaim.sqlite').absolute()}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - signature of pydantic-settings
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - signature of pydantic-settings
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, environment, TOML file."""
        toml = TomlConfigSettingsSource(settings_cls, settings_file())
        return init_settings, env_settings, toml


def settings_file() -> Path:
    """The TOML file in use, whether it is there or not."""
    return Path(os.environ.get("RECLAIM_CONFIG", "reclaim.toml"))


def load_settings() -> Settings:
    """Read the settings; raises pydantic's ValidationError that names every wrong value, FileNotFoundError for a named file."""
    named = os.environ.get("RECLAIM_CONFIG")
    if named and not Path(named).is_file():
        msg = f"RECLAIM_CONFIG names {named}, which is not a file"
        raise FileNotFoundError(msg)
    loaded = Settings()
    unknown = unknown_names()
    if unknown:
        msg = f"there is no setting {', '.join(unknown)}; `reclaim settings` prints all"
        raise UnknownSetting(msg)
    return loaded


class UnknownSetting(ValueError):  # noqa: N818
    """A name in the environment or the TOML file that is no setting: a typo that would otherwise go unseen."""


def unknown_names() -> list[str]:
    """Top-level names of the TOML file and RECLAIM_ variables that match no setting."""
    fields = set(Settings.model_fields)
    file = settings_file()
    in_file = [
        f"{name} in {file}" for name in (tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}) if name not in fields
    ]
    ours = (name for name in os.environ if name.startswith("RECLAIM_") and not name.startswith(NOT_SETTINGS))
    return in_file + sorted(name for name in ours if not _is_setting(name.removeprefix("RECLAIM_").lower(), fields))


NOT_SETTINGS = ("RECLAIM_CONFIG", "RECLAIM_TEST_", "RECLAIM_KAFKA_DEV_PORT")


def _is_setting(name: str, fields: set[str]) -> bool:
    """`state_dir` itself, or a group with one of its members: `kafka_bootstrap`."""
    if name in fields:
        return True
    for field in fields:
        annotation = Settings.model_fields[field].annotation
        inside = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, Group) else {}
        if name.startswith(f"{field}_") and name.removeprefix(f"{field}_") in inside:
            return True
    return False
