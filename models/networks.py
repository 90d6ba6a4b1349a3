"""The transformer and the text encoder, as diffusers and transformers define them, and a forward made for training.

`velocity` computes what WanTransformer3DModel.forward computes for prompt embeddings zero-padded to 512 rows, at a
fraction of the cost: all padding rows are the same row, so one stands for all of them with ln(count) added to its logit.
It also takes any subset of a clip's latent frames, at their true positions in time. `check.py` compares it with diffusers.
"""

import math

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

TEXT_ROWS = 512
PROMPT_TOKENS = 24
TEXT_WIDTH = 128
PATCH = 2


def build_transformer(dim=192, heads=6, layers=6, ffn_dim=512):
    """An untrained WanTransformer3DModel whose cross-attention starts out looking at the words, not at the padding."""
    model = WanTransformer3DModel(
        patch_size=(1, PATCH, PATCH), num_attention_heads=heads, attention_head_dim=dim // heads, in_channels=16, out_channels=16,
        text_dim=TEXT_WIDTH, freq_dim=256, ffn_dim=ffn_dim, num_layers=layers, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", eps=1e-6, rope_max_seq_len=1024)
    with torch.no_grad():
        model.proj_out.weight.zero_()
        model.proj_out.bias.zero_()
        for block in model.blocks:
            # Some 490 padding rows share one key, and at equal logits they would take 97 % of the softmax. With these biases
            # that key points away from every query, so words are attended to from the first step.
            block.attn2.to_q.bias.fill_(1.0)
            block.attn2.to_k.bias.fill_(-0.1)
            block.attn2.norm_q.weight.fill_(1.5)
            block.attn2.norm_k.weight.fill_(1.5)
    return model


def build_text_encoder(vocabulary_size):
    """An untrained two-layer UMT5 encoder."""
    return UMT5EncoderModel(UMT5Config(
        vocab_size=vocabulary_size, d_model=TEXT_WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=32, relative_attention_max_distance=128,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=True))


def encode_prompts(tokenizer, text_encoder, prompts):
    """Prompt rows [B, 24 + 1, 128] (the last row is the padding) and the logit bias of each row, [B, 1, 1, 25]."""
    tokens = tokenizer(prompts, padding="max_length", max_length=PROMPT_TOKENS, return_tensors="pt")
    mask = tokens.attention_mask
    assert mask.shape[1] == PROMPT_TOKENS, f"a prompt has {mask.shape[1]} tokens, more than {PROMPT_TOKENS}"
    hidden = text_encoder(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state * mask[..., None]
    rows = F.pad(hidden, (0, 0, 0, 1))
    padding = torch.log(TEXT_ROWS - mask.sum(1, keepdim=True).float())
    bias = torch.cat([torch.where(mask > 0, 0.0, -torch.inf), padding], 1)
    return rows, bias[:, None, None]


def rotary_tables(model, frames, height, width):
    """Cosine and sine for tokens of the given latent frames, [1, S, 1, head_dim / 2] each; height and width in tokens."""
    rope, count = model.rope, len(frames)
    tables = []
    for parity, table in enumerate((rope.freqs_cos, rope.freqs_sin)):
        time, rows, columns = table.split([rope.t_dim, rope.h_dim, rope.w_dim], 1)
        grid = torch.cat([time[frames].view(count, 1, 1, -1).expand(count, height, width, -1),
                          rows[:height].view(1, height, 1, -1).expand(count, height, width, -1),
                          columns[:width].view(1, 1, width, -1).expand(count, height, width, -1)], -1)
        tables.append(grid.reshape(1, count * height * width, 1, -1)[..., parity::2].float().contiguous())
    return tables


def _rotate(x, cos, sin):
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def _attend(q, k, v, bias=None):
    # plain products: on CPUs the fused attention's backward is several times slower at these lengths
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return torch.softmax(logits if bias is None else logits + bias, -1) @ v


def _layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def whole_clip_attention(model, frames, height, width):
    """Self-attention of every token to every token; returns what `block_forward` takes."""
    cos, sin = rotary_tables(model, frames, height, width)

    def attend(q, k, v):
        return _attend(_rotate(q, cos, sin).transpose(1, 2), _rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    return attend


def block_forward(block, x, modulation, text, text_bias, heads, self_attention):
    """One transformer block: x [B, S, D], modulation [B, G, 6, D] for G equal groups of tokens, text [B, L, D] -> [B, S, D].

    `self_attention` takes q, k, v [B, S, heads, head_dim], normed and not yet rotated, and returns the like of q.
    """
    groups = (modulation.shape[1], -1)
    table = (block.scale_shift_table + modulation).unsqueeze(3)
    shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = table.unbind(2)

    def modulated(x, scale, shift):
        return (_layer_norm(x).unflatten(1, groups) * (1 + scale) + shift).flatten(1, 2)

    def gated(x, gate):
        return (x.unflatten(1, groups) * gate).flatten(1, 2)

    split = (heads, -1)
    h = modulated(x, scale_attn, shift_attn)
    attn = block.attn1
    q, k = attn.norm_q(attn.to_q(h)).unflatten(2, split), attn.norm_k(attn.to_k(h)).unflatten(2, split)
    out = self_attention(q, k, attn.to_v(h).unflatten(2, split))
    x = x + gated(attn.to_out[0](out.flatten(2)), gate_attn)
    attn, h = block.attn2, block.norm2(x)
    q = attn.norm_q(attn.to_q(h)).unflatten(2, split).transpose(1, 2)
    k = attn.norm_k(attn.to_k(text)).unflatten(2, split).transpose(1, 2)
    v = attn.to_v(text).unflatten(2, split).transpose(1, 2)
    x = x + attn.to_out[0](_attend(q, k, v, text_bias).transpose(1, 2).flatten(2))
    return x + gated(block.ffn(modulated(x, scale_ffn, shift_ffn)), gate_ffn)


def _forward(model, x, noise_levels, rows, bias, self_attention):
    """The velocity of x [B, 16, T, 8, 8] whose groups of frames have the noise levels [B, G]."""
    batch, channels, count, height, width = x.shape
    high, wide = height // PATCH, width // PATCH
    groups = noise_levels.shape[1]
    patches = x.reshape(batch, channels, count, high, PATCH, wide, PATCH).permute(0, 2, 3, 5, 1, 4, 6)
    patches = patches.reshape(batch, count * high * wide, channels * PATCH * PATCH)
    tokens = F.linear(patches, model.patch_embedding.weight.flatten(1), model.patch_embedding.bias)
    embedder = model.condition_embedder
    time = embedder.time_embedder(embedder.timesteps_proj(noise_levels.flatten() * 1000).to(tokens.dtype))
    modulation = embedder.time_proj(F.silu(time)).view(batch, groups, 6, -1)
    text = embedder.text_embedder(rows)
    for index, layer in enumerate(model.blocks):
        attend = self_attention if callable(self_attention) else self_attention[index]
        tokens = block_forward(layer, tokens, modulation, text, bias, model.config.num_attention_heads, attend)
    shift, scale = (model.scale_shift_table + time.view(batch, groups, 1, -1)).unsqueeze(3).unbind(2)
    out = _layer_norm(tokens).unflatten(1, (groups, -1)) * (1 + scale) + shift
    out = model.proj_out(out.flatten(1, 2)).view(batch, count, high, wide, PATCH, PATCH, channels).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(batch, channels, count, height, width)


def velocity(model, x, noise_level, rows, bias, frames):
    """The predicted velocity, like x [B, 16, T, 8, 8].

    `noise_level` [B] is in 0..1; `rows` and `bias` come from `encode_prompts`; `frames` [T] are the latent frames' indices.
    """
    attend = whole_clip_attention(model, frames, x.shape[3] // PATCH, x.shape[4] // PATCH)
    return _forward(model, x, noise_level[:, None], rows, bias, attend)


# ---- block by block -------------------------------------------------------------------------------------------------
#
# Blocks of BLOCK latent frames. A block sees itself, the RECENT frames before it and the clip's first SINK frames. Positions
# in time are those of this list: as long as everything is in reach they are the true ones, later the sink stands directly
# before the recent frames, so no distance is ever longer than in training.

BLOCK, SINK, RECENT = 3, 3, 6


def block_visibility(blocks):
    """Which keys the queries of a training sequence see: (sink [n], rest [n, n]) in blocks.

    The sequence is blocks 0 .. blocks - 2 clean, then 0 .. blocks - 1 noisy. Clean block 0 is the sink and is only ever seen
    as such; the rest is a matrix over the sequence.
    """
    clean = blocks - 1
    number = torch.cat([torch.arange(clean), torch.arange(blocks)])
    is_clean = torch.arange(clean + blocks) < clean
    before = number[:, None] - number[None]
    context = is_clean[None] & (number[None] > 0) & (before > 0) & (before <= RECENT // BLOCK)
    itself = torch.eye(clean + blocks, dtype=torch.bool)
    itself[0, 0] = False
    sink = (number > 0) | is_clean
    return sink, context | itself


def teacher_forced_velocity(model, clean, noisy, noise_levels, rows, bias):
    """The velocity of every block of `noisy` [B, 16, T, 8, 8] at its own noise level [B, T / 3], each given the clean blocks before.

    `clean` holds all blocks but the last. What a clean block sees is what it saw when a rollout committed it.
    """
    blocks, high, wide = noise_levels.shape[1], noisy.shape[3] // PATCH, noisy.shape[4] // PATCH
    number = torch.cat([torch.arange(blocks - 1), torch.arange(blocks)])
    inside = torch.arange(BLOCK)
    cos, sin = rotary_tables(model, (number[:, None] * BLOCK + inside).flatten(), high, wide)
    near = number.clamp(max=(SINK + RECENT) // BLOCK)
    near_cos, near_sin = rotary_tables(model, (near[:, None] * BLOCK + inside).flatten(), high, wide)
    tokens, sink_tokens = BLOCK * high * wide, SINK * high * wide
    sees_sink, sees = block_visibility(blocks)
    hidden = torch.cat([~sees_sink[:, None].repeat_interleave(sink_tokens, 1), ~sees.repeat_interleave(tokens, 1)], 1)
    mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf).repeat_interleave(tokens, 0)

    def attend(q, k, v):
        scale = q.shape[-1] ** -0.5
        to_sink = (_rotate(q, near_cos, near_sin) * scale).transpose(1, 2)
        q, k, v = (_rotate(q, cos, sin) * scale).transpose(1, 2), _rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)
        logits = torch.cat([to_sink @ k[:, :, :sink_tokens].mT, q @ k.mT], -1) + mask
        weights = torch.softmax(logits, -1)
        out = weights[..., :sink_tokens] @ v[:, :, :sink_tokens] + weights[..., sink_tokens:] @ v
        return out.transpose(1, 2)

    levels = torch.cat([torch.zeros(len(noisy), blocks - 1), noise_levels], 1)
    return _forward(model, torch.cat([clean, noisy], 2), levels, rows, bias, attend)[:, :, -noisy.shape[2] :]


class Context:
    """Keys (not yet rotated) and values of committed blocks, for each transformer block: the sink and the recent ones."""

    def __init__(self):
        self.blocks = []

    def reaching(self, layer, q, k, v, rotate):
        """Attention of one block's tokens to what is kept and to themselves."""
        keys = torch.cat([block[layer][0] for block in self.blocks] + [k], 1)
        values = torch.cat([block[layer][1] for block in self.blocks] + [v], 1)
        start = len(self.blocks) * BLOCK
        q, keys = rotate(q, start), rotate(keys, 0)
        return _attend(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)).transpose(1, 2)

    def commit(self, layers):
        """Adds a clean block's keys and values and forgets what is no longer in reach."""
        self.blocks.append(layers)
        if len(self.blocks) > (SINK + RECENT) // BLOCK:
            del self.blocks[SINK // BLOCK]


def block_velocity(model, x, noise_level, rows, bias, context):
    """The velocity of one block x [B, 16, 3, 8, 8], and each layer's keys and values of it."""
    high, wide = x.shape[3] // PATCH, x.shape[4] // PATCH

    def rotate(values, start):
        count = values.shape[1] // (high * wide)
        return _rotate(values, *rotary_tables(model, torch.arange(start, start + count), high, wide))

    kept = []

    def attend_in(layer):
        def attend(q, k, v):
            kept.append((k, v))
            return context.reaching(layer, q, k, v, rotate)

        return attend

    attends = [attend_in(layer) for layer in range(len(model.blocks))]
    return _forward(model, x, noise_level[:, None], rows, bias, attends), kept
