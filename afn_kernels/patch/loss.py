"""The loss of a language model without its logits: ``linear_cross_entropy``, and outputs that make logits on demand."""

import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from afn_kernels import linear_cross_entropy
from afn_kernels.patch.state import (
    autocast_dtype,
    count,
    find,
    linear,
    namespace,
    original,
    parameters,
    plain,
    sharded,
    state,
    written,
)

OWN = ("labels", "logits_to_keep")  # of the head; the rest is for the model below it


def check_linear_cross_entropy(module: nn.Module, row, above) -> str:
    try:
        waiting_class(output_class(module, row.options["output"]))
    except AttributeError:
        return f"its module has no {row.options['output']}"
    config = getattr(module, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(config, "output_router_logits", False):
        return "a loss of its router is added"
    below = parameters(type(module.model), "forward")
    missing = [name for name in parameters(type(module), "forward") if name not in (*below, *OWN)]
    return f"the model below its head takes no {missing[0]}" if missing else ""


def causal_lm(self, *args, **kwargs):
    """A head with labels; without labels the original runs."""
    options = state(self).options
    if args:
        kwargs |= zip(options["parameters"], args, strict=False)
    if kwargs.get("labels") is None:
        return original(self, **kwargs)
    head = getattr(self, options["head"])
    style = options.get("style", "shifted")
    reason = _refused(self, head, style, kwargs)
    if reason:
        count(self, reason)
        return original(self, **kwargs)
    labels = kwargs["labels"]
    if style in SEQ2SEQ:
        limit = getattr(self, "max_target_positions", None)
        if limit is not None and labels.shape[1] > limit:
            return original(self, **kwargs)  # which raises
        if kwargs.get("decoder_input_ids") is None and kwargs.get("decoder_inputs_embeds") is None:
            shift = namespace(self).shift_tokens_right
            kwargs["decoder_input_ids"] = shift(labels, self.config.pad_token_id, self.config.decoder_start_token_id)
    below = {name: value for name, value in kwargs.items() if name not in OWN}
    if style == "given":
        below.pop("shift_labels", None)
    if style == "qwen2_audio":
        below["labels"] = labels
    outputs = self.model(**below)
    hidden = outputs.last_hidden_state
    labels = labels.to(hidden.device)
    rows, targets = STYLES[style](outputs, labels, kwargs)
    divisor, cap = (find(self, options[name]) if name in options else None for name in ("divisor", "cap"))
    try:
        loss = _loss(rows, targets, head, divisor, cap, state(self).impl, kwargs if style in COUNTED else {})
    except ValueError as refused:
        count(self, refused)
        logits = scaled(head(hidden), divisor, cap)
        if style in COUNTED:
            extra = {name: value for name, value in kwargs.items() if name not in options["parameters"]}
            extra["shift_labels"] = targets.view(labels.shape)
            loss = self.loss_function(logits=logits, labels=None, vocab_size=logits.shape[-1], **extra)
        else:
            loss = F.cross_entropy(scaled(head(rows), divisor, cap), targets)
        return _output(self, outputs, loss, logits)
    # Only ForCausalLMLoss widens the logits: the losses of the others have the dtype of these.
    loss = loss.to(torch.float32 if style in COUNTED else rows.dtype)
    found = _output(self, outputs, loss, hidden.new_empty(0))
    if torch.compiler.is_compiling():
        later = _Later(head, hidden, divisor, cap, head.weight, head.bias, None, torch.is_grad_enabled(), None)
        object.__setattr__(found, _LATER, later)
        return found
    if sharded(self):  # FSDP2's hooks look at everything in an output
        return after_hooks(self, found, lambda output: postpone_logits(output, head, hidden, divisor, cap, hold=False))
    return postpone_logits(found, head, hidden, divisor, cap)


def _refused(self, head: nn.Module, style: str, kwargs: dict) -> str:
    keep = kwargs.get("logits_to_keep", 0)
    if not isinstance(keep, int) or keep:
        return "loss: logits_to_keep asks for some logits"
    if kwargs.get("output_router_logits"):
        return "loss: that of the router is wanted too"
    if kwargs.get("return_dict", getattr(getattr(self, "config", None), "return_dict", True)) is False:
        return "loss: a tuple is wanted, logits and all"
    compiling = torch.compiler.is_compiling()
    if compiling and (sharded(self) or sharded(head) or torch.is_autocast_enabled(head.weight.device.type)):
        return "loss: a graph in which FSDP2 or autocast takes part"
    if sharded(self) or sharded(head):
        if not (self.training and torch.is_grad_enabled()):
            return "loss: outside training somebody wants the logits, and perhaps not on every rank of FSDP2"
        if not sharded(head) and not _stays_whole(self):
            return "loss: FSDP2 takes the head's weight apart after the forward"
    if not (_sharded_linear(head) if sharded(head) else linear(head)):
        return f"loss: the head ({type(head).__name__}) is no plain Linear or has hooks"
    if style in COUNTED and getattr(self.loss_function, "__name__", "") != "ForCausalLMLoss":
        return "loss: the model has a loss function of its own"
    return ""


def _sharded_linear(head: nn.Module) -> bool:
    """A Linear that FSDP2 has made a unit of its own, with no hooks but FSDP2's: within its own call it is whole."""
    hooks = (*head._forward_pre_hooks.values(), *head._forward_hooks.values())
    alone = all(hasattr(hook, "__self__") and hook.__module__.startswith("torch.distributed.fsdp") for hook in hooks)
    return written(head) is nn.Linear and alone and not head._backward_hooks and not head._backward_pre_hooks


def _stays_whole(self) -> bool:
    """Whether FSDP2 keeps the weights of this unit until the backward, as it does for a root unless told otherwise."""
    group = getattr(self._get_fsdp_state(), "_fsdp_param_group", None)
    return group is not None and getattr(group, "post_forward_mesh_info", self) is None


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


def _given(outputs, labels, kwargs):
    """The labels are those of the tokens that the decoder reads."""
    shifted = kwargs.get("shift_labels")
    targets = labels if shifted is None else shifted
    return outputs.last_hidden_state.flatten(0, 1), targets.flatten().to(labels.device)


def _kept(outputs, labels, kwargs):
    """Next tokens, on those that the attention mask keeps."""
    hidden, mask = outputs.last_hidden_state[:, :-1], kwargs.get("attention_mask")
    if mask is None:
        return hidden.flatten(0, 1), labels[:, 1:].flatten()
    kept = mask[:, -hidden.shape[1] :].to(hidden.device) != 0
    return hidden[kept], labels[:, 1:][kept]


STYLES: dict[str, Callable] = {
    "shifted": _shifted,
    "kept": _kept,
    "qwen2_audio": _qwen2_audio,
    "given": _given,
    "whisper": _given,
}
SEQ2SEQ = ("given", "whisper")  # the decoder reads the labels, one later
COUNTED = ("shifted", "given")  # ForCausalLMLoss, which takes num_items_in_batch


def scaled(logits: torch.Tensor, divisor: float | None, cap: float | None) -> torch.Tensor:
    """What a model does with what its head gives: logits / divisor (Granite), cap · tanh(logits / cap) (Gemma 2)."""
    logits = logits if divisor is None else logits / divisor
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _loss(
    rows, targets, head: nn.Module, divisor: float | None, cap: float | None, impl: str, kwargs: dict
) -> torch.Tensor:
    ignore = kwargs.get("ignore_index", -100)

    def summed(rows):
        weight, bias = head.weight, head.bias
        if divisor is not None:
            rows, bias = rows / divisor, None if bias is None else bias / divisor
        if dtype := autocast_dtype(rows):
            rows, weight = rows.to(dtype), weight.to(dtype)
        if not plain(rows, weight, *(() if bias is None else (bias,))):
            raise ValueError("loss: a tensor is not a plain one")
        options = {"bias": bias, "softcap": cap, "ignore_index": ignore, "reduction": "sum"}
        return linear_cross_entropy(rows, weight, targets, impl=impl, **options)

    if sharded(head):  # its weight is whole within its own call
        head.__dict__["forward"] = summed
        try:
            total = head(rows)
        finally:
            del head.__dict__["forward"]
    else:
        total = summed(rows)
    divisor = kwargs.get("num_items_in_batch")
    if divisor is None:
        divisor = (targets != ignore).sum()
    divisor = torch.as_tensor(divisor, device=total.device)
    # 0 / 0 is NaN with gradients of zero, as without the patch: a division would make these NaN too.
    return torch.where(divisor == 0, torch.nan, total / torch.where(divisor == 0, 1, divisor))


def output_class(self, names: str) -> type:
    """That of the model's outputs: the first of ``"A|B"`` in its file, or among those that models share."""
    for name in names.split("|"):
        if found := getattr(namespace(self), name, None):
            return found
    from transformers import modeling_outputs

    return getattr(modeling_outputs, names.split("|")[-1])


def _output(self, outputs, loss, logits):
    """The model's output as its head would give it."""
    kind = output_class(self, state(self).options["output"])
    names = FIELDS[kind]
    if torch.compiler.is_compiling() and not logits.numel():
        kind = WAITING[kind]
    others = {name: getattr(outputs, name, None) for name in names}
    return kind(loss=loss, logits=logits, **others)


def after_hooks(self, output, convert: Callable):
    """``output``, converted when all hooks on this call of the module have seen it."""

    def once(module, args, given):
        handle.remove()
        return convert(given) if type(given) is type(output) and not given.logits.numel() else None

    handle = self.register_forward_hook(once)
    return output


def postpone_logits(
    output,
    head: nn.Module,
    hidden: torch.Tensor,
    divisor: float | None = None,
    cap: float | None = None,
    hold: bool = True,
):
    """``output`` of transformers, whose logits are computed when somebody looks at them or at all of it.

    Whoever asks for the loss alone never pays for them. Until then the object is of a subclass; then it is what it was.
    ``hold``: they are of the weights of now, whatever the head has by then; not where FSDP2 takes the memory back.
    """
    weight, bias, version = head.weight, head.bias, None
    if plain(weight):
        version = None if weight.is_inference() else weight._version
    if hold and plain(weight):  # views stay when a parameter is given other data
        weight, bias = weight.view_as(weight), None if bias is None else bias.view_as(bias)
    else:
        weight = bias = None
    grad, dtype = torch.is_grad_enabled(), autocast_dtype(hidden)
    output.__dict__[_LATER] = _Later(head, hidden, divisor, cap, weight, bias, version, grad, dtype)
    output.__class__ = waiting_class(type(output))
    return output


class _Later(NamedTuple):
    """What makes the logits when somebody looks; without a weight, the head makes them."""

    head: nn.Module
    hidden: torch.Tensor
    divisor: float | None
    cap: float | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    version: int | None
    grad: bool
    dtype: torch.dtype | None


def _logits(later: _Later) -> torch.Tensor:
    head, hidden, weight = later.head, later.hidden, later.weight
    now = head.weight if weight is None else weight
    if later.version is not None and plain(now) and now._version != later.version:
        warnings.warn("logits read after the weights changed are those of the new weights", stacklevel=5)
    apart = not sharded(head) and hasattr(head.weight, "full_tensor")
    autocast = torch.autocast(hidden.device.type, later.dtype, enabled=later.dtype is not None)
    with torch.set_grad_enabled(later.grad), autocast:
        if apart:
            logits = _from_shards(head, hidden)
        else:
            logits = head(hidden) if weight is None else F.linear(hidden, weight, later.bias)
        return scaled(logits, later.divisor, later.cap)


@torch.no_grad()
def _from_shards(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits after FSDP2 has taken the weight apart again: gathered once more, without a gradient."""
    weight, bias = (None if x is None else x.full_tensor().to(hidden.dtype) for x in (head.weight, head.bias))
    return F.linear(hidden, weight, bias)


_LATER = "_make_logits"
WAITING: dict[type, type] = {}
FIELDS: dict[type, tuple[str, ...]] = {}  # beside loss and logits


def waiting_class(base: type) -> type:
    """The subclass of ``base`` that becomes ``base`` again, logits and all, at the first access that needs them.

    While it has nothing to make logits from, as while it is constructed, it does what ``base`` does, traceably.
    """
    if base not in WAITING:
        WAITING[base] = _waiting(base)
        FIELDS[base] = tuple(field.name for field in fields(base) if field.name not in ("loss", "logits"))
    return WAITING[base]


def _waiting(base: type) -> type:
    def settle(self, logits=None):
        make = self.__dict__.get(_LATER)
        if torch.compiler.is_compiling():
            object.__setattr__(self, _LATER, None)  # a graph cannot change a class
        else:
            self.__dict__.pop(_LATER, None)
            object.__setattr__(self, "__class__", base)
        if logits is None and make is not None:
            self["logits"] = _logits(make)
        return self

    class Logits:
        """The field, in place of the instance's own."""

        def __get__(self, output, cls=None):
            if output is None:
                return None  # the field's default
            if output.__dict__.get(_LATER) is not None:
                settle(output)
            return output.__dict__["logits"]

        def __set__(self, output, value):
            output.__dict__["logits"] = value

    def completed(name: str) -> Callable:
        return lambda self, *args: getattr(base, name)(settle(self), *args)

    def getitem(self, key):
        return self.__dict__["loss"] if key in ("loss", 0) else base.__getitem__(settle(self), key)

    def write(name: str) -> Callable:
        of_base = getattr(base, name)

        def method(self, key, value):
            if self.__dict__.get(_LATER) is not None:
                settle(self, logits=value if key == "logits" else None)
            of_base(self, key, value)

        return method

    whole = ("items", "values", "get", "to_tuple", "copy", "__repr__", "__reduce__", "__reduce_ex__", "__eq__")
    body = {name: completed(name) for name in whole}
    body |= {"__getitem__": getitem, "__setitem__": write("__setitem__"), "__setattr__": write("__setattr__")}
    body |= {"logits": Logits(), "__hash__": None}
    return type(base.__name__, (base,), {**body, "__module__": base.__module__, "__doc__": base.__doc__})
