"""A stock WanPipeline over the shipped checkpoint: the same bits with less work, and nothing left behind."""

import copy
import pathlib
import threading

import pytest
from conftest import used

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
diffusers = pytest.importorskip("diffusers", minversion="0.42", reason="diffusers is not installed, or older than 0.42")
pytest.importorskip("transformers", reason="transformers is not installed")

import evanesce  # noqa: E402

SHAPES = pathlib.Path(__file__).parents[3] / "models" / "shapes"
LAYERS = 5
CALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 4, "guidance_scale": 2.0, "guidance_scale_2": 2.5}
# Float32 keys and values of 512 rows of 192, with a line of 64 bytes each.
LAYER_BYTES = 2 * (512 * 192 * 4 + 64)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = diffusers.WanPipeline.from_pretrained(SHAPES, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline, prompt="a red circle moves right", **call):
    generator = torch.Generator("cpu").manual_seed(7)
    call = {**CALL, "negative_prompt": "a video", **call}
    return pipeline(prompt, generator=generator, output_type="latent", return_dict=False, **call)[0]


def cache_pool(run):
    return run._texts._pool


@pytest.fixture(scope="module")
def expected(pipeline):
    return latents(pipeline)


@pytest.fixture
def cache():
    with evanesce.Cache(device="64MiB") as cache:
        yield cache


def steps_of_experts(pipeline):
    boundary = pipeline.config.boundary_ratio * pipeline.scheduler.config.num_train_timesteps
    high = sum(float(timestep) >= boundary for timestep in pipeline.scheduler.timesteps)
    return high, CALL["num_inference_steps"] - high


def state(pipeline):
    """What attaching touches."""
    touched = [vars(pipeline.scheduler).keys() & {"step", "set_timesteps"}, vars(pipeline.vae).keys() & {"decode"}]
    touched += [vars(pipeline).keys() & {"encode_prompt", "maybe_free_model_hooks"}]
    for expert in (pipeline.transformer, pipeline.transformer_2):
        touched += [expert.attn_processors, len(expert._forward_pre_hooks), len(expert._forward_hooks)]
    return touched


def test_the_output_is_the_same_bit_for_bit_and_everything_is_put_back(pipeline, expected, cache):
    before = state(pipeline)
    with evanesce.attach(pipeline, cache) as run:
        assert state(pipeline) != before
        assert torch.equal(latents(pipeline), expected)
        report = run.report()
        assert cache.counters()["jobs"] == [], "the call's job ended with its last step"
    assert state(pipeline) == before
    high, low = steps_of_experts(pipeline)
    assert high > 0 and low > 0, "both experts are tried"
    kv = report["cross_kv"]
    assert (kv["calls"], kv["steps"], kv["refused"]) == (1, 4, 0)
    assert kv["computed"] == 2 * 2 * LAYERS, "once per expert, branch and layer"
    assert kv["hits"] == (high - 1 + low - 1) * 2 * LAYERS
    # One expert's at a time: those of the first left with its last step.
    assert kv["peak_bytes"] == 2 * LAYERS * LAYER_BYTES
    counters = cache.counters()["kinds"]["cross_kv"]
    assert counters["expired"] == counters["puts"] == kv["computed"] and counters["bytes"] == {"device": 0, "host": 0, "disk": 0}
    assert report["text"]["computed"] == 2 and used(cache) == cache.counters()["kinds"]["text_embedding"]["bytes"]["device"]
    assert torch.equal(latents(pipeline), expected)


def test_prompts_are_encoded_once_and_known_by_their_content(pipeline, expected, cache):
    encoded = []
    hook = pipeline.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    try:
        with evanesce.attach(pipeline, cache, cross_kv=False) as run:
            assert torch.equal(latents(pipeline), expected) and len(encoded) == 2
            assert torch.equal(latents(pipeline), expected) and len(encoded) == 2
            blue = latents(pipeline, "a blue square")
            assert len(encoded) == 3 and not torch.equal(blue, expected), "the negative prompt is known"
        with evanesce.attach(pipeline, cache) as run:
            assert torch.equal(latents(pipeline), expected) and len(encoded) == 3, "also in a later run"
            assert run.report()["text"]["hits"] == 2
        assert torch.equal(latents(pipeline, "a blue square"), blue)
    finally:
        hook.remove()
    # Real rows alone are kept: of a few words, not of 512 tokens.
    assert used(cache) < 3 * 40 * 128 * 4


