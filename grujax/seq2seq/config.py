"""The fields of a sequence-to-sequence model, what they may be, and the parameters that follow from them."""

import dataclasses
from typing import Any

import jax

from grujax.core.config import MERGES, CellConfig, LayerConfig
from grujax.core.functional import Table, dense_table, layer_table
from grujax.errors import require, require_count, require_one_of

CONTEXTS = (None, "cho", "bahdanau", "luong")


@dataclasses.dataclass(eq=False, repr=False)
class Seq2SeqConfig(CellConfig):
    """A GRU that reads a source and a GRU that writes a target; both have the attributes of `CellConfig`.

    Attributes:
      source_vocabulary, target_vocabulary: how many tokens there are, V; tokens are 0 to V − 1.
      embedding_size: E, of both; H where None.
      num_layers: L, of both.
      bidirectional: the encoder reads the source both ways.
      merge: how both directions become one output of the encoder, see `LayerConfig`.
      context: what the decoder reads of the source beside its initial state; `grujax.seq2seq.model` has the equations.
        None: nothing (Sutskever et al. 2014, arXiv 1409.3215). "cho": a summary, the same at every step (Cho et al.
        2014). "bahdanau": additive attention, which the state depends on (Bahdanau et al. 2015). "luong": dot attention
        of the finished state (Luong et al. 2015); the encoder is as wide as the decoder, merge="sum" where it is
        bidirectional.
      dropout: probability, on the embeddings and on what the logits are computed from.
      implementation: of both, see `LayerConfig`.
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
        """E."""
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
        require(fits, "merge", f"an output of {self.hidden_size}", f"one of {width}", "Write merge='sum'.", rule=rule)

    def parameter_table(self) -> Table:
        """Every parameter: the one place that knows their names, shapes and initializers."""
        size, encoder = self.hidden_size, self.encoder_layer
        states, output = encoder.num_directions * size, encoder.width
        context = {None: 0, "cho": size, "bahdanau": output, "luong": 0}[self.context]
        # what the readout reads, and its width: pairs, of which the larger counts, except with "luong"
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
