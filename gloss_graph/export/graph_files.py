"""Write a document graph to a file and read it back: the format follows the suffix."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import networkx as nx
import numpy as np
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import check_unpacked, check_zip, read_bytes
from gloss_graph.export.attributes import check_simple
from gloss_graph.export.graph_arrays import count_nodes, read_edges
from gloss_graph.export.networkx_graphs import (
    GraphColumns,
    as_networkx,
    data_from_columns,
    from_networkx,
    networkx_of,
)
from gloss_graph.export.text_formats import (
    gexf_bytes,
    graphml_bytes,
    json_bytes,
    parse_gexf,
    parse_graphml,
    parse_json,
)

#: Suffixes that `write_graph` and `read_graph` know; the text formats also with `.gz`.
FORMATS = (".csv", ".gexf", ".graphml", ".json", ".npz", ".parquet")
# Writer and reader of the text formats.
_TEXT = {
    ".gexf": (gexf_bytes, parse_gexf),
    ".graphml": (graphml_bytes, parse_graphml),
    ".json": (json_bytes, parse_json),
}
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
    r"""Write a graph in the format that its suffix names, and return the files written.

    | suffix     | format                                          | opens in                    |
    | ---------- | ----------------------------------------------- | --------------------------- |
    | `.graphml` | GraphML                                         | NetworkX, igraph, Cytoscape |
    | `.gexf`    | GEXF with weights, captions, classes and colors | Gephi                       |
    | `.json`    | node-link JSON                                  | browsers, NetworkX          |
    | `.parquet` | two tables, `NAME.nodes` and `NAME.edges`       | pandas, DuckDB, Spark       |
    | `.csv`     | the same, and `NAME.schema.json` with the types | everything                  |
    | `.npz`     | the weights alone, a SciPy CSR matrix (N, N)    | `scipy.sparse.load_npz`     |

    The first three may also end in `.gz`. Attributes are those of `to_networkx`; characters that
    XML cannot hold (control characters, lone surrogates) are written as U+FFFD, and line ends as
    `\n`. Every file appears whole or not at all.

    Args:
        graph: A document graph, or any NetworkX graph of plain values except a multigraph.
        path: The file; its folder must exist.
        overwrite: Replace existing files.
        max_text: Longest `text` in characters, the closing ellipsis included; None keeps all.
        directed: Write both directions of a `Data`, which may then differ.

    Raises:
        ValueError: An unknown suffix, or a graph or attribute that the format cannot hold.
        OSError: A file exists and `overwrite` is false, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> graph = nx.Graph([(0, 1, {"weight": 0.5})])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_graph(graph, Path(folder) / "corpus.parquet")
        ...     print([file.name for file in files], read_graph(files[0]).edge_weight)
        ['corpus.nodes.parquet', 'corpus.edges.parquet'] tensor([0.5000, 0.5000])
    """
    form = _format(path)
    if form in (".parquet", ".csv"):
        return write_tables(graph, path, overwrite=overwrite, max_text=max_text, directed=directed)
    if form == ".npz":
        return [write_csr(graph, path, overwrite=overwrite, directed=directed)]
    write, _ = _TEXT[form]
    content = write(as_networkx(graph, max_text=max_text, directed=directed))
    return [_save(content, Path(path), overwrite)]


def write_graphml(
    graph: nx.Graph, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a NetworkX graph as GraphML, as `write_graph` does, whatever the suffix.

    A path that ends in `.gz` is compressed.
    """
    check_simple(graph)
    return _save(graphml_bytes(graph), Path(path), overwrite)


def _save(content: bytes, path: Path, overwrite: bool) -> Path:
    with atomic_write(path, overwrite=overwrite) as handle:
        handle.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def write_tables(
    graph: Data | nx.Graph,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_text: int | None = None,
    directed: bool = False,
) -> list[Path]:
    """Write a table of nodes and one of edges, as `write_graph` does for `.parquet` and `.csv`.

    `corpus.parquet` becomes `corpus.nodes.parquet` (`node`, then its attributes) and
    `corpus.edges.parquet` (`source`, `target`, `weight`, ...; each pair of an undirected graph
    once). CSV has a third file, `corpus.schema.json`, with types and attributes of the graph, which
    Parquet keeps in its metadata. Nodes are all integers or all strings.
    """
    from gloss_graph.export.tables import save_tables  # pyarrow only where it is needed

    return save_tables(graph, path, overwrite=overwrite, max_text=max_text, directed=directed)


