"""Goldens of the text side: prompt cleaning, tokenizer, UMT5 encoder.

Cleaning is diffusers' prompt_clean (ftfy, html.unescape twice, whitespace). The tokenizer is a small unigram model with
the pipeline of T5's. The encoders are small UMT5EncoderModel with random weights, one stored in f32, one in bf16.

Run from the repository root:  python xtask/goldens/text.py
"""

import json
from pathlib import Path

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

OUT = Path("crates/wan/tests/goldens/text")

PLAIN = [
    "",
    " ",
    "\t\n \u00a0\u3000 ",
    "a red circle moves over a blue background",
    "  leading and   inner\t\twhitespace \r\n and lines\r\rtrailing  ",
    "line one\nline two\u2028line three\u2029line four\u0085line five",
    "non\u00a0breaking\u00a0space and thin\u2009space",
    "zero\u200bwidth\u200bspace, joiner\u200d, and non-joiner\u200c",
    "\ufeffbyte order mark",
]
TYPOGRAPHY = [
    "\u201cCurly\u201d quotes, it\u2019s \u2018single\u2019 and \u201elow\u201f ones",
    "ﬁne ﬂow, oﬃce, waﬄe, ﬆyle and ﬅart",
    "Ĳssel ǆep Ǌ ŉ",
    "Ｆｕｌｌｗｉｄｔｈ　ＡＢＣ１２３！",
    "ﾊﾝｶｸ ｶﾀｶﾅ",
    "en\u2013dash, em\u2014dash, ellipsis\u2026 and bullets \u2022",
    "Cafe\u0301 composes, Å and Å are one",
    "\u1e9b\u0323 and 10³ stay",
]
SCRIPTS = [
    "一只猫在雪地里奔跑，远处是群山。",
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量",
    "夕焼けの海、波が寄せる",
    "고양이가 눈 위를 달린다",
    "Кошка бежит по снегу",
    "قطة تركض في الثلج",
    "חתול רץ בשלג",
    "Γάτα στο χιόνι",
    "แมววิ่งบนหิมะ",
    "naïve façade, Ærøskøbing, žluťoučký kůň, İstanbul, straße",
]
EMOJI = [
    "a dog 🐶 and a family 👨\u200d👩\u200d👧 at the 🏖️",
    "flags 🇩🇪🇫🇷 and tag flag 🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
    "skin tone 👍🏽 and keycap 1️⃣",
]
CONTROLS = [
    "nul\x00bell\x07back\x08space\x0bvertical\x0cfeed",
    "escape \x1b[31mred\x1b[0m text and \x1b[1;32mbold green\x1b[m",
    "delete\x7f and \x1a substitute",
    "direction \u202aembedded\u202c and \u200emarks\u200f",
    "deprecated \u206a\u206f annotation \ufff9a\ufffab\ufffb object \ufffc",
    "private \ue000 use, noncharacter \ufdd0",
    "C1 \x80\x93quoted\x94 and \x85",
]
ENTITIES = [
    "cats &amp; dogs &lt;3 &quot;quoted&quot; &#39;single&#39;",
    "twice &amp;amp; escaped &amp;lt;b&amp;gt;",
    "thrice &amp;amp;amp; escaped",
    "four times &amp;amp;amp;amp;",
    "tag <b>bold &amp; brave</b> &amp;amp;",
    "no semicolon &amp &copy &eacutecole &notit; &nosuchentity; &",
    "numeric &#233; &#xe9; &#XE9; &#128512; &#x1F600;",
    "odd numeric &#0; &#128; &#x80; &#xd800; &#1114112; &#99999999999999; &#1; &#x; &#;",
    "&EACUTE; &eacute; &Eacute; &NTILDE; &SZLIG;",
    "&nbsp;&nbsp;spaces&nbsp;&emsp;&ensp;&thinsp;here",
    "long &CounterClockwiseContourIntegral; &fjlig; &NotEqualTilde; &ThickSpace;.",
    "&hearts; &rarr; &hellip; &mdash; &lsquo;q&rsquo; &ldquo;q&rdquo;",
    "a&b=c&d;e &lt &gt; &&amp;&",
    "line &lt;\nnext line <i> &lt;\nthird &lt;",
]
MOJIBAKE = [
    "schÃ¶n und groÃŸ",
    "cafÃ© au lait",
    "itâ€™s a â€œquoteâ€\x9d",
    "itâ€™s broken â€¦ here â€“ and there",
    "âœ” No problems",
    "ÐŸÑ€Ð¸Ð²ÐµÑ‚ Ð¼Ð¸Ñ€",
    "ã\x81\x93ã\x82\x93ã\x81«ã\x81¡ã\x81¯",
    "ä¸\xadæ–‡",
    "doubly schÃƒÂ¶n",
    "voilÃ  le travail",
    "sÃ³ um pouco",
    "l’humanitÃ©",
    "ðŸ\x98\x80 smiles",
    "Ã la mode and fÃ cil",
    "MÃ©xico and normal café",
    "à perturber la rÃ©flexion",
    "lossy â€œ like this â€\ufffd",
    "not mojibake: Â£5, 20 °C, ©2024, naïve",
    "(-1/2)! = √π and ×÷±",
    "ATTENZIONE: â‚¬ 5",
    "poÄ\x8d\xc3\xadtaÄ\x8d",
]

