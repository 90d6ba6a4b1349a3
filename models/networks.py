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


def block_forward(block, x, modulation, text, text_bias, cos, sin, heads):
    """One transformer block: x [B, S, D], modulation [B, 6, D], text [B, L, D] -> [B, S, D]."""
    table = (block.scale_shift_table + modulation).unsqueeze(2)
    shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = table.unbind(1)
    split = (heads, -1)
    h = _layer_norm(x) * (1 + scale_attn) + shift_attn
    attn = block.attn1
    q = _rotate(attn.norm_q(attn.to_q(h)).unflatten(2, split), cos, sin).transpose(1, 2)
    k = _rotate(attn.norm_k(attn.to_k(h)).unflatten(2, split), cos, sin).transpose(1, 2)
    v = attn.to_v(h).unflatten(2, split).transpose(1, 2)
    x = x + attn.to_out[0](_attend(q, k, v).transpose(1, 2).flatten(2)) * gate_attn
    attn, h = block.attn2, block.norm2(x)
    q = attn.norm_q(attn.to_q(h)).unflatten(2, split).transpose(1, 2)
    k = attn.norm_k(attn.to_k(text)).unflatten(2, split).transpose(1, 2)
    v = attn.to_v(text).unflatten(2, split).transpose(1, 2)
    x = x + attn.to_out[0](_attend(q, k, v, text_bias).transpose(1, 2).flatten(2))
    h = _layer_norm(x) * (1 + scale_ffn) + shift_ffn
    return x + block.ffn(h) * gate_ffn


def velocity(model, x, noise_level, rows, bias, frames, block=block_forward):
    """The predicted velocity, like x [B, 16, T, 8, 8].

    `noise_level` [B] is in 0..1; `rows` and `bias` come from `encode_prompts`; `frames` [T] are the latent frames' indices.
    """
    batch, channels, count, height, width = x.shape
    high, wide = height // PATCH, width // PATCH
    patches = x.reshape(batch, channels, count, high, PATCH, wide, PATCH).permute(0, 2, 3, 5, 1, 4, 6)
    patches = patches.reshape(batch, count * high * wide, channels * PATCH * PATCH)
    tokens = F.linear(patches, model.patch_embedding.weight.flatten(1), model.patch_embedding.bias)
    embedder = model.condition_embedder
    time = embedder.time_embedder(embedder.timesteps_proj(noise_level * 1000).to(tokens.dtype))
    modulation = embedder.time_proj(F.silu(time)).view(batch, 6, -1)
    text = embedder.text_embedder(rows)
    cos, sin = rotary_tables(model, frames, high, wide)
    for layer in model.blocks:
        tokens = block(layer, tokens, modulation, text, bias, cos, sin, model.config.num_attention_heads)
    shift, scale = (model.scale_shift_table + time.unsqueeze(1)).unsqueeze(2).unbind(1)
    out = model.proj_out(_layer_norm(tokens) * (1 + scale) + shift)
    out = out.view(batch, count, high, wide, PATCH, PATCH, channels).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(batch, channels, count, height, width)