def write_csr(
    graph: Data | nx.Graph,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    directed: bool = False,
) -> Path:
    """Write the weights as a SciPy CSR matrix (N, N), row i to column j, without pickle.

    An edge without a weight counts 1; labels, texts and other attributes are left out.
    """
    data = graph if isinstance(graph, Data) else None
    if data is None:
        plain = as_networkx(graph, max_text=None, directed=directed)
        weighted = nx.create_empty_copy(plain, with_data=False)
        weighted.add_weighted_edges_from(plain.edges(data="weight", default=1.0))
        data, directed = from_networkx(weighted), True
    size = count_nodes(data)
    # The reader checks the directions; a matrix has both of them in any case.
    edges = read_edges(data, directed=directed, only=("edge_weight",))
    edges = edges if directed else edges.both_ways()
    weight = edges.columns.get("weight", np.ones(edges.source.size, dtype=np.float32))
    matrix = sparse.csr_matrix((weight, (edges.source, edges.target)), shape=(size, size))
    with atomic_write(path, overwrite=overwrite) as handle:
        # Weights hardly compress, and compression takes ten times longer.
        sparse.save_npz(handle, matrix, compressed=False)
    return Path(path)


def read_graph(path: str | os.PathLike[str]) -> Data:
    """Read a document graph, as `from_networkx` returns it, from a file of any known format.

    The path is that of `write_graph`; for tables also the name of one of the files. A matrix
    (`.npz`) has nodes and weights only. ValueError for a damaged file or one of another format.
    """
    found = _read(path)
    try:
        return from_networkx(found) if isinstance(found, nx.Graph) else data_from_columns(found)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"'path' must hold a document graph ({path}: {error})") from error


def read_networkx(path: str | os.PathLike[str]) -> nx.Graph:
    """Read a graph from the same files as `read_graph`, as an `nx.Graph` or `nx.DiGraph`.

    Names of nodes that are all whole numbers become integers.
    """
    found = _read(path)
    try:
        return found if isinstance(found, nx.Graph) else networkx_of(found)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"'path' must hold a document graph ({path}: {error})") from error


def _read(path: str | os.PathLike[str]) -> nx.Graph | GraphColumns:
    """What a file holds, in the form that its reader makes."""
    form = _format(path)
    if form in (".parquet", ".csv"):
        from gloss_graph.export.tables import read_tables

        return read_tables(path)
    if form == ".npz":
        return _matrix_columns(Path(path))
    try:
        content = read_bytes(Path(path))
    except ValueError as error:
        raise ValueError(f"'path' must be a graph file ({error})") from error
    _, parse = _TEXT[form]
    return parse(content, path)


def _matrix_columns(path: Path) -> GraphColumns:
    """The edges in a `.npz` file; undirected if the matrix is symmetric."""
    matrix = _matrix(path)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"'path' must hold a square matrix (got {matrix.shape} in {path}).")
    source, target = matrix.row.astype(np.int64), matrix.col.astype(np.int64)
    forth, back = np.lexsort((target, source)), np.lexsort((source, target))
    directed = not (
        np.array_equal(source[forth], target[back])
        and np.array_equal(target[forth], source[back])
        and np.array_equal(matrix.data[forth], matrix.data[back])
    )
    kept = np.arange(source.size) if directed else np.flatnonzero(source <= target)
    edges = {"weight": matrix.data[kept]}
    names = list(range(matrix.shape[0]))
    return GraphColumns(names, {}, source[kept], target[kept], edges, directed, {})


def _matrix(path: Path) -> sparse.coo_matrix:
    """The matrix in a `.npz` file, refused if it has far more nodes than the file has room for."""
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


def _format(path: str | os.PathLike[str]) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    form = suffixes[-1] if suffixes else ""
    if form == ".gz" and len(suffixes) > 1 and suffixes[-2] in _TEXT:
        return suffixes[-2]
    if form not in FORMATS:
        raise ValueError(
            f"'path' must end in one of {', '.join(FORMATS)} (text formats also with .gz; got "
            f"'{Path(path).name}')."
        )
    return form
