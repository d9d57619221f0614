"""The tables of the annotation store, their migrations, and connections that lose nothing.

SQLite (WAL, synchronous=FULL) or PostgreSQL. JSON is kept as ASCII text, which every database stores unchanged, NUL
characters included.
"""

import contextlib
import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Dialect,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.types import TypeDecorator

from anchorlwf.errors import ConfigError, ConflictError, StorageError, wrong
from anchorlwf.extras import require_extra

__all__ = [
    "MIGRATIONS",
    "connect",
    "events",
    "items",
    "projects",
    "reading",
    "records",
    "seats",
    "sessions",
    "settle",
    "writing",
]


class Json(TypeDecorator[Any]):
    """Any JSON value, as ASCII text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """From the database."""
        return None if value is None else json.loads(value)


_PATIENCE = 20_000
"""Milliseconds to wait for another writer."""

tables = MetaData()
version = Table("anchorlwf_schema", tables, Column("version", Integer, nullable=False))
projects = Table(
    "projects",
    tables,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("stamp", Json, nullable=False),
)
items = Table(
    "items",
    tables,
    Column("id", Integer, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("priority", Integer, nullable=False, default=0),
    Column("record_id", String(36), nullable=False),
    Column("prompt", Json, nullable=False),
    # The model's answer decoded ahead, or a draft: the content of the session's first event.
    Column("proposal", Json),
    Column("mean_entropy", Float),
    Column("lowest_probability", Float),
    UniqueConstraint("project_id", "record_id"),
)
# As `store.ordering("queue")` sorts: the next item is found without a look at all the others.
Index("items_by_turn", items.c.project_id, items.c.priority.desc(), items.c.position, items.c.id)
sessions = Table(
    "sessions",
    tables,
    Column("id", Integer, primary_key=True),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("annotator", String(64), nullable=False),
    Column("version", Integer, nullable=False, default=0),
    Column("verdict", String(8)),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("touched_at", Float, nullable=False),
    UniqueConstraint("item_id", "annotator"),
)
# One row for each annotator an item wants. Whoever holds a row may work; a row done is never given again.
seats = Table(
    "seats",
    tables,
    Column("item_id", ForeignKey("items.id"), primary_key=True),
    Column("seat", Integer, primary_key=True),
    Column("session_id", ForeignKey("sessions.id"), index=True),
    Column("expires_at", Float, nullable=False, default=0.0),
    Column("done", Boolean, nullable=False, default=False),
)
events = Table(
    "events",
    tables,
    Column("session_id", ForeignKey("sessions.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("body", Json, nullable=False),
)
records = Table(
    "records",
    tables,
    Column("session_id", ForeignKey("sessions.id"), primary_key=True),
    Column("record", Json, nullable=False),
)


def _first(db: Connection) -> None:
    # While there is one version only, the tables above are its definition. The migration that changes one of them
    # freezes this one as it was.
    tables.create_all(db)


MIGRATIONS: list[Callable[[Connection], None]] = [_first]
"""Each brings a store from one version to the next; the version is how many were applied."""


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        fix = "Fetch the session again."
        raise ConflictError(wrong("store", "to be first", "another writer's row", fix)) from error
    except (DBAPIError, PoolTimeoutError) as error:
        first = str(error.orig if isinstance(error, DBAPIError) else error).strip().splitlines()[0]
        fix = "Nothing of this step was stored; free some space or reach the database again, then repeat it."
        raise StorageError(wrong("annotation store", "a writable database", first, fix)) from error


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, on the disk when the block is left.

    Raises:
        ConflictError: another writer came first.
        StorageError: the database is gone, full or read-only; nothing was changed.
    """
    with _storage_errors(), engine.begin() as db:
        yield db


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A consistent look at the store that holds up no writer. Raises `StorageError`."""
    with _storage_errors(), engine.connect().execution_options(reads_only=True) as db:
        yield db


def _sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _open(connection: Any, _record: Any) -> None:
        # Transactions are begun by us (below), not by the driver's guess.
        connection.isolation_level = None
        for pragma in (f"busy_timeout={_PATIENCE}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(db: Connection) -> None:
        # A writer takes the lock at once: a reader that turns writer midway fails where another did the same.
        if db.get_execution_options().get("reads_only"):
            db.exec_driver_sql("BEGIN")
        elif not _taken(db.connection.dbapi_connection):
            db.exec_driver_sql("BEGIN IMMEDIATE")  # says what is wrong


def _taken(connection: Any) -> bool:
    """Begin to write as soon as nobody else does.

    SQLite itself asks again ever more rarely, in the end every 100 ms, and misses the moment between two transactions
    of somebody who writes much.
    """
    until = time.monotonic() + _PATIENCE / 1000
    connection.execute("PRAGMA busy_timeout=0")
    try:
        while time.monotonic() < until:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    return False
                time.sleep(random.uniform(0.001, 0.005))
            else:
                return True
        return False
    finally:
        connection.execute(f"PRAGMA busy_timeout={_PATIENCE}")


def settle(engine: Engine, grown: bool) -> None:
    """After much was written: what the database would else do while somebody waits for it.

    SQLite carries its log over into its file; PostgreSQL learns how long the queue is by now, where it has `grown` to
    twice of what it knew, or it would sort all of it to find the first item.
    """
    if engine.dialect.name == "sqlite":
        # Outside of any transaction; where it fails, nothing is lost, and the next step that is stored says why.
        with contextlib.closing(engine.raw_connection()) as connection, contextlib.suppress(sqlite3.Error):
            connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")
    elif grown:
        with writing(engine) as db:
            db.execute(text(f"ANALYZE {items.name}, {seats.name}, {sessions.name}"))


def _migrate(engine: Engine) -> None:
    with writing(engine) as db:
        if engine.dialect.name == "postgresql":
            # Servers that start together wait for one another here.
            db.execute(text("SELECT pg_advisory_xact_lock(727274)"))
        have = 0
        if inspect(db).has_table(version.name):
            have = db.execute(select(version.c.version)).scalar_one()
        else:
            version.create(db)
            db.execute(insert(version).values(version=0))
        if have > len(MIGRATIONS):
            fix = "Update anchorlwf, or use another store."
            raise ConfigError(wrong("annotation store", f"version {len(MIGRATIONS)} or older", have, fix))
        for step in MIGRATIONS[have:]:
            step(db)
        # An index changes nothing but the time; a store of the same version may be older than it.
        for index in items.indexes:
            index.create(db, checkfirst=True)
        db.execute(update(version).values(version=len(MIGRATIONS)))


def _database_file(parsed: URL) -> str:
    if parsed.database in (None, "", ":memory:") or str(parsed.database).startswith("file:"):
        fix = "Give the plain name of a file: work in memory would be lost."
        raise ConfigError(wrong("--store", "a file", str(parsed.database or "none"), fix))
    return str(parsed.database)


def connect(url: str) -> Engine:
    """Open a store and bring its tables up to date.

    Args:
        url: a file name (SQLite), or an SQLAlchemy URL: `sqlite:///records.db`, `postgresql://user@host/name`.

    Raises:
        ConfigError: no such kind of database, or a store of a newer anchorlwf.
        StorageError: it cannot be opened or written.
    """
    try:
        parsed = make_url(url if "://" in url else f"sqlite:///{url}")
        if parsed.drivername == "postgresql":
            require_extra("postgres", "--store on PostgreSQL")
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite":
            Path(_database_file(parsed)).resolve().parent.mkdir(parents=True, exist_ok=True)
        ping = parsed.get_backend_name() != "sqlite"
        engine = create_engine(parsed, pool_size=20, max_overflow=20, pool_pre_ping=ping)
    except ConfigError:  # which is a ValueError, too
        raise
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:  # ValueError: a port that is no number
        fix = "Give a file name or postgresql://user@host/name ."
        raise ConfigError(wrong("--store", "SQLite or PostgreSQL", error, fix)) from error
    except OSError as error:
        raise StorageError(wrong("--store", "a place for the file", error, "Choose another.")) from error
    if engine.dialect.name not in ("sqlite", "postgresql"):
        fix = "Give a file name or postgresql://user@host/name."
        raise ConfigError(wrong("--store", "SQLite or PostgreSQL", engine.dialect.name, fix))
    if engine.dialect.name == "sqlite":
        _sqlite(engine)
    _migrate(engine)
    return engine
