"""AutoencoderKLWan at small width, with a full-sequence forward that equals diffusers' chunked one.

Diffusers walks a clip in chunks of four frames and carries a cache; in training the whole clip is at hand, so the same
arithmetic is done in one pass. `check.py` compares the two.
"""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan

LATENT_CHANNELS = 16


def build():
    """An untrained autoencoder in this project's configuration."""
    return AutoencoderKLWan(base_dim=16, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 4, 4], num_res_blocks=1,
                            temperal_downsample=[False, True, True],
                            latents_mean=[0.0] * LATENT_CHANNELS, latents_std=[1.0] * LATENT_CHANNELS)


def load(path):
    """The autoencoder in `path`, ready for inference."""
    return AutoencoderKLWan.from_pretrained(path).eval()


def _resample_whole_clip(self, x, feat_cache=None, feat_idx=None):
    """WanResample.forward over all frames at once; the first frame is never paired in time."""
    if feat_cache is not None:
        return _chunked_resample(self, x, feat_cache, feat_idx)
    batch, channels, frames, height, width = x.shape
    if self.mode == "upsample3d" and frames > 1:
        pairs = self.time_conv(x[:, :, 1:]).reshape(batch, 2, channels, frames - 1, height, width)
        pairs = torch.stack((pairs[:, 0], pairs[:, 1]), 3).reshape(batch, channels, 2 * (frames - 1), height, width)
        x = torch.cat([x[:, :, :1], pairs], 2)
    frames = x.shape[2]
    pictures = self.resample(x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width))
    x = pictures.view(batch, frames, *pictures.shape[1:]).permute(0, 2, 1, 3, 4)
    if self.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
    return x


_chunked_resample = autoencoder_kl_wan.WanResample.forward
autoencoder_kl_wan.WanResample.forward = _resample_whole_clip


def encode_moments(vae, pixels):
    """Mean and log-variance, stacked on channels, of the un-normalised latents of [B, 3, T, H, W]."""
    return vae.quant_conv(vae.encoder(pixels))


def decode_whole(vae, latents):
    """Pixels of un-normalised latents, not clamped."""
    return vae.decoder(vae.post_quant_conv(latents))


def use_channels_last(vae):
    """Lays the convolutions out channels-last, which CPUs run about a quarter faster; inputs should follow suit."""
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return vae


def latent_statistics(vae):
    """Per-channel mean and standard deviation by which latents are normalised, [1, 16, 1, 1, 1] each."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    return torch.tensor(vae.config.latents_mean).view(shape), torch.tensor(vae.config.latents_std).view(shape)
