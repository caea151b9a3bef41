"""The fields of a sequence-to-sequence model, their checks, and the parameters that follow from them."""

import dataclasses
from typing import Any

import jax

from grujax.core.config import MERGES, CellConfig, LayerConfig
from grujax.core.functional import Table, dense_table, layer_table
from grujax.errors import require, require_count, require_one_of

CONTEXTS = (None, "cho", "bahdanau", "luong")


@dataclasses.dataclass(eq=False, repr=False)
class Seq2SeqConfig(CellConfig):
    """The fields of a model with a GRU encoder, which reads the source, and a GRU decoder, which writes the target.

    Both have the attributes of `CellConfig`.

    Attributes:
      source_vocabulary, target_vocabulary: the number of tokens V of each vocabulary; tokens are 0 to V − 1.
      embedding_size: the size E of both embeddings; None: H.
      num_layers: the number of layers L of encoder and decoder.
      bidirectional: whether the encoder reads the source in both directions.
      merge: how the outputs of both directions of the encoder are combined; see `LayerConfig`.
      context: what the decoder reads of the source in addition to its initial state; `grujax.seq2seq.model` has the
        equations. None: nothing (Sutskever et al. 2014, arXiv 1409.3215). "cho": a summary, the same at every step (Cho
        et al. 2014). "bahdanau": additive attention, whose result enters the next state (Bahdanau et al. 2015).
        "luong": dot attention of the new state (Luong et al. 2015); the encoder must be as wide as the decoder, so a
        bidirectional one needs merge="sum", "mean" or "mul".
      dropout: the drop probability for the embeddings and for the input of the output layer that gives the logits.
      implementation: the implementation of encoder and decoder; see `LayerConfig`.
    """

    _: dataclasses.KW_ONLY
    source_vocabulary: int
    target_vocabulary: int
    embedding_size: int | None = None
    num_layers: int = 1
    bidirectional: bool = False
    merge: str = "concat"
    context: str | None = "luong"
    dropout: float = 0.0
    implementation: str | None = None

    @property
    def encoder_layer(self) -> LayerConfig:
        return self._layer()

    @property
    def decoder_layer(self) -> LayerConfig:
        return self._layer(bidirectional=False, merge="concat")

    def _layer(self, **others: Any) -> LayerConfig:
        fields: dict[str, Any] = self.fields_of(LayerConfig) | {"dropout": 0.0} | others
        return LayerConfig(**fields)

    @property
    def embedded(self) -> int:
        """The size of the embeddings, E."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    def check(self) -> None:
        """Raises `InputError` for a field that cannot be served."""
        super().check()
        for name in ("source_vocabulary", "target_vocabulary"):
            require_count(getattr(self, name), name)
        require_count(self.embedded, "embedding_size")
        require_one_of(self.context, CONTEXTS, "context")
        require_one_of(self.merge, tuple(MERGES), "merge")
        self._layer(dropout=self.dropout).check()
        width, rule = self.encoder_layer.width, "context='luong' needs an encoder as wide as the decoder"
        fits = self.context != "luong" or width == self.hidden_size
        expected, found = f"an encoder output of {self.hidden_size} features", f"{width} features"
        require(fits, "merge", expected, found, "Write merge='sum'.", rule=rule)

    def parameter_table(self) -> Table:
        """Returns every parameter. Names, shapes and initialisers are defined only here."""
        size, encoder = self.hidden_size, self.encoder_layer
        states, output = encoder.num_directions * size, encoder.width
        context = {None: 0, "cho": size, "bahdanau": output, "luong": 0}[self.context]
        # input and output size of the readout; its outputs are pairs, of which maxout keeps the larger, except "luong"
        wide = self.embedded + size + context, 2 * size
        readout = {None: None, "cho": wide, "bahdanau": wide, "luong": (output + size, size)}[self.context]
        embedding = jax.nn.initializers.normal(1.0)
        table: Table = {
            "source_embedding": (embedding, (self.source_vocabulary, self.embedded)),
            "target_embedding": (embedding, (self.target_vocabulary, self.embedded)),
            "encoder": layer_table(encoder, self.embedded),
            "decoder": layer_table(self.decoder_layer, self.embedded + context),
            "logits": dense_table(self, size, self.target_vocabulary),
        }
        if self.context == "cho":
            table["summary"] = dense_table(self, states, size)
            states = size
        if self.bidirectional or self.context in ("cho", "bahdanau"):
            table["start"] = dense_table(self, states, self.num_layers * size)
        if self.context == "bahdanau":
            query, key = (dense_table(self, n, size)["kernel"] for n in (size, output))
            score = dense_table(self, size, size)["bias"]
            table["attention"] = {"query": query, "key": key, "score": score}
        if readout is not None:
            table["readout"] = dense_table(self, *readout)
        return table
