"""Texts to embeddings with a pretrained transformer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.folders import newest_whole, whole_folder, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph.text.checkpoints import ENCODER_FILE, quiet_transformers, read_checkpoint
from gloss_graph.text.corpora import Corpus, string_list
from gloss_graph.text.lora import merged_model
from gloss_graph.text.pooling import Pooling, check_pooling, pack_left, pool

__all__ = ["Features", "TextEncoder"]

Features = dict[str, list[int]]
"""One tokenized document: ``input_ids`` and, for models with segments, ``token_type_ids``."""

_FORMAT = "gloss_graph.TextEncoder"


class TextEncoder(nn.Module):
    """A Hugging Face model, its tokenizer and a pooling rule as one module.

    Usually made by :func:`~gloss_graph.text.load_encoder`. Padding may be on either side; rows are
    packed to the left before the model sees them, so a document's embedding does not depend on it.
    Embeddings are not normalised.

    Args:
        model: A model whose first output is the last hidden state, (B, L, D).
        tokenizer: Its tokenizer. Without a padding token it is given its end-of-text token.
        pooling: ``cls`` (first token), ``mean`` (over tokens) or ``last`` (last token).
        max_length: Tokens kept of a document, special tokens included; by default 128, or as many
            as the model has positions for.

    Attributes:
        dim: D, the width of an embedding.

    Raises:
        ValueError: If ``pooling`` is unknown, ``max_length`` is below 1 or above what the model
            has positions for, the model needs decoder inputs, or no token can serve as padding.

    Example:
        >>> from gloss_graph.text import load_encoder
        >>> encoder = load_encoder("minilm", max_length=32)
        >>> encoder
        TextEncoder(bert, pooling='mean', max_length=32, dim=384)
        >>> batch = encoder.collate(encoder.tokenize(["one", "two words"]))
        >>> encoder(**batch).shape
        torch.Size([2, 384])

    See Also:
        :meth:`encode` to embed a whole corpus without gradients.
    """

    model: Any
    tokenizer: Any

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, pooling: Pooling, max_length: int | None = None
    ) -> None:
        super().__init__()
        check_pooling(pooling)
        config: Any = model.config
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"'model' must be an encoder or a decoder (got the encoder-decoder "
                f"{config.model_type!r}, whose states need decoder inputs). Use another model."
            )
        longest = _positions(model)
        if max_length is None:
            max_length = 128 if longest is None else min(128, longest)
        if max_length < 1 or (longest is not None and max_length > longest):
            raise ValueError(
                f"'max_length' must lie between 1 and {longest or 'any length'} for this model "
                f"(got {max_length}). Documents beyond it are cut."
            )
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    "'tokenizer' must have a padding or an end-of-text token (got neither). Set "
                    "tokenizer.pad_token to one of its tokens."
                )
            tokenizer.pad_token = tokenizer.eos_token
        #: What `load_encoder` was asked for, a folder by its absolute path; "" if the model came
        #: from elsewhere.
        self.source = ""
        #: Digest of the folder's files as they were loaded; "" where there is no folder.
        self.source_files = ""
        self.model = model
        self.tokenizer = tokenizer
        self.pooling: Pooling = pooling
        self.max_length = max_length
        self.dim: int = _width(config)
        table = getattr(model, "get_input_embeddings", lambda: None)()
        self._vocabulary: int | None = getattr(table, "num_embeddings", None)
        arguments = inspect.signature(model.forward).parameters
        self._segments = "token_type_ids" in arguments and getattr(config, "type_vocab_size", 0) > 1
        # Keys and values of earlier tokens serve generation only.
        self._options = {"use_cache": False} if "use_cache" in arguments else {}
        self.train(model.training)

    def __repr__(self) -> str:
        return (
            f"TextEncoder({self.model.config.model_type}, pooling={self.pooling!r}, "
            f"max_length={self.max_length}, dim={self.dim})"
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Embed one tokenized batch; one forward pass of the model.

        Shapes: every input (B, L) long, the result (B, D), float32 also under autocast.

        Args:
            input_ids: Token numbers, padded on either side.
            attention_mask: 1 for tokens, 0 for padding.
            token_type_ids: Segment numbers of pairs; ignored by models without segments.

        Returns:
            The embeddings; gradients flow to the model's parameters.
        """
        mask, ids, segments = pack_left(attention_mask, input_ids, token_type_ids)
        options: dict[str, Any] = dict(self._options)
        if self._segments and segments is not None:
            options["token_type_ids"] = segments
        output = self.model(input_ids=ids, attention_mask=mask, **options)
        return pool(output[0], mask, self.pooling)  # type: ignore[arg-type]

    def tokenize(
        self, texts: Sequence[str], texts_b: Sequence[str] | None = None
    ) -> list[Features]:
        """Tokenize documents without padding, as items of a dataset.

        Args:
            texts: N documents.
            texts_b: Their second texts. Of a pair the longer text is cut first. Where the
                tokenizer puts nothing between two texts, a line feed is put there.

        Returns:
            N mappings; :meth:`collate` makes a batch of any of them. An empty document is at
            least one token long.

        Raises:
            ValueError: If a text is not a string or the two sequences differ in length.
        """
        first = string_list("texts", texts)
        second = None if texts_b is None else string_list("texts_b", texts_b)
        if second is not None and len(second) != len(first):
            raise ValueError(
                f"'texts_b' must hold one text per document (got {len(second)} for {len(first)}). "
                "Give every document its second text."
            )
        if not first:
            return []
        if second is not None and not self._separates_pairs():
            second = ["\n" + text for text in second]
        tokens = self.tokenizer(
            first,
            second,
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=self._segments,
        )
        blank = [self.tokenizer.pad_token_id]
        features: list[Features] = [{"input_ids": ids or blank} for ids in tokens["input_ids"]]
        highest = max(max(feature["input_ids"]) for feature in features)
        if self._vocabulary is not None and highest >= self._vocabulary:
            raise ValueError(
                f"'tokenizer' must belong to the model (got the token {highest} for a model of "
                f"{self._vocabulary} tokens). Save and load both together."
            )
        if self._segments:
            for feature, segments in zip(features, tokens["token_type_ids"], strict=True):
                feature["token_type_ids"] = segments or [0]
        return features

    def describe(self) -> dict[str, Any]:
        """Settings, for the record of a run."""
        return {
            "encoder": repr(self),
            "encoder_name": self.source,
            **({"encoder_files": self.source_files} if self.source_files else {}),
            "max_length": self.max_length,
            "pooling": self.pooling,
        }

    def probe(self) -> dict[str, Tensor]:
        """A batch of one short document, to try the model with."""
        return self.collate(self.tokenize(["a"]))

    def items(self, corpus: Corpus) -> list[Features]:
        """The documents of a corpus, tokenized; see :meth:`tokenize`."""
        return self.tokenize(corpus.texts, corpus.texts_b)

    def embed(self, corpus: Corpus, *, batch_size: int = 64, progress: bool = False) -> Tensor:
        """The documents of a corpus, embedded; see :meth:`encode`."""
        return self.encode(corpus.texts, corpus.texts_b, batch_size=batch_size, progress=progress)

    def collate(self, features: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """Pad tokenized documents on the right to the longest of them.

        Args:
            features: What :meth:`tokenize` returned, at least one; other keys are left out.

        Returns:
            The arguments of :meth:`forward`, each (B, L) long.

        Raises:
            ValueError: If there are no documents.
        """
        if not features:
            raise ValueError("'features' must hold a document (got none). Skip empty batches.")
        rows = [torch.tensor(feature["input_ids"], dtype=torch.long) for feature in features]
        batch = {
            "input_ids": nn.utils.rnn.pad_sequence(
                rows, batch_first=True, padding_value=self.tokenizer.pad_token_id
            ),
            # From the lengths: padding may share its number with a real token.
            "attention_mask": nn.utils.rnn.pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True
            ),
        }
        if self._segments:
            segments = [torch.tensor(feature["token_type_ids"]) for feature in features]
            batch["token_type_ids"] = nn.utils.rnn.pad_sequence(segments, batch_first=True)
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
        """Embed a corpus without dropout and without gradients.

        Batches hold documents of like length, so little is computed on padding; the order of the
        result is that of the texts. Modules return to the mode (training or not) they were in.

        Args:
            texts: N documents.
            texts_b: Their second texts, or None.
            batch_size: Documents per forward pass.
            progress: Whether to show a progress bar.

        Returns:
            The embeddings, (N, D) on the CPU.

        Raises:
            ValueError: As :meth:`tokenize`; also if ``batch_size`` is below 1.
        """
        from rich.console import Console
        from rich.progress import Progress

        if batch_size < 1:
            raise ValueError(f"'batch_size' must be at least 1 (got {batch_size}). Try 64.")
        features = self.tokenize(texts, texts_b)
        order = sorted(range(len(features)), key=lambda row: -len(features[row]["input_ids"]))
        parameter = next(self.model.parameters())
        parts: list[Tensor] = [torch.empty(0, self.dim, dtype=torch.float32)]
        bar = Progress(console=Console(stderr=True), transient=True, disable=not progress)
        # A bar that is not shown would still end with an empty line.
        with evaluating(self), bar if progress else nullcontext():
            task = bar.add_task("Encoding", total=len(order))
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = self.collate([features[row] for row in chosen])
                inputs = {name: value.to(parameter.device) for name, value in batch.items()}
                parts.append(self(**inputs).cpu())
                bar.advance(task, len(chosen))
        places = torch.tensor(order, dtype=torch.long).argsort()
        return torch.cat(parts if len(parts) == 1 else parts[1:])[places]

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        options = gradient_checkpointing_kwargs or {"use_reentrant": False}
        self._checkpointing_switch("enable")(options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass."""
        self._checkpointing_switch("disable")()

    def save(self, folder: str | Path) -> Path:
        """Write weights (safetensors), tokenizer and settings to a folder of their own.

        Everything is written beside the folder first and then moved, so a reader never meets half
        an encoder. An encoder saved there before is replaced; other contents are refused. Low-rank
        adapters are written merged into the weights.

        Args:
            folder: Created if need be, with its parents.

        Returns:
            The folder.

        Raises:
            ValueError: If the folder holds something that is not a saved encoder.
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
        """Read an encoder that :meth:`save` wrote; weights are float32 on the CPU.

        Args:
            folder: The folder.

        Returns:
            The encoder, in eval mode.

        Raises:
            ValueError: If the folder is missing, was not written by :meth:`save`, or is damaged.
        """
        folder = newest_whole(folder)
        marker = folder / ENCODER_FILE
        try:
            settings = read_object(marker)
            if settings["format"] != _FORMAT:
                raise ValueError(f"unknown format {settings['format']!r}")
            pooling, max_length = settings["pooling"], settings["max_length"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"'folder' must be an encoder saved by gloss_graph ({marker} cannot be read: "
                f"{error}). Use load_encoder for other Hugging Face models."
            ) from error
        if max_length is not None and not isinstance(max_length, int):
            raise ValueError(f"{marker} must have a whole number for 'max_length'.")
        model, tokenizer = read_checkpoint(str(folder), local_files_only=True)
        encoder = cls(model, tokenizer, pooling=pooling, max_length=max_length)
        encoder.check_loaded(folder)
        return encoder

    def check_loaded(self, name: str | Path) -> None:
        """Embed a word, as damaged settings of a model may show only then.

        Raises:
            ValueError: It cannot be done; names where the model is from.
        """
        try:
            self.encode(["a"])
        except Exception as error:  # What models raise has no base in common.
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"'name' must be a model whose settings, tokenizer and weights fit together (got "
                f"{str(name)!r}, which cannot embed a text: {reason}). Save it again."
            ) from error

    def _checkpointing_switch(self, action: str) -> Any:
        # Transformers renames the pair of methods on the way to version 6.
        new = getattr(self.model, f"activation_checkpointing_{action}", None)
        return new or getattr(self.model, f"gradient_checkpointing_{action}")

    def _separates_pairs(self) -> bool:
        special = self.tokenizer.num_special_tokens_to_add
        return bool(special(pair=True) > special(pair=False))


def _width(config: Any) -> int:
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise ValueError(
            f"'model' must state its 'hidden_size' (the configuration of {config.model_type!r} has "
            "none). Use a text encoder or decoder."
        )
    return width


def _positions(model: nn.Module) -> int | None:
    """Tokens a model has positions for, or None if its configuration sets no limit."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    # RoBERTa and its kin count positions from the one behind the padding token's.
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return longest if padding is None else longest - padding - 1
