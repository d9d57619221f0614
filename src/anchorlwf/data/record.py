"""The record: one corrected assistant turn, as token ids. What annotation writes and training reads.

Ids are the truth; text is for people. Frozen pydantic models, checked whenever they are made, so a `Record` in hand
always satisfies the invariants below. A completion token that is no anchor is a *keep* token.
"""

import json
import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from anchorlwf.errors import StampError, wrong

__all__ = [
    "Anchor",
    "Frozen",
    "Message",
    "Messages",
    "ModelStamp",
    "Prompt",
    "Record",
    "Status",
    "Tools",
    "chat_key",
    "new_id",
]

# No vocabulary is larger, and whatever holds ids (arrays of 32 bits among it) can hold these.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Position = Annotated[int, Field(ge=0, lt=2**31)]
Message = dict[str, Any]
Status = Literal["draft", "complete", "rejected"]


# A line nested deeper (pydantic: 255) could be read and never written again.
_DEPTH = 100


def _in_json(value: Any) -> Any:
    """The value, where a file can hold all of it: Python reads NaN and 1e400, and null would be written for them."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"expected numbers that JSON has; got {item}")
        if depth > _DEPTH:
            raise ValueError(f"expected at most {_DEPTH} brackets within one another; got more")
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting.extend((nested, depth + 1) for nested in inner)
    return value


Tools = Annotated[list[dict[str, Any]], AfterValidator(_in_json)]


def _readable(value: list[Message]) -> list[Message]:
    for index, message in enumerate(value):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role.strip():
            raise ValueError(f"messages[{index}].role: expected a string such as 'user'; got {role!r}")
        parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
        # A call of a tool, or a thought, may be all that the assistant had to say.
        if not isinstance(content, str) and not parts and (content is not None or role != "assistant"):
            got = repr(content) if "content" in message else "nothing"
            raise ValueError(f"messages[{index}].content: expected a string or a list of parts; got {got}")
    return value


Messages = Annotated[list[Message], Field(min_length=1), AfterValidator(_readable), AfterValidator(_in_json)]
"""A chat in the ecosystem's columns: each message with its `role`, a string, and its `content`."""

# One namespace for ids derived from content, so that annotating the same prompt twice yields the same id.
_NAMESPACE = uuid.UUID("6d1c2e5e-6a0f-4f0c-9a3b-0b8f3c1d7a52")


def chat_key(messages: list[Message], tools: list[dict[str, Any]]) -> str:
    """What makes two chats the same: all that is said in them, and nothing of how a template writes it."""
    return json.dumps([messages, tools], sort_keys=True)


def new_id(*parts: object) -> str:
    """A UUID that depends on nothing but the parts."""
    return str(uuid.uuid5(_NAMESPACE, repr(parts)))


def _moment(value: Any) -> Any:
    # Strictness would refuse the strings that JSON has instead of times.
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"expected a time such as 2026-11-23T12:00:00Z; got {value[:80]!r}") from None


class Frozen(BaseModel):
    """A line of one of our files: unchangeable, no field unknown, no value taken for one of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


_FINGERPRINTS = {"tokenizer": "tokenizer_sha", "chat template": "template_sha"}


class ModelStamp(Frozen):
    """Which model and, exactly, which tokenizer and chat template the ids of a record belong to."""

    name: str
    """Absolute path of a local folder, hub name, or `embedded`."""
    revision: str | None = None
    """Hub revision, if there is one."""
    tokenizer_sha: str
    """SHA-256 of the serialised tokenizer."""
    template_sha: str
    """SHA-256 of the chat template."""
    date: str | None = None
    """The day (YYYY-MM-DD) that the template printed into the prompt, for templates that print one."""

    def differences(self, other: "ModelStamp") -> list[str]:
        """What makes token ids of the one mean something else to the other: "tokenizer", "chat template", or neither.

        Names do not count: a folder that was moved holds the same model.
        """
        return [part for part, field in _FINGERPRINTS.items() if getattr(self, field) != getattr(other, field)]

    def require_same(self, other: "ModelStamp", what: str, fix: str) -> None:
        """Raise `StampError` unless token ids mean the same to both.

        Args:
            other: stamp of what was given instead of this.
            what: holds ids by this stamp, for the message.
            fix: what to do about it.
        """
        different = self.differences(other)
        if different:
            expected, got = (
                f"{' and '.join(getattr(stamp, _FINGERPRINTS[part])[:12] for part in different)} ({stamp.name})"
                for stamp in (self, other)
            )
            raise StampError(wrong(f"{what}: {' and '.join(different)}", expected, got, fix))


class Anchor(Frozen):
    """One annotated token: the first wrong position of the model's own answer, and what should stand there."""

    position: Position
    """Index into `completion_ids`."""
    token_id: TokenId
    """The right token; equals `completion_ids[position]`."""
    rejected_id: TokenId | None = None
    """The token that the model chose there."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The paper's c_t: 1 means certain; a lower value leaves room for the reference's alternatives."""
    ref_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    """The reference's probability of `token_id` at the time of annotation."""
    source: str = "human"
    """Who gave the token: `human:<name>`, `target`, `judge:<model>`, `verifier:<name>`."""
    created_at: Annotated[datetime, BeforeValidator(_moment)] = Field(default_factory=lambda: datetime.now(UTC))
    """Time of annotation, in UTC."""

    @field_validator("created_at")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("expected a time with its zone, such as 2026-11-23T12:00:00Z; got none")
        try:
            return value.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"expected a time in the years 1 to 9999, in UTC; got {value.isoformat()}") from None

    @model_validator(mode="after")
    def _replaces(self) -> Self:
        if self.rejected_id == self.token_id:
            raise ValueError(f"expected rejected_id to differ from token_id; got {self.token_id} for both")
        return self


