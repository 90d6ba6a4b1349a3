"""Cross-attention of a Wan transformer over keys and values from elsewhere, without touching its arithmetic."""

import copy
from contextlib import contextmanager

import torch


def cross_attention_of(transformer):
    """Names of the processors of a transformer's cross-attention, by layer, as `attn_processors` has them."""
    processors = getattr(transformer, "attn_processors", {})
    names = [name for name in processors if name.endswith(".attn2.processor")]
    modules = [transformer.get_submodule(name.removesuffix(".processor")) for name in names]
    wanted = ("to_q", "to_k", "to_v", "norm_k")
    fit = [all(hasattr(module, part) for part in wanted) for module in modules]
    return [name for name, fits in zip(names, fit, strict=True) if fits]


@contextmanager
def lent_to(transformer, expert, calls, cpu_only):
    """Reads keys and values of the text of one expert through `calls`, and puts everything as it was in the end."""
    before = transformer.attn_processors
    if any(isinstance(processor, CachedCrossAttention) for processor in before.values()):
        raise RuntimeError("the pipeline is attached to a cache already; leave that with block first")
    names = cross_attention_of(transformer)
    ours = {
        name: CachedCrossAttention(before[name], calls, layer, len(names)) for layer, name in enumerate(names)
    }

    # A transformer that is compiled in place leaves its graph for what the cache does.
    @torch.compiler.disable
    def enter(_, args, kwargs):
        # PyTorch does not call `leave` for what is no Exception, such as Ctrl-C.
        calls.leave()
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else (args[2:3] or (None,))[0]
        if text is not None and not torch.is_grad_enabled() and (not cpu_only or text.device.type == "cpu"):
            calls.enter(expert, text)

    @torch.compiler.disable
    def leave(*_):
        calls.leave()

    hooks = []
    transformer.set_attn_processor(before | ours)
    try:
        hooks.append(transformer.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(transformer.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        now = transformer.attn_processors
        # One that was set meanwhile stays.
        transformer.set_attn_processor({name: before[name] if now[name] is ours.get(name) else now[name] for name in now})


class CachedCrossAttention:
    """A processor that runs the one it found, over projections of the text that may come from the cache."""

    def __init__(self, inner, calls, layer, layers):
        vars(self).update(_inner=inner, _calls=calls, _layer=layer, _layers=layers)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        if encoder_hidden_states is not None and self._reads():
            attn = _Projections(attn, self._pair, type(self._inner).__name__)
        return self._inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs)

    @torch.compiler.disable
    def _reads(self):
        return self._calls.reads()

    @torch.compiler.disable
    def _pair(self, attn, text):
        return self._calls.pair(self._layer, self._layers, text.device, lambda: project(attn, text))

    def __deepcopy__(self, memo):
        # A copy of the transformer is another one, with weights of its own, and is not attached.
        return copy.deepcopy(self._inner, memo)

    def __getattr__(self, name):
        if name == "_inner":  # A copy under way has none yet.
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __setattr__(self, name, value):
        # Such as the attention backend, which diffusers sets on processors.
        setattr(self._inner, name, value)


def project(attn, text):
    """Key and value of the text, as Wan's processor makes them: the key normalised, neither cut into heads."""
    if getattr(attn, "fused_projections", False):
        key, value = attn.to_kv(text).chunk(2, dim=-1)
    else:
        key, value = attn.to_k(text), attn.to_v(text)
    return key if attn.norm_k is None else attn.norm_k(key), value


class _Projections:
    """An attention module as its processor sees it, but for the projections of the text. Their key is normalised already."""

    fused_projections = False

    def __init__(self, attn, pair, processor):
        self._attn, self._pair, self._processor, self._held = attn, pair, processor, None

    def _both(self, text):
        if self._held is None:
            self._held = self._pair(self._attn, text)
        return self._held

    def to_k(self, text):
        return self._both(text)[0]

    def to_v(self, text):
        return self._both(text)[1]

    def norm_k(self, key):
        if self._held is None:
            return self._attn.norm_k(key)
        if key is not self._held[0]:
            raise RuntimeError(
                f"the attention processor {self._processor} changes keys of the text before it normalises them, and the cache keeps "
                "them normalised; attach with cross_kv=False"
            )
        return key

    def __getattr__(self, name):
        return getattr(self._attn, name)
