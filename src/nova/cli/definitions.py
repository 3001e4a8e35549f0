"""Definitions of workflows on disk: YAML or JSON in, a picture of the graph out."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text
from rich.tree import Tree

from nova.cli.session import CliError
from nova.client import Json

_MERMAID_SHAPES = {
    "choice": ("{{", "}}"),
    "wait": ("([", "])"),
    "wait_event": ("([", "])"),
    "map": ("[[", "]]"),
    "parallel": ("[[", "]]"),
    "sub_workflow": ("[[", "]]"),
    "succeed": ("((", "))"),
    "fail": ("((", "))"),
}


class _Loader(yaml.SafeLoader):
    """YAML as people mean it here: ``on:`` is a name and not *true*, a time is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:timestamp",)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if first not in "yYnNoO"
}


def read(source: str) -> Any:
    """The document in a file, or on stdin when the name is a dash. Raises CliError with the place of a mistake."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        return yaml.load(text, _Loader)  # a SafeLoader; JSON is YAML
    except OSError as exc:
        raise CliError(f"{source}: {exc.strerror}", 2) from None
    except (UnicodeDecodeError, yaml.YAMLError) as exc:
        raise CliError(f"{source}: {exc}", 2) from None


def read_definition(source: str) -> Json:
    found = read(source)
    if not isinstance(found, dict):
        raise CliError(f"{source}: a definition is a map with nodes, edges and output", 2)
    return found


def value(text: str, option: str) -> Any:
    """A JSON value from the command line; ``@file`` is the content of a file, ``-`` of stdin."""
    if text == "-" or text.startswith("@"):
        return read(text.removeprefix("@"))
    try:
        return json.loads(text)
    except ValueError as exc:
        raise CliError(f"{option}: {exc}", 2) from None


def tree(definition: Json, title: str) -> Tree:
    """The graph as a tree: a node with several parents stands below the first, and names the others."""
    nodes = {node["node_key"]: node for node in definition["nodes"]}
    below, above = _relations(definition)
    shown: set[str] = set()
    root = Tree(Text(title, style="bold"), guide_style="dim")

    def add(branch: Tree, key: str, how: str) -> None:
        line = Text.assemble((key, "bold"), ("  " + _what(nodes[key]), "dim"))
        if how:
            line.append(f"  {how}", style="cyan")
        others = [parent for parent in above.get(key, ()) if len(above[key]) > 1]
        if key in shown:
            branch.add(Text.assemble((key, "bold"), ("  see above", "dim")))
            return
        shown.add(key)
        if others:
            line.append(f"  after {nodes[key].get('join', 'all')} of {', '.join(others)}", style="dim")
        child = branch.add(line)
        for inner_title, inner in _inside(nodes[key]):
            child.add(tree(inner, inner_title))
        for target, label in below.get(key, ()):
            add(child, target, label)

    for key in nodes:
        if not above.get(key):
            add(root, key, "")
    return root


def mermaid(definition: Json) -> str:
    """The graph as a Mermaid flowchart."""
    return "\n".join(["flowchart TD", *_mermaid(definition, "", "  ")])


def _mermaid(definition: Json, prefix: str, indent: str) -> Iterator[str]:
    for node in definition["nodes"]:
        key = prefix + node["node_key"]
        opening, closing = _MERMAID_SHAPES.get(node["node_type"], ("[", "]"))
        label = f"{node['node_key']}<br/><small>{_what(node)}</small>".replace('"', "'")
        yield f'{indent}{_id(key)}{opening}"{label}"{closing}'
        for title, inner in _inside(node):
            yield f'{indent}subgraph {_id(key)}_{title.replace(" ", "_")}["{node["node_key"]}: {title}"]'
            yield from _mermaid(inner, f"{key}_{title.split()[-1]}_", indent + "  ")
            yield f"{indent}end"
    below, _ = _relations(definition)
    for source, targets in below.items():
        for target, label in targets:
            arrow = f'-- "{label}" -->' if label else "-->"
            yield f"{indent}{_id(prefix + source)} {arrow} {_id(prefix + target)}"


def _id(key: str) -> str:
    return "n_" + key.replace("-", "__")


def _relations(definition: Json) -> tuple[dict[str, list[tuple[str, str]]], dict[str, list[str]]]:
    """What follows each node, with the reason; and what each comes after."""
    keys = {node["node_key"] for node in definition["nodes"]}
    below: dict[str, list[tuple[str, str]]] = {}
    above: dict[str, list[str]] = {}

    def join(source: str, target: str, label: str) -> None:
        if source in keys and target in keys and (target, label) not in below.setdefault(source, []):
            below[source].append((target, label))
            if source not in above.setdefault(target, []):
                above[target].append(source)

    for edge in definition.get("edges") or ():
        join(edge["from"], edge["to"], condition(edge["when"]) if edge.get("when") is not None else "")
    for node in definition["nodes"]:
        for branch in node.get("branches") or ():
            if "goto" in branch:
                join(node["node_key"], branch["goto"], condition(branch.get("when")))
        if node["node_type"] == "choice" and node.get("default"):
            join(node["node_key"], node["default"], "otherwise")
        for caught in node.get("catch") or ():
            join(node["node_key"], caught["goto"], "on " + ", ".join(caught.get("on") or ("any error",)))
    return below, above


def _inside(node: Json) -> Iterator[tuple[str, Json]]:
    """Definitions that a node holds."""
    for number, branch in enumerate(node.get("branches") or ()):
        if "nodes" in branch:
            yield f"branch {number}", branch
    inner = node.get("do")
    if isinstance(inner, dict):
        yield "each item", inner if "nodes" in inner else {"nodes": [{"node_key": "do", **inner}]}


def _what(node: Json) -> str:
    """What a node does, in a few words."""
    kind = str(node["node_type"])
    match kind:
        case "function":
            return f"{kind} {node.get('function_name', '')}"
        case "sub_workflow":
            return f"{kind} {node.get('workflow_name', '')}"
        case "map":
            return f"{kind} {node.get('items', '')}, {node.get('max_concurrency', 10)} at a time"
        case "wait":
            return f"{kind} {node.get('until') or str(node.get('seconds', '')) + ' s'}"
        case "wait_event":
            if node.get("topic"):
                return f"{kind} topic {node['topic']}"
            return "approval" if node.get("approval") else f"{kind} {node.get('key', '')}"
        case _:
            return kind


def condition(when: Any) -> str:
    """A condition as people read it."""
    if not isinstance(when, dict):
        return "" if when is None else str(when)
    for word, glue in (("all", " and "), ("any", " or ")):
        if isinstance(parts := when.get(word), list):
            return _joined((condition(part) for part in parts), glue)
    if "not" in when:
        return f"not {condition(when['not'])}"
    wanted = json.dumps(when["value"], ensure_ascii=False).replace('"', "'") if "value" in when else ""
    return f"{when.get('path', '')} {when.get('op', '')} {wanted}".strip()


def _joined(parts: Iterable[str], glue: str) -> str:
    texts = list(parts)
    return texts[0] if len(texts) == 1 else f"({glue.join(texts)})"
