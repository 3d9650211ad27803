r"""From the tensors of one query to a chunk of actions, in one module.

    pictures -> vision towers -> projector \
    robot state -> proprio projector -------> sequence -> Llama -> action read-out -> un-normalise
    prompt -> token embeddings -------------/

Everything stays in torch on the device, so that a tracer sees the whole way and gradients flow back. In the parallel
variants the language model attends in both directions and every module runs once per query (the diffusion head runs it
once per denoising step); base OpenVLA is causal and runs it once per action token.

Source: Kim et al. 2024 (OpenVLA), Kim, Finn and Liang 2025 (OpenVLA-OFT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from mist_interp.core.actions import ActionChunk
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.layout import TokenLayout
from mist_interp.models import bins, sequence
from mist_interp.models.autoregressive import greedy_action_tokens
from mist_interp.models.config import OpenVLAConfig
from mist_interp.models.heads import DiffusionHead, RegressionHead, denoise
from mist_interp.models.initialization import initialize
from mist_interp.models.normalization import EPSILON, Bounds, normalize, resolve_unnorm_key, unnormalize
from mist_interp.models.validation import check_inputs
from mist_interp.models.vision import CHANNELS_PER_IMAGE, TokenProjector, VisionBackbone, VisionProjector

if TYPE_CHECKING:
    from mist_interp.models.attention_check import AttentionRegime
    from mist_interp.models.processor import Processor


class OpenVLAPolicy(PreTrainedModel):
    """OpenVLA or OpenVLA-OFT, in any of its variants.

    Built from a configuration its weights are random; `mist_interp.models.load_policy` fills in published ones.

    Attributes:
        processor: turns observations into inputs, see `prepare`; None until one is attached.
        model_id: where the weights came from.
        revision: commit of the repository on the Hub that they came from; None where there is none.
        variant_evidence: what the variant was read off.
    """

    config: OpenVLAConfig
    config_class = OpenVLAConfig
    base_model_prefix = "policy"
    main_input_name = "inputs"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Block", "LlamaDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: OpenVLAConfig):
        super().__init__(config)
        hidden = config.llm.hidden_size
        self.vision_backbone = VisionBackbone(config)
        self.projector = VisionProjector(config)
        self.language_model = LlamaForCausalLM(config.llm)
        if config.use_proprio:
            self.proprio_projector = TokenProjector(config.proprio_dim, hidden)
        if config.variant == "l1":
            self.action_head: nn.Module = RegressionHead(config)
        elif config.variant == "diffusion":
            self.action_head = DiffusionHead(config)
            self.noisy_action_projector = TokenProjector(1, hidden)
        self.processor: Processor | None = None
        self.model_id = "built from a configuration"
        self.revision: str | None = None
        self.variant_evidence = "the configuration"
        self._unnorm_key: str | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module)

    @property
    def variant(self) -> str:
        """How actions are decoded: "l1", "diffusion", "discrete" or "base"."""
        return self.config.variant

    @property
    def unnorm_key(self) -> str:
        """The dataset whose statistics map actions to robot units; may be set to another one of the checkpoint's."""
        return resolve_unnorm_key(self.config.norm_stats, self._unnorm_key)

    @unnorm_key.setter
    def unnorm_key(self, key: str | None) -> None:
        self._unnorm_key = resolve_unnorm_key(self.config.norm_stats, key)

    def bounds(self, part: str) -> Bounds:
        """Bounds of the "action" or the "proprio" numbers in the current dataset's statistics."""
        assert self.config.norm_stats is not None or self.unnorm_key
        return Bounds.read((self.config.norm_stats or {})[self.unnorm_key][part], self.config.bounds)

    @property
    def unused_weights(self) -> tuple[str, ...]:
        """Names of the parameters that no forward pass reads: published with the others, and loaded with them."""
        unused = []
        for name in ("featurizer", "fused_featurizer"):
            tower = f"vision_backbone.{name}"
            last = getattr(self.vision_backbone, name).size.depth - 1
            unused += [f"{tower}.blocks.{last}.", f"{tower}.norm.", f"{tower}.attn_pool."]
        if self.variant in ("l1", "diffusion"):
            unused.append("language_model.lm_head.")
        return tuple(name for name, _ in self.named_parameters() if name.startswith(tuple(unused)))

    def forward(self, inputs: PolicyInputs) -> ActionChunk:
        """Answer a batch of queries.

        Raises:
            ValueError: for pictures of another shape or type, a missing or unexpected robot state, a wrong prompt.
        """
        check_inputs(inputs, self.config)
        prompt = sequence.close_prompt(inputs.input_ids, inputs.attention_mask, self.config.lone_space_token_id)
        if self.variant == "base":
            return self._act_token_by_token(prompt, inputs)
        text = sequence.append_slots(
            prompt, self.config.action_slots, self.config.placeholder_token_id, self.config.stop_token_id
        )
        text_embeddings = self.language_model.get_input_embeddings()(text.ids)
        language = self.mean_language(text_embeddings, text) if self.config.film else None
        inserted = self.see(inputs, language)
        if self.variant == "diffusion":
            return self._act_by_denoising(text_embeddings, text, inserted, inputs.noise)
        return self.decide(self.read_out(text_embeddings.masked_fill(text.is_slot[..., None], 0), text, inserted))

    def decide(self, states: Float[Tensor, "batch slot hidden"]) -> ActionChunk:
        """The actions that final states (after the final norm, at the read positions) stand for.

        Raises:
            ValueError: for a diffusion head, whose answer takes many states and a noisy chunk.
        """
        if self.variant == "diffusion":
            raise ValueError("a diffusion head reads noise, not actions, off one run's states")
        if self.variant == "l1":
            return self.as_chunk(self.action_head(states))
        return self._chunk_of_tokens(self.language_model.lm_head(states).argmax(-1))

    def see(
        self, inputs: PolicyInputs, language: Float[Tensor, "batch hidden"] | None = None
    ) -> Float[Tensor, "batch inserted hidden"]:
        """The tokens that stand between BOS and the prompt: all patches, then the robot state if the policy has one."""
        patches = self.projector(self.vision_backbone(inputs.pixel_values.to(self.dtype), language))
        if not self.config.use_proprio:
            return patches
        assert inputs.proprio is not None
        state = normalize(inputs.proprio, self.bounds("proprio")).to(patches.dtype)
        return torch.cat([patches, self.proprio_projector(state[:, None])], dim=1)

    def read_out(
        self,
        text_embeddings: Float[Tensor, "batch tokens hidden"],
        text: sequence.TextSequence,
        inserted: Float[Tensor, "batch inserted hidden"],
    ) -> Float[Tensor, "batch slot hidden"]:
        """Run the language model over the whole sequence and take the final states that the actions are read from."""
        output = self.language_model.model(
            inputs_embeds=sequence.insert_after_bos(text_embeddings, inserted),
            attention_mask=sequence.attend_to_inserted(text.attention, inserted.shape[1]),
            use_cache=False,
        )
        return sequence.read_slots(output.last_hidden_state, text, inserted.shape[1])

    def mean_language(
        self, text_embeddings: Float[Tensor, "batch tokens hidden"], text: sequence.TextSequence
    ) -> Float[Tensor, "batch hidden"]:
        """Mean embedding of prompt and stop token, which modulates the vision towers (FiLM)."""
        counted = (text.attention & ~text.is_slot)[..., None]
        return text_embeddings.masked_fill(~counted, 0).sum(1) / counted.sum(1)

    def _act_by_denoising(
        self,
        text_embeddings: Float[Tensor, "batch tokens hidden"],
        text: sequence.TextSequence,
        inserted: Float[Tensor, "batch inserted hidden"],
        noise: Float[Tensor, "batch chunk dim"] | None,
    ) -> ActionChunk:
        head, config = self.action_head, self.config
        assert isinstance(head, DiffusionHead)
        shape = (len(inserted), config.chunk_size, config.action_dim)
        if noise is None:
            noise = torch.randn(shape, device=inserted.device, dtype=inserted.dtype)

        def predict_noise(chunk: Float[Tensor, "batch chunk dim"], timestep: int) -> Float[Tensor, "batch chunk dim"]:
            level = torch.full((shape[0],), float(timestep), device=inserted.device)
            level_token = head.time_encoder(level).to(inserted.dtype)[:, None]
            chunk_tokens = self.noisy_action_projector(chunk.flatten(1)[..., None])
            embeddings = text_embeddings.masked_scatter(text.is_slot[..., None], chunk_tokens)
            return head(self.read_out(embeddings, text, torch.cat([inserted, level_token], dim=1)))

        noise = noise.to(inserted.dtype)
        return self.as_chunk(denoise(noise, predict_noise, config.diffusion_train_steps, config.diffusion_steps))

    def _act_token_by_token(self, prompt: sequence.Prompt, inputs: PolicyInputs) -> ActionChunk:
        text_embeddings = self.language_model.get_input_embeddings()(prompt.ids)
        inserted = self.see(inputs)
        embeddings = sequence.insert_after_bos(text_embeddings, inserted)
        attention = sequence.attend_to_inserted(prompt.attention, inserted.shape[1])
        lengths = prompt.lengths + inserted.shape[1]
        return self._chunk_of_tokens(
            greedy_action_tokens(self.language_model, embeddings, attention, lengths, self.config.action_slots)
        )

    def _chunk_of_tokens(self, token_ids: Tensor) -> ActionChunk:
        normalized = bins.decode(token_ids, self.config.bin_vocab_size, self.config.n_action_bins)
        return self.as_chunk(normalized, token_ids)

    def as_chunk(self, normalized: Tensor, token_ids: Tensor | None = None) -> ActionChunk:
        """A chunk of normalised actions, (batch, chunk, dim) numbers in any shape, with its values in robot units."""
        shape = (-1, self.config.chunk_size, self.config.action_dim)
        normalized = normalized.reshape(shape)
        if normalized.dtype != torch.float64:
            normalized = normalized.float()
        epsilon = 0.0 if self.variant == "base" else EPSILON
        values = unnormalize(normalized, self.bounds("action"), epsilon)
        names = self.config.action_names
        return ActionChunk(normalized, values, names, None if token_ids is None else token_ids.reshape(shape))

    def layout(self, inputs: PolicyInputs) -> TokenLayout:
        """Names of all tokens of the sequence that these inputs become."""
        prompt = sequence.close_prompt(inputs.input_ids, inputs.attention_mask, self.config.lone_space_token_id)
        side = self.config.image_size // self.config.towers[0].patch
        return TokenLayout.build(
            prompt.lengths.tolist(),
            inputs.pixel_values.shape[1] // CHANNELS_PER_IMAGE,
            (side, side),
            self.config.use_proprio,
            diffusion=self.variant == "diffusion",
            chunk=self.config.chunk_size,
            action_dim=self.config.action_dim,
            words=None if self.processor is None else self.processor.words(prompt),
            autoregressive=self.variant == "base",
        )

    def prepare(self, obs: dict[str, Any] | Sequence[dict[str, Any]], instruction: str | Sequence[str]) -> PolicyInputs:
        """Turn LIBERO observations and instructions into inputs on this policy's device, see `Processor`.

        Raises:
            ValueError: if the policy has no processor, or an observation lacks something the policy needs.
        """
        if self.processor is None:
            raise ValueError(
                f"this policy ({self.model_id}) has no processor: it was not loaded from a folder with a tokenizer; "
                "attach one with policy.processor = ..."
            )
        return self.processor(obs, instruction).to(self.device)

    def check(self) -> AttentionRegime:
        """Show that attention is bidirectional, or causal, as the variant needs; see `check_attention`."""
        from mist_interp.models.attention_check import check_attention

        return check_attention(self.language_model, expect_causal=self.variant == "base")