def test_an_embedding_that_finds_no_room_is_made_again_and_not_forgotten(pipeline, tmp_path):
    with evanesce.Cache(device="64KiB", host="64KiB", disk=(tmp_path, "1MiB")) as cache, cache.job() as job:
        with evanesce.attach(pipeline, cache, cross_kv=False) as run:
            plain = embedding(pipeline)
            key, _ = next(iter(cache_pool(run).sizes.items()))
            job.announce(key, first=9)
            lease = job.put(evanesce.Key("latent"), bytes((64 << 10) - 64), tier="host")
            assert cache.tier_of(key) == "disk"
            other = job.put(evanesce.Key("self_kv"), bytes((64 << 10) - 64))
            assert torch.equal(embedding(pipeline), plain) and key not in cache
            lease.release(), other.release()
            job.close()
            assert torch.equal(embedding(pipeline), plain) and torch.equal(embedding(pipeline), plain)
            text = run.report()["text"]
            assert (text["computed"], text["hits"], text["entries"]) == (3, 1, 1) and text["bytes"] == used(cache)


def test_deep_copies_of_what_is_attached_are_not(pipeline, expected, cache):
    with evanesce.attach(pipeline, cache) as run:
        latents(pipeline)
        original, copied = pipeline.scheduler, copy.deepcopy(pipeline.scheduler)
        copied.set_timesteps(7)
        assert (len(copied.timesteps), len(original.timesteps), run.report()["cross_kv"]["calls"]) == (7, 4, 1)
        assert copied.step.__self__ is copied and original.step.__name__ == "step"
        whole = copy.deepcopy(pipeline)
        before = run.report()
        assert torch.equal(latents(whole), expected) and run.report() == before
        pipeline.scheduler = copied
        try:
            assert torch.equal(latents(pipeline), expected)
        finally:
            pipeline.scheduler = original


def test_the_text_budget_holds_and_the_oldest_leave(pipeline, cache):
    with evanesce.attach(pipeline, cache, text="12KiB") as run, torch.no_grad():
        for at in range(8):
            pipeline.encode_prompt(f"a red circle, number {at}", negative_prompt="a video", max_sequence_length=64)
        assert run.report()["text"]["bytes"] <= 12 << 10
        assert used(cache) == run.report()["text"]["bytes"]
        assert run.report()["text"]["hits"] == 7, "the negative prompt was used last each time"
        entries = run.report()["text"]["entries"]
        pipeline.encode_prompt("a red circle " * 30, do_classifier_free_guidance=False, max_sequence_length=64)
        assert run.report()["text"]["entries"] == entries, "what is larger than the budget pushes nothing out"


def test_a_changed_text_encoder_is_another_one(pipeline, cache):
    original = pipeline.text_encoder
    with evanesce.attach(pipeline, cache) as run, torch.no_grad():
        pipeline.encode_prompt("a red circle", do_classifier_free_guidance=False, max_sequence_length=64)
        pipeline.text_encoder = copy.deepcopy(original)
        try:
            pipeline.encode_prompt("a red circle", do_classifier_free_guidance=False, max_sequence_length=64)
            next(pipeline.text_encoder.parameters()).mul_(1.5)
            pipeline.encode_prompt("a red circle", do_classifier_free_guidance=False, max_sequence_length=64)
        finally:
            pipeline.text_encoder = original
        assert (run.report()["text"]["hits"], run.report()["text"]["computed"]) == (0, 3)


def embedding(pipeline, prompt="a red circle"):
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=64)[0]


@pytest.fixture
def encoder(pipeline):
    """A text encoder to be changed."""
    original = pipeline.text_encoder
    pipeline.text_encoder = copy.deepcopy(original)
    yield pipeline.text_encoder
    pipeline.text_encoder = original


