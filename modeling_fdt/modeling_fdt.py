# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
FDT models: two transformers towers that meet in one codebook of finite discrete tokens.

Source: Chen et al., "Revisiting Multimodal Representation in Contrastive Learning: From Patch and Token Embeddings to
Finite Discrete Tokens", CVPR 2023 (arXiv 2303.14865).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_fdt import FDTConfig
from .explanation_fdt import FDTExplanation, explain_outputs
from .grounding import FDTGrounding
from .inputs_fdt import (
    check_captions,
    check_mask,
    check_options,
    check_shape,
    check_token_ids,
    put_padding_last,
    take_tokens,
)
from .loss_fdt import cap_logit_scale, contrastive_logits, contrastive_loss, global_contrastive_loss
from .towers_fdt import (
    ORIGINAL_CONTEXT_LENGTH,
    TYPES_TRAINED_WITH_PADDING,
    build_tower,
    check_token_features,
    copy_weights,
    distribute_sdpa,
    get_context_length,
    get_hidden_size,
    get_patch_size,
    is_unused_parameter,
    load_tower,
    put_channels_first,
)


logger = logging.get_logger(__name__)


@dataclass
class FDTVisionModelOutput(BaseModelOutputWithPooling):
    r"""
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`):
            The image tower's token features, class and register tokens included; of a convolutional tower its feature
            map, `(batch_size, hidden_size, height, width)`.
        pooler_output (`torch.Tensor` of shape `(batch_size, codebook_dim)`):
            `image_embeds`, under the name that transformers' generic code reads.
        hidden_states, attentions (`tuple(torch.Tensor)`, *optional*): as the tower returns them.
        image_embeds (`torch.Tensor` of shape `(batch_size, codebook_dim)`):
            The weighted sum of codes, of L2 norm 1.
        image_code_weights (`torch.Tensor` of shape `(batch_size, codebook_size)`):
            The weight of every code, at least 0; with sparsemax or softmax a row sums to 1.
    """

    image_embeds: torch.Tensor | None = None
    image_code_weights: torch.Tensor | None = None


@dataclass
class FDTTextModelOutput(BaseModelOutputWithPooling):
    r"""
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`):
            The text tower's token features, start, end and padding tokens included.
        pooler_output (`torch.Tensor` of shape `(batch_size, codebook_dim)`):
            `text_embeds`, under the name that transformers' generic code reads.
        hidden_states, attentions (`tuple(torch.Tensor)`, *optional*):
            As the tower returns them, which reads a caption's tokens first and its padding last.
        text_embeds (`torch.Tensor` of shape `(batch_size, codebook_dim)`):
            The weighted sum of codes, of L2 norm 1.
        text_code_weights (`torch.Tensor` of shape `(batch_size, codebook_size)`):
            The weight of every code, at least 0; with sparsemax or softmax a row sums to 1.
    """

    text_embeds: torch.Tensor | None = None
    text_code_weights: torch.Tensor | None = None


