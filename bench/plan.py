"""What is measured, how long, and the numbers to reach."""

from dataclasses import dataclass

from bench.model import Bar

MEASURES = {
    "startup": "start-up time on an empty and on an existing data directory",
    "daemon_memory": "memory of the idle daemon, PostgreSQL not counted",
    "cold_python": "first call of a Python function that has no instance",
    "cold_node": "first call of a Node.js function that has no instance",
    "instance_memory": "memory of an idle warm instance",
    "warm_latency": "one caller, one keep-alive connection, warm function",
    "warm_throughput": "32 callers, warm function, a worker for each core",
    "warm_default": "32 callers, warm function, everybody as installed: one worker process",
    "process_mode": "a fresh process for each call, 4 callers",
    "burst": "first calls to many functions at the same moment",
    "density": "many functions warm at once: memory of each and of all",
    "cold_numpy": "second cold start of a function that imports numpy and pandas",
    "churn": "what is left of cycles of bursts and idleness: processes, mounts, memory",
    "planes_latency": "six processes beside nova up, one caller",
    "planes_throughput": "six processes beside nova up, 32 callers",
    "two_comets": "two comets on a core each beside one, a function that burns 10 ms of CPU",
    "two_cores": "nova up --workers 2 on two cores beside one, a function that burns 2 ms of CPU",
    "restarts": "failed requests while functions are deployed and every plane is restarted",
    "async_ack": "accepting a job, one caller",
    "async_rate": "jobs from being accepted to having succeeded",
    "wasm_rate": "calls of WebAssembly modules in workers, a fresh store for each",
    "machine_restore": "an emulated machine with a function loaded: from a snapshot beside booted",
    "docker_cold": "first call of a function in a container, from a template, beside a plain docker run",
    "docker_warm": "one caller, a function in a container beside one in the sandbox",
    "fanout": "one topic with ten subscriptions: deliveries, and the way from publisher to handler",
    "workflow_chain": "a workflow of 40 functions one after another, beside DBOS",
    "durable_chain": "a durable function of 40 steps, each committed, beside DBOS and Restate",
    "quiet_tenant": "jobs of a quiet tenant beside one with fifty times as many",
    "full_tables": "jobs, events and workflows beside a million finished jobs, and calls while those are removed",
    "chaos": "jobs lost, ended twice or dead while comets and nebulas are killed",
    "trigger_rate": "messages that wait at a real broker to having succeeded in a function",
}
GROUPS = {
    "pool": ("burst", "density", "cold_numpy", "churn"),
    "planes": ("planes_latency", "planes_throughput", "two_comets", "restarts"),
    "cores": ("two_cores",),
    "backends": ("docker_cold", "docker_warm", "machine_restore"),
    "queue": ("async_ack", "async_rate", "chaos"),
    "triggers": ("trigger_rate",),
    "flows": ("fanout", "workflow_chain", "durable_chain", "quiet_tenant", "full_tables"),
    "wasm": ("wasm_rate",),
}
"""Names for several measures."""
OURS = frozenset({"nova", "six planes", "one comet", "two comets"})
"""Shapes of the platform: none is another one's peer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Counts and times of a run. Every loop of the harness is bounded by one of these."""

    startup_rounds: int
    warm_rounds: int
    warm_calls: int
    """per round"""
    warm_skip: int
    """calls before the first round, not counted"""
    crowd_rounds: int
    crowd_s: float
    """per round"""
    cold_python: int
    cold_node: int
    instances_python: int
    instances_node: int
    from_zero_rounds: int
    callers: int = 32
    process_callers: int = 4
    burn_callers: int = 8
    deploys: int = 20
    jobs: int = 10_000
    """per round"""
    peer_jobs: int = 2_000
    """the peer's, per round: its rate does not depend on their number"""
    job_rounds: int = 3
    job_callers: int = 32
    job_limit_s: float = 120.0
    """per round"""
    chaos_jobs: int = 10_000
    kills: int = 100
    chaos_limit_s: float = 1800.0
    fanout_subscriptions: int = 10
    fanout_messages: int = 2_000
    """per round"""
    fanout_lags: int = 200
    chains: int = 30
    chain_runs: int = 100
    """at once, per round"""
    peer_workflows: int = 1_000
    trigger_messages: int = 20_000
    """per round and broker"""
    quiet_jobs: int = 200
    finished_jobs: int = 1_000_000
    removal_limit_s: float = 600.0
    burst_functions: int = 300
    dense_functions: int = 1000
    dense_limit_s: float = 300.0
    """what is warm by then is measured"""
    cold_numpy: int = 10
    churn_s: float = 300.0
    churn_functions: int = 20
    docker_cold: int = 20
    docker_plain: int = 5
    machines: int = 3
    wasm_calls: int = 30_000
    """per round, of all workers together"""
    cold_call_limit_s: float = 30.0
    round_limit_s: float = 30.0


