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
    revision: str | None = None  # the commit of the hub


@dataclass(frozen=True, kw_only=True)
class Node:
    """An artifact or a source, with what it was made of."""

    of: Artifact | Source
    parents: tuple["Node", ...] = ()

    @property
    def name(self) -> str:
        """What people call it."""
        return self.of.reference if isinstance(self.of, Artifact) else self.of.name

    def as_data(self, told: set[int] | None = None) -> dict[str, Any]:
        """As `artifacts lineage --json` has it; `parents` is null of what stands there already, with its own."""
        told = set() if told is None else told
        facts = self.of.as_data() if isinstance(self.of, Artifact) else {"reference": None, **vars(self.of)}
        if id(self) in told:
            return facts | {"parents": None}
        told.add(id(self))
        return facts | {"parents": [parent.as_data(told) for parent in self.parents]}


def lineage(artifact: Artifact, known: Sequence[Artifact]) -> Node:
    """The tree of an artifact, as runs recorded their inputs; `known` are those of all runs.

    An input is the output of the run that was recorded with it. Without one it is the last artifact that was made
    before at that path, with the input's digest where that is known; else one of that digest from elsewhere. A circle,
    as only a changed record has one, ends where it closes.
    """
    return _traced(artifact, known, frozenset(), {})


def _traced(artifact: Artifact, known: Sequence[Artifact], within: frozenset[str], done: dict[str, Node]) -> Node:
    if artifact.reference in done:
        return done[artifact.reference]
    parents = []
    for row in artifact.run.record.get("inputs") or []:
        made = _made(row, artifact, known)
        if made is None or made.run.id in within | {artifact.run.id}:
            facts = {"digest": row.get("digest"), "made_by": row.get("run"), "revision": row.get("revision")}
            source = Source(type=row["type"], name=row["name"], **facts)
            parents.append(Node(of=source))
        else:
            parents.append(_traced(made, known, within | {artifact.run.id}, done))
    done[artifact.reference] = Node(of=artifact, parents=tuple(parents))
    return done[artifact.reference]


def _made(row: Mapping[str, Any], child: Artifact, known: Sequence[Artifact]) -> Artifact | None:
    run, digest, path = row.get("run"), row.get("digest"), _real(row.get("path") or row["name"])
    others = [one for one in known if one.run.id != child.run.id]
    fitting = [one for one in others if not digest or one.digest in (digest, None)]
    at_path = [one for one in fitting if is_below(path, _real(one.path))]
    if run:
        return next((one for one in at_path if one.run.id == run), None)
    began = str(child.run.record.get("started_at") or child.made_at)
    alike = fitting if digest else []
    earlier = [one for one in at_path or alike if one.made_at <= began]
    return earlier[-1] if earlier else None


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL, in a record that somebody changed
        return path


def lines_of(node: Node) -> Iterator[tuple[str, Node, bool]]:
    """The branches of a tree as text, whose each is, and whether what that was made of stands further up."""
    yield from _lines(node, "", "", set())


def _lines(node: Node, before: str, lead: str, told: set[int]) -> Iterator[tuple[str, Node, bool]]:
    again = id(node) in told and bool(node.parents)
    yield before + lead, node, again
    told.add(id(node))
    inner = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[lead]
    for number, parent in enumerate(() if again else node.parents):
        yield from _lines(parent, inner, "└─ " if number == len(node.parents) - 1 else "├─ ", told)


def graph_of(trees: Sequence[Node]) -> tuple[dict[str, Node], list[tuple[str, str]]]:
    """Everything that stands in trees once, by a key of its own, and which was made of which: (parent, child)."""
    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str], None] = {}  # each once, in their order

    def add(one: Node) -> str:
        key = one.name if isinstance(one.of, Artifact) else f"{one.of.type} {one.name}"
        if key not in nodes:
            nodes[key] = one
            for parent in one.parents:
                edges[add(parent), key] = None
        return key

    for tree in trees:
        add(tree)
    return nodes, list(edges)


def as_dot(node: Node) -> str:
    """For Graphviz: `nemo experiment artifacts lineage REF --dot | dot -Tsvg > lineage.svg`."""
    nodes, edges = graph_of([node])
    boxes = []
    for key, one in nodes.items():
        title = f"{one.of.type}\n{one.of.run.id if isinstance(one.of, Artifact) else one.of.name}"
        boxes.append(f"  {_quoted(key)} [label={_quoted(title)}];")
    lines = [f"  {_quoted(parent)} -> {_quoted(child)};" for parent, child in edges]
    return "\n".join(["digraph lineage {", "  rankdir=LR;", "  node [shape=box];", *boxes, *lines, "}"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
