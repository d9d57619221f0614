"""The JSON of docs/annotator_api.md, made of what the application below gives: nothing else knows its form."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from anchorlwf.annotation.tree import Tree
from anchorlwf.annotator.sessions.live import Live
from anchorlwf.annotator.sessions.screen import (
    Changes,
    HistoryEntry,
    ShownPrompt,
    ShownTokens,
    history,
    shown_prompt,
    shown_tokens,
)
from anchorlwf.annotator.store.overview import Agreement, Progress, QueuePart
from anchorlwf.model.vocabulary import TokenTable, TokenText

if TYPE_CHECKING:
    from anchorlwf.annotator.project import Comparison, Exchange, Intake
    from anchorlwf.annotator.sessions.desk import Desk
    from anchorlwf.annotator.training_jobs import Overview, Run

__all__ = [
    "agreement",
    "alternatives",
    "changes",
    "choice",
    "comparison",
    "done",
    "head",
    "intake",
    "me",
    "piece",
    "progress",
    "prompt",
    "queue",
    "session",
    "step",
    "token",
    "tokens",
    "training",
    "training_run",
]


def token(shown: TokenText, probability: float | None = None) -> dict[str, Any]:
    """A `Token`."""
    extra: dict[str, Any] = {} if shown.hex is None else {"hex": shown.hex}
    if shown.special:
        extra["special"] = True
    return {"id": shown.id, "text": shown.text, **extra, "p": probability}


def tokens(
    table: TokenTable, ids: Sequence[int], probabilities: Sequence[float | None] | None = None
) -> list[dict[str, Any]]:
    """A list of `Token`s; probabilities are null where none are given."""
    known = [None] * len(ids) if probabilities is None else probabilities
    return [token(table.token(number), p) for number, p in zip(ids, known, strict=True)]


def choice(table: TokenTable, number: int, before_ids: Sequence[int], p: float | None = None) -> dict[str, Any]:
    """A `Token` that could stand behind others: part of a character is shown as what it would become."""
    becomes = table.becomes(before_ids, number)
    return {**token(table.token(number), p), **({} if becomes is None else {"becomes": becomes})}


def _tokens(table: TokenTable, shown: ShownTokens) -> list[dict[str, Any]]:
    return tokens(table, shown.ids, shown.probabilities)


def _node(entry: HistoryEntry) -> dict[str, Any]:
    """A `Node`."""
    return {
        "id": entry.number,
        "parent": entry.parent,
        "position": entry.position,
        "length": entry.length,
        "ended": entry.ended,
        "truncated": entry.truncated,
        "anchors": entry.anchors,
        "at": entry.at.isoformat(),
        "source": entry.source,
        "given_tokens": entry.given_tokens,
        "given": entry.given,
        "replaced": entry.replaced,
    }


def head(table: TokenTable, live: Live) -> dict[str, Any]:
    """A `Head`: everything but the tokens."""
    with live.lock:
        tree, row, ids = live.tree, live.row, live.ids
        anchors = [
            {
                **anchor.model_dump(mode="json"),
                "rejected": None
                if anchor.rejected_id is None
                else choice(table, anchor.rejected_id, ids[: anchor.position]),
            }
            for anchor in tree.anchors()
        ]
        return {
            "id": row.id,
            "item": row.item,
            "annotator": row.annotator,
            "status": tree.verdict or "open",
            "version": tree.version,
            "node": tree.current,
            "nodes": [_node(entry) for entry in history(table, tree)],
            "length": len(ids),
            "ended": tree.node.ended,
            "truncated": tree.node.truncated,
            "streaming": live.continuation is not None,
            "anchors": anchors,
            "ties": list(tree.ties()),
            "can": {"undo": tree.can_undo, "redo": tree.can_redo},
            "note": tree.note,
            "tags": list(tree.tags),
            "seconds": row.seconds,
            "lease_until": row.lease_until,
        }


def session(desk: "Desk", live: Live) -> dict[str, Any]:
    """A `Session`: the whole screen."""
    table = desk.decoder.table
    with live.lock:
        return {
            **head(table, live),
            "prompt": prompt(shown_prompt(table, live, desk.config.max_new_tokens)),
            "tokens": _tokens(table, shown_tokens(live)),
        }


def prompt(shown: ShownPrompt) -> dict[str, Any]:
    """The `prompt` of a `Session`."""
    return {
        **shown.asked.model_dump(mode="json", exclude={"answer"}),
        "rendered": [{"text": part.text, "special": part.special, "notice": part.notice} for part in shown.rendered],
        "date": shown.date,
        "remarks": list(shown.remarks),
    }


def step(table: TokenTable, live: Live, before: Tree) -> dict[str, Any]:
    """A `Step`: what changed on a screen that showed `before`.

    Tokens that streamed since are sent again: a screen may not have had them yet.
    """
    with live.lock:
        shown, old = shown_tokens(live), before.node.completion_ids
        pairs = enumerate(zip(old, shown.ids, strict=False))
        kept = next((index for index, (was, now) in pairs if was != now), min(len(old), len(shown.ids)))
        # The parent's probabilities stand up to the correction, so equal tokens have equal tints.
        return {
            "before": before.version,
            "head": head(table, live),
            "kept": kept,
            "tokens": _tokens(table, shown.since(kept)),
        }


def changes(table: TokenTable, diff: Changes) -> dict[str, Any]:
    """The reply to `GET /api/sessions/{id}/diff`."""
    parts = [{"op": op, "original": [a, b], "corrected": [c, d]} for op, a, b, c, d in diff.parts]
    return {"original": _tokens(table, diff.original), "corrected": _tokens(table, diff.corrected), "parts": parts}


def alternatives(
    table: TokenTable,
    node: int,
    position: int,
    options: Sequence[tuple[int, float]] | None,
    stands: int,
    before_ids: Sequence[int],
) -> dict[str, Any]:
    """The reply to `GET /api/sessions/{id}/alternatives`; `options` None: the model would have to be asked."""
    listed = [{**choice(table, number, before_ids, p), "stands": number == stands} for number, p in options or ()]
    return {"node": node, "position": position, "options": None if options is None else listed}


def piece(table: TokenTable, node: int, start: int, shown: ShownTokens) -> dict[str, Any]:
    """The data of the stream's event `tokens`."""
    return {"node": node, "start": start, "tokens": _tokens(table, shown)}


