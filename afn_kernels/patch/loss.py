"""The loss of a language model without its logits: ``linear_cross_entropy``, and outputs that make logits on demand."""

import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from afn_kernels import linear_cross_entropy
from afn_kernels.patch.state import autocast_dtype, count, linear, namespace, original, sharded, state

OWN = ("labels", "logits_to_keep")  # of the head; the rest is for the model below it


def check_linear_cross_entropy(module: nn.Module, row, above) -> str:
    if not hasattr(namespace(module), row.options["output"]):
        return f"its module has no {row.options['output']}"
    return ""


def causal_lm(self, *args, **kwargs):
    """A head with labels; without labels the original runs."""
    options = state(self).options
    if args:
        kwargs |= zip(options["parameters"], args, strict=False)
    if kwargs.get("labels") is None or torch.compiler.is_compiling():
        return original(self, **kwargs)
    head = getattr(self, options["head"])
    style = options.get("style", "shifted")
    reason = _refused(self, head, style, kwargs)
    if reason:
        count(self, reason)
        return original(self, **kwargs)
    labels = kwargs["labels"]
    if style == "whisper":
        if labels.shape[1] > self.max_target_positions:
            return original(self, **kwargs)  # which raises
        if kwargs.get("decoder_input_ids") is None and kwargs.get("decoder_inputs_embeds") is None:
            shift = namespace(self).shift_tokens_right
            kwargs["decoder_input_ids"] = shift(labels, self.config.pad_token_id, self.config.decoder_start_token_id)
    below = {name: value for name, value in kwargs.items() if name not in OWN}
    if style == "qwen2_audio":
        below["labels"] = labels
    outputs = self.model(**below)
    hidden = outputs.last_hidden_state
    labels = labels.to(hidden.device)
    rows, targets = STYLES[style](outputs, labels, kwargs)
    try:
        loss = _loss(rows, targets, head.weight, state(self).impl, kwargs if style == "shifted" else {})
    except ValueError as refused:
        count(self, refused)
        logits = head(hidden)
        if style == "shifted":
            extra = {name: value for name, value in kwargs.items() if name not in options["parameters"]}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **extra)
        else:
            loss = F.cross_entropy(head(rows), targets)
        return _output_class(self, options["output"])(**_fields(self, outputs, loss), logits=logits)
    # Only ForCausalLMLoss widens the logits: the losses of the others have the dtype of these.
    loss = loss.to(torch.float32 if style == "shifted" else rows.dtype)
    found = _output_class(self, options["output"])(**_fields(self, outputs, loss), logits=hidden.new_empty(0))
    return postpone_logits(found, head, hidden)


def _refused(self, head: nn.Module, style: str, kwargs: dict) -> str:
    keep = kwargs.get("logits_to_keep", 0)
    if not isinstance(keep, int) or keep:
        return "loss: logits_to_keep asks for some logits"
    if kwargs.get("return_dict", getattr(self.config, "return_dict", True)) is False:
        return "loss: a tuple is wanted, logits and all"
    if sharded(self) or sharded(head):
        return "loss: FSDP2 would gather the head's weight only for the head's own call"
    if not linear(head) or head.bias is not None:
        return f"loss: the head ({type(head).__name__}) is no plain Linear, has a bias or has hooks"
    if style == "shifted" and getattr(self.loss_function, "__name__", "") != "ForCausalLMLoss":
        return "loss: the model has a loss function of its own"
    return ""


def _shifted(outputs, labels, kwargs):
    """Token t predicts label t + 1, the last one nothing."""
    hidden = outputs.last_hidden_state
    targets = kwargs.get("shift_labels")
    if targets is None:
        targets = F.pad(labels, (0, 1), value=kwargs.get("ignore_index", -100))[..., 1:]
    return hidden.flatten(0, -2), targets.flatten().to(hidden.device)


