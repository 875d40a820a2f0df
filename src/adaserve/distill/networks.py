"""The target and the draft as transformers modules: what training and writing in large batches need of them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaserve.errors import InvalidConfig, InvalidModel
from adaserve.models.config import ModelConfig
from adaserve.models.save import huggingface_fields
from adaserve.models.weights import EMBEDDING, HEAD, NORM

LAYER = "model.layers."


@dataclass(frozen=True)
class Network:
    """A decoder's layers and final norm, with embedding and head beside them, so that a draft can share its target's.

    body: a transformers model without head, e.g. LlamaModel. embedding, head: [V, hidden].
    """

    config: ModelConfig
    body: Any
    embedding: Tensor
    head: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.embedding.device

    def hidden(self, token: Tensor) -> Tensor:
        """States after the final norm for rows of tokens [n, T] that are read from the left.  # [n, T, hidden]"""
        inputs = functional.embedding(token, self.embedding).to(self.body.norm.weight.dtype)  # [n, T, hidden]
        states: Tensor = self.body(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return states


def logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Scores of all tokens.  # [m, V]

    hidden [m, hidden], head [V, hidden]. On a GPU sums leave the product in float32: rounded to bfloat16 the best ones would
    often tie.
    """
    hidden = hidden.to(head.dtype)
    if head.is_cuda and head.dtype == torch.bfloat16:
        return torch.mm(hidden, head.t(), out_dtype=torch.float32)
    return functional.linear(hidden, head)


def load_network(config: ModelConfig, weights: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device) -> Network:
    """Load a whole model. Raises InvalidConfig for a model that transformers cannot express, InvalidModel for missing weights."""
    body = _empty_body(config, device)
    _fill(body, weights, dtype)
    embedding = weights[EMBEDDING].to(device, dtype)  # [V, hidden]
    head = embedding if config.tie_embeddings else weights[HEAD].to(device, dtype)  # [V, hidden]
    return Network(config, body.requires_grad_(False), embedding, head)


def make_draft(target: Network, weights: Mapping[str, Tensor], layers: Sequence[int], *, dtype: torch.dtype) -> Network:
    """Make a draft of the given layers of `weights`, which are those of the target or of another draft of its width.

    It shares the target's embedding and head. dtype: of the weights to be trained.
    """
    config = replace(target.config, layers=len(layers))
    chosen = {NORM: weights[NORM]}
    for place, layer in enumerate(layers):
        prefix = f"{LAYER}{layer}."
        chosen |= {f"{LAYER}{place}.{name[len(prefix) :]}": weights[name] for name in weights if name.startswith(prefix)}
    body = _empty_body(config, target.device)
    _fill(body, chosen, dtype)
    return Network(config, body.requires_grad_(True), target.embedding, target.head)


def draft_weights(draft: Network) -> dict[str, Tensor]:
    """The layers and norm of a draft by their Hugging Face names, on the CPU."""
    return {f"model.{name}": tensor.detach().cpu() for name, tensor in draft.body.state_dict().items()}


def spread_layers(total: int, count: int) -> tuple[int, ...]:
    """Which layers of a model of `total` a draft of `count` begins as: the first ones, which read, and the last, which speak."""
    if not 1 <= count <= total:
        raise InvalidConfig(f"--layers must be between 1 and the target's {total}, got {count}")
    first = (count + 1) // 2
    return (*range(first), *range(total - count + first, total))


def _empty_body(config: ModelConfig, device: torch.device) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InvalidConfig("distillation needs transformers; run: pip install 'adaserve[text]'") from error
    fields = {name: value for name, value in huggingface_fields(config).items() if name != "architectures"}
    # Without the tokens' own matrix, which would be a copy: Network holds it.
    described = transformers.AutoConfig.for_model(**fields, attn_implementation="sdpa")
    small = copy.deepcopy(described)
    small.vocab_size, small.pad_token_id = 1, None
    body = transformers.AutoModel.from_config(small, dtype=torch.float32)
    del body.embed_tokens
    return _fuse_norms(body).to(device).eval()


def _fuse_norms(body: Any) -> Any:
    """Put torch's RMSNorm, one kernel each way, in the place of transformers', which is seven."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon))
    return body


def _fill(body: Any, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            stored = weights.get(f"model.{name}")
            if stored is None or stored.shape != parameter.shape:
                found = "is missing" if stored is None else f"has shape {list(stored.shape)}, not {list(parameter.shape)}"
                raise InvalidModel(f"tensor model.{name} {found}")
            parameter.data = stored.to(parameter.device, dtype, copy=True)  # buffers stay: angles are float32 always
