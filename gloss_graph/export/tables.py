"""Node and edge tables, Parquet or CSV, for pandas, DuckDB, Spark or cuGraph."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from gloss_graph._internal.extras import require

require("pyarrow", extra="analysis")

import pyarrow as pa
from pyarrow import csv, parquet
from torch_geometric.data import Data

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import load_json, read_object, read_parquet
from gloss_graph.export.attributes import attribute_error, graph_row, plain_row
from gloss_graph.export.from_networkx import GraphColumns
from gloss_graph.export.graph_arrays import EDGE_KINDS, count_nodes, read_edges
from gloss_graph.export.to_networkx import as_networkx, graph_attributes, node_columns

__all__ = ["read_tables", "table_paths", "write_tables"]

_CHUNK = 1 << 17
_KEY = b"gloss_graph"
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_FORMS = {"parquet": "Parquet", "csv": "CSV"}


class _Table(NamedTuple):
    """Columns with their types, in parts of at most `_CHUNK` rows."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def table_paths(path: Path) -> dict[str, Path]:
    """The files behind one name: three for `corpus.csv`, two for `corpus.parquet`."""
    kind = path.suffix.lower().removeprefix(".")
    stem = path.name.removesuffix(path.suffix)
    for part in (".nodes", ".edges"):
        stem = stem.removesuffix(part)
    files = {part: path.with_name(f"{stem}.{part}.{kind}") for part in ("nodes", "edges")}
    if kind == "csv":
        files["schema"] = path.with_name(f"{stem}.schema.json")
    return files


def write_tables(
    graph: Data | nx.Graph,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_text: int | None = None,
    directed: bool = False,
) -> list[Path]:
    """Write a table of nodes and one of edges; see `write_graph`.

    `corpus.parquet` becomes `corpus.nodes.parquet` (a row per node: `node`, then its attributes)
    and `corpus.edges.parquet` (a row per edge: `source`, `target`, `weight`, ...; each pair of an
    undirected graph once). CSV has a third file, `corpus.schema.json`, with the types of the
    columns and the attributes of the graph, which Parquet keeps in its metadata.

    Args:
        graph: A document graph, or a NetworkX graph whose nodes are all integers or all strings.
        path: Ends in `.parquet` or `.csv`.
        overwrite: Replace existing files.
        max_text: Longest text in characters; None keeps all.
        directed: Write both directions of a `Data`, which may then differ.

    Returns:
        The files.

    Raises:
        ValueError: An attribute a table cannot hold: not a scalar, of several types, beyond 64
            bits, or named as the columns of the ends.
        FileExistsError: A file exists and `overwrite` is false.

    Cost: O(N + E log E); a million edges take about a second as Parquet.
    """
    files = table_paths(Path(path))
    form = _FORMS[Path(path).suffix.lower().removeprefix(".")]
    if isinstance(graph, Data):
        tables = _of_data(graph, max_text, directed)
        attributes = graph_attributes(graph)
        both = directed
    else:
        graph = as_networkx(graph, max_text=max_text, directed=directed)
        tables = _of_networkx(graph, form)
        attributes = graph_row(graph, form)
        both = graph.is_directed()
    described: dict[str, Any] = {"directed": both, "graph": attributes}
    with ExitStack() as stack:
        # No file takes its final name before all are complete.
        drafts = {
            part: stack.enter_context(atomic_write(file, overwrite=overwrite))
            for part, file in files.items()
        }
        for part, table in tables.items():
            if form == "CSV":
                described[part] = {field.name: str(field.type) for field in table.schema}
                with csv.CSVWriter(drafts[part], table.schema) as sheet:
                    for batch in table.batches:
                        sheet.write_batch(batch)
                continue
            schema = table.schema.with_metadata({_KEY: json.dumps(described).encode()})
            with parquet.ParquetWriter(drafts[part], schema) as writer:
                for batch in table.batches:
                    writer.write_batch(batch)
        if "schema" in drafts:
            drafts["schema"].write((json.dumps(described, indent=2) + "\n").encode())
    return list(files.values())


def _of_data(data: Data, max_text: int | None, directed: bool) -> dict[str, _Table]:
    size = count_nodes(data)
    nodes = {"node": np.arange(size), **node_columns(data, max_text=max_text)}
    edges = read_edges(data, directed=directed)
    ends: dict[str, Any] = {"source": edges.source, "target": edges.target}
    for name in edges.columns:
        if name in ends:
            raise attribute_error(name, "edge", None, "A table", "the name is taken")
    columns = {**ends, **edges.columns}
    if "kind" in columns:
        numbers = pa.array(columns["kind"].astype(np.int8))
        columns["kind"] = pa.DictionaryArray.from_arrays(numbers, list(EDGE_KINDS)).cast(
            pa.string()
        )
    return {"nodes": _sliced(nodes), "edges": _sliced(columns)}