def test_weights_that_replace_others_are_other_weights(pipeline, encoder, cache):
    with evanesce.attach(pipeline, cache) as run:
        for factor in (1.25, 1.5):
            state = {name: factor * value for name, value in encoder.state_dict().items()}
            encoder.load_state_dict(state, assign=True)
            plain = embedding(pipeline)
        encoder.encoder.block[0] = copy.deepcopy(encoder.encoder.block[0])
        assert torch.equal(embedding(pipeline), plain)
        assert (run.report()["text"]["hits"], run.report()["text"]["computed"]) == (0, 3)


def test_what_else_decides_an_embedding_tells_it_from_others(pipeline, encoder, cache):
    original = pipeline.tokenizer
    pipeline.tokenizer = copy.deepcopy(original)
    try:
        with evanesce.attach(pipeline, cache) as run:
            plain = embedding(pipeline)
            with torch.autocast("cpu", torch.bfloat16):
                assert not torch.equal(embedding(pipeline), plain)
            pipeline.tokenizer.truncation_side = "left"
            embedding(pipeline)
            pipeline.tokenizer.add_tokens(["zebra stripes"])
            embedding(pipeline)
            assert (run.report()["text"]["hits"], run.report()["text"]["computed"]) == (0, 4)
    finally:
        pipeline.tokenizer = original


def test_an_encoder_whose_state_nobody_can_say_is_asked_every_time(pipeline, encoder, cache):
    with evanesce.attach(pipeline, cache) as run:
        encoder.encoder.block[0].disable_adapters = False
        assert torch.equal(embedding(pipeline), embedding(pipeline))
        del encoder.encoder.block[0].disable_adapters
        with torch.inference_mode():
            encoder.register_buffer("scale", torch.ones(1))
        assert torch.equal(embedding(pipeline), embedding(pipeline))
        assert run.report()["text"] == {"hits": 0, "computed": 0, "entries": 0, "bytes": 0}
        del encoder.scale
        embedding(pipeline), embedding(pipeline)
        assert run.report()["text"]["hits"] == 1


def test_a_cache_without_room_computes_as_before(pipeline, expected):
    with evanesce.Cache(device="64KiB") as cache, evanesce.attach(pipeline, cache, text=None) as run:
        assert torch.equal(latents(pipeline), expected)
        kv = run.report()["cross_kv"]
        assert kv["refused"] == kv["computed"] == 4 * 2 * LAYERS and kv["hits"] == 0 and used(cache) == 0


def test_what_the_device_cannot_hold_waits_below_by_its_next_use(pipeline, expected, tmp_path):
    half = LAYERS * LAYER_BYTES
    with evanesce.Cache(device=half, host=half, disk=(tmp_path, "16MiB")) as cache:
        with evanesce.attach(pipeline, cache, text=None) as run:
            assert torch.equal(latents(pipeline), expected)
        kv, tiers = run.report()["cross_kv"], cache.counters()["tiers"]
        assert kv["computed"] == 2 * 2 * LAYERS and kv["hits"] > 0
        assert tiers["host"]["demoted"] > 0 and tiers["device"]["peak_bytes"] <= half and used(cache) == 0


def test_an_exception_in_the_middle_leaves_nothing(pipeline, expected, cache):
    before = state(pipeline)

    def stop(_, step, timestep, kwargs):
        if step == 1:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt), evanesce.attach(pipeline, cache, text=None) as run:
        latents(pipeline, callback_on_step_end=stop)
    assert state(pipeline) == before and used(cache) == 0 and run.report()["cross_kv"]["steps"] == 2
    with evanesce.attach(pipeline, cache, text=None) as run:
        with pytest.raises(KeyboardInterrupt):
            latents(pipeline, callback_on_step_end=stop)
        assert torch.equal(latents(pipeline), expected), "a call that broke off leaves nothing to the next"
        with pytest.raises(KeyboardInterrupt):
            latents(pipeline, callback_on_step_end=stop)
        assert len(cache.counters()["jobs"]) == 1
        run.end_call()
        assert cache.counters()["jobs"] == []
        assert torch.equal(latents(pipeline), expected)
    assert used(cache) == 0