@dataclass
class FDTOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.Tensor` of shape `()`, *optional*):
            Symmetric InfoNCE over all pairs of the batch; in training on several processes, of the global batch.
        logits_per_image (`torch.Tensor` of shape `(image_batch_size, text_batch_size)`):
            Cosine similarities of images (rows) and captions times `exp(logit_scale)`, in float32 or better. Where the
            loss is asked for in training on several processes, the captions are those of all of them, by rank.
        logits_per_text (`torch.Tensor` of shape `(text_batch_size, image_batch_size)`):
            Likewise of captions (rows) and images; on one process the transpose.
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, codebook_dim)`):
            The weighted sums of codes, of L2 norm 1.
        image_code_weights, text_code_weights (`torch.Tensor` of shape `(batch_size, codebook_size)`):
            The weight of every code, at least 0; with sparsemax or softmax a row sums to 1.
        vision_model_output (`FDTVisionModelOutput`), text_model_output (`FDTTextModelOutput`):
            What the towers returned.
        pooler_output (`torch.Tensor` of shape `(batch_size, codebook_dim)`, *optional*):
            Of images or captions alone, their embeddings, under the name that transformers' generic code reads.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_code_weights: torch.Tensor | None = None
    text_code_weights: torch.Tensor | None = None
    vision_model_output: FDTVisionModelOutput | None = None
    text_model_output: FDTTextModelOutput | None = None
    pooler_output: torch.Tensor | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class FDTPreTrainedModel(PreTrainedModel):
    """What all FDT models share: their configuration class, what of transformers they support, initialisation."""

    config: FDTConfig
    codebook: nn.Parameter
    config_class = FDTConfig
    base_model_prefix = "fdt"
    input_modalities = ["image", "text"]
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["FDTGrounding"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: FDTConfig):
        # Read before transformers replaces None, nobody's wish, by its default. The attribute is private, but the only
        # place where `from_pretrained(..., attn_implementation="sdpa")` leaves its mark before towers are built
        # (tests/test_towers.py::test_sdpa_where_a_tower_has_it).
        if config._attn_implementation == "sdpa":
            config._attn_implementation = distribute_sdpa(config)
        super().__init__(config)
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.codebook_dim))
        self._require_grads_hooks: list[RemovableHandle] = []

    @classmethod
    def is_custom_code(cls) -> bool:
        # In custom code transformers skips a module that holds no tensor itself, lest `_init_weights` overwrite loaded
        # ones. With `transformers.initialization` that cannot happen, and groundings and attention blocks, which are
        # initialised as a whole, would stay uninitialised where a checkpoint lacks them
        # (tests/test_modeling.py::test_what_a_checkpoint_lacks_is_initialised_as_in_a_new_model).
        return False

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        model._refuse_checkpoint_of_the_other_half(set(report["missing_keys"]))
        # Loading makes every parameter trainable again.
        model._freeze_parts()
        return (model, report) if output_loading_info else model

    def _refuse_checkpoint_of_the_other_half(self, missing: set[str]) -> None:
        names = {name for name, _ in self.named_parameters()}
        for half in ("vision_tower", "text_tower"):
            of_half = {name for name in names if name.startswith(f"{half}.")}
            if of_half and of_half <= missing and "codebook" not in missing:
                saved_by = self.config.architectures or "a class that its configuration does not name"
                raise ValueError(
                    f"{type(self).__name__} needs a {half}, but {self.name_or_path!r} holds no weight of one: it was "
                    f"saved by {saved_by}."
                )

    def post_init(self) -> None:
        super().post_init()
        self._freeze_parts()

    def _freeze_parts(self) -> None:
        for name, parameter in self.named_parameters():
            half, _, name_in_tower = name.partition(".")
            if half in ("vision_tower", "text_tower"):
                if is_unused_parameter(getattr(self, half).config, name_in_tower):
                    parameter.requires_grad_(False)
        if self.config.freeze_patch_embedding and isinstance(self, _ImageGrounding):
            try:
                patch_embedding = self.vision_tower.get_input_embeddings()
            except NotImplementedError:
                patch_embedding = None
            if patch_embedding is None:
                model_type = self.config.vision_config.model_type
                raise ValueError(f"`freeze_patch_embedding`: a {model_type} tower has no patch embedding.")
            patch_embedding.requires_grad_(False)

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """
        Change how attention is computed, as in every transformers model: one implementation, or one for each of
        `vision_config` and `text_config`. If it is `"sdpa"` for both, a tower that lacks it computes eagerly.
        """
        if attn_implementation == "sdpa":
            attn_implementation = distribute_sdpa(self.config)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def enable_input_require_grads(self) -> None:
        """
        Let gradients reach what the towers' embeddings give, even where these are frozen: adapters and checkpointing
        of activations need it. Unlike transformers' own, it bears embeddings that return a tuple (Swin).
        """
        self.disable_input_require_grads()
        for tower in (getattr(self, half, None) for half in ("vision_tower", "text_tower")):
            try:
                embeddings = None if tower is None else tower.get_input_embeddings()
            except NotImplementedError:  # ResNet
                continue
            if embeddings is not None:
                self._require_grads_hooks.append(embeddings.register_forward_hook(_require_grad))

    def disable_input_require_grads(self) -> None:
        """Undo [`~FDTPreTrainedModel.enable_input_require_grads`]."""
        for hook in self._require_grads_hooks:
            hook.remove()
        self._require_grads_hooks.clear()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, FDTGrounding):
            for layer in module.query_projection:
                if isinstance(layer, nn.Linear):
                    # torch's own initialisation of a linear layer, which the original leaves in place.
                    bound = 1 / math.sqrt(layer.in_features)
                    init.uniform_(layer.weight, -bound, bound)
                    init.uniform_(layer.bias, -bound, bound)
                elif isinstance(layer, nn.LayerNorm):
                    init.ones_(layer.weight)
                    init.zeros_(layer.bias)
        elif isinstance(module, FDTPreTrainedModel):
            init.normal_(module.codebook)
            if isinstance(module, FDTModel):
                init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            elif isinstance(module, FDTForImageClassification):
                init.normal_(module.classifier.weight, std=self.config.codebook_dim**-0.5)
                init.zeros_(module.classifier.bias)