def _sliced(columns: Mapping[str, Any]) -> _Table:
    arrays = {
        # Without rows pyarrow cannot tell a type.
        name: pa.array(column, type=None if len(column) else pa.string())
        if isinstance(column, list)
        else pa.array(column)
        for name, column in columns.items()
    }
    table = pa.table(arrays)
    return _Table(table.schema, iter(table.to_batches(max_chunksize=_CHUNK)))


def _of_networkx(graph: nx.Graph, form: str) -> dict[str, _Table]:
    kinds = {type(node) for node in graph}
    if not kinds <= {int} and not kinds <= {str}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(
            f"Names of nodes must be all integers or all strings in a table (got {found}). Rename "
            "them with nx.convert_node_labels_to_integers."
        )
    name_type = _TYPES[kinds.pop()] if kinds else pa.int64()
    rows = [
        {"node": node, **plain_row(data, "node", node, form, ("node",))}
        for node, data in graph.nodes(data=True)
    ]
    nodes = _typed(rows, {"node": name_type}, "node", form)
    taken = ("source", "target")
    rows = [
        {"source": i, "target": j, **plain_row(data, "edge", (i, j), form, taken)}
        for i, j, data in graph.edges(data=True)
    ]
    edges = _typed(rows, dict.fromkeys(taken, name_type), "edge", form)
    return {"nodes": nodes, "edges": edges}


def _typed(
    rows: Sequence[dict[str, Any]], known: Mapping[str, pa.DataType], domain: str, form: str
) -> _Table:
    types = dict(known)
    for row in rows:
        for name, value in row.items():
            kind = _TYPES[type(value)]
            if types.setdefault(name, kind) != kind:
                why = f"it must be of one type, got {types[name]} and {kind}"
                raise attribute_error(name, domain, None, form, why)
    schema = pa.schema(list(types.items()))

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            arrays = []
            for field in schema:
                try:
                    column = [row.get(field.name) for row in part]
                    arrays.append(pa.array(column, field.type))
                except (OverflowError, pa.ArrowInvalid) as error:
                    raise attribute_error(field.name, domain, None, form, str(error)) from error
            yield pa.record_batch(arrays, schema=schema)

    return _Table(schema, batches())


def read_tables(path: str | os.PathLike[str]) -> GraphColumns:
    """Read the tables of `write_tables`, by the same name or that of one of the files.

    CSV tables without `.schema.json` are read too; the types of their columns are guessed.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or its columns are not nodes and edges.
    """
    files = table_paths(Path(path))
    described: dict[str, Any] = {}
    tables: dict[str, pa.Table] = {}
    try:
        if "schema" in files and files["schema"].exists():
            described = read_object(files["schema"])
        for part in ("nodes", "edges"):
            file = files[part]
            if file.suffix == ".csv":
                tables[part] = _read_csv(file, described.get(part, {}))
            else:
                tables[part] = read_parquet(file)
                described |= load_json((tables[part].schema.metadata or {}).get(_KEY, b"{}"))
        names = tables["nodes"]["node"].to_pylist()
        source, target = (_places(names, tables["edges"][end]) for end in ("source", "target"))
        attributes = described.get("graph", {})
        if not isinstance(attributes, dict):
            raise ValueError("its description of the graph is not an object")
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged tables raise errors without a common base
        raise ValueError(f"'path' must name node and edge tables ({path}: {error}).") from error
    return GraphColumns(
        names,
        {name: _values(tables["nodes"][name]) for name in tables["nodes"].column_names[1:]},
        source,
        target,
        {name: _values(tables["edges"][name]) for name in tables["edges"].column_names[2:]},
        bool(described.get("directed", False)),
        attributes,
    )


def _places(names: list[Any], ends: pa.ChunkedArray) -> np.ndarray:
    """Positions (P,) of the nodes that edges name."""
    if names and isinstance(names[0], int) and names == list(range(len(names))):
        places = ends.to_numpy().astype(np.int64)
        if places.size and not 0 <= places.min() <= places.max() < len(names):
            raise ValueError("an edge names a node that is not in the table of nodes")
        return places
    place = {name: position for position, name in enumerate(names)}
    return np.array([place[name] for name in ends.to_pylist()], dtype=np.int64)


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """Numbers without gaps as an array, everything else as a list with None."""
    if column.null_count or not (
        pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    ):
        return column.to_pylist()
    return column.to_numpy()


def _read_csv(file: Path, types: Mapping[str, str]) -> pa.Table:
    size = file.stat().st_size
    return csv.read_csv(
        file,
        # A row may not be longer than a block.
        read_options=csv.ReadOptions(block_size=max(1 << 20, min(size + 1, 2**31 - 1))),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types={name: pa.type_for_alias(kind) for name, kind in types.items()},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
