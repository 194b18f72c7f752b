"""Write a document graph to a file and read it back: the format follows the suffix."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import SubElement, fromstring

import networkx as nx
import numpy as np
from networkx.readwrite.gexf import GEXFWriter
from networkx.readwrite.graphml import GraphMLWriter
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import misfit
from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import check_unpacked, check_xml, check_zip, load_json, read_bytes
from gloss_graph.export.attributes import (
    GREY,
    PALETTE,
    XML_DEFAULTS,
    attribute_error,
    attributes_of,
    check_simple,
    clean_text,
    plain_graph,
    plain_row,
    plain_value,
)
from gloss_graph.export.graph_arrays import count_nodes, read_edges
from gloss_graph.export.networkx_graphs import (
    GraphColumns,
    as_networkx,
    data_from_columns,
    from_networkx,
    networkx_of,
)

# Values as XML Schema writes them; NetworkX writes Python's words.
_WORDS = {"True": "true", "False": "false", "inf": "INF", "-inf": "-INF", "nan": "NaN"}
_GEXF_TAKEN = {
    "node": ("id", "class", "pid", "start", "end", "viz", "parents", "spells", "slices", "key"),
    "edge": ("id", "label", "type", "start", "end", "viz", "spells", "slices", "key"),
}
_JSON_TAKEN = {"node": ("id",), "edge": ("source", "target", "key")}
_CAPTION = 60  # characters
_DESCRIPTION = "{http://www.gexf.net/1.2draft}meta/{http://www.gexf.net/1.2draft}description"
# Least bytes of a node in memory.
_NODE_BYTES = 64


def _graphml_bytes(graph: nx.Graph) -> bytes:
    """GraphML, one line per node and edge, with the defaults that a reader found."""
    plain = plain_graph(graph, "GraphML", {"graph": ("id",)})
    _written_names(graph)
    writer = GraphMLWriter(prettyprint=False)
    for domain, key in XML_DEFAULTS.items():
        for name, value in plain_row(graph.graph.get(key) or {}, domain, None, "GraphML").items():
            writer.get_key(name, writer.get_xml_type(type(value)), domain, value)
    writer.add_graph_element(plain)
    texts = {key.get("id") for key in writer.xml if key.get("attr.type") == "string"}
    for element in writer.xml.iter():
        if element.tag != "data":
            element.tail = "\n"
        elif element.get("key") not in texts:
            element.text = _WORDS.get(element.text, element.text)
    target = io.BytesIO()
    writer.dump(target)
    return target.getvalue()


def _parse_graphml(content: bytes) -> nx.Graph:
    """Read GraphML, without the empty defaults that NetworkX's reader adds."""
    check_xml(content)
    graph = nx.parse_graphml(content)
    if graph.is_multigraph():
        raise ValueError("it has parallel edges")
    for key in XML_DEFAULTS.values():
        if graph.graph.get(key) == {}:
            del graph.graph[key]
    return _numbered(graph)


def _gexf_bytes(graph: nx.Graph) -> bytes:
    """GEXF; a node's caption is its text, its class is the column `class`."""
    plain = plain_graph(graph, "GEXF", _GEXF_TAKEN)
    names = _written_names(graph)
    types: dict[tuple[str, str], type] = {}
    for domain, where, name, value in attributes_of(plain):
        known = types.setdefault((domain, name), type(value))
        why = ""
        if (domain, name) == ("edge", "weight"):
            why = "a weight must be a number" if isinstance(value, str) else ""
        elif known is not type(value):
            why = f"it is {known.__name__} elsewhere, {type(value).__name__} here"
        if why:
            raise attribute_error(name, domain, where, "GEXF", why)
    colors = _colors(plain)
    described = dict(plain.graph)
    plain.graph.clear()  # The writer would take some of these for settings.
    for node, row in plain.nodes(data=True):
        if "label" in row:
            row["class"] = row.pop("label")
            row["viz"] = {"color": colors.get(row["class"], colors[""])}
        caption = row["text"] if isinstance(row.get("text"), str) else ""
        row["label"] = clean_text(" ".join(caption.split()), _CAPTION) or names[node]
    writer = GEXFWriter(prettyprint=False)
    writer.add_graph(plain)
    meta = writer.xml.find("meta")
    # The date would make equal graphs differ from day to day.
    meta.attrib.pop("lastmodifieddate", None)
    if described:
        SubElement(meta, "description").text = json.dumps(described)
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def _colors(graph: nx.Graph) -> dict[Any, dict[str, Any]]:
    """Colors of the classes in the order of `label_names`; grey for no class."""
    try:
        declared = load_json(graph.graph.get("label_names", ""))
    except (TypeError, ValueError):
        declared = None  # another program's, in words
    ordered = [plain_value(name) for name in declared] if isinstance(declared, list) else []
    used = {label for _, label in graph.nodes(data="label")} - {None, "", -1}
    ordered += sorted(used.difference(ordered), key=lambda label: (str(type(label)), label))
    colors = {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(ordered)}
    return {
        label: {"r": int(c[1:3], 16), "g": int(c[3:5], 16), "b": int(c[5:7], 16), "a": 1.0}
        for label, c in (colors | {"": GREY, -1: GREY}).items()
    }


