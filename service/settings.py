"""Every setting: an environment variable LOSSEVAL_… and a flag of the same name, validated at start."""

import sys
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Literal

from pydantic import Field, FilePath, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from .host import cpu_quota, quarter_of_memory

PREFIX = "LOSSEVAL_"
MIB = 1 << 20


class Settings(BaseSettings):
    """Cross-entropy over HTTP. Every flag is also an environment variable: --max-queue-ms is LOSSEVAL_MAX_QUEUE_MS.

    Besides, `python -m service keys` creates, lists and revokes API keys, and `python -m service baseline` prints an
    entry of --models-file from reference data; each has a --help of its own.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="ignore",  # unknown variables get a warning, not an error: Kubernetes injects some
    )

    host: str = Field("127.0.0.1", description="Address to listen on; loopback unless you say otherwise.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
        description="auto (cuda if there is one, else cpu), cpu, cuda or cuda:N; cuda fails where there is none.",
    )
    threads: int = Field(
        default_factory=cpu_quota, ge=1, le=1024, description="Threads of torch on the CPU; the CPU quota by default."
    )
    max_body_bytes: int = Field(256 * MIB, ge=1, description="Bytes of the largest body taken in any format.")
    max_json_bytes: int = Field(
        16 * MIB, ge=1, description="Bytes of the largest JSON body; its parser holds up everyone else."
    )
    max_classes: int = Field(1 << 20, ge=1, description="Classes of one request.")
    max_elements: int = Field(1 << 27, ge=1, description="Rows times classes of one request.")
    max_batch_elements: int | None = Field(
        None, ge=1, description="Rows times classes of one batch; 2^22 on cpu and 2^27 on cuda by default."
    )
    max_batch_requests: int = Field(1024, ge=1, description="Requests of one batch; 1 switches batching off.")
    max_inflight_bytes: int = Field(
        default_factory=quarter_of_memory,
        ge=1,
        description="Bytes reserved for requests in flight, at their headers; a quarter of the memory by default.",
    )
    max_queue_ms: int = Field(
        1000, ge=1, description="Milliseconds of estimated work that may wait; beyond, requests are refused with 503."
    )
    request_timeout: float = Field(
        60.0, gt=0, le=3600, description="Seconds from a request's headers to its answer's first byte."
    )
    max_connections: int = Field(
        4096, ge=1, description="Connections open at a time; one more is answered with 503 and closed."
    )
    max_pipelined: int = Field(
        100, ge=1, description="Requests of one connection that may come ahead of their answers."
    )
    max_headers: int = Field(100, ge=1, description="Headers of one request.")
    max_header_bytes: int = Field(
        64 * 1024, ge=1, description="Bytes of one request's target and headers; four times what node takes."
    )
    header_timeout: float = Field(
        10.0, gt=0, le=3600, description="Seconds for a request's headers; on a new connection from its opening."
    )
    body_grace: float = Field(5.0, gt=0, le=3600, description="Seconds before the rate of a body counts.")
    min_bytes_per_s: int = Field(
        64 * 1024, ge=1, description="Bytes per second in which a body must come, and an answer be read."
    )
    send_timeout: float = Field(
        10.0, gt=0, le=3600, description="Seconds over which the rate of reading an answer is judged."
    )
    linger_timeout: float = Field(
        1.0, gt=0, le=60, description="Seconds to read on behind a refusal, lest a reset destroy it."
    )
    linger_bytes: int = Field(256 * 1024, ge=1, description="Bytes to read on behind a refusal.")
    keep_alive_timeout: int = Field(
        75, ge=1, le=3600, description="Seconds a connection may idle between requests; load balancers' have 60."
    )
    drain_delay: float = Field(
        0.0, ge=0, le=300, description="Seconds to go on serving after SIGTERM, while load balancers notice."
    )
    shutdown_timeout: int = Field(
        25, ge=1, le=3600, description="Seconds to finish what was accepted; below Kubernetes' 30 s before it kills."
    )
    models_file: FilePath | None = Field(
        None, description="YAML file that declares models, whose losses are then counted; read again when it changes."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port for /metrics alone, which is on PORT by default, and then no longer.",
    )
    commit: str = Field("", max_length=64, description="Source revision, for build_info; the image knows its own.")
    keys_file: FilePath | None = Field(
        None, description="Names and digests of the keys that may compute; everybody may without. Made by: keys create."
    )
    ssl_certfile: FilePath | None = Field(None, description="PEM certificate and its chain; with it, HTTPS alone.")
    ssl_keyfile: FilePath | None = Field(None, description="PEM key of the certificate, where that file lacks it.")
    forwarded_allow_ips: str | None = Field(
        None, description="Networks of proxies whose X-Forwarded-For is believed, with commas between; none by default."
    )
    cors_origins: str | None = Field(
        None, description="Origins whose pages may call from browsers, with commas between; none by default."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe messages logged; requests are info."
    )
    log_format: Literal["text", "json"] | None = Field(
        None, description="text or json; by default text on a terminal, else json."
    )

    @field_validator("port", "metrics_port", mode="before")
    @classmethod
    def _ignore_service_links(cls, port: object, info: ValidationInfo) -> object:
        """Kubernetes sets LOSSEVAL_PORT=tcp://… beside a Service called losseval; that is not meant for us."""
        is_link = isinstance(port, str) and port.startswith("tcp://")
        return cls.model_fields[info.field_name or ""].default if is_link else port

    @field_validator("metrics_port")
    @classmethod
    def _check_metrics_port(cls, metrics_port: int | None, info: ValidationInfo) -> int | None:
        if metrics_port is not None and metrics_port == info.data.get("port"):
            raise ValueError("must be another than the port of the service")
        return metrics_port

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _check_networks(cls, networks: str | None) -> str | None:
        """A network that is none would never match, and nobody would notice."""
        for network in networks.split(",") if networks else ():
            ip_network(network.strip())
        return networks

    @field_validator("ssl_keyfile")
    @classmethod
    def _check_certificate(cls, keyfile: FilePath | None, others: ValidationInfo) -> FilePath | None:
        if keyfile and not others.data.get("ssl_certfile"):
            raise ValueError("it needs --ssl-certfile")
        return keyfile

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def load(arguments: Sequence[str]) -> Settings:
    """Reads flags, then the environment; an unknown flag or a bad value ends the process with status 2."""
    try:
        return CliApp.run(Settings, cli_args=list(arguments))
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0])
            flag = f"--{name.replace('_', '-')} ({PREFIX}{name.upper()})"
            sys.stderr.write(f"losseval: {flag}: {problem['msg']}, not {problem['input']!r}\n")
        sys.exit(2)


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """Returns the names of LOSSEVAL_… variables that set nothing here."""
    names = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(
        name
        for name, value in environ.items()
        if name.upper().startswith(PREFIX) and (name.upper() not in names or value.startswith("tcp://"))
    )
