"""What the functions of a chaos run do: each writes its effect into the ledger, then answers with its token."""

TELL = """
import json, os, signal, socket, time, uuid

def tell(source, key, step, level=0, saw=None):
    "Acts, and answers the token of this execution. Raises OSError when the ledger did not say that it has it."
    token = uuid.uuid4().hex
    effect = {"source": source, "key": key, "step": step, "level": level, "token": token, "saw": saw or {}}
    with socket.create_connection((%r, %d), timeout=5) as ledger:
        ledger.sendall(json.dumps(effect).encode() + b"\\n")
        if ledger.recv(1) != b"!":
            raise OSError("the ledger said nothing")
    return token
"""
JOB = """
def handler(event):
    time.sleep(event.get("sleep_s", 0))
    token = tell(event["source"], event["key"], "job")
    if event.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    return token
"""
MESSAGE = """
def handler(event):
    return tell("topic", event["data"]["key"], str(event["data"]["n"]), event["data"]["n"])
"""
TRIGGER = """
def handler(event):
    data = event["data"]
    number = data["fields"]["n"] if "fields" in data else data["body"]
    return tell(event["novatrigger"], "", str(number))
"""
SCHEDULE = """
def handler(event):
    return tell("schedule", "", event["data"]["scheduled_at"])
"""
NODE = """
import random

def handler(event):
    if event["step"] == "a" and random.random() < 0.2:
        raise ValueError("now and then")
    return tell(event["source"], event["key"], event["step"], event["level"], event.get("saw"))
"""
DURABLE = """
def handler(event, context):
    key, saw = event["key"], {}
    for n in range(4):
        saw[f"s{n}"] = context.step(f"s{n}", tell, "durable", key, f"s{n}", n, dict(saw))
        if n == 1:
            context.sleep("nap", 1)
    rows = context.map("rows", ["x", "y"], lambda below, one: below.step(one, tell, "durable", key, one, 4, dict(saw)))
    called = context.invoke(
        "c-node", {"source": "durable", "key": key, "step": "called", "level": 5, "saw": {**saw, "x": rows[0]}}
    )
    context.step("end", tell, "durable", key, "end", 6, {**saw, "called": called})
    return saw
"""
DURABLE_STEPS = ("s0", "s1", "s2", "s3", "x", "y", "called", "end")

INNER = {
    "nodes": [
        {
            "node_key": "s",
            "node_type": "function",
            "function_name": "c-node",
            "input_mapping": {
                "source": "workflow",
                "key": "$.input.key",
                "step": "s",
                "level": 2,
                "saw": "$.input.saw",
            },
            "retry_policy": {"max_attempts": 50, "base_ms": 100, "max_backoff_ms": 1000},
        }
    ],
    "edges": [],
    "output": {"s": "$.nodes.s.output"},
}
_RETRY = {"max_attempts": 50, "base_ms": 100, "max_backoff_ms": 1000}


def _node(step: str, level: int, saw: dict[str, str]) -> dict[str, object]:
    mapping = {"source": "workflow", "key": "$.input.key", "step": step, "level": level, "saw": saw}
    return {"node_type": "function", "function_name": "c-node", "input_mapping": mapping, "retry_policy": _RETRY}


OUTER = {
    "nodes": [
        {"node_key": "a", **_node("a", 0, {})},
        {
            "node_key": "each",
            "node_type": "map",
            "items": "$.input.items",
            "do": _node("$.item", 1, {"a": "$.nodes.a.output"}),
        },
        {"node_key": "nap", "node_type": "wait", "seconds": 1},
        {
            "node_key": "sub",
            "node_type": "sub_workflow",
            "workflow_name": "c-inner",
            "input_mapping": {"key": "$.input.key", "saw": {"a": "$.nodes.a.output", "x": "$.nodes.each.output[0]"}},
        },
        {"node_key": "last", **_node("last", 3, {"a": "$.nodes.a.output", "s": "$.nodes.sub.output.s"})},
    ],
    "edges": [
        {"from": "a", "to": "each"},
        {"from": "each", "to": "nap"},
        {"from": "nap", "to": "sub"},
        {"from": "sub", "to": "last"},
    ],
}
WORKFLOW_ITEMS = ("x", "y", "z")
WORKFLOW_STEPS = ("a", *WORKFLOW_ITEMS, "s", "last")
