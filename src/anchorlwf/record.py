"""The record: one corrected assistant turn, as token ids. What annotation writes and training reads.

Ids are the truth; text is for people. Frozen pydantic models, checked whenever they are made, so a `Record` in hand
always satisfies the invariants below. A completion token that is no anchor is a *keep* token.
"""

import json
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["Anchor", "ModelStamp", "Prompt", "Record", "chat_key", "new_id"]

TokenId = Annotated[int, Field(ge=0)]
Message = dict[str, Any]

# One namespace for ids derived from content, so that annotating the same prompt twice yields the same id.
_NAMESPACE = uuid.UUID("6d1c2e5e-6a0f-4f0c-9a3b-0b8f3c1d7a52")


def chat_key(messages: list[Message], tools: list[dict[str, Any]]) -> str:
    """What makes two chats the same: all that is said in them, and nothing of how a template writes it."""
    return json.dumps([messages, tools], sort_keys=True)


def new_id(*parts: object) -> str:
    """A UUID that depends on nothing but the parts."""
    return str(uuid.uuid5(_NAMESPACE, repr(parts)))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelStamp(_Frozen):
    """Which model and, exactly, which tokenizer and chat template the ids of a record belong to."""

    name: str
    """Absolute path of a local folder, hub name, or `embedded`."""
    revision: str | None = None
    """Hub revision, where there is one."""
    tokenizer_sha: str
    """SHA-256 of the serialised tokenizer."""
    template_sha: str
    """SHA-256 of the chat template."""
    date: str | None = None
    """The day (YYYY-MM-DD) that the template printed into the prompt, for templates that print one."""


class Anchor(_Frozen):
    """One annotated token: the first wrong position of the model's own answer, and what should stand there."""

    position: Annotated[int, Field(ge=0)]
    """Index into `completion_ids`."""
    token_id: TokenId
    """The right token; equals `completion_ids[position]`."""
    rejected_id: TokenId | None = None
    """What the model chose there."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The paper's c_t: 1 is certainty, less leaves room for the reference's alternatives."""
    ref_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    """The reference's probability of `token_id` when annotated."""
    source: str = "human"
    """Who said so: `human:<name>`, `target`, `judge:<model>`, `verifier:<name>`."""
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When, in UTC."""

    @field_validator("created_at")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("expected a time with its zone, such as 2026-11-23T12:00:00Z; got none")
        return value.astimezone(UTC)

    @model_validator(mode="after")
    def _replaces(self) -> Self:
        if self.rejected_id == self.token_id:
            raise ValueError(f"expected rejected_id to differ from token_id; got {self.token_id} for both")
        return self


class Record(_Frozen):
    """One corrected assistant turn. A record without anchors says "keep this behaviour"."""

    schema_version: Literal[1] = 1
    """Version of this layout."""
    id: str
    """UUID. In a file, a later line replaces an earlier one of the same id."""
    model: ModelStamp
    """The model that was annotated: the reference."""
    messages: list[Message]
    """The readable prompt, in the ecosystem's chat columns."""
    tools: list[dict[str, Any]] = []
    """Tool descriptions given to the chat template."""
    prompt_ids: Annotated[list[TokenId], Field(min_length=1)]
    """The templated prompt."""
    original_ids: list[TokenId] = []
    """The model's first greedy answer, before any correction; empty where it was never decoded."""
    completion_ids: Annotated[list[TokenId], Field(min_length=1)]
    """The corrected answer, its end-of-turn token included unless `truncated`."""
    completion: str
    """The corrected answer decoded, for people and diffs."""
    anchors: list[Anchor] = []
    """Strictly increasing in position."""
    ties: list[Annotated[int, Field(ge=0)]] = []
    """Keep positions where the reference's two best tokens were too close to call, and the kept one came second."""
    truncated: bool = False
    """The answer hit the token limit before its end of turn."""
    status: Literal["draft", "complete", "rejected"] = "complete"
    """Training reads `complete` records only."""
    tags: list[str] = []
    """Free labels, for grouping in evaluation."""

    @field_validator("id")
    @classmethod
    def _uuid(cls, value: str) -> str:
        try:
            return str(uuid.UUID(value))
        except ValueError:
            raise ValueError(f"expected a UUID; got {value!r}") from None

    @model_validator(mode="after")
    def _anchors_fit(self) -> Self:
        length, last = len(self.completion_ids), -1
        for index, anchor in enumerate(self.anchors):
            where = f"anchors[{index}].position"
            if anchor.position <= last:
                raise ValueError(f"{where}: expected more than {last} (strictly increasing); got {anchor.position}")
            if anchor.position >= length:
                raise ValueError(f"{where}: expected less than the completion's {length} tokens; got {anchor.position}")
            stands = self.completion_ids[anchor.position]
            if anchor.token_id != stands:
                raise ValueError(
                    f"anchors[{index}].token_id: expected {stands}, the token at completion_ids[{anchor.position}]; "
                    f"got {anchor.token_id}"
                )
            last = anchor.position
        return self

    @property
    def confidences(self) -> list[float]:
        """c_t at every completion position: 0.0 at keep tokens, the anchor's confidence at anchors."""
        values = [0.0] * len(self.completion_ids)
        for anchor in self.anchors:
            values[anchor.position] = anchor.confidence
        return values


class Prompt(_Frozen):
    """One line of prompts.jsonl: what to ask, and the answer wanted where it is known."""

    messages: Annotated[list[Message], Field(min_length=1)]
    """The chat up to the turn to be answered."""
    answer: str | None = None
    """The target answer, for the `target` annotator."""
    tools: list[dict[str, Any]] = []
    tags: list[str] = []

    def record_id(self, stamp: ModelStamp) -> str:
        """The id of the record this becomes with that model: the same on every run, so that work can be resumed."""
        return new_id(stamp.name, stamp.template_sha, chat_key(self.messages, self.tools), self.answer)

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, data: Any) -> Any:
        # {"prompt": "..."} is short for one user message.
        if isinstance(data, dict) and "prompt" in data and "messages" not in data:
            rest = {key: value for key, value in data.items() if key != "prompt"}
            prompt = data["prompt"]
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return {**rest, "messages": messages}
        return data

    @field_validator("messages")
    @classmethod
    def _roles(cls, value: list[Message]) -> list[Message]:
        for index, message in enumerate(value):
            role = message.get("role")
            if not isinstance(role, str):
                raise ValueError(f"messages[{index}].role: expected a string such as 'user'; got {role!r}")
        return value
