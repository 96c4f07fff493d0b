"""Settings of the HTTP endpoint."""

from pydantic import Field, SecretStr

from schemas.group import Group


class HttpSettings(Group):
    """HTTP endpoint for labels, chat and DICOMweb."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    token: SecretStr = Field(SecretStr(""), description="Bearer token; required when host is not a loopback address")
    max_body_bytes: int = Field(5_000_000, ge=1_000)
    stow_requests: int = Field(4, ge=1, description="STOW-RS requests served at once; more are answered 503")
    max_idle_connections: int = Field(200, ge=1, description="Connections that have asked for nothing yet; the oldest gives way")
    request_timeout_s: float = Field(
        75.0, gt=0, description="A connection without a whole request header, or a body without its end, is given up after so long"
    )
