"""fairseq's Transformer encoder, quicker on the CPU where it does not train, its output shared by beam search's rows.

Axes: S source, B sentences, R rows (hypotheses of all sentences), D dimension of the encoder, H heads.
"""

from typing import Any

from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer import TransformerConfig, TransformerEncoder
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import Tensor, nn
from torch.nn import functional as F

from depth_adaptive.products import Products


class EncoderLayer(TransformerEncoderLayerBase):
    """The host's; without gradients its products are oneDNN's where that multiplies (:class:`Products`).

    Measured against MKL, two threads of a CPU with AVX-512, D = 512: 0.87 of the time for 704 rows, 0.6 for 22.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.products = Products()
        for dropout in (self.dropout_module, self.activation_dropout_module):
            dropout.module_name = TransformerEncoderLayerBase.__name__  # by which --retain-dropout-modules asks
        self.dropouts = self.dropout_module, self.activation_dropout_module, self.self_attn.dropout_module

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Any:
        """The layer's output (S, B, D) of x (S, B, D); the mask (B, S) is True at padding."""
        attention, products = self.self_attn, self.products
        drops = self.training or any(dropout.apply_during_inference for dropout in self.dropouts)
        if drops or attn_mask is not None or attention.use_xformers or not products.takes(x, self.fc1):
            return super().forward(x, encoder_padding_mask, attn_mask)
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        projected = products(x, attention.q_proj, attention.k_proj, attention.v_proj)  # (S, B, 3D)
        queries, keys, values = projected.view(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 1, 3, 0, 4)
        real = None if encoder_padding_mask is None else ~encoder_padding_mask[:, None, None]
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=real)  # (B, H, S, D / H)
        x = residual + products(read.permute(2, 0, 1, 3).flatten(2), attention.out_proj)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)
        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        relu = self.activation_fn is F.relu
        x = products(x, self.fc1, relu=relu)
        x = residual + products(x if relu else self.activation_fn(x), self.fc2)
        return x if self.normalize_before else self.final_layer_norm(x)


class Encoder(TransformerEncoder):
    """The host's. The rows that beam search makes of a sentence share its output, instead of a copy each."""

    def __init__(self, args: Any, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(args, dictionary, embed_tokens)
        self.dropout_module.module_name = TransformerEncoder.__name__

    def build_encoder_layer(self, args: Any) -> nn.Module:
        """The host's, of :class:`EncoderLayer`."""
        cfg = TransformerConfig.from_namespace(args)
        layer: nn.Module = EncoderLayer(cfg)
        if cfg.checkpoint_activations:
            layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> dict[str, list[Tensor]]:
        """Only "rows" (R,), the sentence of each row, is reordered; :func:`expanded` makes the copies."""
        rows = encoder_out["rows"][0] if "rows" in encoder_out else None
        return {**encoder_out, "rows": [new_order if rows is None else rows[new_order]]}


def expanded(encoder_out: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """An encoder's output with the host's meaning: a sentence for each row."""
    if "rows" not in encoder_out:
        return encoder_out
    (rows,) = encoder_out["rows"]
    plain = {name: value for name, value in encoder_out.items() if name != "rows"}
    for name, axis in (("encoder_out", 1), ("encoder_padding_mask", 0), ("encoder_embedding", 0), ("src_lengths", 0)):
        plain[name] = [value.index_select(axis, rows) for value in plain.get(name, [])]
    plain["encoder_states"] = [state.index_select(1, rows) for state in plain.get("encoder_states", [])]
    return plain