FULL = Plan(
    startup_rounds=3,
    warm_rounds=5,
    warm_calls=1000,
    warm_skip=500,
    crowd_rounds=3,
    crowd_s=5,
    cold_python=200,
    cold_node=30,
    instances_python=30,
    instances_node=8,
    from_zero_rounds=3,
)
QUICK = Plan(
    startup_rounds=1,
    warm_rounds=3,
    warm_calls=300,
    warm_skip=200,
    crowd_rounds=2,
    crowd_s=2,
    cold_python=20,
    cold_node=8,
    instances_python=10,
    instances_node=4,
    from_zero_rounds=1,
    deploys=3,
    jobs=2_000,
    peer_jobs=400,
    job_rounds=2,
    chaos_jobs=500,
    kills=5,
    chaos_limit_s=240.0,
    fanout_messages=500,
    fanout_lags=50,
    chains=10,
    chain_runs=30,
    peer_workflows=200,
    trigger_messages=5_000,
    quiet_jobs=50,
    finished_jobs=50_000,
    burst_functions=100,
    dense_functions=100,
    dense_limit_s=60.0,
    cold_numpy=3,
    churn_s=40.0,
    wasm_calls=8_000,
)

BARS = {
    ("warm_latency", "p99"): Bar(limit=1000),
    ("warm_throughput", "rate"): Bar(limit=10_000),
    ("cold_python", "p50"): Bar(limit=3),
    ("cold_python", "p99"): Bar(limit=10),
    ("cold_node", "p50"): Bar(limit=15),
    ("process_mode", "rate"): Bar(limit=400),
    ("instance_memory", "python"): Bar(limit=2.19),
    ("burst", "all_answered"): Bar(limit=2),
    ("density", "each"): Bar(limit=2.19),
    ("density", "thousand"): Bar(limit=3072),
    ("cold_numpy", "p50"): Bar(limit=12),
    ("churn", "left"): Bar(limit=0),
    ("startup", "existing"): Bar(limit=3),
    ("startup", "empty"): Bar(limit=6),
    ("daemon_memory", "rss"): Bar(limit=150),
    ("planes_latency", "above_nova_up"): Bar(limit=700),
    ("planes_throughput", "of_nova_up"): Bar(limit=0.55),
    ("two_comets", "times_one"): Bar(limit=1.5),
    ("two_cores", "times_one"): Bar(limit=1.6),
    ("restarts", "failed"): Bar(limit=0),
    ("docker_cold", "p50"): Bar(limit=20),
    ("machine_restore", "times_boot"): Bar(limit=4),
    ("docker_warm", "times_sandbox"): Bar(limit=1.5),
    ("async_ack", "p50"): Bar(limit=1000),
    ("async_rate", "rate"): Bar(limit=3000),
    ("fanout", "rate"): Bar(limit=5000),
    ("fanout", "p50"): Bar(limit=10),
    ("trigger_rate", "redis_stream"): Bar(limit=2000),
    ("trigger_rate", "nats"): Bar(limit=2000),
    ("trigger_rate", "rabbitmq"): Bar(limit=2000),
    ("workflow_chain", "p50"): Bar(limit=100),
    ("workflow_chain", "nodes"): Bar(limit=1000),
    ("durable_chain", "p50"): Bar(limit=25),
    ("quiet_tenant", "times_alone"): Bar(limit=2),
    ("full_tables", "share"): Bar(limit=0.9),
    ("full_tables", "events"): Bar(limit=0.9),
    ("full_tables", "workflows"): Bar(limit=0.9),
    ("wasm_rate", "reactor"): Bar(limit=5000),
    ("wasm_rate", "command"): Bar(limit=2500),
    ("chaos", "lost"): Bar(limit=0),
    ("chaos", "ended_twice"): Bar(limit=0),
    ("chaos", "dead"): Bar(limit=0),
}
"""By measure and metric, in the row's unit. They bind Nova only."""

RATIO_BARS = {
    ("warm_latency", "p50", "workerd"): Bar(limit=1 / 1.2),
    ("warm_default", "rate", "functions-framework"): Bar(limit=4),
    ("warm_throughput", "rate", "workerd"): Bar(limit=0.9),
    ("async_rate", "rate", "procrastinate"): Bar(limit=10),
    ("async_rate", "rate", "DBOS"): Bar(limit=20),
}

EITHER = {("warm_latency", "p50"): Bar(limit=250)}
"""Numbers that may be reached in place of the ratio: at most 250 µs, or 1.2 times workerd's."""
