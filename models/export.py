"""Writes a checkpoint directory in diffusers' layout: both experts (bf16), text encoder, tokenizer, autoencoder, scheduler."""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

import data
import networks
import tokenizer

BOUNDARY = 0.875
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def load_networks(path, words):
    """The averaged transformer and text encoder of a training checkpoint, and the arguments it was trained with."""
    state = torch.load(path)
    args = state["args"]
    transformer = networks.build_transformer(args["dim"], args["heads"], args["layers"], args["ffn"])
    transformer.load_state_dict(state["average"]["transformer"])
    text = networks.build_text_encoder(len(words))
    text.load_state_dict(state["average"]["text"])
    return transformer.bfloat16().eval(), text.eval()


def export(high, low, vae, out, defaults, causal):
    """Writes everything to `out`; `defaults` become the recommended settings in model_index.json."""
    words = tokenizer.build()
    transformer, text = load_networks(high, words)
    transformer_2, other_text = load_networks(low, words)
    for name, parameter in text.state_dict().items():
        if not torch.equal(parameter, other_text.state_dict()[name]):
            raise SystemExit(f"the experts were trained with different text encoders: {name} differs")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=defaults["shift"],
                                        num_train_timesteps=1000)
    pipeline = WanPipeline(tokenizer=words, text_encoder=text, transformer=transformer, transformer_2=transformer_2,
                           vae=AutoencoderKLWan.from_pretrained(vae).eval(), scheduler=scheduler, boundary_ratio=BOUNDARY)
    pipeline.save_pretrained(out, safe_serialization=True)
    # the class name that both older and newer versions of transformers know
    edit_json(Path(out) / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": TOKENIZER_CLASS})
    edit_json(Path(out) / "vae" / "config.json", {}, drop="_name_or_path")
    # recommended settings, which other loaders ignore
    section = {"defaults": defaults}
    if causal:
        section["causal"] = {"block_frames": networks.BLOCK, "sink_frames": networks.SINK, "recent_frames": networks.RECENT,
                             "positions": "window"}
    edit_json(Path(out) / "model_index.json", {"tokenizer": ["transformers", TOKENIZER_CLASS], "evanesce": section})


def edit_json(path, changes, drop=None):
    """Sets top-level entries of a JSON file, and removes one."""
    content = json.loads(path.read_text()) | changes
    content.pop(drop, None)
    path.write_text(json.dumps(content, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--high", required=True, help="training checkpoint of the expert for noise levels of 0.875 and above")
    parser.add_argument("--low", required=True, help="training checkpoint of the expert below")
    parser.add_argument("--vae", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, nargs=2, default=(3.0, 2.0), metavar=("HIGH", "LOW"))
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--causal", action="store_true", help="the experts were trained block by block")
    args = parser.parse_args()
    export(args.high, args.low, args.vae, args.out, {
        "size": [data.SIDE, data.SIDE], "frames": 81, "fps": data.FPS, "steps": args.steps, "guidance_high": args.guidance[0],
        "guidance_low": args.guidance[1], "shift": args.shift, "negative_prompt": data.VAGUE}, args.causal)


if __name__ == "__main__":
    main()
