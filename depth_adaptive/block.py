"""A block of the decoder in a search: it computes the last position of some rows and keeps their keys and values.

Axes: R rows (hypotheses of all sentences), A rows that are computed, S source, B sentences, D dimension of the decoder.
"""

from functools import cached_property, partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from depth_adaptive import ops
from depth_adaptive.packed_linear import LinearFunction, PackedLinears, has_forward_hooks
from depth_adaptive.slots import KeysValues, Slots
from depth_adaptive.source import Source
from thoth_core.errors import UserError


class Block:
    """fairseq's decoder layer in evaluation mode, with the history of one search.

    Its three sublayers are those of ``TransformerDecoderLayerBase.forward``. A block is created when a row first
    reaches it. Keys and values of states that were copied from below (section 3 of the paper) are computed when a row
    first attends to them, unless the search fills them in at once (``eager``).
    """

    def __init__(self, layer: Any, packed: PackedLinears, source: Source, slots: Slots, *, eager: bool) -> None:
        refuse_hooks(layer)
        self.layer, self.source, self.slots, self.eager = layer, source, slots, eager
        self.linear = linear = partial(packed.function, source.encoder_out)
        attention, cross_attention = layer.self_attn, layer.encoder_attn
        self.project_keys_values_query = linear(attention.k_proj, attention.v_proj, attention.q_proj)
        self.project_attention = linear(attention.out_proj)
        if cross_attention is not None:
            self.project_source_query = linear(cross_attention.q_proj)
            self.project_source_attention = linear(cross_attention.out_proj)
        self.fused_relu = layer.activation_fn is F.relu
        self.expand = linear(layer.fc1, relu=self.fused_relu)
        self.contract = linear(layer.fc2)
        self.keys_values = KeysValues(slots, attention.embed_dim)

    def __call__(self, x: Tensor, rows: Tensor | None, sentences: Tensor) -> Tensor:
        """The output (A, D) for the input x (A, D) of ``rows`` (A,), None: of all; ``sentences`` (R,) of all rows."""
        x = self.attend_to_history(x, rows)
        if self.layer.encoder_attn is not None:
            x = self.attend_to_source(x, sentences if rows is None else sentences[rows])
        return self.feed_forward(x)

    def attend_to_history(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """The first sublayer, (A, D) to (A, D): self-attention over the history of each row, itself included."""
        layer, residual = self.layer, x
        attention = layer.self_attn
        if layer.normalize_before:
            x = layer.self_attn_layer_norm(x)
        keys_values, queries = self.project_keys_values_query(x).split(
            [2 * attention.embed_dim, attention.embed_dim], 1
        )
        self.keys_values.write_current(self.slots.current if rows is None else self.slots.current[rows], keys_values)
        if not self.eager and (missing := self.keys_values.missing(rows)) is not None:
            self.fill(missing, self.slots.states[missing])
        x = ops.attend(queries, self.keys_values.table, self.slots.history, rows, attention.num_heads)
        x = self.project_attention(x)
        if layer.c_attn is not None:
            x = (x.view(x.size(0), layer.nh, -1) * layer.c_attn[:, None]).flatten(1)
        if layer.attn_ln is not None:
            x = layer.attn_ln(x)
        x = residual + x
        return x if layer.normalize_before else layer.self_attn_layer_norm(x)

    def attend_to_source(self, x: Tensor, sentences: Tensor) -> Tensor:
        """The second sublayer, (A, D) to (A, D): attention over the source of each row, ``sentences`` (A,)."""
        layer, residual = self.layer, x
        if layer.normalize_before:
            x = layer.encoder_attn_layer_norm(x)
        queries = self.project_source_query(x)
        heads = layer.encoder_attn.num_heads
        x = ops.attend(queries, self.source_keys_values, self.source.places, sentences, heads)
        x = residual + self.project_source_attention(x)
        return x if layer.normalize_before else layer.encoder_attn_layer_norm(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The third sublayer, (A, D) to (A, D)."""
        layer, residual = self.layer, x
        if layer.normalize_before:
            x = layer.final_layer_norm(x)
        x = self.expand(x)
        if not self.fused_relu:
            x = layer.activation_fn(x)
        if layer.ffn_layernorm is not None:
            x = layer.ffn_layernorm(x)
        x = self.contract(x)
        if layer.w_resid is not None:
            residual = layer.w_resid * residual
        x = residual + x
        return x if layer.normalize_before else layer.final_layer_norm(x)

    def fill(self, numbers: Tensor, states: Tensor) -> None:
        """Store keys and values of the slots ``numbers`` (A,), whose tokens have left below with ``states`` (A, D)."""
        if self.layer.normalize_before:
            states = self.layer.self_attn_layer_norm(states)
        self.keys_values.write(numbers, self.project_copied_states(states))

    @cached_property
    def project_copied_states(self) -> LinearFunction:
        """The function from the normalised states (A, D) of copied tokens to their keys and values (A, 2D)."""
        return self.linear(self.layer.self_attn.k_proj, self.layer.self_attn.v_proj)

    @cached_property
    def source_keys_values(self) -> Tensor:
        """Keys and values of the source (S * B, 2D), which all rows of a sentence share."""
        attention = self.layer.encoder_attn
        return self.linear(attention.k_proj, attention.v_proj)(self.source.encoder_out).flatten(0, 1)


def refuse_hooks(layer: Any) -> None:
    """Raise a UserError if calling fairseq's decoder ``layer`` or an attention of it would run forward hooks.

    A step computes the layer from its parts, by which such hooks would be passed over.
    """
    for name, module in (("", layer), (".self_attn", layer.self_attn), (".encoder_attn", layer.encoder_attn)):
        if module is not None and has_forward_hooks(module):
            raise UserError(
                f"a decoder layer{name} has forward hooks, which decoding with an exit policy does not run: remove "
                "them, or decode with --exit-policy full"
            )
