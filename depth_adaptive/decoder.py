"""fairseq's Transformer decoder with an exit after every block (section 3 of the paper).

Axes: N blocks and exits (counted from 1), B batch, T target, D dimension of the decoder, V vocabulary.
"""

from typing import Any

import torch
from fairseq.models.transformer import TransformerDecoder
from fairseq.modules import LayerNorm
from torch import Tensor, nn

from depth_adaptive import decoding
from depth_adaptive.config import DepthOptions, build_policy, options_of, temperatures
from depth_adaptive.encoder import expanded
from depth_adaptive.halting import Policy, build_halting
from depth_adaptive.losses import gradient_scales, scale_gradient
from depth_adaptive.products import Products
from thoth_core.errors import UserError


class Pass:
    """What one run through the blocks, of whole sentences, is to do and has found."""

    def __init__(self, exits: Tensor | None = None, policy: Policy | None = None) -> None:
        self.exits = exits  # (B, T): blocks above a token's exit copy its state
        self.policy = policy  # decides the exits on the way
        self.inputs: dict[str, Tensor] = {}  # what the policy is told
        self.planned: Tensor | None = None
        self.states: list[Tensor] = []  # the output of each block (B, T, D)


class BlockHooks:
    """What happens between two blocks. Attached to the host's layer n, whichever class it is of."""

    def __init__(self, decoder: "Decoder", n: int) -> None:
        self.decoder, self.n = decoder, n

    def attach(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self.before)
        layer.register_forward_hook(self.after)

    def before(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Divide the gradient that comes down from the upper exits (algorithm 1)."""
        scales = self.decoder.gradient_scales
        if scales is None or not layer.training or self.n == 1:
            return None
        return (scale_gradient(args[0], 1 / scales[self.n - 1]), *args[1:])

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Copy the states of tokens that have exited, note the others', and ask which of these exit here."""
        run = self.decoder.run
        if run is None:
            return None
        x, n = output[0], self.n  # (T, B, D)
        if run.exits is not None:
            x = torch.where((run.exits >= n).t().unsqueeze(-1), x, args[0])
        state = x.transpose(0, 1)
        run.states.append(state)
        if run.policy is not None and n < self.decoder.num_layers:
            self.decide(run, run.policy, state)
        return (x, *output[1:])

    def decide(self, run: Pass, policy: Policy, state: Tensor) -> None:
        """Set the exits of tokens that stop after this block."""
        assert run.exits is not None
        if self.n == 1:
            run.planned = policy.planned(first=state, **run.inputs)
            if run.planned is not None:
                run.exits = run.planned
        if run.planned is None:
            stops = policy.stops(self.n, state, lambda: self.decoder.exit_logits(self.n, state))
            run.exits = run.exits.masked_fill(stops & (run.exits > self.n), self.n)


class Decoder(TransformerDecoder):
    """The host's decoder, which may stop after any block."""

    def __init__(self, args: Any, dictionary: Any, embed_tokens: nn.Embedding, no_encoder_attn: bool = False) -> None:
        super().__init__(args, dictionary, embed_tokens, no_encoder_attn=no_encoder_attn)
        self.dropout_module.module_name = TransformerDecoder.__name__  # by which --retain-dropout-modules asks
        options = options_of(args)
        exits = self.num_layers
        # Where blocks normalise their outputs, an exit has nothing to add.
        norms = [LayerNorm(self.embed_dim) for _ in range(exits - 1)] if self.layer_norm is not None else []
        self.exit_norms = nn.ModuleList(norms)
        self.exit_projections = nn.ModuleList()
        if options.exit_projections == "separate":
            self.exit_projections.extend(self._classifier(dictionary) for _ in range(exits - 1))
            if self.share_input_output_embed:
                # What an embedding is as the input of every exit outweighs what it would be as one exit's classifier.
                self.output_projection = self._classifier(dictionary)
        self.halting = build_halting(
            options.halting, decoder_dim=self.embed_dim, encoder_dim=self.cfg.encoder.embed_dim, exits=exits
        )
        self.choose(options)
        self.gradient_scales = gradient_scales(options.exit_gradient_scale, exits)
        self.run: Pass | None = None
        self.products = Products()
        for n, layer in enumerate(self.layers, start=1):
            BlockHooks(self, n).attach(layer)

    def _classifier(self, dictionary: Any) -> nn.Linear:
        projection = nn.Linear(self.output_embed_dim, len(dictionary), bias=False)
        nn.init.normal_(projection.weight, mean=0, std=self.output_embed_dim**-0.5)
        return projection

    def make_generation_fast_(self, retain_dropout: bool = False, need_attn: Any = None, **options: Any) -> None:
        """The host's, told the options of decoding. Raises a UserError for those that our steps pass by."""
        for option, asked in (("--retain-dropout", retain_dropout), ("--print-alignment", need_attn)):
            if asked and self.policy is not None:
                raise UserError(f"{option} works with --exit-policy full only: leave one of them out")

    # --- exits ---

    def choose(self, options: DepthOptions) -> None:
        """Choose exits as ``options`` say from here on; those that decide about weights and training stay."""
        self.exit_options = options
        self.policy = build_policy(options, exits=self.num_layers, halting=self.halting)
        self.temperatures = temperatures(options, exits=self.num_layers)

    def exit_features(self, n: int, state: Tensor) -> Tensor:
        """What exit n's output projection reads, of block n's output (..., D)."""
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
        """(..., V) of block n's output (..., D), divided by the exit's temperature."""
        return self.products(self._tempered(n, state), self.exit_projection(n))

    def _tempered(self, n: int, state: Tensor) -> Tensor:
        """The features of an exit divided by its temperature, as its logits are to be: projections have no bias."""
        features = self.exit_features(n, state)
        return features if self.temperatures is None else features / self.temperatures[n - 1]

    def logits_by_exit(self, states: Tensor, exits: Tensor) -> Tensor:
        """(R, V) of states (R, D) that each have left at their exit (R,)."""
        if not len(self.exit_norms) and not len(self.exit_projections) and self.temperatures is None:
            return self.exit_logits(self.num_layers, states)
        present = exits.unique().tolist()
        if len(present) == 1:
            return self.exit_logits(present[0], states)
        rows = [(exits == n).nonzero().squeeze(1) for n in present]
        shared = not len(self.exit_projections)
        of_exit = self._tempered if shared else self.exit_logits
        found = torch.cat([of_exit(n, states[some]) for n, some in zip(present, rows, strict=True)])
        found = found[torch.cat(rows).argsort()]
        return self.products(found, self.output_projection) if shared else found

    # --- whole sentences ---

    def states(self, tokens: Tensor, encoder_out: Any, run: Pass, **options: Any) -> tuple[Tensor, dict[str, Any]]:
        """Run the host's blocks; the outputs of all of them are in ``run.states``."""
        self.run = run
        try:
            return self.extract_features(tokens, encoder_out=encoder_out, **options)
        finally:
            self.run = None

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
        **options: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The host's, with exits.

        With ``features_only`` the last exit's features and, in the extra outputs, "exit_states": the outputs of all
        blocks, (B, T, D) each; in mixed training also "mixed", a list of (exits (B, T), such outputs); and
        "sentence", the mean encoder output (B, E). Otherwise logits of the exits that the policy chooses, which
        are in the extra outputs as "exits" (B, T).
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
        mixed = []
        if self.training and self.exit_options.exit_training == "mixed":
            for _ in range(self.exit_options.exit_samples):
                exits = torch.randint(1, self.num_layers + 1, tokens.shape, device=tokens.device)
                run = Pass(exits)
                self.states(tokens, encoder_out, run, **options)
                mixed.append((exits, run.states))
        if mixed and self.halting is None:
            return mixed[-1][1][-1], {"attn": [None], "mixed": mixed}
        run = Pass()
        x, extra = self.states(tokens, encoder_out, run, **options)
        return x, {**extra, "exit_states": run.states, "mixed": mixed, "sentence": sentence_of(encoder_out)}

    def _chosen_exits(
        self, tokens: Tensor, encoder_out: Any, policy: Policy, options: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        encoder_out = expanded(encoder_out)
        run = Pass(torch.full_like(tokens, self.num_layers), policy)
        positions = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
        sentence = sentence_of(encoder_out)[:, None].expand(-1, tokens.size(1), -1)
        run.inputs = {"sentence": sentence, "tokens": tokens, "positions": positions}
        _, extra = self.states(tokens, encoder_out, run, **options)
        assert run.exits is not None
        logits = self.logits_by_exit(run.states[-1].flatten(0, 1), run.exits.flatten())
        return logits.view(*tokens.shape, -1), {**extra, "exits": run.exits}

    # --- one token at a time ---

    def _step(
        self, tokens: Tensor, encoder_out: Any, incremental_state: dict[str, Any], policy: Policy
    ) -> tuple[Tensor, dict[str, Any]]:
        search: decoding.Search | None = incremental_state.get("depth_adaptive")
        if search is None:
            padding = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
            if padding is not None and not padding.any():
                padding = None
            eager = self.exit_options.exit_copies == "eager"
            search = decoding.Search(self, encoder_out["encoder_out"][0], padding, eager=eager)
            incremental_state["depth_adaptive"] = search
        rows = encoder_out["rows"][0] if "rows" in encoder_out else torch.arange(tokens.size(0), device=tokens.device)
        x = self._embed(tokens, incremental_state)  # (R, D)
        logits, exits = decoding.step(search, policy, x, tokens[:, -1], rows)
        return logits[:, None], {"attn": [None], "inner_states": [], "exits": exits[:, None]}

    def _embed(self, tokens: Tensor, incremental_state: dict[str, Any]) -> Tensor:
        """The input (R, D) of the first block for the last of ``tokens`` (R, t), as the host computes it."""
        x = self.embed_scale * self.embed_tokens(tokens[:, -1])
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if self.embed_positions is not None:
            x = x + self.embed_positions(tokens, incremental_state=incremental_state)[:, -1]
        return x if self.layernorm_embedding is None else self.layernorm_embedding(x)

    def reorder_incremental_state_scripting(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        """Rows go on with the histories of rows ``new_order`` (R,).

        The host asks every module, at every step; with a policy nothing but the search has a state.
        """
        search = incremental_state.get("depth_adaptive")
        if search is None:
            super().reorder_incremental_state_scripting(incremental_state, new_order)
        else:
            search.reorder(new_order)


def sentence_of(encoder_out: dict[str, list[Tensor]]) -> Tensor:
    """The mean of the encoder's output over real positions: (B, E)."""
    padding = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
    return decoding.mean_state(encoder_out["encoder_out"][0], padding)