class Record(Frozen):
    """One corrected assistant turn. A record without anchors says "keep this behaviour"."""

    schema_version: Literal[1] = 1
    """Version of this layout."""
    id: str
    """UUID. In a file, a later line replaces an earlier one with the same id."""
    model: ModelStamp
    """The model that was annotated: the reference."""
    messages: Messages
    """The readable prompt: messages with `role` and `content`, as chat templates take them."""
    tools: Tools = []
    """Tool descriptions given to the chat template."""
    prompt_ids: Annotated[list[TokenId], Field(min_length=1)]
    """The prompt after the chat template."""
    original_ids: list[TokenId] = []
    """The model's first greedy answer, before any correction; empty if it was never decoded."""
    completion_ids: Annotated[list[TokenId], Field(min_length=1)]
    """The corrected answer, including its end-of-turn token unless `truncated`."""
    completion: str
    """The corrected answer decoded, for people and diffs."""
    anchors: list[Anchor] = []
    """Strictly increasing in position."""
    ties: list[Position] = []
    """Keep positions where the reference's two best tokens were too close to call, and the kept one came second."""
    truncated: bool = False
    """The answer hit the token limit before its end of turn."""
    status: Status = "complete"
    """Training reads `complete` records only."""
    tags: list[str] = []
    """Labels of your own, for grouping in evaluation."""

    @field_validator("schema_version", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        # To Python, and so to a Literal, 1, 1.0 and True are equal.
        if type(value) is not int:
            raise ValueError(f"expected 1; got {value!r}")
        return value

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

    @model_validator(mode="after")
    def _ties_fit(self) -> Self:
        length, last = len(self.completion_ids), -1
        for index, position in enumerate(self.ties):
            if position <= last:
                raise ValueError(f"ties[{index}]: expected more than {last} (strictly increasing); got {position}")
            if position >= length:
                raise ValueError(f"ties[{index}]: expected less than the completion's {length} tokens; got {position}")
            last = position
        return self

    @classmethod
    def build(
        cls,
        prompt: "Prompt",
        stamp: ModelStamp,
        *,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        decode: Callable[[list[int]], str],
        record_id: str | None = None,
        original_ids: Sequence[int] = (),
        anchors: Sequence[Anchor] = (),
        ties: Sequence[int] = (),
        truncated: bool = False,
        status: Status = "complete",
        tags: Iterable[str] = (),
    ) -> "Record":
        """The record of an answer to a prompt; the readable text is made from its ids.

        Args:
            prompt: messages, tools and tags come from it.
            stamp: of the model that was annotated.
            prompt_ids: the templated prompt.
            completion_ids: the answer as it should be.
            decode: token ids to text without special tokens.
            record_id: None: `prompt.record_id(stamp)`.
            original_ids, anchors, ties, truncated, status: as the record's fields.
            tags: in addition to those of the prompt; each tag stands once.

        Raises:
            ValidationError: a field breaks the record's invariants.
        """
        ids = list(completion_ids)
        return cls(
            id=prompt.record_id(stamp) if record_id is None else record_id,
            model=stamp,
            messages=prompt.messages,
            tools=prompt.tools,
            prompt_ids=list(prompt_ids),
            original_ids=list(original_ids),
            completion_ids=ids,
            completion=decode(ids),
            anchors=list(anchors),
            ties=list(ties),
            truncated=truncated,
            status=status,
            tags=list(dict.fromkeys([*prompt.tags, *tags])),
        )

    def require_vocabulary(self, size: int) -> None:
        """Raise `StampError` unless every token id is below `size`, the number of tokens that the model has."""
        rejected = [anchor.rejected_id for anchor in self.anchors if anchor.rejected_id is not None]
        largest = max(*self.prompt_ids, *self.completion_ids, *self.original_ids, *rejected)
        if largest >= size:
            fix = "No token has that id; annotate again with this model."
            raise StampError(wrong(f"record {self.id}: token ids", f"less than {size}", largest, fix))

    @property
    def confidences(self) -> list[float]:
        """c_t at every completion position: 0.0 at keep tokens, the anchor's confidence at anchors."""
        values = [0.0] * len(self.completion_ids)
        for anchor in self.anchors:
            values[anchor.position] = anchor.confidence
        return values


class Prompt(Frozen):
    """One line of prompts.jsonl: what to ask, and the answer wanted where it is known."""

    messages: Messages
    """The chat up to the turn to be answered."""
    answer: str | None = None
    """The target answer, for the `target` annotator."""
    tools: Tools = []
    tags: list[str] = []

    def record_id(self, stamp: ModelStamp) -> str:
        """The id of the record this becomes with that model: the same on every run, so that work can be resumed."""
        return new_id(stamp.name, stamp.template_sha, chat_key(self.messages, self.tools), self.answer)

    def former_id(self, model_name: str, prompt_ids: list[int]) -> str:
        """The id that release 0.1.0 gave that record. Work which it began goes on under this id.

        Args:
            model_name: as the earlier record's stamp has it; 0.1.0 did not resolve paths.
            prompt_ids: the templated prompt.
        """
        return new_id(model_name, prompt_ids, self.answer)

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
