"""evanesce-cache in a stock diffusers `WanPipeline`, from outside.

What the pipeline computes again at every step although it is the same, the keys and values of the prompt in cross-attention,
lives in the cache for the steps of its expert; what it computes again at every call, the prompts' embeddings, lives there by
content. Nothing of the pipeline is changed for good: attention processors are swapped by diffusers' own `set_attn_processor`,
modules are watched by PyTorch's hooks, and methods of the pipeline, its scheduler and its VAE are wrapped on the instances; the
end of the `with` block takes all of it away.
"""

import copy
import functools
from contextlib import ExitStack, contextmanager

from ._arrays import pair_codecs
from ._calls import Calls
from ._cross_attention import cross_attention_of, lent_to
from ._text import Texts
from ._words import size_bytes


def attach(pipeline, cache, *, cross_kv="auto", codec="exact", text="64MiB"):
    """Lends `cache` to a `WanPipeline` for a `with` block, which gives a `Run`: its pipeline calls compute the same bits with less work.

    `cross_kv` keeps keys and values of the prompt in cross-attention per expert, branch and layer: each is computed at its
    expert's first step and leaves after its last. True, False, or "auto": where the transformers run on the CPU. On an
    accelerator they would come from main memory at every step, which at Wan2.2's sizes takes as long as computing them
    again, or longer. What finds no room in the cache is computed at every step, as without it. A `codec` other than "exact"
    stores them in fewer bytes and changes the video; it may be a pair, for keys and for values. Numbers that no codec takes, such
    as float64, are kept as they are.

    `text` keeps the prompts' embeddings across calls, as many as that many bytes hold, by text and encoder; `None` or 0
    does not. Weights of the text encoder that are edited through `.data` while they stay the same objects go unseen: use a
    new cache then.

    Deep copies that are made in the block, of the pipeline or a part of it, are not attached. A shallow one
    (`copy.copy`) of the scheduler has the attached methods of the original and drives it: make it before or after.
    """
    experts = [getattr(pipeline, name, None) for name in ("transformer", "transformer_2")]
    lacking = [name for name in ("scheduler", "encode_prompt", "maybe_free_model_hooks") if not hasattr(pipeline, name)]
    if any(hasattr(expert, "_orig_mod") for expert in experts):
        raise TypeError(
            "transformers that torch.compile has wrapped cannot be attached; compile them in place, by their own compile()"
        )
    if lacking or not any(expert is not None and cross_attention_of(expert) for expert in experts):
        what = f"it has no {lacking[0]}" if lacking else "its transformers have no cross-attention of Wan's kind"
        raise TypeError(f"{type(pipeline).__name__} cannot be attached: {what}; give a WanPipeline of diffusers")
    if cross_kv not in (True, False, "auto"):
        raise ValueError(f'cross_kv {cross_kv!r} is not known; use True, False or "auto"')
    return Run(pipeline, cache, experts, cross_kv, pair_codecs(codec), size_bytes(text or 0))


class Run:
    """What `attach` gives. Use it in a `with` block; `report` says what came of it, also afterwards."""

    def __init__(self, pipeline, cache, experts, cross_kv, codecs, text_bytes):
        self._pipeline, self._experts = pipeline, experts
        self._calls = Calls(cache, pipeline, experts, codecs) if cross_kv is not False else None
        self._cpu_only = cross_kv == "auto"
        self._texts = Texts(cache, pipeline, text_bytes) if text_bytes else None
        self._stack = None

    def __enter__(self):
        if self._stack is not None:
            raise RuntimeError("this run is attached already; use it in one with block at a time")
        with ExitStack() as stack:
            if self._calls is not None:
                stack.callback(self._calls.close)
                for at, expert in enumerate(self._experts):
                    if expert is not None:
                        stack.enter_context(lent_to(expert, at, self._calls, self._cpu_only))
                scheduler = self._pipeline.scheduler
                stack.enter_context(_wrapped(scheduler, "set_timesteps", self._begin))
                stack.enter_context(_wrapped(scheduler, "step", self._end_step))
                # A call that is interrupted has no last step: it goes on to decode what there is.
                stack.enter_context(_wrapped(self._pipeline, "maybe_free_model_hooks", self._finish))
                vae = getattr(self._pipeline, "vae", None)
                vae = getattr(vae, "_orig_mod", vae)
                if hasattr(vae, "decode"):
                    stack.enter_context(_wrapped(vae, "decode", self._decode))
            if self._texts is not None:
                stack.enter_context(_wrapped(self._pipeline, "encode_prompt", self._texts.encode))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        stack, self._stack = self._stack, None
        stack.close()

    def _begin(self, original, *args, **kwargs):
        result = original(*args, **kwargs)
        self._calls.begin()
        return result

    def _end_step(self, original, *args, **kwargs):
        result = original(*args, **kwargs)
        self._calls.end_step()
        return result

    def _finish(self, original, *args, **kwargs):
        self._calls.finish()
        return original(*args, **kwargs)

    def _decode(self, original, *args, **kwargs):
        # Else it may be a preview, in the middle of a call.
        if getattr(self._pipeline, "interrupt", False):
            self._calls.finish()
        return original(*args, **kwargs)

    def end_call(self):
        """Gives back what a call keeps that broke off by an exception, which else waits for the next call or the end of the block.

        A call that goes on is the slower for it: do this when none is under way.
        """
        if self._calls is not None:
            self._calls.close()

    def report(self):
        """What was read, computed, and refused for want of room, and the most bytes that one call held."""
        report = {}
        if self._calls is not None:
            report["cross_kv"] = self._calls.report()
        if self._texts is not None:
            report["text"] = self._texts.report()
        return report


@contextmanager
def _wrapped(owner, name, around):
    """Replaces a method of one object by `around(original, ...)`, and puts things as they were."""
    attributes = vars(owner)
    before, had = attributes.get(name), name in attributes
    method = _Around(getattr(owner, name), around)
    setattr(owner, name, method)
    try:
        yield
    finally:
        method.active = False
        # Whoever wrapped it once more meanwhile keeps a method that does nothing of its own any more.
        if vars(owner).get(name) is method:
            if had:
                setattr(owner, name, before)
            else:
                delattr(owner, name)


class _Around:
    """`around(original, ...)` in the place of a method. A deep copy of whoever has it has its own original instead."""

    def __init__(self, original, around):
        functools.update_wrapper(self, original)
        self.original, self.around, self.active = original, around, True

    def __call__(self, *args, **kwargs):
        return self.around(self.original, *args, **kwargs) if self.active else self.original(*args, **kwargs)

    def __deepcopy__(self, memo):
        return copy.deepcopy(self.original, memo)