# Where plsfix is known to differ from ftfy: a missing sign of mojibake, only the first letter of a wide form that stands
# for two, entities unescaped next to literal tags, and Cyrillic mojibake of CJK.
DIFFERENT = [
    "Ä°stanbul by night",
    "overline ￣",
    "<b>&EACUTE;</b> and thrice &amp;amp;amp;",
    "Г§ВЊЕ¤",
]

PIECES = (
    "▁a ▁the ▁red ▁blue ▁green ▁yellow ▁circle ▁square ▁triangle ▁moves ▁over ▁background ▁left ▁right ▁slowly "
    "▁cat ▁dog ▁runs ▁in ▁snow s ing ed er é ö ß ü 一 只 猫 在 雪 地 里 奔 跑 ， 。 の 海 к о ш а 🐶 ! ? . , ; : ' \" & < > ▁ "
    "the re in on an"
).split() + [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)] + list("ABCDE-()")


def cleaning(texts):
    return [{"text": text, "clean": prompt_clean(text)} for text in texts]


def tokenizer():
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    seen = dict.fromkeys(PIECES)
    # Scores fall with the position and rise with the length, so that long pieces win.
    vocab = specials + [(piece, -8.0 - 0.01 * at + len(piece)) for at, piece in enumerate(seen)]
    vocab = [(piece, min(score, -0.5) if at >= 3 else score) for at, (piece, score) in enumerate(vocab)]
    made = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made


def tokenizing(made):
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    prompts = PLAIN + TYPOGRAPHY[:3] + SCRIPTS + EMOJI + ENTITIES[:4] + [
        "a red circle moves slowly over the blue background!",
        "literal </s> and <pad> and <unk> inside",
        "the cat runs " * 300,
        "一只猫" * 300,
        "x" * 2000,
    ]
    cases = []
    for prompt in prompts:
        encoded = fast(
            [prompt_clean(prompt)], padding="max_length", max_length=512, truncation=True, add_special_tokens=True
        )
        real = sum(encoded.attention_mask[0])
        cases.append({"text": prompt, "ids": encoded.input_ids[0][:real]})
    return cases


def encoder(name, lengths, padded, dtype, **sizes):
    config = UMT5Config(dropout_rate=0.0, feed_forward_proj="gated-gelu", **sizes)
    torch.manual_seed(sum(map(ord, name)))
    model = UMT5EncoderModel(config).eval().float()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            scale = 0.3 if "layer_norm" in key else 1.5 if "bias" in key or "shared" in key else tensor.shape[-1] ** -0.5
            tensor.copy_(torch.randn_like(tensor) * scale + (1.0 if "layer_norm" in key else 0.0))
            tensor.copy_(tensor.to(dtype))
    weights = {key: tensor.detach().to(dtype).contiguous() for key, tensor in model.named_parameters()}
    tensors = {f"weights/{key}": tensor for key, tensor in weights.items()}
    for length in lengths:
        ids = torch.randint(0, config.vocab_size, (1, length))
        filled = torch.cat([ids, torch.zeros(1, max(padded - length, 0), dtype=torch.long)], dim=1)
        mask = (torch.arange(filled.shape[1]) < length).long()[None]
        with torch.no_grad():
            out = model(filled, mask).last_hidden_state[0, :length]
        tensors[f"ids/{length}"] = ids[0].to(torch.int32)
        tensors[f"out/{length}"] = out.float().contiguous()
    save_file(tensors, OUT / f"{name}.safetensors")
    (OUT / f"{name}.json").write_text(config.to_json_string(use_diff=True))


def buckets():
    """Buckets of key minus query, from -(n - 1) to n - 1, by (buckets, max distance)."""
    table = {}
    for count, reach in [(32, 128), (16, 64), (8, 20), (64, 512)]:
        config = UMT5Config(
            vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
            relative_attention_num_buckets=count, relative_attention_max_distance=reach,
        )
        attention = UMT5EncoderModel(config).encoder.block[0].layer[0].SelfAttention
        table[f"{count}/{reach}"] = attention._relative_position_bucket(torch.arange(-511, 512)).tolist()
    return table


def write(name, value):
    (OUT / name).write_text(json.dumps(value, ensure_ascii=True, indent=0) + "\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    write("clean.json", cleaning(PLAIN + TYPOGRAPHY + SCRIPTS + EMOJI + CONTROLS + ENTITIES + MOJIBAKE))
    write("clean_different.json", cleaning(DIFFERENT))
    made = tokenizer()
    made.save(str(OUT / "tokenizer.json"), pretty=False)
    write("tokens.json", tokenizing(made))
    write("buckets.json", buckets())
    encoder(
        "encoder_square", [1, 7, 200], 200, torch.float32,
        vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
    )
    encoder(
        "encoder_narrow", [5, 23], 40, torch.bfloat16,
        vocab_size=64, d_model=24, d_kv=16, d_ff=40, num_layers=3, num_heads=3,
        relative_attention_num_buckets=16, relative_attention_max_distance=20, layer_norm_epsilon=1e-5,
    )


if __name__ == "__main__":
    main()
