"""Golden of a tokenizer as UMT5's is published: SentencePiece's own unigram model with its `nmt_nfkc` normalizer, converted by
transformers, which puts the compiled character map into `tokenizer.json` as `Precompiled`. Trained on a few lines, since only
the map is of the published size; the map is the whole one.

Run from the repository root:  python xtask/goldens/unigram.py
"""

import json
import tempfile
from pathlib import Path

import sentencepiece
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import T5Converter

OUT = Path("crates/wan/tests/goldens/text")

LINES = [
    "a red circle moves slowly to the left over a blue background",
    "two cats in boxing gear fight on a stage, fine office waffle style",
    "ABC XYZ 0123456789 (1) 1⁄2 20kg 5°C TEL. H2O x2 fi ffi !?,.;:'\"",
    "café naïve façade Å é ü ñ straße İstanbul",
    "一只猫在雪地里奔跑，远处是群山。 株式会社 令和",
    "夕焼けの海、波が寄せる ハンカク カタカナ ガギグパ アパート キロ",
    "고양이가 눈 위를 달린다 가각",
    "Кошка бежит по снегу",
    "हिन्दी क़ नि कि",
    "🐶 👍 🏽 👨 👩 👧 ❤",
]

TEXTS = [
    "a red circle moves slowly to the left",
    "  leading and   inner\t\twhitespace \r\n and lines  ",
    # Ligatures and widths, which cleaning has folded already, and what only the tokenizer folds.
    "ﬁne oﬃce, waﬄe ﬆyle",
    "ＡＢＣ　ＸＹＺ ０１２３ ！？",
    "ﾊﾝｶｸ ｶﾀｶﾅ ｶﾞｷﾞﾊﾟ",
    "① ⑴ ½ x² H₂O ㎏ ℡ ℃ Ⅻ ㏂",
    "㍿ ㋿ ㌀ ㌔ ｶ\u3099",
    "𝐀𝐁𝐂 𝒳𝓎𝓏 𝟘𝟙𝟚 ℌ ℵ",
    # Combining marks: composed, kept, and one on another.
    "cafe\u0301 nai\u0308ve fac\u0327ade A\u030a",
    "e\u0301\u0302 a\u0323\u0307 \u0301",
    "가각 \u1100\u1161\u11a8 고양이",
    "हिन्दी \u0915\u093c \u0958 नि",
    "一只猫在雪地里奔跑，远处是群山。",
    "夕焼けの海、波が寄せる",
    "Кошка бежит по снегу",
    "a dog 🐶 and a family 👨\u200d👩\u200d👧 with ❤️ 👍🏽",
    "zero\u200bwidth\u200b \u200ejoiner\u200d soft\u00adhyphen",
    "nbsp\u00a0thin\u2009em\u2003ideographic\u3000line\u2028next\u0085",
    "control\x01\x7f and \ufffd replacement",
    "İstanbul straße ﷺ ﷽ ẛ̣",
    "literal ▁ and </s> inside",
]


class Trained:
    """As much of a slow tokenizer as its conversion reads."""

    _extra_ids = 0

    def __init__(self, vocab_file):
        self.vocab_file = vocab_file
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)

    def convert_tokens_to_ids(self, token):
        return self.pieces.piece_to_id(token)


def train(directory):
    text, prefix = directory / "lines.txt", directory / "unigram"
    text.write_text("\n".join(LINES * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), model_type="unigram", vocab_size=320, hard_vocab_limit=False,
        character_coverage=1.0, normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        num_threads=1, minloglevel=2,
    )
    return Trained(f"{prefix}.model")


def main():
    with tempfile.TemporaryDirectory() as directory:
        converted = T5Converter(train(Path(directory))).converted()
    converted.save(str(OUT / "unigram.json"), pretty=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=converted, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    cases = []
    for text in TEXTS:
        ids = fast(prompt_clean(text), max_length=512, truncation=True, add_special_tokens=True).input_ids
        cases.append({"text": text, "ids": ids})
    (OUT / "unigram_tokens.json").write_text(json.dumps(cases, ensure_ascii=True, indent=0) + "\n")


if __name__ == "__main__":
    main()