def _parse_gexf(content: bytes) -> nx.Graph:
    """Read GEXF; a graph of `_gexf_bytes` comes back without colors and captions."""
    check_xml(content)
    graph = nx.read_gexf(io.BytesIO(content))
    try:
        attributes = load_json(fromstring(content).findtext(_DESCRIPTION) or "")
    except ValueError:
        attributes = None  # another program's, in words
    graph.graph.clear()
    graph.graph.update(attributes if isinstance(attributes, dict) else {})
    for row in graph.nodes.values():
        row.pop("viz", None)
        row.pop("label", None)
        if "class" in row:
            row["label"] = row.pop("class")
    for row in graph.edges.values():
        row.pop("id", None)
    return _numbered(graph)


def _json_bytes(graph: nx.Graph) -> bytes:
    """Node-link JSON; edges are under `"edges"`, NetworkX's default."""
    form = "Node-link JSON"
    plain = plain_graph(graph, form, _JSON_TAKEN)
    for node in plain:
        if isinstance(node, bool) or not isinstance(node, (int, str)):
            raise ValueError(
                f"Names of nodes must be strings or integers (got {node!r}). Rename them with "
                "nx.convert_node_labels_to_integers."
            )
    for domain, where, name, value in attributes_of(plain):
        if isinstance(value, float) and not math.isfinite(value):
            raise attribute_error(name, domain, where, form, f"JSON has no {value}")
    # ASCII escapes are safe in every encoding, and inside a page's script once < is escaped.
    return json.dumps(nx.node_link_data(plain, edges="edges"), allow_nan=False).encode()


def _parse_json(content: bytes) -> nx.Graph:
    """Read node-link JSON whose edges are under `"edges"` or `"links"`."""
    stored = load_json(content)
    if stored.get("multigraph"):
        raise ValueError("it is a multigraph")
    if not isinstance(stored.get("graph", {}), dict):
        raise ValueError(f"'graph' must be an object (got {stored['graph']!r:.60})")
    listed = {row["id"] for row in stored["nodes"]}
    graph = nx.node_link_graph(
        {"directed": False, "graph": {}, **stored, "multigraph": False},
        edges="edges" if "edges" in stored else "links",
    )
    if unknown := set(graph) - listed:
        raise ValueError(f"an edge names {unknown.pop()!r}, which is not a node")
    return graph


def _written_names(graph: nx.Graph) -> dict[Any, str]:
    """Names of the nodes as XML holds them."""
    names = {node: str(node) for node in graph}
    if bad := [node for node, name in names.items() if clean_text(name) != name]:
        raise ValueError(
            f"Names of nodes must be free of control characters (got {bad[0]!r}). "
            "Rename them with nx.relabel_nodes."
        )
    if len(set(names.values())) < len(names):
        raise ValueError(
            "Names of nodes must differ in writing (got two that do not, such as 1 and '1'). "
            "Rename them with nx.convert_node_labels_to_integers."
        )
    return names


def _numbered(graph: nx.Graph) -> nx.Graph:
    """The graph with integers for names if all names are whole numbers in plain writing."""
    # Python refuses to read thousands of digits.
    if not all(re.fullmatch(r"0|-?[1-9][0-9]{0,3999}", name) for name in graph):
        return graph
    return nx.relabel_nodes(graph, {name: int(name) for name in graph})


#: Suffixes that `write_graph` and `read_graph` know; the text formats also with `.gz`.
FORMATS = (".csv", ".gexf", ".graphml", ".json", ".npz", ".parquet")
# Name, writer and reader of the text formats.
_TEXT: dict[str, tuple[str, Callable[[nx.Graph], bytes], Callable[[bytes], nx.Graph]]] = {
    ".gexf": ("GEXF", _gexf_bytes, _parse_gexf),
    ".graphml": ("GraphML", _graphml_bytes, _parse_graphml),
    ".json": ("node-link JSON", _json_bytes, _parse_json),
}


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

    The first three may also end in `.gz`. Attributes are those of `to_networkx`. In every format
    characters that XML cannot hold (control characters, lone surrogates) are written as U+FFFD,
    and line ends as `\n`. Every file appears whole or not at all.

    Args:
        graph: A document graph, or any NetworkX graph of plain values except a multigraph.
        path: The file; its folder must exist.
        overwrite: Replace existing files.
        max_text: Longest `text` in characters, the closing ellipsis included; None keeps all.
        directed: Write both directions of a `Data`, which may then differ.

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
    form = _format(path)
    if form in (".parquet", ".csv"):
        return write_tables(graph, path, overwrite=overwrite, max_text=max_text, directed=directed)
    if form == ".npz":
        return [write_csr(graph, path, overwrite=overwrite, directed=directed)]
    _, write, _ = _TEXT[form]
    content = write(as_networkx(graph, max_text=max_text, directed=directed))
    return [_save(content, Path(path), overwrite)]


