"""Lineage: what an artifact was made of, and that of what, back to where no run of this machine made it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executors.base import is_below
from recipes.artifacts.artifact import Artifact


@dataclass(frozen=True, kw_only=True)
class Source:
    """What no run that is known here made: a model of the hub, a folder, data."""

    type: str
    name: str
    digest: str | None
    made_by: str | None  # a run of another machine, or one that was removed


@dataclass(frozen=True, kw_only=True)
class Node:
    """An artifact or a source, with what it was made of."""

    of: Artifact | Source
    parents: tuple["Node", ...] = ()

    def as_data(self) -> dict[str, Any]:
        """As `artifacts lineage --json` has it."""
        facts = self.of.as_data() if isinstance(self.of, Artifact) else {"reference": None, **vars(self.of)}
        return facts | {"parents": [parent.as_data() for parent in self.parents]}


def lineage(artifact: Artifact, known: Sequence[Artifact], within: frozenset[str] = frozenset()) -> Node:
    """The tree of an artifact, as runs recorded their inputs; `known` are those of all runs.

    An input is what a run recorded it to be; where it recorded none, the artifact of the same digest, else the last
    one at that path that was made before. A circle, as only a changed record has one, ends where it closes.
    """
    parents = []
    for row in artifact.run.record.get("inputs") or []:
        made = _made(row, artifact, known)
        if made is None or made.run.id in within | {artifact.run.id}:
            source = Source(type=row["type"], name=row["name"], digest=row.get("digest"), made_by=row.get("run"))
            parents.append(Node(of=source))
        else:
            parents.append(lineage(made, known, within | {artifact.run.id}))
    return Node(of=artifact, parents=tuple(parents))


def _made(row: Mapping[str, Any], child: Artifact, known: Sequence[Artifact]) -> Artifact | None:
    began = str(child.run.record.get("started_at") or child.made_at)
    earlier = [one for one in known if one.run.id != child.run.id and one.made_at <= began]
    path = os.path.realpath(row.get("path") or row["name"])
    at_path = [one for one in earlier if is_below(path, os.path.realpath(one.path))]
    if run := row.get("run"):
        return next((one for one in at_path if one.run.id == run), None)
    digest = row.get("digest")
    fitting = [one for one in earlier if one.digest == digest] if digest else at_path
    return fitting[-1] if fitting else None


def lines_of(node: Node, before: str = "", lead: str = "") -> Iterator[tuple[str, Node]]:
    """The branches of a tree as text, and whose each is."""
    yield before + lead, node
    inner = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[lead]
    for number, parent in enumerate(node.parents):
        yield from lines_of(parent, inner, "└─ " if number == len(node.parents) - 1 else "├─ ")


def as_dot(node: Node) -> str:
    """For Graphviz: `nemo experiment artifacts lineage REF --dot | dot -Tsvg > lineage.svg`."""
    nodes: dict[str, str] = {}
    edges: dict[str, None] = {}  # each once, in their order

    def add(one: Node) -> str:
        of = one.of
        if isinstance(of, Artifact):
            key, title = of.reference, f"{of.type}\n{of.run.id}"
        else:
            key, title = f"{of.type} {of.name}", f"{of.type}\n{of.name}"
        nodes[key] = title
        for parent in one.parents:
            edges[f"  {_quoted(add(parent))} -> {_quoted(key)};"] = None
        return key

    add(node)
    boxes = [f"  {_quoted(key)} [label={_quoted(title)}];" for key, title in nodes.items()]
    return "\n".join(["digraph lineage {", "  rankdir=LR;", "  node [shape=box];", *boxes, *edges, "}"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