def _require_grad(module: nn.Module, inputs: tuple, output: Any) -> None:
    features = output[0] if isinstance(output, tuple) else output
    features.requires_grad_(True)


class _ImageGrounding:
    """The image half of an FDT model: the image tower and its grounding."""

    config: Any
    codebook: nn.Parameter
    vision_tower: PreTrainedModel
    vision_grounding: FDTGrounding

    def _build_image_half(self, config: FDTConfig) -> None:
        self.vision_tower = build_tower(config.vision_config)
        self.vision_grounding = FDTGrounding(config, get_hidden_size(config.vision_config))

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> tuple | FDTVisionModelOutput:
        r"""
        Embed images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised pixels, as [`FDTImageProcessor`] gives them.
            kwargs: for the image tower, e.g. `output_hidden_states`, `interpolate_pos_encoding`.

        Returns:
            [`FDTVisionModelOutput`], whose `pooler_output` are the embeddings.

        Raises:
            ValueError: `pixel_values` are no batch of images with the tower's number of channels, or the tower has no
                such option.
        """
        tower_output, patch_features = self._run_vision_tower(pixel_values, **kwargs)
        grounded = self.ground_patches(patch_features)
        return FDTVisionModelOutput(
            last_hidden_state=tower_output.last_hidden_state,
            pooler_output=grounded.pooler_output,
            hidden_states=tower_output.hidden_states,
            attentions=tower_output.get("attentions"),
            image_embeds=grounded.image_embeds,
            image_code_weights=grounded.image_code_weights,
        )

    def get_patch_features(self, pixel_values: torch.FloatTensor, **kwargs) -> torch.Tensor:
        r"""
        What the image tower says of patches; [`~FDTModel.ground_patches`] makes embeddings of it.

        Args:
            pixel_values, kwargs: as for [`~FDTModel.get_image_features`].

        Returns:
            `torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`, patches row by row.

        Raises:
            ValueError: as [`~FDTModel.get_image_features`] does.
        """
        return self._run_vision_tower(pixel_values, **kwargs)[1]

    def ground_patches(self, patch_features: torch.Tensor) -> FDTVisionModelOutput:
        r"""
        Embed images by what the image tower says of their patches: all that follows the tower.

        Args:
            patch_features (`torch.Tensor` of shape `(batch_size, num_patches, hidden_size)`):
                Of any floating type. Of a transformer the last hidden states without class and register tokens.

        Returns:
            [`FDTVisionModelOutput`], whose `last_hidden_state` are the features given.

        Raises:
            ValueError: `patch_features` have another shape.
        """
        hidden_size = get_hidden_size(self.config.vision_config)
        check_shape("patch_features", patch_features, "batch_size", "num_patches", hidden_size)
        image_embeds, image_code_weights = self.vision_grounding(patch_features, self.codebook)
        return FDTVisionModelOutput(
            last_hidden_state=patch_features,
            pooler_output=image_embeds,
            image_embeds=image_embeds,
            image_code_weights=image_code_weights,
        )

    def _run_vision_tower(self, pixel_values: torch.Tensor, **kwargs) -> tuple[Any, torch.Tensor]:
        num_channels = getattr(self.config.vision_config, "num_channels", 3)
        check_shape("pixel_values", pixel_values, "batch_size", num_channels, "height", "width")
        check_options(kwargs, self.config.vision_config)
        tower_output = self.vision_tower(pixel_values=pixel_values, **kwargs)
        put_channels_first(self.config.vision_config, tower_output)
        check_token_features(self.config.vision_config, tower_output)
        return tower_output, self._select_patches(tower_output.last_hidden_state, pixel_values)

    def _select_patches(self, hidden_states: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        if hidden_states.ndim == 4:  # the feature map of a convolutional tower
            return hidden_states.flatten(2).transpose(1, 2)
        # What a transformer puts before its patches (class and register tokens) is what exceeds the grid of patches.
        # A hierarchical tower such as Swin has fewer tokens than patches, and none of them to drop.
        patch_height, patch_width = get_patch_size(self.config.vision_config)
        num_patches = (pixel_values.shape[2] // patch_height) * (pixel_values.shape[3] // patch_width)
        return hidden_states[:, max(hidden_states.shape[1] - num_patches, 0) :]


class _TextGrounding:
    """The text half of an FDT model: the text tower and its grounding."""

    config: Any
    codebook: nn.Parameter
    text_tower: PreTrainedModel
    text_grounding: FDTGrounding

    def _build_text_half(self, config: FDTConfig) -> None:
        self.text_tower = build_tower(config.text_config)
        self.text_grounding = FDTGrounding(config, get_hidden_size(config.text_config))

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple | FDTTextModelOutput:
        r"""
        Embed captions.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Token ids, start and end tokens included.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding, on whichever side. Without it every position is a token.
            kwargs: for the text tower, e.g. `position_ids`, `token_type_ids`, `output_hidden_states`.

        Returns:
            [`FDTTextModelOutput`], whose `pooler_output` are the embeddings.

        Raises:
            ValueError: captions are longer than the text tower's context, a shape is wrong, the tower has no such
                option, or (seen on the CPU) it has no such token id, or a row of the mask no token.
        """
        tower_output, token_features, attention_mask, place = self._run_text_tower(input_ids, attention_mask, **kwargs)
        grounded = self.ground_tokens(token_features, attention_mask)
        return FDTTextModelOutput(
            last_hidden_state=take_tokens(token_features, place),
            pooler_output=grounded.pooler_output,
            hidden_states=tower_output.hidden_states,
            attentions=tower_output.attentions,
            text_embeds=grounded.text_embeds,
            text_code_weights=grounded.text_code_weights,
        )

    def get_token_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        r"""
        What the text tower says of tokens; [`~FDTModel.ground_tokens`] makes embeddings of it.

        Args:
            input_ids, attention_mask, kwargs: as for [`~FDTModel.get_text_features`].

        Returns:
            `torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`; what stands at padding says nothing.

        Raises:
            ValueError: as [`~FDTModel.get_text_features`] does.
        """
        _, token_features, _, place = self._run_text_tower(input_ids, attention_mask, **kwargs)
        return take_tokens(token_features, place)

    def ground_tokens(
        self, token_features: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> FDTTextModelOutput:
        r"""
        Embed captions by what the text tower says of their tokens: all that follows the tower.

        Args:
            token_features (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`):
                Of any floating type. The last hidden states, start and end tokens included.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding, on whichever side. Without it every position is a token.

        Returns:
            [`FDTTextModelOutput`], whose `last_hidden_state` are the features given.

        Raises:
            ValueError: features or mask have another shape, or (seen on the CPU) a row of the mask has no token.
        """
        hidden_size = get_hidden_size(self.config.text_config)
        check_shape("token_features", token_features, "batch_size", "num_tokens", hidden_size)
        check_mask(attention_mask, "token_features", token_features)
        text_embeds, text_code_weights = self.text_grounding(
            token_features, self.codebook, attention_mask, padded_length=self._padded_length
        )
        return FDTTextModelOutput(
            last_hidden_state=token_features,
            pooler_output=text_embeds,
            text_embeds=text_embeds,
            text_code_weights=text_code_weights,
        )

    def _run_text_tower(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[Any, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """What the tower gave, its token features and their mask with padding last, and where each token has gone."""
        check_captions(input_ids, attention_mask, self.config.text_config)
        check_options(kwargs, self.config.text_config)
        inputs, place = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}, None
        if attention_mask is not None:
            inputs, place = put_padding_last(inputs, attention_mask)
            attention_mask = inputs["attention_mask"]
        if self.config.text_config.model_type in TYPES_TRAINED_WITH_PADDING:
            padded_ids = self._pad_to_context(inputs["input_ids"], attention_mask)
            inputs = {**inputs, "input_ids": padded_ids, "attention_mask": None}
        check_token_ids(inputs["input_ids"], self.text_tower.get_input_embeddings())
        tower_output = self.text_tower(**inputs)
        check_token_features(self.config.text_config, tower_output)
        token_features = tower_output.last_hidden_state[:, : input_ids.shape[1]]
        return tower_output, token_features, attention_mask, place

    @property
    def _padded_length(self) -> int | None:
        # Official: scores of padding are multiplied by 0 and a caption is always padded to 77 tokens, so a shorter
        # caption's scores are floored at 0; kept for checkpoint parity, in terms of the caption's length alone
        # (tests/test_modeling.py::test_caption_does_not_depend_on_padding). A tower of a longer context is no reason
        # to count more padding: the mean over 32,768 positions of a caption of ten tokens is nearly 0 for every code.
        if self.config.padding_score == "ignore":
            return None
        return min(get_context_length(self.config.text_config), ORIGINAL_CONTEXT_LENGTH)

    def _pad_to_context(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        pad_token_id = self.config.text_config.pad_token_id
        context_length = get_context_length(self.config.text_config)
        if attention_mask is not None:  # a tokenizer may pad with another id
            input_ids = input_ids.masked_fill(attention_mask == 0, pad_token_id)
        return nn.functional.pad(input_ids, (0, context_length - input_ids.shape[1]), value=pad_token_id)


class FDTVisionModel(_ImageGrounding, FDTPreTrainedModel):
    """The FDT image tower: an image tower, its grounding and the codebook. Loads from a full FDT checkpoint."""

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^logit_scale$", r"^classifier\."]

    def __init__(self, config: FDTConfig):
        super().__init__(config)
        self._build_image_half(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_tower.get_input_embeddings()

    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> tuple | FDTVisionModelOutput:
        """Embed images: see [`FDTModel.get_image_features`]."""
        return self.get_image_features(pixel_values, **kwargs)


class FDTTextModel(_TextGrounding, FDTPreTrainedModel):
    """The FDT text tower: a text tower, its grounding and the codebook. Loads from a full FDT checkpoint."""

    main_input_name = "input_ids"
    input_modalities = ["text"]
    _keys_to_ignore_on_load_unexpected = [r"^vision_", r"^logit_scale$"]

    def __init__(self, config: FDTConfig):
        super().__init__(config)
        self._build_text_half(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_tower.set_input_embeddings(value)

    def forward(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple | FDTTextModelOutput:
        """Embed captions: see [`FDTModel.get_text_features`]."""
        return self.get_text_features(input_ids, attention_mask, **kwargs)


class FDTModel(_ImageGrounding, _TextGrounding, FDTPreTrainedModel):
    r"""
    FDT: images and captions grounded in one codebook, compared by the cosine of their embeddings.

    Example:

    ```python
    >>> from modeling_fdt import FDTModel, FDTProcessor

    >>> model, processor = FDTModel.from_pretrained(path), FDTProcessor.from_pretrained(path)
    >>> inputs = processor(images=image, text=["a photo of a cat", "a photo of a dog"], return_tensors="pt")
    >>> probabilities = model(**inputs).logits_per_image.softmax(dim=-1)
    ```
    """

    def __init__(self, config: FDTConfig):
        super().__init__(config)
        self._build_image_half(config)
        self._build_text_half(config)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision_model: str | PreTrainedModel,
        text_model: str | PreTrainedModel,
        dtype: torch.dtype = torch.float32,
        **kwargs,
    ) -> "FDTModel":
        r"""
        Build an FDT model from two pretrained towers; codebook and groundings are freshly initialised.

        Args:
            vision_model (`str` or `PreTrainedModel`):
                A name on the Hub, a folder, or a loaded model. Of a checkpoint or model with two towers (CLIP, SigLIP)
                the image tower is taken, of one with a head (`CLIPVisionModelWithProjection`) its base model.
            text_model (`str` or `PreTrainedModel`): likewise for the text tower.
            dtype (`torch.dtype`, defaults to `torch.float32`): the type of the model, whatever the towers' types were.
            kwargs:
                Fields of [`FDTConfig`]. With the prefix `vision_` or `text_`, what `from_pretrained` takes for that
                tower, e.g. `vision_revision`, `text_subfolder`; `vision_dtype` keeps that tower in a type of its own.

        Returns:
            [`FDTModel`] in evaluation mode; train it before use.

        Raises:
            ValueError: a tower's type is not one that FDT can take, a checkpoint lacks weights, or a loaded model
                does not hold the tower.
        """
        vision_options, text_options = _pop_with_prefix(kwargs, "vision_"), _pop_with_prefix(kwargs, "text_")
        vision_tower = load_tower(vision_model, "vision_config", **vision_options)
        text_tower = load_tower(text_model, "text_config", **text_options)
        model: Any = cls(cls.config_class(vision_config=vision_tower.config, text_config=text_tower.config, **kwargs))
        model.to(dtype)
        for own_tower, tower, options in (
            (model.vision_tower, vision_tower, vision_options),
            (model.text_tower, text_tower, text_options),
        ):
            if "dtype" in options:
                own_tower.to(tower.dtype)
            copy_weights(tower, own_tower)
        return model.eval()

    @property
    def capped_logit_scale(self) -> torch.Tensor:
        """Natural logarithm of the factor on cosine similarities: see [`cap_logit_scale`]."""
        return cap_logit_scale(self.logit_scale, self.config.logit_scale_max)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_tower.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        return_loss: bool = True,
        interpolate_pos_encoding: bool = False,
        patch_features: torch.Tensor | None = None,
        token_features: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple | FDTOutput:
        r"""
        Embed images, captions or both; with both, compare them.

        Args:
            input_ids (`torch.LongTensor` of shape `(text_batch_size, sequence_length)`, *optional*): token ids.
            pixel_values (`torch.FloatTensor` of shape `(image_batch_size, num_channels, height, width)`, *optional*):
                Normalised pixels.
            attention_mask (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, *optional*):
                1 for tokens, 0 for padding, on whichever side. Without it every position is a token.
            position_ids, token_type_ids (`torch.LongTensor`, *optional*): for text towers that take them.
            return_loss (`bool`, defaults to `True`):
                Whether to return the contrastive loss; image i and caption i are a pair. In evaluation, where there
                are not as many images as captions, there are no pairs and the loss is None, as it is in an exported
                model, which takes any numbers of both. Without it no process waits for another, in training neither.
                One pair alone has nothing to be told from: its loss is 0 and teaches nothing.
            interpolate_pos_encoding (`bool`, defaults to `False`):
                Whether the image tower stretches its position embeddings to the images' size.
            patch_features (`torch.Tensor` of shape `(image_batch_size, num_patches, hidden_size)`, *optional*):
                Instead of `pixel_values`, what the image tower made of them: see [`~FDTModel.ground_patches`].
            token_features (`torch.Tensor` of shape `(text_batch_size, sequence_length, hidden_size)`, *optional*):
                Instead of `input_ids`, what the text tower made of them: see [`~FDTModel.ground_tokens`].
            kwargs: for both towers, e.g. `output_attentions`, `output_hidden_states`.

        Returns:
            [`FDTOutput`]

        Raises:
            ValueError: neither images nor captions are given, or both inputs and features; a shape is wrong, or a
                name or value as in [`~FDTModel.get_text_features`]; or in training the numbers of images and captions
                differ, on one process or from one process to the other.
        """
        check_options(kwargs, self.config.vision_config, self.config.text_config)
        has_images = _is_one_given(pixel_values=pixel_values, patch_features=patch_features)
        has_captions = _is_one_given(input_ids=input_ids, token_features=token_features)
        if not has_images and not has_captions:
            raise ValueError("FDTModel needs `pixel_values`, `input_ids` or both, got neither.")
        image_output, text_output = FDTVisionModelOutput(), FDTTextModelOutput()
        if patch_features is not None:
            image_output = self.ground_patches(patch_features)
        elif pixel_values is not None:
            image_kwargs = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
            image_output = self.get_image_features(pixel_values, return_dict=True, **image_kwargs, **kwargs)
        if token_features is not None:
            text_output = self.ground_tokens(token_features, attention_mask)
        elif input_ids is not None:
            text_kwargs = {"position_ids": position_ids, "token_type_ids": token_type_ids}
            text_kwargs = {name: value for name, value in text_kwargs.items() if value is not None}
            text_output = self.get_text_features(input_ids, attention_mask, return_dict=True, **text_kwargs, **kwargs)

        logits_per_image = logits_per_text = loss = pooler_output = None
        image_embeds, text_embeds = image_output.image_embeds, text_output.text_embeds
        if not has_images or not has_captions:
            pooler_output = image_embeds if has_images else text_embeds
        elif self.training and return_loss and not torch.compiler.is_exporting():
            loss, logits_per_image, logits_per_text = global_contrastive_loss(
                image_embeds, text_embeds, self.capped_logit_scale
            )
            _warn_of_a_single_pair(logits_per_image.shape[1])
        else:
            logits_per_image = contrastive_logits(image_embeds, text_embeds, self.capped_logit_scale)
            logits_per_text = logits_per_image.T
            # A loss would tie the two batch sizes of an exported model to each other.
            if return_loss and not torch.compiler.is_exporting() and len(image_embeds) == len(text_embeds):
                loss = contrastive_loss(logits_per_image)

        return FDTOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            image_code_weights=image_output.image_code_weights,
            text_code_weights=text_output.text_code_weights,
            vision_model_output=image_output if has_images else None,
            text_model_output=text_output if has_captions else None,
            pooler_output=pooler_output,
        )

    def get_token_queries(
        self, outputs: FDTOutput, pixel_values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        r"""
        What the codes are compared with at every patch and at every token of a caption.

        Args:
            outputs ([`FDTOutput`]): what `forward` returned for images, captions or both.
            pixel_values (`torch.Tensor` of shape `(image_batch_size, num_channels, height, width)`, *optional*):
                The images, if `outputs` has any; not if they were given as `patch_features`.

        Returns:
            Queries of shape `(image_batch_size, num_patches, codebook_dim)`, patches row by row, and of shape
            `(text_batch_size, sequence_length, codebook_dim)`, padding included; None for a modality that `outputs`
            lacks.
        """
        image_queries = text_queries = None
        if outputs.vision_model_output is not None:
            patch_features = outputs.vision_model_output.last_hidden_state
            if pixel_values is not None:
                patch_features = self._select_patches(patch_features, pixel_values)
            image_queries = self.vision_grounding.query_projection(patch_features.to(self.codebook.dtype))
        if outputs.text_model_output is not None:
            token_features = outputs.text_model_output.last_hidden_state
            text_queries = self.text_grounding.query_projection(token_features.to(self.codebook.dtype))
        return image_queries, text_queries

    @torch.no_grad()
    def explain(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        top_k: int | None = 8,
        codes: list[int] | torch.LongTensor | None = None,
        **kwargs,
    ) -> FDTExplanation:
        r"""
        Tell which codes are active in images, captions or both, where, and what they add to the logits.

        Args:
            input_ids, pixel_values, attention_mask, kwargs: as for [`~FDTModel.forward`].
            top_k (`int`, *optional*, defaults to 8):
                How many codes to return for each image and each caption, those with the largest weights. None returns
                as many as are active in some row, so that contributions sum to the logits.
            codes (list or tensor of `int`, *optional*):
                Return these codes instead, whether active or not. Scores at patches and tokens are computed for
                returned codes only.

        Returns:
            [`FDTExplanation`]; [`FDTProcessor.post_process_image_explanation`] and
            [`FDTProcessor.post_process_text_explanation`] turn it into heat maps and words.

        Raises:
            ValueError: the model is in training mode, `patch_features` are given, `top_k` or `codes` is out of range,
                or as `forward` does.
        """
        if self.training:
            raise ValueError("`explain` needs the model in evaluation mode: call `model.eval()` first.")
        if kwargs.get("patch_features") is not None:
            raise ValueError("`explain` takes `pixel_values`, which tell the rows of patches, got `patch_features`.")
        kwargs.update(return_dict=True, return_loss=False)
        outputs = self(input_ids, pixel_values, attention_mask, **kwargs)
        return explain_outputs(self, outputs, pixel_values, attention_mask, top_k, codes)


class FDTForImageClassification(_ImageGrounding, FDTPreTrainedModel):
    r"""
    The FDT image tower with a linear classifier on the embeddings, `config.num_labels` classes. Loads from a full FDT
    checkpoint; only the classifier is then new. With `classifier.weight` set to the text embeddings of class names
    times `exp(logit_scale)`, and a bias of 0, it is the zero-shot classifier.
    """

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^logit_scale$"]

    def __init__(self, config: FDTConfig):
        super().__init__(config)
        self._build_image_half(config)
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.codebook_dim, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_tower.get_input_embeddings()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, labels: torch.Tensor | None = None, **kwargs
    ) -> tuple | ImageClassifierOutput:
        r"""
        Classify images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised pixels.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Class indices; the loss follows `config.problem_type` as everywhere in transformers.
            kwargs: for the image tower.

        Returns:
            `ImageClassifierOutput` with `loss`, `logits` of shape `(batch_size, num_labels)`, and the tower's hidden
            states and attentions where asked for.

        Raises:
            ValueError: `pixel_values` are no batch of images with the tower's number of channels.
        """
        outputs = self.get_image_features(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(outputs.image_embeds)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def _warn_of_a_single_pair(num_pairs: int) -> None:
    if num_pairs == 1:
        logger.warning_once(
            "A training batch of one pair has a contrastive loss of 0 and gives no gradient. Gradient accumulation by "
            "a plain Trainer does not help, as it adds up losses of micro-batches: use larger batches or FDTTrainer."
        )


def _is_one_given(**inputs: torch.Tensor | None) -> bool:
    """Whether one of several forms of the same inputs is given; a ValueError where there are more."""
    given = [name for name, value in inputs.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"FDTModel takes one of {[*inputs]}, got both.")
    return bool(given)


def _pop_with_prefix(kwargs: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): kwargs.pop(name) for name in list(kwargs) if name.startswith(prefix)}


# What is saved brings this code along; a folder of one half alone is what AutoModel then loads.
for _model_class in (FDTModel, FDTTextModel, FDTVisionModel):
    _model_class.register_for_auto_class("AutoModel")
FDTForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = [
    "FDTForImageClassification",
    "FDTModel",
    "FDTOutput",
    "FDTPreTrainedModel",
    "FDTTextModel",
    "FDTTextModelOutput",
    "FDTVisionModel",
    "FDTVisionModelOutput",
]
