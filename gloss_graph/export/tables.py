"""Node and edge tables, Parquet or CSV, for pandas, DuckDB, Spark or cuGraph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from gloss_graph._internal.extras import require

require("pyarrow", extra="analysis")

import pyarrow as pa
from pyarrow import compute, csv, parquet
from torch_geometric.data import Data

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import load_json, read_object, read_parquet
from gloss_graph.export.attributes import attribute_error, plain_graph
from gloss_graph.export.networkx_graphs import (
    GraphColumns,
    as_networkx,
    data_columns,
    networkx_columns,
)

_CHUNK = 1 << 17
_KEY = b"gloss_graph"
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_TAKEN = {"node": ("node",), "edge": ("source", "target")}


def save_tables(
    graph: Data | nx.Graph, path: Path, overwrite: bool, max_text: int | None, directed: bool
) -> list[Path]:
    """Write the tables that `write_tables` describes."""
    files = _paths(path)
    form = "CSV" if "schema" in files else "Parquet"
    if isinstance(graph, Data):
        columns = data_columns(graph, max_text, directed=directed)
    else:
        plain = as_networkx(graph, max_text=max_text, directed=directed)
        columns = networkx_columns(plain_graph(plain, form, _TAKEN))
    tables = _tables(columns, form)
    described: dict[str, Any] = {"directed": columns.directed, "graph": columns.attributes}
    with ExitStack() as stack:
        # No file takes its final name before all are complete.
        drafts = {
            part: stack.enter_context(atomic_write(file, overwrite=overwrite))
            for part, file in files.items()
        }
        for part, table in tables.items():
            if form == "CSV":
                described[part] = {field.name: str(field.type) for field in table.schema}
                csv.write_csv(table, drafts[part])
                continue
            table = table.replace_schema_metadata({_KEY: json.dumps(described).encode()})
            with parquet.ParquetWriter(drafts[part], table.schema) as writer:
                writer.write_table(table, row_group_size=_CHUNK)
        if "schema" in drafts:
            drafts["schema"].write((json.dumps(described, indent=2) + "\n").encode())
    return list(files.values())


def _paths(path: Path) -> dict[str, Path]:
    """The files behind one name: three for `corpus.csv`, two for `corpus.parquet`."""
    kind = path.suffix.lower().removeprefix(".")
    stem = path.name.removesuffix(path.suffix)
    for part in (".nodes", ".edges"):
        stem = stem.removesuffix(part)
    files = {part: path.with_name(f"{stem}.{part}.{kind}") for part in ("nodes", "edges")}
    if kind == "csv":
        files["schema"] = path.with_name(f"{stem}.schema.json")
    return files


def _tables(columns: GraphColumns, form: str) -> dict[str, pa.Table]:
    kinds = {type(name) for name in columns.names}
    if not kinds <= {int} and not kinds <= {str}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(
            f"Names of nodes must be all integers or all strings in a table (got {found}). Rename "
            "them with nx.convert_node_labels_to_integers."
        )
    names = pa.array(columns.names, _TYPES[kinds.pop()] if kinds else pa.int64())
    ends = {"source": names.take(pa.array(columns.source))}
    ends["target"] = names.take(pa.array(columns.target))
    return {
        "nodes": pa.table({"node": names} | _arrays(columns.nodes, "node", form)),
        "edges": pa.table(ends | _arrays(columns.edges, "edge", form)),
    }


def _arrays(columns: Mapping[str, Any], domain: str, form: str) -> dict[str, pa.Array]:
    arrays = {}
    for name, values in columns.items():
        if name in _TAKEN[domain]:
            raise attribute_error(name, domain, None, form, "the name is taken")
        if isinstance(values, np.ndarray) and values.dtype != object:
            arrays[name] = pa.array(values)
            continue
        types = {type(value) for value in values} - {type(None)}
        if len(types) > 1:
            got = " and ".join(sorted(str(_TYPES[kind]) for kind in types))
            raise attribute_error(name, domain, None, form, f"it must be of one type, got {got}")
        try:
            # Without rows pyarrow cannot tell a type.
            arrays[name] = pa.array(values, _TYPES[types.pop()] if types else pa.string())
        except (OverflowError, pa.ArrowInvalid) as error:
            raise attribute_error(name, domain, None, form, str(error)) from error
    return arrays


def read_tables(path: Path) -> GraphColumns:
    """Read the tables of `save_tables`, by the same name or that of one of the files.

    CSV tables without `.schema.json` are read too; the types of their columns are guessed.
    """
    files = _paths(path)
    described: dict[str, Any] = {}
    tables: dict[str, pa.Table] = {}
    if "schema" in files and files["schema"].exists():
        described = read_object(files["schema"])
    for part in ("nodes", "edges"):
        if "schema" in files:
            tables[part] = _read_csv(files[part], described.get(part, {}))
        else:
            tables[part] = read_parquet(files[part])
            described |= load_json((tables[part].schema.metadata or {}).get(_KEY, b"{}"))
    names = tables["nodes"]["node"]
    ends = []
    for end in ("source", "target"):
        places = compute.index_in(tables["edges"][end].cast(names.type), value_set=names)
        if places.null_count:
            raise ValueError("an edge names a node that is not in the table of nodes")
        ends.append(places.to_numpy().astype(np.int64))
    attributes = described.get("graph", {})
    if not isinstance(attributes, dict):
        raise ValueError("its description of the graph is not an object")
    nodes, edges = (
        {name: _values(tables[part][name]) for name in tables[part].column_names[first:]}
        for part, first in (("nodes", 1), ("edges", 2))
    )
    directed = bool(described.get("directed", False))
    source, target = ends
    return GraphColumns(names.to_pylist(), nodes, source, target, edges, directed, attributes)


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """Numbers without gaps as an array, everything else as a list with None."""
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return column.to_numpy() if numbers and not column.null_count else column.to_pylist()


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
