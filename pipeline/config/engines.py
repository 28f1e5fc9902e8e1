"""Which engine writes, and how a server is asked where that is one."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.section import OPERATORS, Place, Section, Unread

LocalEngine = Literal["transformers", "vllm"]
OF_AN_ENGINE = "transformers: exact, the reference; vllm: vLLM in the same process, pip install 'endoreward[vllm]'"
OF_AN_ENDPOINT = "base address of a server that speaks OpenAI's protocol, such as http://host:8000/v1; then it writes"


def check_address(endpoint: str) -> str:
    """Raises ValueError."""
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ValueError("is no address of a server; give http://HOST:PORT/v1 or https://HOST/v1")
    return endpoint.rstrip("/")


class SamplerConfig(Section):
    """What writes the samples."""

    engine: LocalEngine = Field(default="transformers", description=OF_AN_ENGINE)
    endpoint: Annotated[Place, OPERATORS] = Field(default="", description=OF_AN_ENDPOINT)

    _address = field_validator("endpoint")(check_address)

    @property
    def writer(self) -> Literal["transformers", "vllm", "endpoint"]:
        return "endpoint" if self.endpoint else self.engine


class EndpointConfig(Section):
    """How the server of an endpoint is asked. Its key comes from the environment alone."""

    model: str = Field(default="", description="the model's name there; default: the only one that the server lists")
    api: Literal["auto", "chat", "completions"] = Field(
        default="auto",
        description="chat sends messages, completions sends tokens; auto: completions for samples, chat for judges",
    )
    key_variable: Annotated[str, OPERATORS] = Field(
        default="OPENAI_API_KEY",
        min_length=1,
        description="the environment variable that holds the key, if there is one",
    )
    concurrency: int = Field(default=16, ge=1, description="requests under way at once")
    requests_per_minute: int | None = Field(default=None, ge=1, description="at most so many; default: no limit")
    timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False, description="of one request")
    retries: int = Field(
        default=5, ge=0, description="how often a request is sent again that got no answer or none of the right form"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="a run stops before prompts and answers are more than this; default: no limit"
    )
    input_price: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of a million tokens of prompts")
    output_price: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of a million tokens of answers")


def unread_of_endpoint(section: str, given: str, others: tuple[str, ...] = ("endpoint",)) -> Unread:
    """Args: section: that names an endpoint or an engine. given: its endpoint."""
    if given:
        yield f"{section}.engine", f"under {section}.endpoint, whose server writes; leave it out"
    else:
        for other in others:
            yield other, f"without {section}.endpoint; give that, or leave it out"