def write_graphml(
    graph: nx.Graph, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a NetworkX graph as GraphML, as `write_graph` does, whatever the suffix.

    A path that ends in `.gz` is compressed.
    """
    check_simple(graph)
    return _save(_graphml_bytes(graph), Path(path), overwrite)


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

    return save_tables(graph, Path(path), overwrite, max_text, directed)


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
    if not isinstance(graph, Data):
        plain = as_networkx(graph, max_text=None, directed=directed)
        weighted = nx.create_empty_copy(plain, with_data=False)
        weighted.add_weighted_edges_from(plain.edges(data="weight", default=1.0))
        graph, directed = from_networkx(weighted), True
    size = count_nodes(graph)
    # The reader checks the directions; a matrix has both of them in any case.
    edges = read_edges(graph, directed=directed, only=("edge_weight",))
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
    (`.npz`) has nodes and weights only.

    Raises:
        ValueError: An unknown suffix, a damaged file, or one of another format.
        OSError: A file is missing or cannot be read.
    """
    found = _read(path)
    with _named_if_damaged(path, "hold a document graph"):
        return from_networkx(found) if isinstance(found, nx.Graph) else data_from_columns(found)


def read_networkx(path: str | os.PathLike[str]) -> nx.Graph:
    """Read a graph from the same files as `read_graph`, as an `nx.Graph` or `nx.DiGraph`.

    Names of nodes that are all whole numbers become integers.
    """
    found = _read(path)
    with _named_if_damaged(path, "hold a document graph"):
        return found if isinstance(found, nx.Graph) else networkx_of(found)


@contextmanager
def _named_if_damaged(path: str | os.PathLike[str], rule: str) -> Iterator[None]:
    """Errors of readers, which share no base, as a `ValueError` that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(f"'path' must {rule} ({path}: {error}).") from error


def _read(path: str | os.PathLike[str]) -> nx.Graph | GraphColumns:
    """What a file holds, in the form that its reader makes."""
    form = _format(path)
    if form in (".parquet", ".csv"):
        from gloss_graph.export.tables import read_tables

        with _named_if_damaged(path, "name node and edge tables"):
            return read_tables(Path(path))
    if form == ".npz":
        with _named_if_damaged(path, "be a SciPy matrix"):
            return _matrix_columns(Path(path))
    name, _, parse = _TEXT[form]
    with _named_if_damaged(path, f"be {name}"):
        return parse(read_bytes(Path(path)))


def _matrix_columns(path: Path) -> GraphColumns:
    """The edges in a `.npz` file; undirected if the matrix is symmetric."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the spelling.")
    check_zip(path)
    with np.load(path, allow_pickle=False) as stored:
        # Nodes without edges take no room in some layouts.
        check_unpacked(path, _NODE_BYTES * max(map(int, stored["shape"].ravel())))
    matrix = sparse.load_npz(path).tocoo()
    matrix.data + 0.0  # raises for values that are not numbers
    sparse.coo_matrix((matrix.data, (matrix.row, matrix.col)), shape=matrix.shape)  # checks them
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"it is not square: {matrix.shape}")
    source, target = matrix.row.astype(np.int64), matrix.col.astype(np.int64)
    forth, back = np.lexsort((target, source)), np.lexsort((source, target))
    pairs = ((source, target), (target, source), (matrix.data, matrix.data))
    directed = not all(np.array_equal(one[forth], other[back]) for one, other in pairs)
    kept = np.arange(source.size) if directed else np.flatnonzero(source <= target)
    edges = {"weight": matrix.data[kept]}
    names = list(range(matrix.shape[0]))
    return GraphColumns(names, {}, source[kept], target[kept], edges, directed, {})


def _format(path: str | os.PathLike[str]) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes[-1:] == [".gz"] and suffixes[-2:-1] and suffixes[-2] in _TEXT:
        return suffixes[-2]
    if not suffixes or suffixes[-1] not in FORMATS:
        rule = f"end in one of {', '.join(FORMATS)}"
        raise misfit("path", rule, f"{Path(path).name!r}; text formats also with .gz")
    return suffixes[-1]
