"""What a chaos run plays with: the planes under clocks that jump, PostgreSQL, four brokers, and the ledger beside them."""

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from nova.store.embedded import EmbeddedPostgres
from tests.chaos import entry
from tests.chaos.ledger import Ledger, ledger
from tests.e2e.misuse import until
from tests.e2e.planes import SixPlanes
from tests.e2e.test_faults_database import Database
from tests.events.triggers import brokers

UP_LIMIT_S = 240.0
"""For a machine that others use too."""
LEASE_S = 5
"""Short, so that work is taken over often; a busy machine must still be able to renew it."""
MESSAGES = "c-messages"
"""The stream, queue and topic of every broker."""
_ENDINGS = """
CREATE TABLE chaos_endings (source text NOT NULL, name text NOT NULL, status text NOT NULL);
CREATE FUNCTION chaos_ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO chaos_endings VALUES (TG_ARGV[0], to_jsonb(NEW) ->> TG_ARGV[1], NEW.status); RETURN NEW; END $$;
CREATE TRIGGER chaos AFTER UPDATE ON async_invocations FOR EACH ROW
  WHEN (NEW.finished_at IS NOT NULL AND (OLD.finished_at IS NULL OR NEW.status <> OLD.status
        OR NEW.output::text IS DISTINCT FROM OLD.output::text OR NEW.attempt <> OLD.attempt))
  EXECUTE FUNCTION chaos_ended('job', 'id');
CREATE TRIGGER chaos AFTER UPDATE ON dag_runs FOR EACH ROW
  WHEN (NEW.finished_at IS NOT NULL AND (OLD.finished_at IS NULL OR NEW.status <> OLD.status
        OR NEW.output::text IS DISTINCT FROM OLD.output::text))
  EXECUTE FUNCTION chaos_ended('workflow', 'id');
CREATE TRIGGER chaos AFTER UPDATE ON durable_executions FOR EACH ROW
  WHEN (NEW.ended_at IS NOT NULL AND (OLD.ended_at IS NULL OR NEW.status <> OLD.status))
  EXECUTE FUNCTION chaos_ended('durable', 'id');
CREATE FUNCTION chaos_delivered() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO chaos_endings SELECT t.name || '/' || s.name, NEW.sequence || '/' || NEW.generation, NEW.status
    FROM event_subscriptions s JOIN event_topics t ON t.id = s.topic_id WHERE s.id = NEW.subscription_id;
  RETURN NEW; END $$;
CREATE TRIGGER chaos AFTER INSERT OR UPDATE ON event_deliveries FOR EACH ROW
  WHEN (NEW.status <> 'queued') EXECUTE FUNCTION chaos_delivered();
"""


@dataclass
class Stage:
    planes: SixPlanes
    database: Database
    brokers: dict[str, brokers.Broker]
    ledger: Ledger
    clocks: dict[str, Path]
    """the offset of each plane's clock"""

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        """The platform's database; waits for one that is just started again, a minute at most."""
        for attempt in Retrying(
            retry=retry_if_exception_type(psycopg.Error), wait=wait_fixed(0.5), stop=stop_after_delay(60), reraise=True
        ):
            with attempt:
                return psycopg.connect(EmbeddedPostgres(self.planes.data_dir).dsn, autocommit=True)
        raise AssertionError


@contextlib.contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Everything started and ready; at the end everything of it is stopped, whatever state it is in."""
    with contextlib.ExitStack() as stack:
        book = stack.enter_context(ledger(folder))
        brokers.UP_LIMIT_S = int(UP_LIMIT_S)
        kinds: dict[str, type[brokers.Broker]] = {
            "redis": brokers.Redis,
            "rabbitmq": brokers.RabbitMQ,
            "nats": brokers.Nats,
            "mqtt": brokers.Mosquitto,
        }
        running = {name: kind(folder / name) for name, kind in kinds.items()}
        for broker in running.values():
            stack.push(broker.__exit__)
        planes, clocks = _planes(folder, book)
        stack.push(planes.__exit__)
        for plane in planes.planes.values():
            plane.start()
        with ThreadPoolExecutor(len(running)) as pool:
            list(pool.map(lambda broker: broker.start(), running.values()))
        all_up(planes)
        made = Stage(planes, Database(planes.data_dir), running, book, clocks)
        with made.connect() as conn:
            conn.execute(_ENDINGS)
        yield made


def _planes(folder: Path, book: Ledger) -> tuple[SixPlanes, dict[str, Path]]:
    """Not started yet, each with the file of its clock."""
    settings = {
        "queue": {"lease": f"{LEASE_S}s"},
        "daemon": {"drain_s": 5},
        "egress": {"allow": [book.network, "127.0.0.0/8"]},
    }
    planes = SixPlanes(folder / "data", comets=2, settings=settings)
    planes.add("nebula-2", "nebula")
    clocks = {}
    for name, plane in planes.planes.items():
        clocks[name] = folder / f"{name}.clock"
        entry.jump(clocks[name], 0)
        plane.argv = [sys.executable, str(Path(entry.__file__)), str(clocks[name]), *plane.argv]
    return planes, clocks


def all_up(planes: SixPlanes) -> None:
    """Until every process has said that it is ready and zenith that all is well."""
    until(lambda: all(plane.ready for plane in planes.planes.values()), "every plane is ready", UP_LIMIT_S)
    until(planes.well, "all is well", UP_LIMIT_S)
