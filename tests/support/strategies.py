"""Hypothesis strategies for our own types."""

from datetime import UTC

from hypothesis import strategies as st

from anchorlwf.data.record import Anchor, ModelStamp, Record

__all__ = ["records"]

# JSON text holds no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TOKEN = st.integers(0, 300_000)
TOOL = st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXT})})


@st.composite
def _anchors(draw: st.DrawFn, completion_ids: list[int], min_anchors: int) -> list[Anchor]:
    count = len(completion_ids)
    positions = draw(st.sets(st.integers(0, count - 1), min_size=min_anchors, max_size=count))
    return [
        Anchor(
            position=position,
            token_id=completion_ids[position],
            rejected_id=draw(st.none() | TOKEN.filter(lambda token, own=completion_ids[position]: token != own)),
            confidence=draw(st.floats(0, 1, exclude_min=True)),
            ref_probability=draw(st.none() | st.floats(0, 1)),
            source=draw(st.sampled_from(["human:ada", "target", "judge:m", "verifier:v"])),
            created_at=draw(st.datetimes(timezones=st.just(UTC))),
        )
        for position in sorted(positions)
    ]


@st.composite
def records(draw: st.DrawFn, min_anchors: int = 0) -> Record:
    """Any record, in whatever status."""
    completion_ids = draw(st.lists(TOKEN, min_size=max(1, min_anchors), max_size=8))
    return Record(
        id=str(draw(st.uuids())),
        model=ModelStamp(name=draw(TEXT), revision=draw(st.none() | TEXT), tokenizer_sha="a" * 64, template_sha=""),
        messages=[{"role": "user", "content": draw(TEXT)}],
        tools=draw(st.lists(TOOL, max_size=2)),
        prompt_ids=draw(st.lists(TOKEN, min_size=1, max_size=5)),
        original_ids=draw(st.lists(TOKEN, max_size=5)),
        completion_ids=completion_ids,
        completion=draw(TEXT),
        anchors=draw(_anchors(completion_ids, min_anchors)),
        truncated=draw(st.booleans()),
        status=draw(st.sampled_from(["draft", "complete", "rejected"])),
        tags=draw(st.lists(TEXT, max_size=2)),
    )
