"""What the store tests let other processes do. Apart from them so that such a process imports nothing else."""

from datetime import UTC, datetime
from multiprocessing.connection import Connection

from anchorlwf.annotation.events import Continued, Corrected, Decided, Moved, Noted, Reopened
from anchorlwf.annotation.tree import Tree, apply, fold
from anchorlwf.annotator.store.store import Store
from anchorlwf.data.record import Record


def write_until_killed(url: str, session: int, record: Record, said: Connection) -> None:
    """Go on with a session for ever, as a scripted person would, and say each version once it is acknowledged."""
    store = Store(url)
    tree = fold(store.events(session))
    while True:
        for event in _script(tree):
            after = apply(tree, event)
            done = record if isinstance(event, Decided) else None
            store.append(session, tree.version, [event], done)
            tree = after
            said.send((tree.version, tree.verdict))


def _script(tree: Tree) -> list:
    now = datetime.now(UTC)
    number = len(tree.nodes)
    if tree.verdict is not None:
        return [Reopened(at=now)]
    return [
        Corrected(at=now, parent=tree.current, position=0, token_ids=(number,), source="human:ada"),
        Continued(at=now, node=number, token_ids=(1, 2, 3), ended=True),
        Noted(at=now, text=f"node {number} " + "x" * 200),
        Decided(at=now, verdict="accept"),
        Reopened(at=now),
        Moved(at=now, node=0),
    ]
