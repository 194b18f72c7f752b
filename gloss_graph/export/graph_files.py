"""Write a document graph to a file and read it back: the format follows the suffix."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import check_unpacked, check_zip, read_bytes
from gloss_graph.export.attributes import integer_names
from gloss_graph.export.from_networkx import GraphColumns, data_from_columns, from_networkx
from gloss_graph.export.gexf import gexf_bytes, parse_gexf
from gloss_graph.export.graph_arrays import count_nodes, read_edges
from gloss_graph.export.graphml import parse_graphml, write_graphml
from gloss_graph.export.node_link import json_bytes, parse_json
from gloss_graph.export.to_networkx import as_networkx

__all__ = ["FORMATS", "read_graph", "read_networkx", "write_csr", "write_graph"]

#: Suffixes that `write_graph` and `read_graph` know; the text formats also with `.gz`.
FORMATS = (".csv", ".gexf", ".graphml", ".json", ".npz", ".parquet")
_PACKED = (".gexf", ".graphml", ".json")
# Least bytes of a node in memory.
_NODE_BYTES = 64


def write_graph(
    graph: Data | nx.Graph,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_text: int | None = None,
    directed: bool = False,
) -> list[Path]:
    r"""Write a graph in the format that its suffix names.

    | suffix     | format                                          | opens in                    |
    | ---------- | ----------------------------------------------- | --------------------------- |
    | `.graphml` | GraphML                                         | NetworkX, igraph, Cytoscape |
    | `.gexf`    | GEXF with weights, captions, classes and colors | Gephi                       |
    | `.json`    | node-link JSON                                  | browsers, NetworkX          |
    | `.parquet` | two tables, `NAME.nodes` and `NAME.edges`       | pandas, DuckDB, Spark       |
    | `.csv`     | the same, and `NAME.schema.json` with the types | everything                  |
    | `.npz`     | the weights alone, a SciPy CSR matrix (N, N)    | `scipy.sparse.load_npz`     |

    The first three may also end in `.gz`. Attributes are those of `to_networkx`. Texts and names
    are the same in every format: characters that XML cannot hold (control characters, lone
    surrogates) are written as U+FFFD, and line ends as `\n`. Every file appears whole or not at
    all.

    Args:
        graph: A document graph, or any NetworkX graph of plain values except a multigraph.
        path: The file; its folder must exist.
        overwrite: Replace existing files.
        max_text: Longest `text` in characters, the closing ellipsis included; None keeps all.
        directed: Write both directions of a `Data`, which may then differ.

    Returns:
        The files written.

    Raises:
        ValueError: An unknown suffix, or a graph or attribute that the format cannot hold; the
            message names it.
        FileExistsError: A file exists and `overwrite` is false.
        OSError: The folder is missing or cannot be written.

    Example:
        >>> import tempfile
        >>> graph = nx.Graph([(0, 1, {"weight": 0.5})])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_graph(graph, Path(folder) / "corpus.parquet")
        ...     print([file.name for file in files], read_graph(files[0]).edge_weight)
        ['corpus.nodes.parquet', 'corpus.edges.parquet'] tensor([0.5000, 0.5000])

    See also: `read_graph` and `read_networkx`, which read all of these formats.
    """
    target, form = Path(path), _format(path)
    if form in (".parquet", ".csv"):
        from gloss_graph.export.tables import write_tables  # pyarrow only where it is needed

        return write_tables(
            graph, target, overwrite=overwrite, max_text=max_text, directed=directed
        )
    if form == ".npz":
        return [write_csr(graph, target, overwrite=overwrite, directed=directed)]
    plain = as_networkx(graph, max_text=max_text, directed=directed)
    if form == ".graphml":
        return [write_graphml(plain, target, overwrite=overwrite)]
    _write(target, gexf_bytes(plain) if form == ".gexf" else json_bytes(plain), overwrite)
    return [target]


def read_graph(path: str | os.PathLike[str]) -> Data:
    """Read a document graph from a file that `write_graph` or another program wrote.

    Args:
        path: As given to `write_graph`; for tables also the name of one of the files.

    Returns:
        The graph, as `from_networkx` returns it. A matrix (`.npz`) has nodes and weights only.

    Raises:
        ValueError: An unknown suffix, a damaged file, or one of another format.
        OSError: A file is missing or cannot be read.
    """
    columns = _columns(path)
    found = read_networkx(path) if columns is None else columns
    try:
        if isinstance(found, GraphColumns):
            return data_from_columns(found)
        return from_networkx(found)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"'path' must hold a document graph ({path}: {error})") from error


def read_networkx(path: str | os.PathLike[str]) -> nx.Graph:
    """Read a graph as an `nx.Graph` or `nx.DiGraph`; see `read_graph`.

    Names of nodes that are all whole numbers become integers.

    Raises:
        ValueError: An unknown suffix, a damaged file, or one of another format.
        OSError: A file is missing or cannot be read.
    """
    columns = _columns(path)
    if columns is not None:
        try:
            return _networkx(columns)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"'path' must hold a document graph ({path}: {error})") from error
    source, form = Path(path), _format(path)
    try:
        content = read_bytes(source)
    except ValueError as error:
        raise ValueError(f"'path' must be a graph file ({error})") from error
    if form == ".json":
        return parse_json(content, source)
    graph = (parse_gexf if form == ".gexf" else parse_graphml)(content, source)
    numbers = integer_names(graph)
    return graph if not numbers else nx.relabel_nodes(graph, numbers)


def write_csr(
    graph: Data | nx.Graph,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    directed: bool = False,
) -> Path:
    """Write the weights as a SciPy CSR matrix (N, N), row i to column j, without pickle.

    The file has no labels, texts and other attributes; write those as tables. An edge without a
    weight counts 1.

    Raises:
        ValueError, OSError: As `write_graph`; also for a weight that is not a number.
    """
    data = graph if isinstance(graph, Data) else None
    if data is None:
        bare = as_networkx(graph, max_text=None, directed=directed)
        skeleton = nx.DiGraph() if bare.is_directed() else nx.Graph()
        skeleton.add_nodes_from(bare)
        skeleton.add_weighted_edges_from(bare.edges(data="weight", default=1.0))
        data, directed = from_networkx(skeleton), True
    size = count_nodes(data)
    # The reader checks the directions; a matrix has both of them in any case.
    edges = read_edges(data, directed=directed)
    source, target = edges.source, edges.target
    weight = edges.columns.get("weight", np.ones(source.size, dtype=np.float32))
    if not directed:
        back = source != target
        source, target = (
            np.concatenate([source, target[back]]),
            np.concatenate([target, source[back]]),
        )
        weight = np.concatenate([weight, weight[back]])
    matrix = sparse.csr_matrix((weight, (source, target)), shape=(size, size))
    with atomic_write(path, overwrite=overwrite) as handle:
        # Weights hardly compress, and compression takes ten times longer.
        sparse.save_npz(handle, matrix, compressed=False)
    return Path(path)


def _columns(path: str | os.PathLike[str]) -> GraphColumns | None:
    form = _format(path)
    if form in (".parquet", ".csv"):
        from gloss_graph.export.tables import read_tables

        return read_tables(path)
    if form != ".npz":
        return None
    matrix = _matrix(Path(path))
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"'path' must hold a square matrix (got {matrix.shape} in {path}).")
    source, target = matrix.row.astype(np.int64), matrix.col.astype(np.int64)
    there, back = np.lexsort((target, source)), np.lexsort((source, target))
    directed = not (
        np.array_equal(source[there], target[back])
        and np.array_equal(target[there], source[back])
        and np.array_equal(matrix.data[there], matrix.data[back])
    )
    kept = np.arange(source.size) if directed else np.flatnonzero(source <= target)
    edges = {"weight": matrix.data[kept]}
    names = list(range(matrix.shape[0]))
    return GraphColumns(names, {}, source[kept], target[kept], edges, directed, {})


def _matrix(path: Path) -> sparse.coo_matrix:
    """The matrix in a `.npz` file, checked.

    Raises:
        ValueError: Damaged, of other content, or of far more nodes than the file has room for.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the spelling.")
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as stored:
            # Nodes without edges take no room in some layouts.
            check_unpacked(path, _NODE_BYTES * max(map(int, stored["shape"].ravel())))
        matrix = sparse.load_npz(path).tocoo()
        matrix.data + 0.0  # raises for values that are not numbers
        sparse.coo_matrix((matrix.data, (matrix.row, matrix.col)), shape=matrix.shape)
    except Exception as error:  # damaged archives raise errors without a common base
        raise ValueError(f"'path' must be a SciPy matrix ({path}: {error}).") from error
    return matrix


