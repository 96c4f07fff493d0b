"""Settings of the chat: who may do what, and how Slack and Teams are reached."""

from pydantic import Field, SecretStr

from schemas.group import Group
from schemas.vocabulary import UserRole


class ChatSettings(Group):
    """Who may do what in the chat, and how messages are delivered. The console's user is an admin of the own machine."""

    users: dict[str, UserRole] = Field(
        default_factory=dict, description="Login, slack:USER_ID or teams:OBJECT_ID to role, for users who come over the network"
    )
    identities: dict[str, str] = Field(
        default_factory=dict, description="slack:USER_ID or teams:OBJECT_ID to the login of the same person, who is then one person"
    )
    default_role: UserRole = Field(UserRole.VIEWER, description="Role of users who are not listed")
    refuse_unknown: bool = Field(False, description="True: people of Slack and Teams who are not listed are refused")
    messages_a_minute: int = Field(
        20, ge=0, description="More messages of one person within a minute, on whatever channel, are refused; 0: no limit"
    )
    reports_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Address under which the site serves the reports folder; empty: cards have no link",
    )
    progress_interval_s: float = Field(15.0, ge=1, description="A message that tells a run's progress is edited at most this often")
    first_delay_s: float = Field(2.0, gt=0, description="Wait after the first failed delivery; doubles each time")
    longest_delay_s: float = Field(900.0, gt=0)
    max_attempts: int = Field(100, ge=1, description="Then a message is given up; with the default delays after about a day")
    lease_s: float = Field(120.0, ge=10, description="A delivery that has not been heard of for this long is taken up again")
    keep_days: float = Field(90.0, gt=0, description="Delivered messages, and threads without any, are forgotten after this")


class SlackSettings(Group):
    """A Slack app. Empty bot_token: no Slack. With app_token it is reached by Socket Mode, else over HTTP with signing_secret."""

    bot_token: SecretStr = Field(SecretStr(""), description="Bot user OAuth token, xoxb-…")
    signing_secret: SecretStr = Field(SecretStr(""), description="Checks HTTP requests to /chat/slack/events")
    app_token: SecretStr = Field(SecretStr(""), description="App-level token xapp-… with connections:write: Socket Mode")
    team: str = Field(
        "", pattern=r"^([TE][A-Z0-9]+)?$", description="Only people of this workspace; empty: of any that can reach the app"
    )
    channel: str = Field("", pattern=r"^([CG][A-Z0-9]+)?$", description="Channel id for what no thread has ordered; empty: nowhere")
    api_url: str = Field("https://slack.com/api/", pattern=r"^https?://\S+/$", description="Another one for GovSlack")
    timeout_s: float = Field(20.0, gt=0)


class TeamsSettings(Group):
    """A Microsoft Teams bot. Empty app_id: no Teams."""

    app_id: str = Field("", description="Microsoft App ID (client ID) of the bot's registration")
    app_secret: SecretStr = Field(SecretStr(""), description="Its client secret")
    tenant: str = Field("", description="Directory (tenant) ID: people of other tenants are refused; required with app_id")
    conversation: str = Field("", description="Conversation id (19:…@thread.tacv2) for what no thread has ordered; empty: nowhere")
    service_url: str = Field(
        "https://smba.trafficmanager.net/teams",
        pattern=r"^https?://\S+$",
        description="Bot Connector for messages to `conversation`",
    )
    issuer: str = Field(
        "https://api.botframework.com", description="Issuer of the Bot Connector's tokens; another one in government clouds"
    )
    openid_url: str = Field(
        "https://login.botframework.com/v1/.well-known/openidconfiguration",
        pattern=r"^https?://\S+/openidconfiguration$",
        description="Where the issuer's keys are found",
    )
    login_url: str = Field(
        "https://login.microsoftonline.com", pattern=r"^https?://\S+$", description="Where our own tokens come from"
    )
    timeout_s: float = Field(20.0, gt=0)