def done(table: TokenTable, node: int, live: Live) -> dict[str, Any]:
    """The data of the stream's event `done`."""
    return {"node": node, "head": head(table, live)}


def me(annotator: str, exchange: "Exchange") -> dict[str, Any]:
    """The reply to `GET /api/me`."""
    decoder, config = exchange.desk.decoder, exchange.desk.config
    return {
        "annotator": annotator,
        "annotators_per_item": exchange.per_item,
        "project": exchange.name,
        "model": decoder.stamp.name,
        "remote": decoder.remote,
        "max_new_tokens": config.max_new_tokens,
        "alternatives": config.alternatives,
        "confidence": config.confidence,
        "compare": exchange.can_compare,
    }


def queue(part: QueuePart) -> dict[str, Any]:
    """The reply to `GET /api/queue`."""
    return asdict(part)


def progress(counts: Progress) -> dict[str, Any]:
    """The reply to `GET /api/progress`."""
    return asdict(counts)


def agreement(overall: Agreement) -> dict[str, Any]:
    """The reply to `GET /api/agreement`."""
    items = [{"item": item.item, "annotators": item.annotators, **asdict(item.shares)} for item in overall.items]
    return {**asdict(overall.shares), "items": items}


def intake(taken: "Intake") -> dict[str, Any]:
    """The reply to `POST /api/import`."""
    flagged = [{"sample": flag.sample, "anchor": flag.anchor, "reason": flag.reason} for flag in taken.flags]
    return {"added": taken.added, "known": taken.known, "flagged": flagged}


def comparison(table: TokenTable, compared: "Comparison") -> dict[str, Any]:
    """The reply to `POST /api/compare`."""
    return {
        name: [{**shown, "kl": kl} for shown, kl in zip(tokens(table, answer.ids), answer.token_kl, strict=True)]
        for name, answer in (("base", compared.base), ("tuned", compared.tuned))
    }


def training_run(run: "Run") -> dict[str, Any]:
    """A `Training`."""
    notes = run.notes
    return {
        "number": run.number,
        "state": run.state,
        "by": notes.by,
        "retain": notes.retain,
        "began": notes.began.isoformat(),
        "ended": None if notes.ended is None else notes.ended.isoformat(),
        "corrections": notes.corrections,
        "kept": notes.kept,
        "stopped_by": notes.stopped_by,
        "said": run.said,
        "row": run.row,
        "result": run.result,
        "folder": str(run.folder),
        "comparable": run.adapter is not None,
    }


def training(overview: "Overview") -> dict[str, Any]:
    """The reply to `GET /api/training`."""
    runs = [training_run(run) for run in overview.runs]
    counts = {"corrections": overview.corrections, "kept": overview.kept}
    return {"cannot": overview.cannot, "retain": overview.retain, **counts, "runs": runs}