def _networkx(columns: GraphColumns) -> nx.Graph:
    graph = nx.DiGraph() if columns.directed else nx.Graph()
    graph.graph.update(columns.attributes)
    for row, name in zip(_rows(columns.nodes, len(columns.names)), columns.names, strict=True):
        graph.add_node(name, **row)
    ends = zip(columns.source.tolist(), columns.target.tolist(), strict=True)
    for row, (i, j) in zip(_rows(columns.edges, columns.source.size), ends, strict=True):
        graph.add_edge(columns.names[i], columns.names[j], **row)
    return graph


def _rows(columns: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    plain = {
        name: values.tolist() if isinstance(values, np.ndarray) else values
        for name, values in columns.items()
    }
    return [
        {name: values[i] for name, values in plain.items() if values[i] is not None}
        for i in range(size)
    ]


def _format(path: str | os.PathLike[str]) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    form = suffixes[-1] if suffixes else ""
    if form == ".gz" and len(suffixes) > 1 and suffixes[-2] in _PACKED:
        return suffixes[-2]
    if form not in FORMATS:
        raise ValueError(
            f"'path' must end in one of {', '.join(FORMATS)} (text formats also with .gz; got "
            f"'{Path(path).name}')."
        )
    return form


def _write(target: Path, content: bytes, overwrite: bool) -> None:
    with atomic_write(target, overwrite=overwrite) as handle:
        if target.suffix == ".gz":
            with gzip.GzipFile("", "wb", fileobj=handle, mtime=0) as packed:
                packed.write(content)
        else:
            handle.write(content)
