"""fairseq's Transformer layers with a memory in the place of the feed-forward, or beside it.

Both forward passes compute what fairseq's do up to the feed-forward, which fairseq gives no padding mask. A pass keeps
nothing on the layer: several threads may decode with one model.

Axes: T time, B batch, C channels, S source; fairseq's layers compute on (T, B, C).
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from memory_layers.config import check_backend
from memory_layers.product_key import Memory
from memory_layers.usage_recording import record_of
from thoth_core.errors import UserError


class MemoryLayer:
    """The feed-forward with a memory, of both kinds of layers."""

    memory: Memory
    memory_joined: bool  # with a feed-forward beside it
    memory_name: str  # in metrics
    # fairseq's feed-forward; Identity where there is none
    fc1: nn.Module
    fc2: nn.Module
    activation_fn: Callable[[Tensor], Tensor]
    activation_dropout_module: nn.Module
    ffn_layernorm: nn.Module | None = None

    @classmethod
    def replacing(cls, layer: Any, memory: Memory, *, joined: bool, name: str, offload: bool) -> Self:
        """A layer of this class with the modules and settings of a layer that fairseq has built.

        So the parameters are drawn as in a plain Transformer, and fairseq's options keep their meaning.

        Args:
            layer: with or without --checkpoint-activations.
            memory: of the layer's dimension.
            joined: keep the feed-forward beside the memory.
            name: of the memory in metrics.
            offload: --offload-activations.
        """
        new: Any = cls.__new__(cls)
        nn.Module.__init__(new)
        vars(new).update(vars(layer))
        new.memory, new.memory_joined, new.memory_name = memory, joined, name
        if not joined:
            new.fc1, new.fc2, new.ffn_layernorm = nn.Identity(), nn.Identity(), None
        if vars(new).pop("precheckpoint_forward", None) is not None:
            del new.forward  # fairseq's wrapper of the old layer's
            checkpoint_wrapper(new, offload_to_cpu=offload)
        return new

    def feed_forward(self, x: Tensor, padding: Tensor | None, *, generating: bool) -> Tensor:
        """The memory's output, or the sum of the feed-forward's and the memory's: (T, B, C) → (T, B, C).

        Args:
            padding: (B, T) bool, True at padding.
            generating: the sentence is decoded step by step.

        Raises:
            UserError: decoding step by step with a table that is sharded over processes, or values that the requested
                kernels do not take.
        """
        check_backend(self.memory.table)
        if generating and self.memory.table.sharded:
            raise UserError("a sharded table cannot be decoded with on several processes: decode in a single one")
        y = self._plain_feed_forward(x) if self.memory_joined else None
        usage = record_of(self.memory, self.memory_name, generating=generating)
        read = self.memory(x, None if padding is None else padding.t().to(torch.bool), usage=usage)
        return read if y is None else y + read

    def _plain_feed_forward(self, x: Tensor) -> Tensor:
        x = self.activation_dropout_module(self.activation_fn(self.fc1(x)))
        if self.ffn_layernorm is not None:
            x = self.ffn_layernorm(x)
        return self.fc2(x)


class MemoryEncoderLayer(MemoryLayer, TransformerEncoderLayerBase):
    """fairseq's encoder layer with a memory."""

    def forward(
        self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(T, B, C) → (T, B, C), and the feed-forward's output too with ``return_fc``.

        Args:
            encoder_padding_mask: (B, T), True at padding.
            attn_mask: (T, T), True where a row must not attend to a column.
        """
        if attn_mask is not None:
            # -inf would give NaN in rows without any column.
            attn_mask = attn_mask.masked_fill(attn_mask.to(torch.bool), -1e8 if x.dtype == torch.float32 else -1e4)
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, _ = self.self_attn(
            query=x, key=x, value=x, key_padding_mask=encoder_padding_mask, need_weights=False, attn_mask=attn_mask
        )
        x = self.residual_connection(self.dropout_module(x), residual)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)

        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        y = self.feed_forward(x, encoder_padding_mask, generating=False)
        x = self.residual_connection(self.dropout_module(y), residual)
        if not self.normalize_before:
            x = self.final_layer_norm(x)
        return (x, y) if self.return_fc else x


class MemoryDecoderLayer(MemoryLayer, TransformerDecoderLayerBase):
    """fairseq's decoder layer with a memory."""

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: Any = None,
        prev_self_attn_state: list[Tensor] | None = None,
        prev_attn_state: list[Tensor] | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None] | None]:
        """(T, B, C) → (T, B, C), the attention's weights, and None (its state when exported to ONNX).

        Args:
            encoder_out: (S, B, C).
            encoder_padding_mask: (B, S), True at padding.
            incremental_state: fairseq's cache where a sentence is decoded step by step, else None.
            prev_self_attn_state: state of the self-attention from an ONNX graph; ``prev_attn_state`` likewise.
            self_attn_mask: (T, T), added to the attention's scores.
            self_attn_padding_mask: (B, T), True at padding.
            need_attn: return the attention's weights; ``need_head_weights``: of every head.
        """
        x, attn = self._attend_to_itself(
            x, encoder_out, encoder_padding_mask, incremental_state, prev_self_attn_state, self_attn_mask,
            self_attn_padding_mask,
        )  # fmt: skip
        if self.encoder_attn is not None and encoder_out is not None:
            x, attn = self._attend_to_encoder(
                x, encoder_out, encoder_padding_mask, incremental_state, prev_attn_state,
                need_attn=need_attn or need_head_weights, need_head_weights=need_head_weights,
            )  # fmt: skip

        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        x = self.dropout_module(self.feed_forward(x, self_attn_padding_mask, generating=incremental_state is not None))
        if self.w_resid is not None:
            residual = torch.mul(self.w_resid, residual)
        x = self.residual_connection(x, residual)
        if not self.normalize_before:
            x = self.final_layer_norm(x)
        return x, attn, self._state_for_onnx(incremental_state, self_attn_padding_mask)

    def _attend_to_itself(
        self,
        x: Tensor,
        encoder_out: Tensor | None,
        encoder_padding_mask: Tensor | None,
        incremental_state: Any,
        previous: list[Tensor] | None,
        mask: Tensor | None,
        padding: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention with residual and norm, over the encoder's output too with --cross-self-attention."""
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        if previous is not None:
            self.self_attn._set_input_buffer(incremental_state, _saved(previous))
        keys = x
        cached = self.self_attn._get_input_buffer(incremental_state)
        if self.cross_self_attention and not (
            incremental_state is not None and cached is not None and "prev_key" in cached
        ):
            assert encoder_out is not None
            if mask is not None:
                mask = torch.cat((x.new_zeros(x.size(0), encoder_out.size(0)), mask), dim=1)
            if padding is not None:
                if encoder_padding_mask is None:
                    encoder_padding_mask = padding.new_zeros(encoder_out.size(1), encoder_out.size(0))
                padding = torch.cat((encoder_padding_mask, padding), dim=1)
            keys = torch.cat((encoder_out, x), dim=0)
        x, attn = self.self_attn(
            query=x,
            key=keys,
            value=keys,
            key_padding_mask=padding,
            incremental_state=incremental_state,
            need_weights=False,
            attn_mask=mask,
        )
        if self.c_attn is not None:
            heads = x.view(x.size(0), x.size(1), self.nh, self.head_dim)
            x = torch.einsum("tbhd,h->tbhd", heads, self.c_attn).reshape(x.size(0), x.size(1), self.embed_dim)
        if self.attn_ln is not None:
            x = self.attn_ln(x)
        x = self.residual_connection(self.dropout_module(x), residual)
        return (x if self.normalize_before else self.self_attn_layer_norm(x)), attn

    def _attend_to_encoder(
        self,
        x: Tensor,
        encoder_out: Tensor,
        encoder_padding_mask: Tensor | None,
        incremental_state: Any,
        previous: list[Tensor] | None,
        *,
        need_attn: bool,
        need_head_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention to the encoder's output, with residual and norm."""
        residual = x
        if self.normalize_before:
            x = self.encoder_attn_layer_norm(x)
        if previous is not None:
            self.encoder_attn._set_input_buffer(incremental_state, _saved(previous))
        x, attn = self.encoder_attn(
            query=x,
            key=encoder_out,
            value=encoder_out,
            key_padding_mask=encoder_padding_mask,
            incremental_state=incremental_state,
            static_kv=True,
            need_weights=need_attn or (not self.training and self.need_attn),
            need_head_weights=need_head_weights,
        )
        x = self.residual_connection(self.dropout_module(x), residual)
        return (x if self.normalize_before else self.encoder_attn_layer_norm(x)), attn

    def _state_for_onnx(self, incremental_state: Any, padding: Tensor | None) -> list[Tensor | None] | None:
        if not self.onnx_trace or incremental_state is None:
            return None
        saved = self.self_attn._get_input_buffer(incremental_state)
        names = ("prev_key", "prev_value") if padding is None else ("prev_key", "prev_value", "prev_key_padding_mask")
        return [saved[name] for name in names]


def _saved(previous: list[Tensor]) -> dict[str, Tensor | None]:
    """fairseq's cache of an attention from the parts that an ONNX graph hands over."""
    return dict(zip(("prev_key", "prev_value", "prev_key_padding_mask"), previous, strict=False))