@pytest.mark.parametrize("interrupted", [True, False])
def test_nothing_is_held_while_the_vae_decodes_and_a_preview_ends_no_call(pipeline, cache, interrupted):
    held, jobs = [], lambda: len(cache.counters()["jobs"])
    hook = pipeline.vae.decoder.register_forward_pre_hook(lambda *_: held.append((jobs(), used(cache) > 0)))

    def look(_, step, timestep, kwargs):
        if step == 0:
            pipeline.vae.decode(kwargs["latents"][:, :, :1])
        pipeline._interrupt = interrupted and step == 1
        return kwargs

    try:
        with evanesce.attach(pipeline, cache, text=None) as run:
            pipeline("a red circle", negative_prompt="a video", callback_on_step_end=look, output_type="pt", **CALL)
            assert held[0] == (1, True) and set(held[1:]) == {(0, False)}
            pipeline("a red circle", negative_prompt="a video", callback_on_step_end=look, output_type="latent", **CALL)
            assert jobs() == 0 and run.report()["cross_kv"]["steps"] == 2 * (2 if interrupted else 4)
    finally:
        hook.remove()


def test_the_error_that_ended_a_call_is_the_one_that_is_told(pipeline):
    def stop(*_):
        cache.close()
        raise ZeroDivisionError

    cache = evanesce.Cache(device="64MiB")
    with pytest.raises(ZeroDivisionError), evanesce.attach(pipeline, cache):
        latents(pipeline, callback_on_step_end=stop)


def test_a_pass_that_ctrl_c_broke_off_leaves_nothing_to_the_next(pipeline, cache):
    plain = velocity(pipeline.transformer, 1)

    def stop(*_):
        if pipeline.scheduler.step_index == 1:
            raise KeyboardInterrupt

    hook = pipeline.transformer.blocks[-1].register_forward_pre_hook(stop)
    with evanesce.attach(pipeline, cache) as run:
        try:
            with pytest.raises(KeyboardInterrupt):
                latents(pipeline)
        finally:
            hook.remove()
        before = run.report()["cross_kv"]
        assert torch.is_grad_enabled() and torch.equal(velocity(pipeline.transformer, 1), plain)
        assert run.report()["cross_kv"] == before


@pytest.mark.parametrize("in_place", [False, True])
def test_an_embedding_that_changes_between_steps_is_not_mistaken(pipeline, cache, in_place):
    def change(_, step, timestep, kwargs):
        embeds = kwargs["prompt_embeds"]
        return {"prompt_embeds": embeds.mul_(0.8) if in_place else embeds * 0.8}

    call = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    expected = latents(pipeline, **call)
    with evanesce.attach(pipeline, cache):
        assert torch.equal(latents(pipeline, **call), expected)
        assert torch.equal(latents(pipeline, **call), expected), "nor does it change what is kept across calls"


def velocity(transformer, seed):
    """What an expert gives for noise and a text of its own."""
    noise = torch.Generator("cpu").manual_seed(seed)
    latent = torch.randn((1, transformer.config.in_channels, 3, 8, 8), generator=noise)
    text = torch.randn((1, 512, transformer.config.text_dim), generator=noise)
    return transformer(latent, torch.tensor([900.0]), text, return_dict=False)[0].detach()


def test_another_thread_on_the_same_transformers_reads_nothing_of_the_call(pipeline, expected, cache):
    main, inside, done = threading.get_ident(), threading.Event(), threading.Event()
    plain, got = velocity(pipeline.transformer, 1), []

    def beside():
        with torch.no_grad():
            got.extend(velocity(pipeline.transformer, 1) for _ in range(2))

    other = threading.Thread(target=beside)

    def meet(*_):
        if threading.get_ident() != main:
            if got:
                inside.set()
                assert done.wait(60)
        elif other.ident is None and pipeline.scheduler.step_index == 1:
            other.start()
            assert inside.wait(60)

    hook = pipeline.transformer.blocks[2].register_forward_pre_hook(meet)
    try:
        with evanesce.attach(pipeline, cache) as run:
            assert torch.equal(latents(pipeline), expected)
            hits = run.report()["cross_kv"]["hits"]
            done.set()
            other.join()
            assert all(torch.equal(one, plain) for one in got) and len(got) == 2
            assert run.report()["cross_kv"]["hits"] == hits
            assert hits == sum(steps - 1 for steps in steps_of_experts(pipeline)) * 2 * LAYERS
    finally:
        done.set()
        hook.remove()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_fused_projections_and_no_guidance_are_the_same_too(pipeline, cache, guidance):
    for expert in (pipeline.transformer, pipeline.transformer_2):
        expert.fuse_qkv_projections()
    try:
        call = {"guidance_scale": guidance, "guidance_scale_2": guidance}
        expected = latents(pipeline, **call)
        with evanesce.attach(pipeline, cache) as run:
            assert torch.equal(latents(pipeline, **call), expected)
            assert run.report()["cross_kv"]["computed"] == 2 * LAYERS * (1 if guidance == 1 else 2)
    finally:
        for expert in (pipeline.transformer, pipeline.transformer_2):
            expert.unfuse_qkv_projections()


