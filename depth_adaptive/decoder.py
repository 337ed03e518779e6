"""fairseq's Transformer decoder with an exit after every block (section 3 of the paper).

Axes: N blocks and exits (counted from 1), B batch, T target, R rows (hypotheses of all sentences), S source,
D dimension of the decoder, E that of the encoder, V vocabulary.
"""

from typing import Any

import torch
from fairseq.models.transformer import TransformerDecoder
from fairseq.modules import LayerNorm
from torch import Tensor, nn

from depth_adaptive.config import DepthOptions, build_policy, options_of, temperatures
from depth_adaptive.encoder import expanded
from depth_adaptive.halting import Policy, build_halting
from depth_adaptive.losses import gradient_scales, scale_gradient
from depth_adaptive.packed_linear import PackedLinears
from depth_adaptive.search import Search
from depth_adaptive.source import mean_state
from depth_adaptive.teacher_forcing import AfterBlock, GivenExits, PolicyExits, go_on
from thoth_core.errors import UserError

SEARCH = "depth_adaptive"  # the key of the search in fairseq's incremental state


class Decoder(TransformerDecoder):
    """fairseq's decoder, which may stop after any block.

    It keeps nothing of a pass or a search on itself: several threads can decode with one model.
    """

    def __init__(self, args: Any, dictionary: Any, embed_tokens: nn.Embedding, no_encoder_attn: bool = False) -> None:
        super().__init__(args, dictionary, embed_tokens, no_encoder_attn=no_encoder_attn)
        self.dropout_module.module_name = TransformerDecoder.__name__  # the name that --retain-dropout-modules takes
        options = options_of(args)
        exits = self.num_layers
        # Where blocks normalise their outputs, an exit has nothing to add.
        norms = [LayerNorm(self.embed_dim) for _ in range(exits - 1)] if self.layer_norm is not None else []
        self.exit_norms = nn.ModuleList(norms)
        self.exit_projections = nn.ModuleList()
        if options.exit_projections == "separate":
            self.exit_projections.extend(self._classifier(dictionary) for _ in range(exits - 1))
            if self.share_input_output_embed:
                # As the input of every exit, an embedding learns more than it would as the classifier of one.
                self.output_projection = self._classifier(dictionary)
        self.halting = build_halting(
            options.halting, decoder_dim=self.embed_dim, encoder_dim=self.cfg.encoder.embed_dim, exits=exits
        )
        self.choose(options)
        self.gradient_scales = gradient_scales(options.exit_gradient_scale, exits)
        self.packed = PackedLinears()

    def _classifier(self, dictionary: Any) -> nn.Linear:
        projection = nn.Linear(self.output_embed_dim, len(dictionary), bias=False)
        nn.init.normal_(projection.weight, mean=0, std=self.output_embed_dim**-0.5)
        return projection

    def make_generation_fast_(self, retain_dropout: bool = False, need_attn: Any = None, **options: Any) -> None:
        """Receive fairseq's options of decoding.

        Raises:
            UserError: an option that steps with an exit policy do not support.
        """
        for option, value in (("--retain-dropout", retain_dropout), ("--print-alignment", need_attn)):
            if value and self.policy is not None:
                raise UserError(f"{option} works with --exit-policy full only: leave one of them out")

    def buffered_future_mask(self, tensor: Tensor) -> Tensor:
        """fairseq's mask (T, T) for an input (T, B, D), without its buffer, which threads would share."""
        length = tensor.size(0)
        return torch.triu(tensor.new_full((length, length), float("-inf")), 1)

    # --- exits ---

    def choose(self, options: DepthOptions) -> None:
        """Choose exits by ``options`` from now on. Options of weights and of training have no effect here."""
        self.exit_options = options
        self.policy = build_policy(options, exits=self.num_layers, halting=self.halting)
        self.temperatures = temperatures(options, exits=self.num_layers)

    def exit_features(self, n: int, state: Tensor) -> Tensor:
        """The input of exit n's output projection for the output (..., D) of block n."""
        norm = self.layer_norm if n == self.num_layers else self.exit_norms[n - 1] if len(self.exit_norms) else None
        if norm is not None:
            state = norm(state)
        return state if self.project_out_dim is None else self.project_out_dim(state)

    def exit_projection(self, n: int) -> nn.Linear:
        """The output projection of exit n."""
        if n == self.num_layers or not len(self.exit_projections):
            return self.output_projection
        projection: nn.Linear = self.exit_projections[n - 1]  # type: ignore[assignment]
        return projection

    def exit_logits(self, n: int, state: Tensor) -> Tensor:
        """Logits (..., V) of exit n for the output (..., D) of block n, divided by the exit's temperature."""
        return self.packed(self._tempered_features(n, state), self.exit_projection(n))

    def _tempered_features(self, n: int, state: Tensor) -> Tensor:
        """The features of exit n divided by its temperature. Projections have no bias: so the logits are divided."""
        features = self.exit_features(n, state)
        return features if self.temperatures is None else features / self.temperatures[n - 1]

    def logits_by_exit(self, states: Tensor, exits: Tensor) -> Tensor:
        """Logits (R, V) of states (R, D) that each have left at their exit (R,)."""
        if not len(self.exit_norms) and not len(self.exit_projections) and self.temperatures is None:
            return self.exit_logits(self.num_layers, states)
        present = exits.unique().tolist()
        if len(present) == 1:
            return self.exit_logits(present[0], states)
        rows = [(exits == n).nonzero().squeeze(1) for n in present]
        shared = not len(self.exit_projections)  # one product for all exits
        compute = self._tempered_features if shared else self.exit_logits
        parts = torch.cat([compute(n, states[of_exit]) for n, of_exit in zip(present, rows, strict=True)])
        in_order = parts[torch.cat(rows).argsort()]
        return self.packed(in_order, self.output_projection) if shared else in_order

    # --- whole sentences ---

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
        **options: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """fairseq's forward pass with exits, and extra outputs.

        With ``features_only``: the last exit's features, and "exit_states", the outputs of all blocks, (B, T, D) each;
        in mixed training "mixed", a list of (exits (B, T), such outputs); and "sentence", the mean encoder output
        (B, E). Otherwise: logits of the exits that the policy chooses, which are "exits" (B, T).
        """
        options.pop("src_lengths", None)
        options.pop("return_all_hiddens", None)
        assert encoder_out is not None
        if features_only:
            return self._all_exits(prev_output_tokens, encoder_out, options)
        if self.policy is None:
            return super().forward(
                prev_output_tokens, expanded(encoder_out), incremental_state=incremental_state, **options
            )
        if incremental_state is None:
            return self._chosen_exits(prev_output_tokens, encoder_out, self.policy, options)
        return self._step(prev_output_tokens, encoder_out, incremental_state, self.policy)

    def _all_exits(self, tokens: Tensor, encoder_out: Any, options: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What training needs: the states of all blocks, and in mixed training those of sampled exits."""
        mixed = []
        if self.training and self.exit_options.exit_training == "mixed":
            for _ in range(self.exit_options.exit_samples):
                exits = torch.randint(1, self.num_layers + 1, tokens.shape, device=tokens.device)
                states, _ = self.run_blocks(tokens, encoder_out, GivenExits(exits), **options)
                mixed.append((exits, states))
        if mixed and self.halting is None:
            return mixed[-1][1][-1], {"attn": [None], "mixed": mixed}
        states, extra = self.run_blocks(tokens, encoder_out, go_on, **options)
        extra |= {"exit_states": states, "mixed": mixed, "sentence": sentence_of(encoder_out)}
        return self.exit_features(self.num_layers, states[-1]), extra

    def _chosen_exits(
        self, tokens: Tensor, encoder_out: Any, policy: Policy, options: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        encoder_out = expanded(encoder_out)
        chosen = PolicyExits(
            policy,
            exits=self.num_layers,
            tokens=tokens,
            sentence=sentence_of(encoder_out),
            exit_logits=self.exit_logits,
        )
        states, extra = self.run_blocks(tokens, encoder_out, chosen, **options)
        logits = self.logits_by_exit(states[-1].flatten(0, 1), chosen.exits.flatten())
        return logits.view(*tokens.shape, -1), {**extra, "exits": chosen.exits}

    def run_blocks(
        self,
        tokens: Tensor,
        encoder_out: dict[str, list[Tensor]],
        after_block: AfterBlock,
        *,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """Run the blocks over whole sentences, as ``TransformerDecoderBase.extract_features`` does.

        Args:
            tokens: (B, T) int64, the input tokens.
            encoder_out: the encoder's output.
            after_block: what happens to a state after each block, one of :mod:`depth_adaptive.teacher_forcing`.
            full_context_alignment, alignment_layer, alignment_heads: fairseq's options of attention weights.

        Returns:
            The states after each block, (B, T, D) each, and fairseq's extra outputs "attn" and "inner_states".
        """
        source = encoder_out["encoder_out"][0]
        source_padding = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
        is_padding = tokens.eq(self.padding_idx)
        padding = is_padding if self.cross_self_attention or is_padding.any() else None
        x = self.dropout_module(self._embed(tokens)).transpose(0, 1)  # (T, B, D)
        mask = None if full_context_alignment else self.buffered_future_mask(x)
        if alignment_layer is None:
            alignment_layer = self.num_layers - 1
        attention: Tensor | None = None
        states, inner_states = [], [x]
        for n, layer in enumerate(self.layers, start=1):
            if self.training and self.gradient_scales is not None and n > 1:
                x = scale_gradient(x, 1 / self.gradient_scales[n - 1])  # of the exits above (algorithm 1)
            output, weights, _ = layer(
                x,
                source,
                source_padding,
                None,
                self_attn_mask=mask,
                self_attn_padding_mask=padding,
                need_attn=n - 1 == alignment_layer,
                need_head_weights=n - 1 == alignment_layer,
            )
            x = after_block(n, x, output)
            states.append(x.transpose(0, 1))
            inner_states.append(x)
            if weights is not None and n - 1 == alignment_layer:
                attention = weights.float().to(x)[:alignment_heads].mean(dim=0)
        return states, {"attn": [attention], "inner_states": inner_states}

    def _embed(self, tokens: Tensor, incremental_state: dict[str, Any] | None = None) -> Tensor:
        """The input (B, T, D) of the first block for ``tokens`` (B, T); in a step for the last of them, (B, 1, D)."""
        positions = None
        if self.embed_positions is not None:
            positions = self.embed_positions(tokens, incremental_state=incremental_state)
        if incremental_state is not None:
            tokens = tokens[:, -1:]
            positions = None if positions is None else positions[:, -1:]
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if positions is not None:
            x = x + positions
        return x if self.layernorm_embedding is None else self.layernorm_embedding(x)

    # --- one token at a time ---

    def _step(
        self, tokens: Tensor, encoder_out: Any, incremental_state: dict[str, Any], policy: Policy
    ) -> tuple[Tensor, dict[str, Any]]:
        search: Search | None = incremental_state.get(SEARCH)
        if search is None:
            search = incremental_state[SEARCH] = self._begin_search(encoder_out)
        rows = encoder_out["rows"][0] if "rows" in encoder_out else torch.arange(tokens.size(0), device=tokens.device)
        x = self._embed(tokens, incremental_state).squeeze(1)  # (R, D)
        logits, exits = search.step(policy, x, tokens[:, -1], rows)
        return logits[:, None], {"attn": [None], "inner_states": [], "exits": exits[:, None]}

    def _begin_search(self, encoder_out: dict[str, list[Tensor]]) -> Search:
        padding = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
        if padding is not None and not padding.any():
            padding = None
        return Search(self, encoder_out["encoder_out"][0], padding, eager=self.exit_options.exit_copies == "eager")

    def reorder_incremental_state_scripting(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        """Rows continue the hypotheses of rows ``new_order`` (R,).

        fairseq's own method visits every module at every step; with a policy, the search alone has a state.
        """
        search = incremental_state.get(SEARCH)
        if search is None:
            super().reorder_incremental_state_scripting(incremental_state, new_order)
        else:
            search.reorder(new_order)


def sentence_of(encoder_out: dict[str, list[Tensor]]) -> Tensor:
    """The mean (B, E) of the encoder's output over the positions that are not padding."""
    padding = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
    return mean_state(encoder_out["encoder_out"][0], padding)