def _qwen2_audio(outputs, labels, kwargs):
    """As above, on the tokens the attention mask keeps; the model may have moved labels and mask."""
    hidden, mask = outputs.last_hidden_state[:, :-1], outputs.attention_mask
    labels = (labels if outputs.labels is None else outputs.labels)[:, 1:].to(hidden.device)
    if mask is None:
        return hidden.flatten(0, 1), labels.flatten()
    kept = mask[:, 1:].to(hidden.device) != 0
    return hidden[kept], labels[kept]


def _whisper(outputs, labels, kwargs):
    return outputs.last_hidden_state.flatten(0, 1), labels.flatten()


STYLES: dict[str, Callable] = {"shifted": _shifted, "qwen2_audio": _qwen2_audio, "whisper": _whisper}


def _loss(rows, targets, weight, impl: str, kwargs: dict) -> torch.Tensor:
    ignore = kwargs.get("ignore_index", -100)
    if dtype := autocast_dtype(rows):
        rows, weight = rows.to(dtype), weight.to(dtype)
    total = linear_cross_entropy(rows, weight, targets, ignore_index=ignore, reduction="sum", impl=impl)
    divisor = kwargs.get("num_items_in_batch")
    if divisor is None:
        divisor = (targets != ignore).sum()
    divisor = torch.as_tensor(divisor, device=total.device)
    # 0 / 0 is NaN with gradients of zero, as without the patch: a division would make these NaN too.
    return torch.where(divisor == 0, torch.nan, total / torch.where(divisor == 0, 1, divisor))


def _output_class(self, name: str) -> type:
    return getattr(namespace(self), name)


def _fields(self, outputs, loss) -> dict:
    """What the model's output has of what the head's output wants."""
    names = {field.name for field in fields(_output_class(self, state(self).options["output"]))} - {"loss", "logits"}
    return {"loss": loss, **{name: getattr(outputs, name, None) for name in names}}


def postpone_logits(output, head: nn.Module, hidden: torch.Tensor):
    """``output`` of transformers, whose logits are computed when somebody looks at them or at all of it.

    Whoever asks for the loss alone never pays for them. Until then the object is of a subclass; then it is what it was.
    """
    version = None if head.weight.is_inference() else head.weight._version
    grad, device, dtype = torch.is_grad_enabled(), hidden.device.type, autocast_dtype(hidden)

    def make() -> torch.Tensor:
        if version is not None and head.weight._version != version:
            warnings.warn("logits read after the weights changed are those of the new weights", stacklevel=4)
        with torch.set_grad_enabled(grad), torch.autocast(device, dtype, enabled=dtype is not None):
            return head(hidden)

    output.__dict__[_MAKE] = make
    output.__class__ = _later(type(output))
    return output


_MAKE = "_make_logits"


@lru_cache
def _later(base: type) -> type:
    """The subclass of ``base`` that becomes ``base`` again, logits and all, at the first access that needs them."""

    def settle(self, logits=None):
        make = self.__dict__.pop(_MAKE, None)
        object.__setattr__(self, "__class__", base)
        if logits is None and make is not None:
            self["logits"] = make()
        return self

    def completed(name: str) -> Callable:
        return lambda self, *args: getattr(settle(self), name)(*args)

    def getitem(self, key):
        return self.__dict__["loss"] if key in ("loss", 0) else settle(self)[key]

    def write(name: str) -> Callable:
        def method(self, key, value):
            getattr(settle(self, logits=value if key == "logits" else None), name)(key, value)

        return method

    whole = ("items", "values", "get", "to_tuple", "copy", "__repr__", "__reduce__", "__reduce_ex__", "__eq__")
    body = {name: completed(name) for name in whole}
    body |= {"__getitem__": getitem, "__setitem__": write("__setitem__"), "__setattr__": write("__setattr__")}
    body |= {"logits": property(lambda self: settle(self).logits), "__hash__": None}
    return type(base.__name__, (base,), {**body, "__module__": base.__module__, "__doc__": base.__doc__})