def test_inference_mode_and_batches_are_the_same_too(pipeline, cache):
    call = {"prompt": ["a red circle", "a blue square"], "negative_prompt": ["a video", "a video"], "num_videos_per_prompt": 2}
    with torch.inference_mode():
        expected = latents(pipeline, **call)
        with evanesce.attach(pipeline, cache) as run:
            assert torch.equal(latents(pipeline, **call), expected) and torch.equal(latents(pipeline, **call), expected)
            assert run.report()["cross_kv"]["hits"] > 0 and run.report()["text"]["hits"] == 2


def test_a_processor_that_changes_keys_before_their_norm_is_refused_by_name(pipeline, cache):
    inner = pipeline.transformer.blocks[0].attn2.processor

    class Doubling:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
            attn.norm_k(2 * attn.to_k(encoder_hidden_states))
            return inner(attn, hidden_states, encoder_hidden_states, *args, **kwargs)

    pipeline.transformer.blocks[0].attn2.set_processor(Doubling())
    try:
        expected = latents(pipeline)
        with evanesce.attach(pipeline, cache), pytest.raises(RuntimeError, match="processor Doubling changes keys .* cross_kv=False"):
            latents(pipeline)
        with evanesce.attach(pipeline, cache, cross_kv=False):
            assert torch.equal(latents(pipeline), expected)
    finally:
        pipeline.transformer.blocks[0].attn2.set_processor(inner)


def test_codecs_take_less_room_and_change_little(pipeline, expected, cache):
    with evanesce.attach(pipeline, cache, codec="k8v4") as run:
        video = latents(pipeline)
    assert run.report()["cross_kv"]["peak_bytes"] < 0.25 * 2 * LAYERS * LAYER_BYTES
    assert 0 < (video - expected).norm() / expected.norm() < 0.1
    with evanesce.attach(pipeline, cache, codec=["int8", "int4"], text=None):
        assert torch.equal(latents(pipeline), video)


def test_what_no_codec_takes_is_kept_as_it_is(pipeline, cache):
    pipeline = copy.deepcopy(pipeline)
    pipeline.transformer.double(), pipeline.transformer_2.double()
    expected = latents(pipeline)
    with evanesce.attach(pipeline, cache, codec="int8") as run:
        assert torch.equal(latents(pipeline), expected) and run.report()["cross_kv"]["hits"] > 0


def test_what_cannot_be_attached_is_refused_in_a_sentence(pipeline, cache):
    with pytest.raises(TypeError, match="object cannot be attached: it has no scheduler; give a WanPipeline"):
        evanesce.attach(object(), cache)
    for codec in ("int3", None, ("int8",), ("int8", "k8v4"), 8):
        with pytest.raises(ValueError, match="is not known for keys and values; use one of exact, bf16"):
            evanesce.attach(pipeline, cache, codec=codec)
    with pytest.raises(ValueError, match="cross_kv 'yes' is not known"):
        evanesce.attach(pipeline, cache, cross_kv="yes")
    with evanesce.attach(pipeline, cache), pytest.raises(RuntimeError, match="attached to a cache already"):
        evanesce.attach(pipeline, cache).__enter__()
    assert "encode_prompt" not in vars(pipeline)
